"""Products as an H200 made them with torch 2.11: fp8 by `_scaled_mm`, attention in TF32 by its math kernel.

The files hold what it gave, of the values of a block of a model that is made here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llama_ckpt.arithmetic.either import choices
from llama_ckpt.arithmetic.formats import rounded
from llama_ckpt.arithmetic.profiles import PROFILES
from llama_ckpt.arithmetic.rounded_oracle import rounded_oracle
from llama_ckpt.arithmetic.tensor_cores import FP8_SUMS, fp8_products
from llama_ckpt.gguf.file import open_gguf
from llama_ckpt.oracle.weights import OracleWeights
from llama_ckpt.weights.config import LlamaConfig
from tests.comparing.ported_llama import Array, seeded

DATA = Path(__file__).parents[1] / "data"
FORMAT = "fp8_e4m3 per tensor"
MODELS: dict[str, dict[str, Any]] = {
    "one": {"n_layers": 1},
    "wide": {"n_layers": 2, "width": 512, "n_heads": 8, "n_kv_heads": 2, "ffn": 768, "vocab": 512},
}
KERNELS = {"fp8": "fp8 tensor cores", "fp8fast": "fp8 tensor cores, fast"}


def relative(x: Array, y: Array) -> float:
    return float(np.linalg.norm(x - y) / np.linalg.norm(y))


def values_of(model: str) -> Array:
    """The weight of the values' product in the first block."""
    file = open_gguf(seeded(**MODELS[model]))
    return np.asarray(OracleWeights(file, LlamaConfig.from_gguf(file)).blocks[0].wv)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_fp8_sums_are_those_of_the_tensor_cores(model: str, kernel: str) -> None:
    found = np.load(DATA / "fp8_of_an_h200.npz")
    x, y = found[f"{model}.x"].astype(np.float64), found[f"{model}.{kernel}"]
    a, b = rounded(x, FORMAT), rounded(values_of(model), FORMAT)
    whole = fp8_products(a, b, KERNELS[kernel])[:, : y.shape[1]]
    assert relative(y, whole) < 2e-7
    assert relative(y, a @ b[: y.shape[1]].T) > 5e-5, "not what float32 sums come to"
    others = [sums for sums in FP8_SUMS if sums != KERNELS[kernel]]
    apart = [relative(y, fp8_products(a, b, sums)[:, : y.shape[1]]) for sums in others]
    assert (min(apart) > 1e-5) == (model == "wide"), "up to 128 products both are the same"


def test_no_row_depends_on_how_many_are_made_at_once() -> None:
    x, w = (np.random.default_rng(n).standard_normal((n, 160)) for n in (5, 7))
    a, b = rounded(x, "fp8_e4m3 per row"), rounded(w, "fp8_e4m3 per row")
    whole = fp8_products(a, b, "fp8 tensor cores")
    assert np.array_equal(whole[2:3], fp8_products(a[2:3], b, "fp8 tensor cores"))
    assert relative(whole, a @ b.T) < 1e-3
    assert not fp8_products(np.zeros((2, 32)), b[:, :32], "fp8 tensor cores").any()


def test_one_of_the_choices_is_what_the_library_made() -> None:
    """Scores of queries and keys with the scale's root each, in TF32; a short sum of values in float32."""
    found = {
        name: x.astype(np.float64) for name, x in np.load(DATA / "tf32_attention_of_an_h200.npz").items()
    }
    n, heads, width = found["q"].shape
    left = {}
    for one in (PROFILES["tf32"], *choices(PROFILES["tf32"], ("attention",))):
        oracle, seen = rounded_oracle(one), dict[str, Array]()
        oracle.attention(
            found["q"],
            found["k"],
            found["v"],
            np.eye(heads * width),
            positions=range(n),
            tap=seen.__setitem__,
        )
        left[one.scaling, one.mixing] = min(
            relative(found["context"].reshape(n, -1), seen["attn_context"]),
            left.get((one.scaling, one.mixing), 1.0),
        )
    assert min(left, key=lambda key: left[key]) == ("queries and keys", "float32")
    assert left["queries and keys", "float32"] < 5e-7 < 1e-4 < left["scores", "tf32"]
    assert not list(choices(PROFILES["float16-torch"], ("attention", "products"))), (
        "it rounds, or it does not"
    )
