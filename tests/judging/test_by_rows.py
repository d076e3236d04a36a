"""A verdict made of a few rows at a time is the one that is made of all at once."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from llama_ckpt.judging.by_rows import judge_by_rows
from llama_ckpt.judging.limits import limit_for, within
from llama_ckpt.judging.rows_seen import Rows
from llama_ckpt.judging.spread import RowSums, Spread
from llama_ckpt.judging.tally import Tally
from llama_ckpt.judging.verdict import PointVerdict, causal_mask, judge

N, HEADS = 40, 3


def scores(seed: int) -> Any:
    """As attention's: the first rows are next to nothing beside the others where they are judged."""
    draw = np.random.default_rng(seed)
    return draw.standard_normal((N, HEADS, N)) * np.geomspace(0.01, 3, N)[:, None, None]


def spread_of(o: Any, seed: int, kind: str) -> Spread:
    draw = np.random.default_rng(seed)
    deviation = np.abs(draw.standard_normal(o.shape)) * 1e-7 * (0.1 + np.abs(o))
    if kind == "apart":
        return Spread(deviation, most=np.abs(o) * 2e-7, lean=1e-6)
    if kind == "aligned":
        return Spread(deviation, aligned=True, everywhere=1e-8)
    return Spread(deviation, sums=RowSums(*np.abs(draw.standard_normal((2, len(o)))) * 1e-6), shared=1e-8)


def by_rows(x: Any, o: Any, limit: Any, spread: Spread | None, r: Any, mask: Any, tally: Tally) -> Any:
    def made() -> Any:
        for start in range(0, len(o), 7):
            part = slice(start, start + 7)

            def flat(array: Any, part: slice = part) -> Any:
                return np.broadcast_to(array, o.shape)[part].reshape(len(o[part]), -1)

            cut = None
            if spread is not None:
                cut = spread.rows(part)
                most = None if cut.most is None else flat(spread.most)
                lean = spread.lean if start == 0 else 0.0
                cut = Spread(
                    flat(spread.deviation), most, lean, cut.shared,
                    everywhere=cut.everywhere, aligned=cut.aligned, sums=cut.sums,
                )  # fmt: skip
            yield Rows(
                flat(x),
                flat(o),
                None if r is None else flat(r),
                cut,
                None if mask is None else flat(mask),
            )

    return judge_by_rows("blk.0.attn_scores", o.shape, made, limit, tally=tally)


def same(a: PointVerdict, b: PointVerdict) -> None:
    for field in fields(PointVerdict):
        got, wanted = getattr(a, field.name), getattr(b, field.name)
        if isinstance(wanted, float) and field.name not in ("got", "wanted"):
            both_nan = math.isnan(got) and math.isnan(wanted)
            assert both_nan or got == pytest.approx(wanted, rel=1e-6, abs=1e-15), field.name
        elif field.name == "reason":
            assert got.split(" > ")[0].split(" ")[0] == wanted.split(" > ")[0].split(" ")[0]
        else:
            assert got == wanted or (got != got and wanted != wanted), field.name


@pytest.mark.parametrize("kind", ["apart", "aligned", "sums", None])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("size", [1e-8, 1e-6, 1e-3])
@pytest.mark.parametrize("with_reference", [False, True])
def test_it_is_the_verdict_on_the_whole(
    kind: str | None, masked: bool, size: float, with_reference: bool
) -> None:
    o = scores(1)
    draw = np.random.default_rng(2)
    x = np.float32(o + size * draw.standard_normal(o.shape) * (0.1 + np.abs(o)))
    r = np.float32(o + 1e-6 * draw.standard_normal(o.shape)) if with_reference else None
    mask = causal_mask(np.arange(N)) if masked else None
    limit = limit_for("attn_scores", "float32", "total" if kind is None else "own")
    spread = None if kind is None else spread_of(o, 3, kind)
    whole, tallies = limit if spread is None else within(limit, spread, o, mask), [Tally(), Tally()]
    tallies[0].add("blk.0.attn_scores", limit.error_kind, x, o, mask)
    wanted = judge("blk.0.attn_scores", x, o, limit=whole, r=r, mask=mask, dtype="float32")
    got, held = by_rows(x, o, limit, spread, r, mask, tallies[1])
    same(got, wanted)
    for name in ("err", "row_err", "gain", "bias"):
        assert getattr(held, name) == pytest.approx(getattr(whole, name), rel=1e-6), name
    assert tallies[0].to_json() == tallies[1].to_json()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_told_alike(value: float) -> None:
    o, mask = scores(1), causal_mask(np.arange(N))
    x = np.float32(o)
    x[3, 1, 30] = value  # nobody sees it
    limit = limit_for("attn_scores", "float32", "own")
    spread = spread_of(o, 3, "apart")
    assert by_rows(x, o, limit, spread, None, mask, Tally())[0].verdict == "pass"
    x[20, 2, 5] = x[25, 1, 1] = value
    wanted = judge("blk.0.attn_scores", x, o, limit=limit, mask=mask, dtype="float32")
    got, _ = by_rows(x, o, limit, spread, None, mask, Tally())
    assert got.index == (20, 2, 5) and got.n_differ == 2
    assert (got.reason, got.verdict, got.index, got.n_differ) == (
        wanted.reason, "fail", wanted.index, wanted.n_differ,
    )  # fmt: skip
