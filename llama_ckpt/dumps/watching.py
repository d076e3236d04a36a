"""Watches attention from the side: the products, the softmax or the fused call, and what they are given.

No hook sees q and k after RoPE, scores or probabilities: they are never handed from module to module. But
each program multiplies them by one of torch's own functions, and a `TorchFunctionMode` is shown every call
of these. Nothing is replaced, so the program that is recorded is the program that runs:

    scores = q @ k.T; …; probs @ v                  both products, of which the second's left side is probs
    scaled_dot_product_attention(q, k, v)           q, k, v and the context; scores and probs stay inside

A kernel that torch is not asked for shows nothing, and then these points are not seen.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from llama_ckpt.dumps.attention import Attention, Look, Product, Softmax, attention_of
from llama_ckpt.dumps.hooks import BLOCK, places, submodules
from llama_ckpt.dumps.recorder import as_numpy, dtype_name

__all__ = ["Watch", "watching"]

Array: TypeAlias = NDArray[np.float32]

PRODUCTS = frozenset({"matmul", "__matmul__", "bmm", "mm"})
FUSED = re.compile(r"scaled_dot_product\w*_attention|flex_attention")
"""Functions that are given q, k, v first, each `[…, heads, n, head_dim]`."""


class Watch(TorchFunctionMode):
    """Sees the calls that a program makes of torch's functions, and sorts them by block.

    Attributes:
        block: the block that runs, None outside of all.
        seen: what was seen in each block, in order.
    """

    def __init__(self, weights: frozenset[int]) -> None:
        super().__init__()
        self.weights = weights
        self.block: int | None = None
        self.seen: dict[int, list[Look]] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if self.block is not None:
            looks = self._look(getattr(func, "__name__", ""), args, kwargs or {}, result)
            self.seen.setdefault(self.block, []).extend(look for look in looks if look is not None)
        return result

    def _look(
        self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any
    ) -> Iterator[Look | None]:
        given = [*args, *kwargs.values()]
        if name in PRODUCTS and len(given) >= 2:
            yield self._product(given[0], given[1], result)
        elif name == "baddbmm":
            yield self._added_product(args, kwargs, result)
        elif name == "einsum":
            operands = args[1] if isinstance(args[1], list | tuple) else args[1:]
            yield from self._einsum(args[0], list(operands), result)
        elif name == "softmax" and isinstance(result, Tensor):
            dim = kwargs.get("dim", args[1] if len(args) > 1 else -1)
            yield Softmax(dim in (-1, result.ndim - 1), tuple(result.shape))
        elif FUSED.search(name):
            yield _fused(args, kwargs, result)

    def _product(self, a: Any, b: Any, out: Any) -> Product | None:
        if not (_is_float(a) and _is_float(b) and _is_float(out)) or a.ndim < 2 or b.ndim < 2:
            return None
        if b.ndim == 2 < a.ndim or self._is_weight(a) or self._is_weight(b):
            return None  # a projection, written out
        return Product(_copy(a), _copy(b), _copy(out), (dtype_name(a), dtype_name(b), dtype_name(out)))

    def _added_product(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> Product | None:
        """`beta * added + alpha * (a @ b)`, as scores are made with their scale and mask: both undone."""
        names = ("input", "batch1", "batch2")
        added, a, b = [*args, *(kwargs[name] for name in names[len(args) :] if name in kwargs)][:3]
        product = self._product(a, b, out)
        alpha, beta = (float(kwargs.get(name, 1.0)) for name in ("alpha", "beta"))
        if product is None or not _is_float(added) or alpha == 0.0:
            return None
        with np.errstate(all="ignore"):  # what the mask hides is infinite, and is no number any more
            scores = product.out - np.float32(beta) * _copy(added) if beta else product.out
            scores = np.where(np.isfinite(scores), scores, np.float32(-np.inf)) / np.float32(alpha)
        return replace(product, out=scores.astype(np.float32, copy=False))

    def _einsum(self, equation: Any, operands: list[Any], out: Any) -> Iterator[Product]:
        if not isinstance(equation, str) or len(operands) != 2 or not all(map(_is_float, [*operands, out])):
            return
        if any(map(self._is_weight, operands)):
            return
        for place, a, b, order in _as_products(equation.replace(" ", ""), *operands):
            dtypes = (dtype_name(a), dtype_name(b), dtype_name(out))
            yield Product(_copy(a), _copy(b), _copy(out.permute(order)), dtypes, place)

    def _is_weight(self, x: Tensor) -> bool:
        return _storage(x) in self.weights


def _storage(x: Tensor) -> int | None:
    """Where a tensor's values lie; None of one that only wraps others, as quantized weights do."""
    try:
        return x.untyped_storage().data_ptr() or None
    except (NotImplementedError, RuntimeError):
        return None


