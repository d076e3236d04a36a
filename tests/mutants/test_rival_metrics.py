"""Other tools' metrics: right by their own formulas, with the blind spots that they have."""

from __future__ import annotations

import numpy as np
import pytest

from llama_ckpt.mutants.rival_metrics import RIVALS, cosine, nmse, pcc

BY_NAME = {rival.name: rival for rival in RIVALS}


def tensor(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape)


def test_formulas_by_hand() -> None:
    x, r = np.array([1.0, 2.0, 2.0]), np.array([2.0, 1.0, 2.0])
    assert cosine(x, r) == pytest.approx(8 / 9)
    assert pcc(x, r) == pytest.approx(-0.5)
    assert nmse(x, r) == pytest.approx(2 / 9)


@pytest.mark.parametrize("rival", RIVALS, ids=lambda rival: rival.name)
def test_equal_tensors_pass_and_other_shapes_fail(rival) -> None:  # type: ignore[no-untyped-def]
    x = tensor(8, 64)
    assert rival.passes(x, x)
    assert not rival.passes(x[:4], x)


def failing(x: np.ndarray, r: np.ndarray) -> set[str]:
    return {rival.name for rival in RIVALS if not rival.passes(x, r)}


def test_blind_spots() -> None:
    r = tensor(8, 64)
    assert failing(1.04 * r, r) == {"NMSE ≤ 5e-4", "elementwise 1e-5", "means, 1e-3"}
    assert failing(1.02 * r, r) - {"means, 1e-3"} == {"elementwise 1e-5"}
    assert "means, 1e-3" not in failing(r[:, ::-1], r)
    nan = r.copy()
    nan[0, 0] = np.nan
    assert {"PCC ≥ 0.99"}.isdisjoint(failing(nan, r))
    assert {"cosine ≥ 0.99", "NMSE ≤ 5e-4", "elementwise 1e-5"} <= failing(nan, r)


def test_constants_correlate_when_equal() -> None:
    assert BY_NAME["PCC ≥ 0.99"].passes(np.zeros(5), np.zeros(5))
    assert not BY_NAME["PCC ≥ 0.99"].passes(np.zeros(5), np.arange(5))
