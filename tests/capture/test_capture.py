"""Recording llama.cpp: everything is there, under the right name, the right way round, every time."""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np
import pytest

from llama_ckpt.capture import Take, capture, capture_takes
from llama_ckpt.dumps.reference import Dump, open_dumps, point_names
from llama_ckpt.errors import DumpError, LlamaCkptError, OptionError, TokenizerError
from llama_ckpt.points import BLOCK_POINTS
from tests.capture.formulas import relations
from tests.capture.small_models import SmallLlama, write_small_llama

pytestmark = pytest.mark.llama_cpp

PLAIN = SmallLlama()
GROUPED = SmallLlama(width=32, n_heads=6, n_kv_heads=2, head_dim=12, ffn=40, n_layers=3)
SHAPES = {"plain": PLAIN, "grouped": GROUPED}
PROMPT = "Hello wide world"


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `NAME.gguf` and dumps in `NAME/`: "near", "far" and "one"."""
    folder = tmp_path_factory.mktemp("recorded")
    for name, shape in SHAPES.items():
        model = write_small_llama(folder / f"{name}.gguf", shape)
        out = folder / name
        capture(model, prompt=PROMPT, name="near", out=out, max_tokens=8)
        capture(model, tokens=[1, 270, 5, 5], positions_from=3000, name="far", out=out, max_tokens=3)
        capture(model, tokens=[1], name="one", out=out, max_tokens=0, blocks=[1])
    return folder


@pytest.fixture(params=[(shape, name) for shape in SHAPES for name in ("near", "far")], ids="-".join)
def dump(recorded: Path, request: pytest.FixtureRequest) -> Dump:
    """Each of the whole dumps."""
    shape, name = request.param
    return open_dumps(recorded / shape).dump(name)


def test_the_recorded_points_are_complete(dump: Dump) -> None:
    blocks = range(dump.entry.n_layers)
    wanted = {f"blk.{block}.{point.name}" for block in blocks for point in BLOCK_POINTS}
    assert set(dump) == wanted | {"embd", "output_norm", "logits", "last_logits"}


@pytest.mark.parametrize(("name", "shape"), SHAPES.items(), ids=SHAPES)
def test_shapes_are_tokens_first(recorded: Path, name: str, shape: SmallLlama) -> None:
    dump = open_dumps(recorded / name).dump("far")
    sizes = {point: array for point, array in dump.shapes.items() if point.startswith("blk.1.")}
    assert sizes["blk.1.q"] == sizes["blk.1.q_rope"] == (4, shape.n_heads, shape.head_dim)
    assert sizes["blk.1.k"] == sizes["blk.1.v"] == (4, shape.n_kv_heads, shape.head_dim)
    assert sizes["blk.1.attn_scores"] == sizes["blk.1.attn_probs"] == (4, shape.n_heads, 4)
    assert sizes["blk.1.attn_context"] == (4, shape.n_heads * shape.head_dim)
    assert sizes["blk.1.ffn_gate"] == (4, shape.ffn)
    assert sizes["blk.1.out"] == (4, shape.width)


def test_neighbouring_points_satisfy_their_formulas(dump: Dump) -> None:
    for block in dump.entry.blocks:
        for name, got, wanted in relations(dump, block, dump.entry.positions):
            # llama.cpp's own RoPE angles drift in float32: 3e-4 of a value at position 3,000.
            limit = 1e-3 if name.endswith("_rope") and dump.entry.positions[0] else 1e-5
            np.testing.assert_allclose(got, wanted, rtol=0, atol=limit, err_msg=f"blk.{block}.{name}")


def test_formulas_tell_a_wrong_dump_apart(recorded: Path) -> None:
    """Every transposition that keeps the shape is seen: 4 tokens, 4 heads, 4 keys, 4 positions."""
    dump = open_dumps(recorded / "plain").dump("far")
    right = {name: dump[name] for name in dump}
    for name in ("attn_scores", "attn_probs"):
        for axes in ((1, 0, 2), (2, 1, 0), (0, 2, 1)):
            wrong = right | {f"blk.0.{name}": right[f"blk.0.{name}"].transpose(axes)}
            found = relations(wrong, 0, dump.entry.positions)
            assert max(np.abs(got - wanted).max() for _, got, wanted in found) > 0.01, (name, axes)


def test_q_and_k_at_position_zero_are_not_rotated(recorded: Path) -> None:
    dump = open_dumps(recorded / "grouped").dump("near")
    for point in ("q", "k"):
        np.testing.assert_array_equal(dump[f"blk.2.{point}_rope"][0], dump[f"blk.2.{point}"][0])
        assert np.abs(dump[f"blk.2.{point}_rope"][1] - dump[f"blk.2.{point}"][1]).max() > 0.1


def test_positions_do_not_change_what_comes_before_rope(recorded: Path) -> None:
    dumps = open_dumps(recorded / "plain")
    far, one = dumps.dump("far"), dumps.dump("one")
    assert far.entry.positions == (3000, 3001, 3002, 3003)
    np.testing.assert_array_equal(far["embd"][0], one["embd"][0])
    # A first token sees itself alone: wherever it stands, its block returns the same.
    np.testing.assert_allclose(far["blk.1.out"][0], one["blk.1.out"][0], rtol=0, atol=1e-5)


def test_choices_are_those_of_the_logits(dump: Dump) -> None:
    logits = dump["logits"]
    np.testing.assert_array_equal(dump["last_logits"], logits[-1])
    assert dump.entry.greedy_tokens == tuple(logits.argmax(axis=1))
    second, best = np.sort(logits[-1])[-2:]
    continuation = dump.entry.continuation
    assert continuation.token_ids[0] == logits[-1].argmax()
    assert continuation.margins[0] == float(best) - float(second)


def test_the_continuation_is_what_a_longer_prompt_chooses(recorded: Path, tmp_path: Path) -> None:
    entry = open_dumps(recorded / "grouped").entry("near")
    tokens = (*entry.token_ids, *entry.continuation.token_ids)
    again = capture(recorded / "grouped.gguf", tokens=tokens, out=tmp_path, max_tokens=0)
    assert again.greedy_tokens[len(entry.token_ids) - 1 : -1] == entry.continuation.token_ids
    assert len(entry.continuation.margins) == len(entry.continuation.token_ids) == 8
    assert again.continuation.token_ids == again.continuation.margins == ()


def test_forced_tokens_are_the_continuation_in_one_pass(recorded: Path, tmp_path: Path) -> None:
    entry = open_dumps(recorded / "grouped").entry("near")
    takes = [Take(tokens=entry.token_ids, forced=8, max_tokens=0, name="f"), Take(tokens=[1], name="one")]
    forced, one = capture_takes(recorded / "grouped.gguf", takes, out=tmp_path)
    assert forced.token_ids == (*entry.token_ids, *entry.continuation.token_ids)
    assert forced.greedy_tokens[len(entry.token_ids) - 1 : -1] == entry.continuation.token_ids
    assert forced.prompt is None
    alone = capture(recorded / "grouped.gguf", tokens=[1], name="one", out=tmp_path / "alone")
    assert one == alone  # the checksum too: what was recorded before it in the process changes nothing


def test_text_is_the_pieces_of_the_tokens(dump: Dump) -> None:
    continuation = dump.entry.continuation
    text = base64.b64decode(continuation.text_base64)
    assert text.decode(errors="replace") == continuation.text
    # The small vocabulary's byte tokens start at 3.
    for token in continuation.token_ids:
        assert not 3 <= token < 259 or bytes([token - 3]) in text


def test_the_continuation_ends_at_eos(tmp_path: Path) -> None:
    """With EOS made the first greedy choice, nothing is generated, and the choice's margin is kept."""
    model = write_small_llama(tmp_path / "a.gguf", PLAIN)
    first = capture(model, tokens=[1, 270], out=tmp_path / "a").continuation.token_ids[0]
    model = write_small_llama(tmp_path / "b.gguf", PLAIN, eos=first)
    entry = capture(model, tokens=[1, 270], out=tmp_path / "b")
    assert entry.continuation.ended_by == "eos"
    assert entry.continuation.token_ids == () and len(entry.continuation.margins) == 1