def _is_float(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def _copy(x: Tensor) -> Array:
    return as_numpy(x, "attention")


def _as_products(equation: str, a: Tensor, b: Tensor) -> Iterator[tuple[str, Tensor, Tensor, list[int]]]:
    """An einsum's operands as those of a product, and the order that its output's axes have in it.

    Nothing where more than one axis is summed, or the right side has not one of its own. Where the left
    side has several, such as the token's and the group's, the token's is the one before the keys': in the
    output of the first product of an attention, in the left side of the second.
    """
    found = re.fullmatch(r"([a-zA-Z]+),([a-zA-Z]+)->([a-zA-Z]+)", equation)
    if found is None or any(len(set(each)) != len(each) for each in found.groups()):
        return
    left, right, out = found.groups()
    summed = [axis for axis in left if axis in right and axis not in out]
    rows = [axis for axis in out if axis in left and axis not in right]
    columns = [axis for axis in out if axis in right and axis not in left]
    if len(summed) != 1 or not rows or len(columns) != 1:
        return
    places = {"": rows[0]} if len(rows) == 1 else {"first": out[-2:-1], "second": left[-2:-1]}
    for place, row in places.items():
        if row not in rows:
            continue
        lead = [axis for axis in out if axis not in (row, columns[0])]
        order = [out.index(axis) for axis in [*lead, row, columns[0]]]
        laid = _laid(a, left, lead, [row, *summed]), _laid(b, right, lead, [*summed, *columns])
        yield place, *laid, order


def _laid(x: Tensor, own: str, lead: list[str], last: list[str]) -> Tensor:
    """An operand with its axes in the order of `lead` and `last`; one that it has not is of size one."""
    missing = [axis for axis in lead if axis not in own]
    axes = [*own, *missing]
    return x.reshape(*x.shape, *[1] * len(missing)).permute([axes.index(axis) for axis in [*lead, *last]])


def _fused(args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> Attention | None:
    given = [*args, *(kwargs[key] for key in ("query", "key", "value") if key in kwargs)][:3]
    context = result[0] if isinstance(result, tuple) else result
    if len(given) < 3 or not all(map(_is_float, [*given, context])):
        return None
    q, k, v = (_copy(x).reshape(-1, *x.shape[-2:]) for x in given)
    dtypes = dict(zip(("q", "k", "v", "context"), map(dtype_name, [*given, context]), strict=True))
    return Attention(q, k, v, context=_copy(context).reshape(-1, *context.shape[-2:]), dtypes=dtypes)


@contextmanager
def watching(module: nn.Module, paths: list[str]) -> Iterator[Callable[[], dict[int, Attention]]]:
    """While it lasts, attention in the blocks that the paths of a mapping name is watched.

    It yields a function: what was seen, by the block's number.
    """
    handles: list[Any] = []
    watch = Watch(frozenset(place for p in module.parameters() if (place := _storage(p)) is not None))
    try:
        for prefix in sorted({path.partition(BLOCK)[0] + BLOCK for path in paths if BLOCK in path}):
            for block, submodule in _entered(module, prefix):
                handles.append(submodule.register_forward_pre_hook(_enter(watch, block)))
        with watch:
            yield lambda: _told(watch)
    finally:
        for handle in handles:
            handle.remove()


def _told(watch: Watch) -> dict[int, Attention]:
    told = {block: attention_of(seen) for block, seen in watch.seen.items()}
    return {block: attention for block, attention in told.items() if attention is not None}


def _entered(module: nn.Module, prefix: str) -> Iterator[tuple[list[int], nn.Module]]:
    """The submodules of blocks, whose calls say which block runs, each with the numbers of its calls.

    A part that several blocks share says nothing, unless the whole block is shared.
    """
    whole = {id(submodule) for submodule, _ in places(module, prefix)}
    pattern = re.escape(prefix).replace(re.escape(BLOCK), r"([0-9]{1,9})")
    found: dict[int, tuple[list[int], nn.Module]] = {}
    for name, submodule in submodules(module):
        if match := re.match(pattern + r"(\.|$)", name):
            numbers = found.setdefault(id(submodule), ([], submodule))[0]
            if int(match.group(1)) not in numbers:
                numbers.append(int(match.group(1)))
    for key, (numbers, submodule) in found.items():
        if len(numbers) == 1 or key in whole:
            yield numbers, submodule


def _enter(watch: Watch, numbers: list[int]) -> Callable[..., None]:
    calls = iter(numbers)

    def hook(module: nn.Module, args: Any) -> None:
        watch.block = numbers[0] if len(numbers) == 1 else next(calls, None)

    return hook
