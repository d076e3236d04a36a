"""A dump from the file to the verdict: where the error is made, whose it is, and what cannot be told."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import reference_dumps
from llama_ckpt.comparing.compare_dump import compare_dump
from llama_ckpt.comparing.comparison import Comparison
from llama_ckpt.errors import DumpError, OptionError
from llama_ckpt.gguf.file import open_gguf, weights_sha256
from llama_ckpt.making.seeded_model import make_seeded
from llama_ckpt.oracle import llama as oracle
from llama_ckpt.oracle.weights import OracleWeights
from llama_ckpt.report.topics import explanation
from llama_ckpt.weights.config import LlamaConfig
from tests.comparing.their_programs import EIGHT, HELLO, N_LAYERS, bug, recorded, right_run, run, write

ROOT = Path(__file__).parents[2]
F32 = reference_dumps.dump_folder("f32")
MODEL = reference_dumps.embedded_model()
ALL = 3 + 17 * N_LAYERS


def kinds(report: Comparison) -> list[str]:
    return [finding.kind for finding in report.findings]


def test_llama_cpps_own_dump_passes(tmp_path: Path) -> None:
    used = time.process_time()  # not the clock on the wall: other programs may run as well
    report = compare_dump(F32 / "hello.safetensors")
    assert time.process_time() - used < 10
    assert (report.verdict, report.exit_code, report.compared, report.of) == ("pass", 0, ALL, ALL)
    assert not report.findings and not report.next and report.first_wrong is None
    assert report.reference is not None and report.reference["dump"] == "hello"
    assert report.seconds > 0


@pytest.mark.parametrize("tokens", [HELLO, EIGHT], ids=["two tokens", "eight tokens"])
def test_a_right_program_passes(tokens: tuple[int, ...], tmp_path: Path) -> None:
    facts = {"token_ids": tokens, "positions": range(len(tokens))}
    facts["weights_sha256"] = weights_sha256(open_gguf(MODEL))
    report = compare_dump(write(tmp_path, right_run(tokens), **facts))
    assert report.verdict == "pass", report.reason
    assert not report.notes and not report.cannot_tell
    assert [token.blame for token in report.tokens] == [""] * len(tokens)
    assert all(layer.own < layer.own_limit and layer.total < layer.limit for layer in report.layers)


BUGS = {
    "norm-eps-other": "attn_norm",
    "rope-half-split": "q_rope",
    "attention-scale-missing": "attn_probs",
    "ffn-gate-up-swapped": "ffn_gate",
    "block-no-first-residual": "ffn_inp",
    "block-norms-swapped": "attn_norm",
    "logits-tied": "logits",
    "embed-next-row": "embd",
    "logits-first-block-skipped": "attn_norm",
}


@pytest.mark.parametrize("name", BUGS)
def test_a_bug_is_found_where_it_is_and_named(name: str, tmp_path: Path) -> None:
    report = compare_dump(write(tmp_path, run(wrong=bug(name))))
    assert report.verdict == "fail" and report.exit_code == 1
    assert report.first_wrong is not None
    assert report.first_wrong.name.rpartition(".")[2] == BUGS[name] and report.first_wrong.made == "here"
    named = report.diagnoses[0].named
    alike = [group for group in report.diagnoses[0].indistinguishable if name in group]
    assert named[0].name == name or alike, [one.name for one in named]
    assert report.diagnoses[0].smallest_limit is None or report.diagnoses[0].smallest_limit.factor > 1
    assert report.next and report.next[-1].command.startswith("llama-ckpt explain")


def test_own_error_is_told_from_inherited(tmp_path: Path) -> None:
    """One block is wrong, and everything after it only because of that block."""
    report = compare_dump(write(tmp_path, run(wrong=bug("rope-half-split"), blocks=[7])))
    assert report.first_wrong is not None and report.first_wrong.name == "blk.7.q_rope"
    made = {point.name: point.made for point in report.points}
    assert [name for name, how in made.items() if how == "here"] == ["blk.7.q_rope", "blk.7.k_rope"]
    assert made["blk.7.attn_out"] == made["blk.20.attn_norm"] == made["logits"] == "inherited"
    assert not any(how for name, how in made.items() if name.startswith(("blk.6.", "blk.0.")))
    own = [layer.own > layer.own_limit for layer in report.layers]
    assert own == [number == 7 for number in range(N_LAYERS)]
    assert [layer.total > layer.limit for layer in report.layers] == [n >= 7 for n in range(N_LAYERS)]
    assert all(0.1 < layer.amplification < 10 for layer in report.layers[8:])
    assert sum(point["made"] == "inherited" for point in report.to_json()["points"]) > 300


def test_only_block_ends_give_the_wrong_block(tmp_path: Path) -> None:
    tensors = run(wrong=bug("ffn-relu"), blocks=[5])
    ends = {name: x for name, x in tensors.items() if name.endswith(".out") or "." not in name}
    report = compare_dump(write(tmp_path, ends))
    assert report.first_wrong is not None and report.first_wrong.name == "blk.5.out"
    assert report.first_wrong.computed == ("ffn_inp", "ffn_out")
    assert (report.compared, report.of) == (len(ends), len(ends)) and not report.findings
    assert report.first_wrong.where == "made between blk.4.out and blk.5.out"
    assert report.next[0].why.startswith("record blk.5.attn_context next")
    assert report.diagnoses[0].named[0].name == "ffn-relu", "the whole block is tried on their input"
    assert len(report.skipped) == ALL - len(ends)


def test_declared_points_are_not_missed(tmp_path: Path) -> None:
    names = ["blk.0.attn_norm", "blk.0.q", "blk.1.attn_norm", "blk.1.q"]
    path = tmp_path / "theirs.safetensors"
    facts = {"token_ids": "1,15043", "points": "attn_norm q", "blocks": "0,1"}
    save_file({name: right_run()[name] for name in names}, path, facts)
    report = compare_dump(path)
    assert (report.verdict, report.compared, report.of) == ("pass", 4, 4)
    save_file({name: right_run()[name] for name in names[:3]}, path, facts)
    report = compare_dump(path)
    assert kinds(report) == ["missing_point"] and report.findings[0].message == "blk.1.q is missing"


def test_a_missing_input_is_stated_and_computed(tmp_path: Path) -> None:
    tensors = run(wrong=bug("rope-half-split"))
    theirs = {name: x for name, x in tensors.items() if not name.endswith((".q", ".k"))}
    report = compare_dump(write(tmp_path, theirs), partial=True)
    assert report.first_wrong is not None and report.first_wrong.name == "blk.0.q_rope"
    assert report.first_wrong.computed == ("q",) and report.first_wrong.made == "between"
    assert report.first_wrong.where == "made between blk.0.attn_norm and blk.0.q_rope"
    assert report.diagnoses[0].named[0].name == "rope-half-split"


def test_without_a_model_it_says_what_it_cannot_tell(tmp_path: Path) -> None:
    path = write(tmp_path, run(wrong=bug("rope-half-split")))
    report = compare_dump(path, reference=F32)
    assert report.first_wrong is not None and report.first_wrong.name == "blk.0.q_rope"
    assert (report.first_wrong.made, report.first_wrong.blame) == ("unknown", "unknown")
    assert any("no --model" in line and "no bug can be named" in line for line in report.cannot_tell)
    assert not any(found.named for found in report.diagnoses)
    assert "--model M.gguf" in report.next[0].command
    right = compare_dump(write(tmp_path, right_run()), reference=F32)
    assert right.verdict == "pass" and right.compared == ALL


def test_without_a_model_what_needs_no_weights_is_still_told_apart(tmp_path: Path) -> None:
    report = compare_dump(write(tmp_path, run(wrong=bug("attention-scale-missing"))), reference=F32)
    assert report.first_wrong is not None
    assert (report.first_wrong.name, report.first_wrong.made) == ("blk.0.attn_probs", "here")
    report = compare_dump(write(tmp_path, run(wrong=bug("block-no-second-residual"))), reference=F32)
    assert report.first_wrong is not None
    assert (report.first_wrong.name, report.first_wrong.made) == ("blk.0.out", "here")


def test_without_a_reference_the_oracle_judges(tmp_path: Path) -> None:
    report = compare_dump(write(tmp_path, right_run()), model=MODEL)
    assert report.verdict == "pass" and report.reference is None
    assert any("llama.cpp is not compared" in line for line in report.cannot_tell)
    wrong = compare_dump(write(tmp_path, run(wrong=bug("norm-eps-other"))), model=MODEL)
    assert wrong.first_wrong is not None and wrong.first_wrong.name == "blk.0.attn_norm"


def test_tokens_that_nobody_knows_are_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path, right_run(), token_ids=None, positions=None)
    with pytest.raises(DumpError, match="token_ids in __metadata__"):
        compare_dump(path, model=MODEL)
    report = compare_dump(path)
    assert report.verdict == "pass" and any("nearest by embd" in note for note in report.notes)
    assert any("not declared by the dump" in note for note in report.notes)


def test_a_rounding_reference_is_judged_by_what_its_rounding_needs(tmp_path: Path) -> None:
    path = write(tmp_path, right_run())
    report = compare_dump(path, reference=reference_dumps.dump_folder("f16"))
    assert report.verdict == "pass" and any("rounds its activations" in line for line in report.cannot_tell)
    report = compare_dump(path, reference=reference_dumps.dump_folder("f16"), model=MODEL)
    assert report.verdict == "pass"
    blames = {point.total.blame for point in report.points if point.total is not None}
    assert "reference" in blames and "yours" not in blames


def test_the_reference_is_off_at_far_positions(tmp_path: Path) -> None:
    entry = recorded().entry("far-positions")
    tensors = run(entry.token_ids, positions=entry.positions)
    facts = {"token_ids": entry.token_ids, "positions": entry.positions}
    report = compare_dump(write(tmp_path, tensors, **facts))
    assert report.verdict == "pass"
    total = {point.name: point.total for point in report.points}["blk.0.q_rope"]
    assert total is not None and total.blame == "reference" and total.err < total.err_reference


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_has_its_own_limits(dtype: str, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file as save_torch

    import llama_ckpt

    seen: dict[str, torch.Tensor] = {}
    model = llama_ckpt.load(MODEL, device="cpu", dtype=dtype)
    seen["logits"] = model.logits(HELLO, tap=seen.__setitem__)
    tensors = {name: tensor.to(model.dtype).contiguous() for name, tensor in seen.items()}
    path = tmp_path / "theirs.safetensors"
    save_torch(tensors, path, {"token_ids": "1,15043"})
    report = compare_dump(path)
    assert report.dtype == dtype and report.verdict == "pass", report.reason
    assert compare_dump(path, dtype="float32").verdict != "pass"


def test_one_precision_is_asked_for(tmp_path: Path) -> None:
    tensors = {"embd": right_run()["embd"], "blk.0.out": right_run()["blk.0.out"].astype(np.float16)}
    path = tmp_path / "theirs.safetensors"
    save_file(tensors, path, {"token_ids": "1,15043"})
    with pytest.raises(OptionError, match="float16 and float32, wanted one precision.*--dtype"):
        compare_dump(path, partial=True)
    assert compare_dump(path, partial=True, dtype="float16").verdict == "pass"


def test_greedy_tokens_are_adjudicated(tmp_path: Path) -> None:
    """A flip within the noise is a tie; one beyond it is theirs."""
    right = right_run()
    best, second = (int(i) for i in np.argsort(-right["logits"][1])[:2])
    apart = right["logits"][1, best] - right["logits"][1, second]
    tensors = dict(right)
    tensors["logits"] = right["logits"].copy()
    tensors["logits"][1, second] += apart * 1.5
    report = compare_dump(write(tmp_path, tensors))
    assert report.verdict == "fail"
    assert [(token.got, token.wanted, token.blame) for token in report.tokens][1] == (second, best, "yours")
    assert report.tokens[1].margin == pytest.approx(float(apart), rel=1e-3)


def test_a_dump_of_other_weights_than_the_models_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, right_run())
    with pytest.raises(DumpError, match="recorded from other weights"):
        compare_dump(path, reference=reference_dumps.dump_folder("q4_0"), model=MODEL)


def test_bad_input_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "theirs.safetensors"
    with pytest.raises(DumpError, match="cannot be opened: got no such file, wanted the safetensors file"):
        compare_dump(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(DumpError, match="is not readable: .*wanted a safetensors file of tensors"):
        compare_dump(path)
    save_file({"hidden_1": np.ones((2, 64), np.float32)}, path)
    with pytest.raises(DumpError, match="got hidden_1, wanted neutral names.*--map"):
        compare_dump(path)
    save_file({"embd": np.ones((2, 64), np.int32)}, path)
    with pytest.raises(DumpError, match="the type of embd: got I32"):
        compare_dump(path)
    save_file({"embd": np.ones((2, 64), np.float32)}, path, {"token_ids": "one"})
    with pytest.raises(DumpError, match="whole numbers with commas"):
        compare_dump(path)
    save_file({"embd": np.ones((2, 64), np.float32)}, path, {"token_ids": "1,99999999"})
    with pytest.raises(DumpError, match="got 99999999, wanted ids from 0 to 31999"):
        compare_dump(path)


def test_what_explains_the_first_wrong_point_is_a_page_of_that_point(tmp_path: Path) -> None:
    """Which checkpoint answers for it is said there, so that `compare` keeps no list of checkpoints."""
    report = compare_dump(write(tmp_path, run(wrong=bug("rope-half-split"))))
    commands = [step.command for step in report.next]
    assert report.first_wrong.name == "blk.0.q_rope" and "llama-ckpt explain q_rope" in commands
    assert "Judged by checkpoint 1B, RoPE (`rope`)." in explanation("q_rope")


def test_json_holds_everything_and_no_nan(tmp_path: Path) -> None:
    report = compare_dump(write(tmp_path, run(wrong=bug("rope-half-split"))))
    text = json.dumps(report.to_json(), allow_nan=False)
    record = json.loads(text)
    assert record["first_wrong"] == "blk.0.q_rope" and record["blame"] == "yours"
    assert len(record["points"]) == ALL and len(record["layers"]) == N_LAYERS
    assert record["diagnoses"][0]["named"][0]["name"] == "rope-half-split"


def test_what_is_nearest_to_its_limit_is_told_of_right_points(tmp_path: Path) -> None:
    report = compare_dump(write(tmp_path, run(wrong=bug("rope-half-split"))))
    nearest, first = report.to_json()["nearest"], report.first_wrong
    assert first is not None and nearest["point"] != first.name and 0 < nearest["share"] < 1
    own = {point.name: point.own for point in report.points if not point.made and point.own is not None}
    assert nearest["share"] == max(one.share for one in own.values() if one.nearest)
    assert nearest["metric"] == own[nearest["point"]].nearest


def test_without_torch() -> None:
    """The whole way, in a process that has no torch, no transformers and no checkpoints."""
    code = (
        "import sys; from llama_ckpt.comparing.compare_dump import compare_dump;"
        f"r = compare_dump({str(F32 / 'hello.safetensors')!r}); r.to_json();"
        "print(r.verdict, *[m for m in ('torch', 'transformers', 'checkpoints') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == ["pass"]


def test_their_file_is_left_as_it_was(tmp_path: Path) -> None:
    path = write(tmp_path, right_run())
    before = path.read_bytes()
    compare_dump(path)
    assert path.read_bytes() == before and set(load_file(path)) == set(right_run())


def test_memory_is_bounded_by_one_layer_and_not_by_the_dump(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three times as many layers, three times the dump, nearly the same peak."""
    monkeypatch.setattr("llama_ckpt.oracle.weights.KEPT_BYTES", 0)  # as with a large model: no block is kept
    monkeypatch.setattr("llama_ckpt.comparing.walk.KEPT_BYTES", 0)
    peaks, sizes = [], []
    for n_layers in (3, 9):
        peak, path = _compared_with_peak(tmp_path, n_layers)
        peaks.append(peak)
        sizes.append(path.stat().st_size)
    assert sizes[1] > 2.8 * sizes[0]
    # What does grow is one row of width for each token and layer, the ends of the blocks, and what is said.
    assert peaks[1] - peaks[0] < 0.25 * (sizes[1] - sizes[0]), peaks


def _compared_with_peak(folder: Path, n_layers: int) -> tuple[int, Path]:
    """The largest number of bytes allocated at once while comparing, and the dump."""
    model = folder / f"{n_layers}.gguf"
    make_seeded(model, width=64, n_heads=2, ffn=512, n_layers=n_layers, vocab=320, seed=1, type="F32")
    path = _dump_of(model, folder / str(n_layers))
    tracemalloc.start()
    try:
        assert compare_dump(path, model=model).verdict == "pass"
        return tracemalloc.get_traced_memory()[1], path
    finally:
        tracemalloc.stop()


def _dump_of(model: Path, folder: Path) -> Path:
    """A right program's dump of 96 tokens."""
    config, tokens = LlamaConfig.from_gguf(open_gguf(model)), range(1, 97)
    weights, seen = OracleWeights(open_gguf(model), config), {}

    def keep(name: str, array: np.ndarray) -> None:
        seen[name] = np.float32(array)

    keep("logits", oracle.logits(tokens, weights, config=config, positions=range(96), tap=keep))
    folder.mkdir()
    return write(folder, seen, token_ids=tokens, positions=range(96))
