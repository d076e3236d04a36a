"""Watches attention from the side: the products, the softmax or the fused call, and what they are given.

No hook sees q and k after RoPE, scores or probabilities: they are never handed from module to module. But
each program multiplies them by one of torch's own functions, and a `TorchFunctionMode` is shown every call
of these. Nothing is replaced, so the program that is recorded is the program that runs:

    scores = q @ k.T; …; probs @ v                  both products, of which the second's left side is probs
    scaled_dot_product_attention(q, k, v)           q, k, v and the context; scores and probs stay inside

A kernel that torch is not asked for shows nothing, and then these points are not seen.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from llama_ckpt.dumps.hooks import BLOCK, places, submodules

__all__ = ["Attention", "Watch", "watching"]

Array: TypeAlias = NDArray[np.float32]

PRODUCTS = frozenset({"matmul", "__matmul__", "bmm", "mm"})
FUSED = re.compile(r"scaled_dot_product\w*_attention|flex_attention")
"""Functions that are given q, k, v first, each `[…, heads, n, head_dim]`."""


@dataclass(frozen=True)
class Product:
    """One product of two tensors that are no weights: `a @ b`, with leading axes in common.

    Attributes:
        a, b, out: `[…, n, d]`, `[…, d, m]`, `[…, n, m]`, copied when it was made.
        dtypes: of the three.
    """

    a: Array
    b: Array
    out: Array
    dtypes: tuple[str, str, str]


@dataclass(frozen=True)
class Softmax:
    """That one was made between two products, and over which axis: `last` is that of the keys."""

    last: bool
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Attention:
    """What one block's attention was given and what it gave; None for what was not seen.

    Attributes:
        q: `[heads, n, head_dim]`; k, v: `[heads, keys, head_dim]`, with as many heads and keys as it had.
        scores, probs: `[heads, n, keys]`. context: `[heads, n, head_dim]`.
        dtypes: of each by name.
    """

    q: Array
    k: Array
    v: Array | None = None
    scores: Array | None = None
    probs: Array | None = None
    context: Array | None = None
    dtypes: Mapping[str, str] = field(default_factory=dict)


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
        self.seen: dict[int, list[Product | Softmax | Attention]] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if self.block is not None:
            look = self._look(getattr(func, "__name__", ""), args, kwargs or {}, result)
            if look is not None:
                self.seen.setdefault(self.block, []).append(look)
        return result

    def _look(
        self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any
    ) -> Product | Softmax | Attention | None:
        given = [*args, *kwargs.values()]
        if name in PRODUCTS and len(given) >= 2:
            return self._product(given[0], given[1], result)
        if name == "einsum":
            operands = args[1] if isinstance(args[1], list | tuple) else args[1:]
            return self._einsum(args[0], list(operands), result)
        if name == "softmax" and isinstance(result, Tensor):
            dim = kwargs.get("dim", args[1] if len(args) > 1 else -1)
            return Softmax(dim in (-1, result.ndim - 1), tuple(result.shape))
        if FUSED.search(name):
            return _fused(args, kwargs, result)
        return None

    def _product(self, a: Any, b: Any, out: Any) -> Product | None:
        if not (_is_float(a) and _is_float(b) and _is_float(out)) or a.ndim < 2 or b.ndim < 2:
            return None
        if b.ndim == 2 < a.ndim or self._is_weight(a) or self._is_weight(b):
            return None  # a projection, written out
        return Product(_copy(a), _copy(b), _copy(out), (_dtype(a), _dtype(b), _dtype(out)))

    def _einsum(self, equation: Any, operands: list[Any], out: Any) -> Product | None:
        if not isinstance(equation, str) or len(operands) != 2 or not all(map(_is_float, [*operands, out])):
            return None
        if any(map(self._is_weight, operands)):
            return None
        turned = _as_product(equation.replace(" ", ""), *operands)
        if turned is None:
            return None
        a, b, order = turned
        dtypes = (_dtype(a), _dtype(b), _dtype(out))
        return Product(_copy(a), _copy(b), _copy(out.permute(order)), dtypes)

    def _is_weight(self, x: Tensor) -> bool:
        return x.untyped_storage().data_ptr() in self.weights


def _is_float(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def _copy(x: Tensor) -> Array:
    return x.detach().float().cpu().numpy().copy()


def _dtype(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def _as_product(equation: str, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, list[int]] | None:
    """An einsum's operands as those of a product, and the order that its output's axes have in it.

    None where more than one axis is summed, or either side has no axis of its own last.
    """
    found = re.fullmatch(r"([a-zA-Z]+),([a-zA-Z]+)->([a-zA-Z]+)", equation)
    if found is None or any(len(set(each)) != len(each) for each in found.groups()):
        return None
    left, right, out = found.groups()
    summed = [axis for axis in left if axis in right and axis not in out]
    rows = [axis for axis in out if axis in left and axis not in right]
    columns = [axis for axis in out if axis in right and axis not in left]
    if len(summed) != 1 or not rows or len(columns) != 1:
        return None
    # Of several axes that q alone has, such as the group and the token, the token's is nearest the keys'.
    lead = [axis for axis in out if axis not in (rows[-1], columns[0])]
    order = [*lead, rows[-1], columns[0]]

    def laid(x: Tensor, own: str, last: list[str]) -> Tensor:
        missing = [axis for axis in lead if axis not in own]
        axes = [*own, *missing]
        return x.reshape(*x.shape, *[1] * len(missing)).permute([axes.index(axis) for axis in [*lead, *last]])

    return laid(a, left, [rows[-1], *summed]), laid(b, right, [*summed, *columns]), [*map(out.index, order)]


def _fused(args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> Attention | None:
    given = [*args, *(kwargs[key] for key in ("query", "key", "value") if key in kwargs)][:3]
    context = result[0] if isinstance(result, tuple) else result
    if len(given) < 3 or not all(map(_is_float, [*given, context])):
        return None
    q, k, v = (_copy(x).reshape(-1, *x.shape[-2:]) for x in given)
    dtypes = dict(zip(("q", "k", "v", "context"), map(_dtype, [*given, context]), strict=True))
    return Attention(q, k, v, context=_copy(context).reshape(-1, *context.shape[-2:]), dtypes=dtypes)


def attention_of(seen: list[Product | Softmax | Attention]) -> Attention | None:
    """One block's attention from what was seen in it; heads that were computed one by one are put together.

    None where there was none, or where both ways were gone, so that it can't be told what is what.
    """
    fused = [each for each in seen if isinstance(each, Attention)]
    pairs = list(_pairs(seen))
    if bool(fused) == bool(pairs):
        return None
    parts = fused or [_from_products(*pair) for pair in pairs]
    if len({(part.q.shape[1:], part.k.shape[1:]) for part in parts}) != 1:
        return None
    if len(parts) > 1 and any(part.q.shape[0] != 1 for part in parts):
        return None

    def together(name: str) -> Any:
        each = [getattr(part, name) for part in parts]
        return None if any(one is None for one in each) else np.concatenate(each)

    names = ("q", "k", "v", "scores", "probs", "context")
    return Attention(**{name: together(name) for name in names}, dtypes=parts[0].dtypes)


def _pairs(seen: list[Product | Softmax | Attention]) -> Iterator[tuple[Product, Product]]:
    """The two products of an attention: what the first gives has the second's left side's shape.

    A softmax over another axis than the last says that rows are not the queries; two axes alone may be
    those of any product, so there one must stand between.
    """
    before: list[Product] = []
    between: list[Softmax] = []
    for each in seen:
        if isinstance(each, Softmax):
            between.append(each)
        elif isinstance(each, Product):
            first = next((one for one in reversed(before) if _fits(one, each)), None)
            rows_are_queries = all(one.last for one in between if math.prod(one.shape) == each.a.size)
            if first is not None and rows_are_queries and (between or each.a.ndim > 2):
                yield first, each
                before, between = [], []
            else:
                before.append(each)


def _fits(first: Product, second: Product) -> bool:
    return first.out.size == second.a.size and first.out.shape[-2:] == second.a.shape[-2:]


def _from_products(first: Product, second: Product) -> Attention:
    lead = np.broadcast_shapes(first.a.shape[:-2], first.b.shape[:-2])
    n, m = first.out.shape[-2:]
    q = np.broadcast_to(first.a, (*lead, *first.a.shape[-2:])).reshape(-1, *first.a.shape[-2:])
    k = first.b.swapaxes(-1, -2).reshape(-1, m, first.b.shape[-2])
    names = ("q", "k", "scores", "probs", "v", "context")
    return Attention(
        q,
        k,
        second.b.reshape(-1, *second.b.shape[-2:]),
        scores=first.out.reshape(-1, n, m),
        probs=second.a.reshape(-1, n, m),
        context=second.out.reshape(-1, n, second.out.shape[-1]),
        dtypes=dict(zip(names, first.dtypes + second.dtypes, strict=True)),
    )


@contextmanager
def watching(module: nn.Module, paths: list[str]) -> Iterator[Callable[[], dict[int, Attention]]]:
    """While it lasts, attention in the blocks that the paths of a mapping name is watched.

    It yields a function: what was seen, by the block's number.
    """
    handles: list[Any] = []
    watch = Watch(frozenset(p.untyped_storage().data_ptr() for p in module.parameters()))
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
    pattern = re.escape(prefix).replace(re.escape(BLOCK), r"(\d+)")
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