def test_a_prompt_is_tokenized_with_bos(recorded: Path) -> None:
    entry = open_dumps(recorded / "plain").entry("near")
    assert entry.prompt == PROMPT and entry.token_ids[0] == 1 and len(entry.token_ids) == 18


def test_a_part_of_the_blocks_leaves_the_rest_as_it_is(recorded: Path, tmp_path: Path) -> None:
    whole = open_dumps(recorded / "grouped").dump("near")
    capture(recorded / "grouped.gguf", prompt=PROMPT, name="part", out=tmp_path, blocks=[2, 0, 2])
    part = open_dumps(tmp_path).dump("part")
    assert part.entry.blocks == (0, 2)
    assert set(whole) - set(part) == {f"blk.1.{p.name}" for p in BLOCK_POINTS if p.name != "out"}
    for name in part:
        np.testing.assert_array_equal(part[name], whole[name])


def test_two_recordings_are_the_same_bytes(recorded: Path, tmp_path: Path) -> None:
    for folder in (tmp_path / "a", tmp_path / "b"):
        capture(recorded / "plain.gguf", prompt=PROMPT, out=folder)
    written = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert written == ["hello-wide-world.safetensors", "manifest.json"]
    for name in written:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_bits_do_not_depend_on_the_number_of_threads(recorded: Path, tmp_path: Path) -> None:
    capture(recorded / "plain.gguf", prompt=PROMPT, name="near", out=tmp_path, max_tokens=8, n_threads=3)
    dumps = open_dumps(tmp_path)
    assert dumps.manifest.producer.threads == 3
    assert dumps.entry("near") == open_dumps(recorded / "plain").entry("near")


