"""What is wrong with a dump itself: each kind has its own message, and each fails."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import reference_dumps
from llama_ckpt.comparing.compare_dump import compare_dump
from llama_ckpt.comparing.comparison import Comparison, LintFinding
from llama_ckpt.gguf.file import open_gguf
from llama_ckpt.making.export_layouts import halves_from_pairs
from llama_ckpt.making.seeded_model import make_seeded
from llama_ckpt.oracle.llama import logits as oracle_logits
from llama_ckpt.oracle.weights import OracleWeights
from llama_ckpt.weights.config import LlamaConfig
from tests.comparing.their_programs import EIGHT, HELLO, N_LAYERS, Tensors, bug, model, right_run, run, write

FACTS = {"token_ids": EIGHT, "positions": range(8)}


def judged(folder: Path, tensors: Any, **facts: Any) -> Comparison:
    report = compare_dump(write(folder, tensors, **({**FACTS} | facts)))
    assert report.verdict == "fail" and report.exit_code == 1, "a finding always fails"
    return report


def only(report: Comparison, kind: str) -> LintFinding:
    assert [finding.kind for finding in report.findings] == [kind], report.findings
    assert report.findings[0].message and report.findings[0].hint
    return report.findings[0]


def changed(change: Callable[[str, np.ndarray], Any]) -> Tensors:
    """The right tensors, each put through `change`; None leaves it out."""
    made = {name: change(name, x) for name, x in right_run(EIGHT).items()}
    return {name: x for name, x in made.items() if x is not None}


# -- the run -----------------------------------------------------------------------------------------


def test_bos_is_missing(tmp_path: Path) -> None:
    report = judged(tmp_path, run(EIGHT[1:]), token_ids=EIGHT[1:], positions=range(7))
    assert "BOS is missing: tokens [1126, 4177" in only(report, "missing_bos").message
    assert "put 1 before the prompt's tokens" in report.next[0].why
    assert report.compared and report.first_wrong is None, "the oracle judges the tokens that were computed"
    assert any("llama.cpp: not compared" in line for line in report.cannot_tell)


def test_bos_is_missing_without_saying_so(tmp_path: Path) -> None:
    """Nothing is declared: a row less than the reference has, and the rows are those of its other tokens."""
    report = judged(tmp_path, run(HELLO[1:]), token_ids=None, positions=None)
    assert "BOS is missing: tokens [15043]" in only(report, "missing_bos").message


def test_bos_is_there_twice(tmp_path: Path) -> None:
    tokens = (1, *EIGHT)
    report = judged(tmp_path, run(tokens), token_ids=tokens, positions=range(9))
    assert "BOS is there twice" in only(report, "other_tokens").message


def test_other_tokens(tmp_path: Path) -> None:
    tokens = (*EIGHT[:5], 99, *EIGHT[6:])
    report = compare_dump(
        write(tmp_path, run(tokens), **(FACTS | {"token_ids": tokens})), dump="eight-tokens"
    )
    assert "they differ from row 5 on" in only(report, "other_tokens").message


def test_other_positions(tmp_path: Path) -> None:
    report = judged(tmp_path, run(EIGHT, positions=range(1, 9)), positions=range(1, 9))
    finding = only(report, "other_positions")
    assert "[1, 2, 3" in finding.message and "differ from row 0 on" in finding.message


def test_other_weights(tmp_path: Path) -> None:
    report = judged(tmp_path, right_run(EIGHT), weights_sha256="0" * 64)
    assert "weights_sha256 is 0000" in only(report, "other_weights").message
    assert report.compared == 0, "other weights have nothing to be compared with"


def test_other_tokens_without_a_model_leave_nothing_to_compare(tmp_path: Path) -> None:
    path = write(tmp_path, run(EIGHT[1:]), token_ids=EIGHT[1:], positions=range(7))
    report = compare_dump(path, reference=reference_dumps.dump_folder("f32"))
    assert report.verdict == "fail" and report.compared == 0
    only(report, "missing_bos")


# -- the tensors -------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite(value: float, tmp_path: Path) -> None:
    tensors = dict(right_run(EIGHT))
    for name in ("blk.9.ffn_up", "blk.9.ffn_swiglu"):
        tensors[name] = tensors[name].copy()
        tensors[name][3, 17] = value
    report = judged(tmp_path, tensors)
    assert f"blk.9.ffn_up[3, 17] is {value}, the first value" in only(report, "not_finite").message
    made = {point.name: point.made for point in report.points if point.made}
    assert made == {"blk.9.ffn_up": "here", "blk.9.ffn_swiglu": "inherited"}


def test_scores_of_keys_that_nobody_sees_may_be_infinite(tmp_path: Path) -> None:
    later = np.triu(np.ones((8, 8), bool), 1)[:, None]
    tensors = changed(lambda name, x: np.where(later, -np.inf, x) if name.endswith("attn_scores") else x)
    report = compare_dump(write(tmp_path, tensors, **FACTS))
    assert report.verdict == "pass" and not report.findings, report.findings

    tensors["blk.2.attn_scores"][5, 0, 5] = -np.inf
    finding = only(judged(tmp_path, tensors), "not_finite")
    assert "blk.2.attn_scores[5, 0, 5] is -inf" in finding.message


def test_what_was_never_written(tmp_path: Path) -> None:
    tensors = changed(lambda name, x: np.zeros_like(x) if name == "blk.4.v" else x)
    assert "blk.4.v is all zeros" in only(judged(tmp_path, tensors), "unwritten").message


def test_all_layers_are_identical(tmp_path: Path) -> None:
    last = right_run(EIGHT)["blk.31.out"]
    tensors = changed(lambda name, x: last if name.endswith(".out") else x)
    assert (
        "all layers are identical: every block has the same out"
        in only(judged(tmp_path, tensors), "layers_identical").message
    )


def test_a_stale_buffer(tmp_path: Path) -> None:
    right = right_run(EIGHT)
    tensors = changed(lambda name, x: right["blk.11.q"] if name == "blk.12.q" else x)
    finding = only(judged(tmp_path, tensors), "stale_buffer")
    assert "blk.11.q and blk.12.q are equal byte for byte" in finding.message
    tensors = changed(lambda name, x: right[name.replace("attn_norm", "ffn_norm")])
    assert "blk.0.attn_norm and blk.0.ffn_norm" in only(judged(tmp_path, tensors), "stale_buffer").message


def test_one_row_in_the_place_of_another(tmp_path: Path) -> None:
    def change(name: str, x: np.ndarray) -> np.ndarray:
        return x[[0, 1, 1, 3, 4, 5, 6, 7]] if name == "blk.6.ffn_gate" else x

    finding = only(judged(tmp_path, changed(change)), "stale_buffer")
    assert "rows 1 and 2 of blk.6.ffn_gate are equal" in finding.message


def test_one_token_is_no_stale_buffer(tmp_path: Path) -> None:
    """At position 0 nothing is turned, and one token attends to itself: equal tensors that have to be."""
    path = write(tmp_path, run((1,)), token_ids=(1,), positions=(0,))
    assert compare_dump(path).verdict == "pass"


def test_equal_tokens_have_equal_rows(tmp_path: Path) -> None:
    tokens = (1, 15043, 15043)
    path = write(tmp_path, run(tokens), token_ids=tokens, positions=range(3))
    assert compare_dump(path, model=reference_dumps.embedded_model()).verdict == "pass"


def test_the_same_token_at_the_same_position_has_equal_rows(tmp_path: Path) -> None:
    """Two sequences in one run, or rows of padding."""
    tokens, positions = (1, 15043, 1, 15043), (0, 1, 0, 1)
    path = write(tmp_path, run(tokens, positions=positions), token_ids=tokens, positions=positions)
    report = compare_dump(path, model=reference_dumps.embedded_model())
    assert report.verdict == "pass" and not report.findings


def without(folder: Path, *names: str) -> Path:
    """A small model whose tensors of these names are zeros, as of a pruned layer."""
    path = folder / "m.gguf"
    make_seeded(path, width=32, n_heads=2, n_kv_heads=2, head_dim=16, ffn=48, n_layers=3, vocab=320,
                seed=2, type="F32")  # fmt: skip
    content = bytearray(path.read_bytes())
    for name in names:
        info = open_gguf(path).tensors[name]
        content[info.offset : info.offset + info.nbytes] = bytes(info.nbytes)
    path.write_bytes(content)
    return path


def run_of(path: Path, tokens: Sequence[int], round_to: Any = np.float32) -> Tensors:
    """Every point of a run of a model, as the oracle has it."""
    config = LlamaConfig.from_gguf(open_gguf(path))
    weights = OracleWeights(open_gguf(path), config)
    seen: dict[str, Any] = {}
    at = np.arange(len(tokens))
    seen["logits"] = oracle_logits(tokens, weights, config=config, positions=at, tap=seen.__setitem__)
    return {name: round_to(value) for name, value in seen.items()}


@pytest.mark.parametrize("declared", ["", "llama_ckpt.record"])
def test_zeros_that_the_program_computes_are_no_unwritten_buffer(declared: str, tmp_path: Path) -> None:
    """A pruned layer adds nothing: what goes in and what goes out are equal byte for byte, and right."""
    model = without(tmp_path, "blk.1.attn_output.weight", "blk.1.ffn_down.weight")
    tokens = (1, 40, 41)
    tensors = run_of(model, tokens)
    names = {"blk.1.attn_out", "blk.1.ffn_out"}
    assert all(not tensors[name].any() for name in names)
    path = write(tmp_path, tensors, token_ids=tokens, positions=range(3), producer=declared)
    report = compare_dump(path, model=model)
    assert report.verdict == "pass" and not report.findings, report.findings

    tensors["blk.0.ffn_up"] = np.zeros_like(tensors["blk.0.ffn_up"])
    path = write(tmp_path, tensors, token_ids=tokens, positions=range(3), producer=declared)
    finding = only(compare_dump(path, model=model), "unwritten")
    assert finding.message.startswith("blk.0.ffn_up is all zeros: ")
    assert ("the program made it so" in finding.message) == bool(declared)


def test_rows_that_rounding_makes_equal_are_no_stale_buffer(tmp_path: Path) -> None:
    """Two tokens whose embeddings differ in a digit that bfloat16 does not have."""
    path = without(tmp_path)
    info = open_gguf(path).tensors["token_embd.weight"]
    content = bytearray(path.read_bytes())
    table = np.frombuffer(content, "<f4", 320 * 32, info.offset).reshape(320, 32).copy()
    table[41] = table[40] * np.float32(1 + 2**-14)
    content[info.offset : info.offset + info.nbytes] = table.tobytes()
    path.write_bytes(content)
    tokens = (1, 40, 41, 7)

    def bfloat16(x: np.ndarray) -> np.ndarray:
        bits = np.float32(x).view(np.uint32)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
        return rounded.astype(np.uint32).view(np.float32)

    tensors = {name: bfloat16(x) if name != "logits" else x for name, x in run_of(path, tokens).items()}
    assert np.array_equal(tensors["blk.0.v"][1], tensors["blk.0.v"][2])
    dump = write(tmp_path, tensors, token_ids=tokens, positions=range(4), dtype="bfloat16")
    assert not compare_dump(dump, model=path).findings

    tensors["blk.1.v"] = tensors["blk.1.v"][[0, 1, 2, 2]]
    dump = write(tmp_path, tensors, token_ids=tokens, positions=range(4), dtype="bfloat16")
    assert "rows 2 and 3 of blk.1.v" in only(compare_dump(dump, model=path), "stale_buffer").message


def test_a_recorder_that_copies_is_not_told_to_copy(tmp_path: Path) -> None:
    right = right_run(EIGHT)
    tensors = changed(lambda name, x: right["blk.11.q"] if name == "blk.12.q" else x)
    finding = only(judged(tmp_path, tensors, producer="llama_ckpt.Recorder"), "stale_buffer")
    assert finding.message.endswith("equal byte for byte: a step between does nothing")
    assert "copy" not in finding.hint
    tensors = changed(lambda name, x: x[[0, 1, 1, 3, 4, 5, 6, 7]] if name == "blk.6.ffn_gate" else x)
    finding = only(judged(tmp_path, tensors, producer="llama_ckpt.record"), "stale_buffer")
    assert "the program made them so" in finding.message


@pytest.mark.parametrize("shift", [1, -1])
def test_layers_are_shifted_by_one(shift: int, tmp_path: Path) -> None:
    right = right_run(EIGHT)

    def change(name: str, x: np.ndarray) -> np.ndarray | None:
        if not name.endswith(".out"):
            return x
        number = int(name.split(".")[1]) + shift
        return right["embd"] if number < 0 else right.get(f"blk.{number}.out")

    report = judged(tmp_path, changed(change))
    finding = next(finding for finding in report.findings if finding.kind == "layers_shifted")
    whose = "next" if shift == 1 else "previous"
    assert f"blk.0.out and the others hold the {whose} block's tensor" in finding.message
    assert not any(point.made for point in report.points), "judged as what they are, the tensors are right"


@pytest.mark.parametrize("point", ["attn_norm", "ffn_norm", "output_norm"])
def test_a_norm_recorded_before_its_weight(point: str, tmp_path: Path) -> None:
    _, weights = model()

    def change(name: str, x: np.ndarray) -> np.ndarray:
        if not name.endswith(point):
            return x
        block = weights if point == "output_norm" else weights.blocks[int(name.split(".")[1])]
        return np.float32(x / getattr(block, point))

    report = judged(tmp_path, changed(change))
    assert "recorded before its weight" in only(report, "norm_before_weight").message
    assert not any(point.made for point in report.points), "with its weight it is right"


def test_a_forgotten_weight_is_a_bug_and_no_matter_of_recording(tmp_path: Path) -> None:
    report = compare_dump(write(tmp_path, run(EIGHT, wrong=bug("norm-weight-missing")), **FACTS))
    assert not report.findings
    assert report.first_wrong is not None and report.first_wrong.name == "blk.0.attn_norm"
    assert report.diagnoses[0].named[0].name == "norm-weight-missing"


@pytest.mark.parametrize("point", ["q", "ffn_up", "logits"])
def test_ggmls_axis_order(point: str, tmp_path: Path) -> None:
    """The values transposed, and only the shape written backwards."""

    def transposed(name: str, x: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(x.T) if name.rpartition(".")[2] == point else x

    def relabelled(name: str, x: np.ndarray) -> np.ndarray:
        return x.reshape(x.shape[::-1]) if name.rpartition(".")[2] == point else x

    report = judged(tmp_path, changed(transposed))
    assert "ggml's order" in only(report, "axis_order").message
    assert not any(point.made for point in report.points), "read as meant it is right"
    report = judged(tmp_path, changed(relabelled))
    assert "in ggml's order, fastest axis first, over row-major bytes" in only(report, "axis_order").message
    assert not any(point.made for point in report.points)


def test_heads_before_tokens(tmp_path: Path) -> None:
    def change(name: str, x: np.ndarray) -> np.ndarray:
        return x.transpose(1, 0, 2) if name.endswith(("q_rope", "k_rope", "attn_scores")) else x

    report = judged(tmp_path, changed(change))
    assert {finding.kind for finding in report.findings} == {"axis_order"} and len(report.findings) == 3
    assert "axes are [head, token, head_dim], wanted [token, head, head_dim]" in report.findings[0].message
    assert "in other blocks too" in report.findings[0].message
    assert not any(point.made for point in report.points)


def test_padded_keys(tmp_path: Path) -> None:
    def change(name: str, x: np.ndarray) -> np.ndarray:
        return np.pad(x, ((0, 0), (0, 0), (0, 24))) if name.endswith("attn_scores") else x

    finding = only(judged(tmp_path, changed(change)), "padded")
    assert "blk.0.attn_scores has 32 keys for 8 tokens" in finding.message


def test_a_padded_vocabulary_is_judged_without_its_padding(tmp_path: Path) -> None:
    def change(name: str, x: np.ndarray) -> np.ndarray:
        return np.pad(x, ((0, 0), (0, 64))) if name == "logits" else x

    report = judged(tmp_path, changed(change))
    message = only(report, "padded").message
    assert message == "logits has 32064 columns for a vocabulary of 32000: the head is padded"
    assert report.points[-1].name == "logits" and not report.points[-1].made
    finding = only(judged(tmp_path, changed(lambda n, x: x[:, :31990] if n == "logits" else x)), "shape")
    assert finding.message.endswith("the vocabulary is cut, 10 tokens have no logit")


def test_a_shape_that_fits_nothing(tmp_path: Path) -> None:
    finding = only(judged(tmp_path, changed(lambda n, x: x[:7] if n == "blk.3.out" else x)), "shape")
    assert "shape [7, 64], wanted [8, 64] [token, width]: 7 tokens for 8" in finding.message


def test_flat_heads_and_a_batch_of_one_are_read_as_meant(tmp_path: Path) -> None:
    def change(name: str, x: np.ndarray) -> np.ndarray:
        return x.reshape(1, 8, -1) if name.endswith((".q", ".k", ".v", ".out", "logits")) else x

    report = compare_dump(write(tmp_path, changed(change), **FACTS))
    assert report.verdict == "pass" and not report.findings
    assert sum("read as" in note for note in report.notes) == 5


def test_points_are_missing(tmp_path: Path) -> None:
    report = judged(tmp_path, changed(lambda name, x: None if name == "blk.8.k_rope" else x))
    assert only(report, "missing_point").message == "blk.8.k_rope is missing"
    assert (report.compared, report.of) == (3 + 17 * N_LAYERS - 1, 3 + 17 * N_LAYERS)
    report = judged(tmp_path, changed(lambda name, x: None if name.endswith("attn_scores") else x))
    assert only(report, "missing_point").message == "attn_scores is missing in 32 blocks, 0-31"
    assert "--partial" in report.findings[0].hint
    report = judged(tmp_path, {"blk.0.q": right_run(EIGHT)["blk.0.q"]})
    assert "546 of 547 points are missing: embd, attn_norm" in only(report, "missing_point").message


# -- layouts -----------------------------------------------------------------------------------------


def halves(x: np.ndarray) -> np.ndarray:
    """The features of each head from pairs of neighbours into half-split order."""
    return np.concatenate((x[..., 0::2], x[..., 1::2]), axis=-1)


def test_half_split_order_is_recognized_stated_and_undone(tmp_path: Path) -> None:
    turned = (".q", ".k", ".q_rope", ".k_rope")
    tensors = changed(lambda name, x: halves(x) if name.endswith(turned) else x)
    report = compare_dump(write(tmp_path, tensors, **FACTS))
    assert report.verdict == "pass" and not report.findings
    assert any("half-split order" in note and "undone" in note for note in report.notes)


def test_half_split_order_turned_as_neighbours_is_a_bug(tmp_path: Path) -> None:
    report = judged(tmp_path, run(EIGHT, wrong=bug("qkv-half-split-rows")))
    assert "weights in half-split order, but RoPE turns neighbours" in only(report, "mixed_layout").message


def test_halves_from_pairs_is_what_the_weights_go_through() -> None:
    rows = np.arange(16).reshape(16, 1)
    assert halves_from_pairs(rows, 2)[:, 0].tolist() == [0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15]
    assert halves(np.arange(8)).tolist() == [0, 2, 4, 6, 1, 3, 5, 7]
