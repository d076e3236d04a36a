"""A layer held against the oracle: both are called once with the same values and judged point by point."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from llama_ckpt.judging.limits import EXACT, ErrorKind, limit_for
from llama_ckpt.judging.verdict import PointVerdict, causal_mask, judge
from llama_ckpt.ladder.tensors_found import as_numpy
from llama_ckpt.ladder.trial import run_case
from llama_ckpt.oracle import llama as oracle
from llama_ckpt.points import POINTS, Case, split_name
from llama_ckpt.weights.quants import PackedWeight, exact_matmul

__all__ = ["check_capturable", "check_passes", "check_same_bits", "exact", "judged", "results"]


def exact(value: Any) -> Any:
    """What the oracle gets for an argument of a layer: the same values in float64, integers as they are."""
    if isinstance(value, PackedWeight):
        return value.dequantize().double().cpu().numpy()
    if isinstance(value, torch.Tensor):
        return (value.double() if value.is_floating_point() else value).cpu().numpy()
    if dataclasses.is_dataclass(value) and any(
        isinstance(v, torch.Tensor | tuple) for v in vars(value).values()
    ):
        return SimpleNamespace(**{name: exact(one) for name, one in vars(value).items()})
    return tuple(exact(one) for one in value) if isinstance(value, tuple) else value


def results(layer: Callable[..., Any], case: Case, *, taps: bool = True) -> dict[str, Any]:
    """What a layer returns and shows, by full point name; exact products on CUDA."""
    with exact_matmul():
        return run_case(layer, case, taps=taps)


def judged(
    layer: Callable[..., Any],
    arguments: Mapping[str, Any],
    returns: Sequence[str],
    *,
    taps: Sequence[str] = (),
    function: str | None = None,
    dtype: torch.dtype = torch.float32,
    error_kind: ErrorKind = "own",
    without: Sequence[str] = (),
) -> list[PointVerdict]:
    """Call a layer and the oracle's function of that name; a verdict for each point.

    Args:
        layer: on trial. arguments: for both. returns: the points that it returns, in order.
        taps: the inner points that it shows. function: the oracle's, where the names differ.
        dtype: what the layer computes in.
        without: arguments that the oracle does not know (a cache).
    """
    # A layer knows its own points' short names, the whole model the full ones.
    shown = {short: name for name in taps for short in (name, split_name(name)[1])}
    case = Case(function or layer.__name__, arguments, tuple(returns), shown)
    known = {name: exact(value) for name, value in arguments.items() if name not in without}
    wanted = run_case(getattr(oracle, case.function), dataclasses.replace(case, arguments=known))
    return [
        verdict(name, x, wanted[name], arguments, dtype, error_kind)
        for name, x in results(layer, case, taps=bool(taps)).items()
    ]


def verdict(
    name: str, x: Any, o: Any, arguments: Mapping[str, Any], dtype: torch.dtype, error_kind: ErrorKind
) -> PointVerdict:
    """Judge one point as the ladder does: its limit, its mask, the tensor's own dtype."""
    point = split_name(name)[1].split(".")[0]
    causal = point in POINTS and POINTS[point].causal
    kind = "float32" if point in EXACT or point == "sampling" else str(dtype).removeprefix("torch.")
    array, own = as_numpy(x)
    mask = None
    if causal:
        ids = arguments.get("sequence_ids")
        mask = causal_mask(arguments["positions"].cpu(), None if ids is None else ids.cpu())
    return judge(name, array, o, limit=limit_for(name, kind, error_kind), mask=mask, dtype=own)


def check_passes(verdicts: Sequence[PointVerdict]) -> None:
    """Something was judged, and all of it passes."""
    assert verdicts
    failed = [f"{one.name}: {one.reason}" for one in verdicts if one.verdict != "pass"]
    assert not failed, "\n".join(failed)


def check_same_bits(
    layer: Callable[..., Any], arguments: Mapping[str, Any], *, taps: Sequence[str] = ()
) -> None:
    """Two calls with equal inputs give equal bits, at every point."""
    runs = []
    for _ in range(2):
        seen: list[Any] = []
        extra = {"tap": lambda point, tensor, seen=seen: seen.append(tensor.clone())} if taps else {}
        with exact_matmul(), torch.inference_mode():
            returned = layer(**arguments, **extra)
        runs.append([*seen, *(returned if isinstance(returned, tuple) else (returned,))])
        assert len(seen) == len(taps)
    for first, second in zip(*runs, strict=True):
        assert first.dtype == second.dtype
        assert torch.equal(first.view(torch.uint8), second.view(torch.uint8))


def check_capturable(layer: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """The layer runs on tensors that have shapes but no values, so nothing in it depends on a value.

    Reading one back (`.item()`, `int(x)`, `if x`) or a shape that depends on one (`nonzero`, a boolean
    index) raises there, and would keep a layer from being captured in a CUDA graph.
    """
    with FakeTensorMode() as mode:
        fakes = _with_tensors(arguments, mode.from_tensor)
        returned = layer(**fakes)
    real = layer(**arguments)
    shapes = [[(t.shape, t.dtype) for t in pytree.tree_leaves(one)] for one in (returned, real)]
    assert shapes[0] == shapes[1]


def _with_tensors(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The same structure with every tensor in it changed; records are copied."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {name: _with_tensors(one, change) for name, one in value.items()}
    if isinstance(value, tuple):
        return tuple(_with_tensors(one, change) for one in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return dataclasses.replace(
            value, **{name: _with_tensors(one, change) for name, one in fields.items()}
        )
    return value
