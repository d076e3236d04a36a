"""Any value of a report, as one that JSON has."""

from __future__ import annotations

import json
import math

import numpy as np

from llama_ckpt.json_values import finite


def test_numbers_of_numpy_and_what_is_not_finite() -> None:
    said = {
        "explained": np.bool_(True),
        "rows": (np.int64(3), np.float32(0.5)),
        "curve": np.array([[1.0, np.nan], [-np.inf, 2.0]]),
        "left": math.inf,
        "point": "q",
    }
    wanted = {
        "explained": True,
        "rows": [3, 0.5],
        "curve": [[1.0, None], [None, 2.0]],
        "left": None,
        "point": "q",
    }
    assert json.loads(json.dumps(finite(said), allow_nan=False)) == wanted
