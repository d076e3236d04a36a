"""Sums of products on one thread: as numpy's own, whatever the layout."""

from __future__ import annotations

import numpy as np
import pytest

from llama_ckpt.judging.sums import inner, norm_of


@pytest.mark.parametrize("shape", [(0,), (7,), (300, 400), (20, 8, 20)])
def test_they_are_numpys(shape: tuple[int, ...]) -> None:
    a, b = np.random.default_rng(1).standard_normal((2, *shape))
    assert inner(a, b) == pytest.approx(float(np.sum(a * b)), abs=1e-9)
    assert inner(a.T, b.T) == pytest.approx(inner(a, b), abs=1e-9)
    assert norm_of(a.T) == pytest.approx(float(np.linalg.norm(a)), rel=1e-12)


def test_what_is_not_finite_stays_so() -> None:
    assert np.isnan(norm_of(np.array([1.0, np.nan]))) and np.isinf(norm_of(np.array([np.inf, 1.0])))