def test_a_long_prompt_is_one_pass(recorded: Path, tmp_path: Path) -> None:
    """Longer than llama.cpp's usual micro-batch of 512, and than one page of 256 cells."""
    tokens = [1] + [3 + i % 256 for i in range(599)]
    entry = capture(recorded / "plain.gguf", tokens=tokens, name="long", out=tmp_path, blocks=[1])
    dump = open_dumps(tmp_path).dump("long")
    assert dump["blk.1.attn_probs"].shape == (600, 4, 600)
    np.testing.assert_allclose(dump["blk.1.attn_probs"].sum(axis=-1), 1, rtol=0, atol=1e-5)
    assert list(dump) == [*point_names(entry), "last_logits"]


def test_the_manifest_says_what_was_recorded(recorded: Path) -> None:
    manifest = open_dumps(recorded / "plain").manifest
    assert manifest.tight and manifest.model.derived_from is None and manifest.model.name == "plain"
    assert manifest.producer.name == "llama.cpp" and "ggml" in manifest.producer.version
    assert manifest.producer.system_info.startswith("CPU")


BAD_OPTIONS = {
    "neither": ({}, OptionError, "what to record: got neither"),
    "both": ({"prompt": "a", "tokens": [1]}, OptionError, "what to record: got both"),
    "none": ({"tokens": []}, OptionError, "tokens to record: got none"),
    "token": ({"tokens": [1, 288]}, TokenizerError, "token 1: got 288, wanted 0 to 287"),
    "negative": ({"tokens": [-1]}, TokenizerError, "token 0: got -1"),
    "position": ({"tokens": [1], "positions_from": -1}, OptionError, "positions_from: got -1"),
    "far": ({"tokens": [1], "positions_from": 2**31}, OptionError, "positions_from"),
    "max_tokens": ({"tokens": [1], "max_tokens": -1}, OptionError, "max_tokens: got -1"),
    "block": ({"tokens": [1], "blocks": [2]}, OptionError, "blocks: got 2, wanted 0 to 1"),
    "forced": ({"tokens": [1], "forced": -1}, OptionError, "forced: got -1"),
    "threads": ({"tokens": [1], "n_threads": 0}, OptionError, "n_threads: got 0"),
    "name": ({"tokens": [1], "name": "../a"}, OptionError, "name of the dump: got '../a'"),
    "folder": ({"tokens": [1], "out": "grouped"}, DumpError, "dumps of another model: got grouped"),
}


@pytest.mark.parametrize(("options", "error", "message"), BAD_OPTIONS.values(), ids=BAD_OPTIONS)
def test_bad_options_are_named(
    recorded: Path, tmp_path: Path, options: dict[str, object], error: type[LlamaCkptError], message: str
) -> None:
    out = recorded / str(options["out"]) if "out" in options else tmp_path / "out"
    with pytest.raises(error, match=message):
        capture(recorded / "plain.gguf", **(options | {"out": out}))  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_of_the_logits_the_last_row_alone_is_kept_on_request(recorded: Path, tmp_path: Path) -> None:
    takes = [Take(prompt=PROMPT, name="near", max_tokens=8, last_logits_only=True)]
    (entry,) = capture_takes(recorded / "plain.gguf", takes, out=tmp_path)
    small, whole = open_dumps(tmp_path).dump("near"), open_dumps(recorded / "plain").dump("near")
    assert entry.last_logits_only and set(whole) - set(small) == {"logits"}
    for name, array in small.items():
        np.testing.assert_array_equal(array, whole[name])
    assert entry.greedy_tokens == whole.entry.greedy_tokens
    assert entry.sampling == whole.entry.sampling
