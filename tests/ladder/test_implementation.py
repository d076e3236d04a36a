"""Somebody's own layer on trial: right ones pass, wrong ones are named, broken ones reported as such."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import checkpoints
import llama_ckpt
import reference_dumps
from llama_ckpt.errors import OptionError
from llama_ckpt.ladder.climb import validate
from llama_ckpt.ladder.discovery import discover
from llama_ckpt.ladder.implementation import load_implementation
from llama_ckpt.ladder.report import LadderReport

Tensor = torch.Tensor
DUMPS = reference_dumps.dump_folder("f32")

# Taken now: while a layer is on trial, the checkpoints' own names lead to it.
OUR_BLOCK, OUR_LOGITS, OUR_GENERATE = checkpoints.block, checkpoints.logits, checkpoints.generate


def tried(implementation: Any, checkpoint: str | None = None, **options: Any) -> LadderReport:
    """One dump folder is enough here, and takes a quarter of the time of all four."""
    options = {"dumps": DUMPS, "device": "cpu"} | options
    return validate(checkpoint, implementation=implementation, **options)


def rms_norm(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def by_position(hidden: Tensor, gain: Tensor, epsilon: float) -> Tensor:
    return rms_norm(hidden, gain, eps=epsilon)


def in_numpy(x: NDArray[np.float32], weight: NDArray[np.float32], eps: float) -> NDArray[np.float32]:
    assert type(x) is type(weight) is np.ndarray
    mean = np.mean(x * x, axis=-1, keepdims=True, dtype=np.float32)
    return x / np.sqrt(mean + np.float32(eps)) * weight


def attention(q: Tensor, k: Tensor, v: Tensor, wo: Tensor, *, positions: Tensor) -> Tensor:
    scores = torch.einsum("thd,shd->hts", q, k) / q.shape[-1] ** 0.5
    hidden = positions[None, :] > positions[:, None]
    probs = scores.masked_fill(hidden, float("-inf")).softmax(-1)
    return torch.einsum("hts,shd->thd", probs, v).flatten(1) @ wo.T


def attention_with_tap(
    q: Tensor, k: Tensor, v: Tensor, wo: Tensor, *, positions: Tensor, tap: Any = None
) -> Tensor:
    scores = torch.einsum("thd,shd->ths", q, k)
    if tap:
        tap("attn_scores", scores)  # and nothing else: the probabilities are then missing
    return attention(q, k, v, wo, positions=positions)


@pytest.mark.parametrize("layer", [rms_norm, by_position, in_numpy], ids=lambda f: f.__name__)
def test_a_right_layer_passes(layer: Any) -> None:
    report = tried(layer, "1")
    (result,) = report.checkpoints
    assert report.exit_code == 0 and result.verdict == "pass", result.reason
    assert result.compared == result.of > 200
    arrays = "numpy" if layer is in_numpy else "torch"
    assert any(f"in the place of rms_norm, and gets {arrays} arrays" in note for note in report.notes)
    assert {point.verdict.error_kind for point in result.points} == {"own", "total"}


def test_the_checkpoint_follows_from_the_name() -> None:
    assert [one.id for one in tried(rms_norm).checkpoints] == ["1"]
    with pytest.raises(OptionError, match="got none, wanted the one that it is for"):
        tried(by_position)
    with pytest.raises(OptionError, match="wanted the one that it is for"):
        tried(rms_norm, checkpoint=["1", "2"])  # type: ignore[arg-type]


def test_ours_are_put_back() -> None:
    tried(rms_norm)
    assert checkpoints.rms_norm is checkpoints.c07_block.rms_norm is checkpoints.c01_rms_norm.rms_norm
    assert checkpoints.rms_norm is not rms_norm


def test_inner_points_are_shown_by_a_tap_or_said_not_to_be() -> None:
    report = tried(attention)
    assert report.exit_code == 0, report.checkpoints[0].reason
    assert any("takes no tap, so only what it returns is compared" in note for note in report.notes)
    names = {p.verdict.name for p in report.checkpoints[0].points if p.verdict.error_kind == "own"}
    assert "blk.0.attn_out" in names and "blk.0.attn_probs" not in names
    (result,) = tried(attention_with_tap, "3").checkpoints
    teacher = {p.verdict.name: p.verdict for p in result.points if p.verdict.error_kind == "own"}
    assert teacher["blk.0.attn_scores"].verdict == "pass"
    assert teacher["blk.0.attn_probs"].reason == "missing: the tensor was never given"
    assert result.verdict == "fail"


def wrong_epsilon(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    return rms_norm(x, weight, eps=1e-6)


def test_a_wrong_layer_is_named() -> None:
    (result,) = tried(wrong_epsilon, "1").checkpoints
    assert result.verdict == "fail" and result.reason.startswith("blk.0.attn_norm")
    assert result.diagnoses[0].named[0].name == "norm-eps-other"
    assert result.diagnoses[0].smallest_limit is not None
    record = tried(wrong_epsilon, "1").to_json()
    assert record["implementation"] == f"{__name__}:wrong_epsilon"
    assert record["checkpoints"][0]["diagnoses"][0]["named"][0]["name"] == "norm-eps-other"


def in_place(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    return x.mul_(torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)) * weight


def numpy_in_place(x: NDArray[np.float32], weight: NDArray[np.float32], *, eps: float) -> Any:
    x *= 2
    return x


BROKEN = {
    "an argument too few": (lambda x: x, "wrong signature: got (x), wanted (x, weight, eps)"),
    "an argument too many": (
        lambda a, b, c, d: a,
        "wrong signature: got (a, b, c, d), wanted (x, weight, eps)",
    ),
    "an exception": (lambda x, weight, eps: x @ weight[:3], "raised RuntimeError: "),
    "another dtype": (
        lambda x, weight, eps: rms_norm(x, weight, eps=eps).double(),
        "wrong dtype: got float64",
    ),
    "another shape": (lambda x, weight, eps: rms_norm(x, weight, eps=eps).T, "wrong shape: got [64, 2]"),
    "no tensor": (lambda x, weight, eps: "text", "return value 1 is of type str, wanted a tensor"),
    "nothing": (lambda x, weight, eps: None, "return value 1 is of type NoneType"),
    "two values": (lambda x, weight, eps: (x, x), "returned 2 values, wanted 1: attn_norm"),
    "changed in place": (in_place, "changed its input x in place"),
    "changed in place, numpy": (numpy_in_place, "raised ValueError: output array is read-only"),
    "not finite": (lambda x, weight, eps: x / 0 * 0, "it is not finite: nan first at [0, 0]"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_layer_is_reported_as_such(name: str) -> None:
    layer, message = BROKEN[name]
    (result,) = tried(layer, "1").checkpoints
    assert result.verdict == "fail" and message in result.reason, result.reason


def test_an_exception_says_where() -> None:
    (result,) = tried(BROKEN["an exception"][0], "1").checkpoints
    assert "(test_implementation.py:" in result.reason


def rope(q: Tensor, k: Tensor, positions: Tensor, frequencies: Tensor) -> Any:
    angle = (positions[:, None] * frequencies)[:, None]
    cos, sin = angle.cos().to(q.dtype), angle.sin().to(q.dtype)

    def turn(x: Tensor) -> Tensor:
        a, b = x[..., 0::2], x[..., 1::2]
        return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)

    return [turn(q), turn(k)]  # a list does as well as a tuple


def block(x: Tensor, weights: Any, *, config: Any, positions: Tensor) -> Tensor:
    return OUR_BLOCK(x, weights, config=config, positions=positions)


def logits(token_ids: Tensor, weights: Any, *, config: Any, positions: Tensor, tap: Any = None) -> Tensor:
    return OUR_LOGITS(token_ids, weights, config=config, positions=positions, tap=tap)


def doubled_logits(token_ids: Tensor, weights: Any, *, config: Any, positions: Tensor) -> Tensor:
    return 2 * logits(token_ids, weights, config=config, positions=positions)


def generate(
    model: Any, prompt_or_token_ids: Any, *, max_tokens: int, first_position: int = 0
) -> Iterator[int]:
    for token in OUR_GENERATE(
        model, prompt_or_token_ids, max_tokens=max_tokens, first_position=first_position
    ):
        yield token.id


def always_the_same(model: Any, prompt_or_token_ids: Any, *, max_tokens: int) -> Iterator[int]:
    return iter([29892] * max_tokens)


@pytest.mark.parametrize(
    ("layer", "checkpoint", "verdict"),
    [
        (rope, "1B", "pass"),
        (block, "7", "pass"),
        (logits, "8", "pass"),
        (doubled_logits, "8", "fail"),
        (lambda logits: logits[-1], "9", "pass"),
        (lambda logits: logits[0], "9", "fail"),
        (lambda logits: logits.argmax(-1), "10", "pass"),
        (checkpoints.softmax, "11", "pass"),
        (lambda logits, **options: logits.softmax(-1), "11", "fail"),
        (generate, "12", "pass"),
        (always_the_same, "12", "fail"),
        (lambda token_ids, weight: weight[token_ids], "0", "pass"),
    ],
)
def test_every_kind_of_layer_can_be_tried(layer: Any, checkpoint: str, verdict: str) -> None:
    (result,) = tried(layer, checkpoint).checkpoints
    assert result.verdict == verdict, result.reason
    assert result.points


def test_packed_weights_are_handed_over_dense() -> None:
    def qkv(x: Tensor, wq: Tensor, wk: Tensor, wv: Tensor, *, n_heads: int, n_kv_heads: int) -> Any:
        assert all(type(w) is Tensor and w.dtype == x.dtype for w in (wq, wk, wv))
        return tuple(
            (x @ w.T).view(len(x), n, -1) for w, n in ((wq, n_heads), (wk, n_kv_heads), (wv, n_kv_heads))
        )

    report = validate("2", implementation=qkv, device="cpu")  # all the types that dumps are committed for
    assert report.exit_code == 0, report.checkpoints[0].reason


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(dtype: str) -> None:
    assert tried(rms_norm, dtype=dtype).exit_code in (0, 1)
    (result,) = tried(in_numpy, "1", dtype=dtype).checkpoints
    if dtype == "bfloat16":
        assert "numpy has no bfloat16" in result.reason


def test_a_layer_is_found_by_its_module_or_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = discover()[1]
    (tmp_path / "mine_for_test.py").write_text(
        "import numpy\ndef norm(x, weight, eps):\n    return x\nvalue = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    for spec in ("mine_for_test:norm", "mine_for_test.py:norm", f"{tmp_path}/mine_for_test.py:norm"):
        found = load_implementation(spec, checkpoint)
        assert found.name == spec and found.arrays == "numpy" and not found.takes_tap
    assert load_implementation("mine_for_test:norm", checkpoint, arrays="torch").arrays == "torch"
    for spec, message in (
        ("mine_for_test", "wanted module:function"),
        ("mine_for_test:other", "no other in mine_for_test"),
        ("mine_for_test:value", "got int, wanted a function"),
        ("not_there:norm", "ModuleNotFoundError: No module named 'not_there'"),
        ("not_there.py:norm", "no file not_there.py"),
    ):
        with pytest.raises(OptionError, match=message):
            load_implementation(spec, checkpoint)
    with pytest.raises(OptionError, match="arrays: got jax"):
        load_implementation("mine_for_test:norm", checkpoint, arrays="jax")


def test_a_module_that_does_not_load_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import torch\nraise ValueError('half done')\n")
    with pytest.raises(OptionError, match="importing .*broken.py: got ValueError: half done"):
        load_implementation(f"{tmp_path}/broken.py:norm", discover()[1])


def test_maps_are_kept_where_they_are_asked_for() -> None:
    report = tried(rms_norm, maps=True)
    assert report.maps is not None and {one["point"] for one in report.maps["histograms"]} >= {"attn_norm"}
    assert tried(rms_norm).maps is None and "maps" not in tried(rms_norm).to_json()


def test_the_public_names() -> None:
    assert llama_ckpt.validate is validate
