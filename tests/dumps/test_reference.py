"""Reference dumps: what is written is read again, and nothing damaged is ever believed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from llama_ckpt.dumps.manifest import Continuation, Manifest, manifest_text
from llama_ckpt.dumps.manifest_reader import read_manifest
from llama_ckpt.dumps.reference import Dump, open_dumps, point_names, write_dump
from llama_ckpt.errors import DumpError
from tests.dump_samples import ENTRY, MODEL, PRODUCER, tensors

Tensors = dict[str, NDArray[Any]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one sound dump."""
    write_dump(tmp_path / "dumps", model=MODEL, producer=PRODUCER, entry=ENTRY, tensors=tensors())
    return tmp_path / "dumps"


def edit_manifest(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest's JSON."""
    path = folder / "manifest.json"
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))


def edit_tensors(folder: Path, edit: Callable[[Tensors], object]) -> None:
    """Change the dump's tensors, with a checksum that agrees again."""
    path = folder / ENTRY.file
    changed = dict(load_file(path))
    edit(changed)
    save_file(changed, path)
    checksum = hashlib.sha256(path.read_bytes()).hexdigest()
    edit_manifest(folder, lambda document: document["dumps"][0].update(sha256=checksum))


def read_all(folder: Path) -> Dump:
    """Open the dump and read every tensor of it."""
    dump = open_dumps(folder).dump("hello")
    for name in dump:
        dump[name]
    for penalized in (False, True):
        dump.probabilities(0, penalized=penalized)
    return dump


def test_everything_written_is_read_again(folder: Path) -> None:
    dump, wanted = read_all(folder), tensors()
    assert list(dump) == [*point_names(ENTRY), "last_logits"]
    for name in dump:
        np.testing.assert_array_equal(dump[name], wanted[name], strict=True)
    dumps = open_dumps(folder)
    assert (dumps.manifest.model, dumps.manifest.producer) == (MODEL, PRODUCER)
    assert [replace(entry, sha256="") for entry in dumps.entries] == [ENTRY]


def test_a_point_has_its_flow_order_and_only_out_of_other_blocks() -> None:
    names = point_names(ENTRY)
    assert names[:3] == ["embd", "blk.0.attn_norm", "blk.0.q"]
    assert names[-2:] == ["output_norm", "logits"]
    assert [name for name in names if name.startswith("blk.1.")] == ["blk.1.out"]


def test_probabilities_are_dense(folder: Path) -> None:
    probabilities = read_all(folder).probabilities(0)
    assert probabilities.shape == (20,) and probabilities.dtype == np.float32
    assert {int(i): float(probabilities[i]) for i in probabilities.nonzero()[0]} == {3: 0.25, 11: 0.75}


def test_writing_twice_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    write_dump(tmp_path / "again", model=MODEL, producer=PRODUCER, entry=ENTRY, tensors=tensors())
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_a_dump_of_the_same_name_is_replaced_and_another_is_added(folder: Path) -> None:
    other = replace(ENTRY, name="other", file="other.safetensors")
    for entry in (other, replace(ENTRY, prompt=None)):
        write_dump(folder, model=MODEL, producer=PRODUCER, entry=entry, tensors=tensors())
    dumps = open_dumps(folder)
    assert dumps.names == ("other", "hello")
    assert dumps.entry("hello").prompt is None


@pytest.mark.parametrize("offset", [3, 40, 2000, -1])
def test_a_flipped_byte_is_an_error(folder: Path, offset: int) -> None:
    data = bytearray((folder / ENTRY.file).read_bytes())
    data[offset] ^= 1
    (folder / ENTRY.file).write_bytes(data)
    with pytest.raises(DumpError, match="sha256"):
        read_all(folder)


def test_a_missing_file_is_an_error(folder: Path) -> None:
    (folder / ENTRY.file).unlink()
    with pytest.raises(DumpError, match="cannot be opened: got no such file"):
        read_all(folder)


def put(name: str, index: tuple[int, ...], value: float) -> Callable[[Tensors], object]:
    """An edit that sets one element."""

    def edit(arrays: Tensors) -> None:
        arrays[name] = arrays[name].copy()
        arrays[name][index] = value

    return edit


DAMAGES: dict[str, tuple[Callable[[Tensors], object], str]] = {
    "missing point": (lambda t: t.pop("blk.2.q_rope"), r"missing tensors: got blk\.2\.q_rope"),
    "missing out": (lambda t: t.pop("blk.1.out"), r"missing tensors: got blk\.1\.out"),
    "missing last row": (lambda t: t.pop("last_logits"), "missing tensors: got last_logits"),
    "missing probabilities": (lambda t: t.pop("sampling.0.ids"), r"missing tensors: got sampling\.0\.ids"),
    "left over": (lambda t: t.update({"blk.1.q": t["blk.0.q"]}), r"does not name: got blk\.1\.q"),
    "a token less": (lambda t: t.update(embd=t["embd"][:2].copy()), "shape of embd"),
    "padded keys": (
        lambda t: t.update({"blk.0.attn_probs": np.zeros((3, 4, 256), np.float32)}),
        "shape of blk.0.attn_probs",
    ),
    "heads first": (
        lambda t: t.update({"blk.0.q": t["blk.0.q"].transpose(1, 0, 2).copy()}),
        "shape of blk.0.q ",
    ),
    "heads joined": (lambda t: t.update({"blk.0.q": t["blk.0.q"].reshape(3, 24)}), "shape of blk.0.q "),
    "other width": (lambda t: t.update({"blk.1.out": np.zeros((3, 9), np.float32)}), "shape of blk.1.out"),
    "float64": (lambda t: t.update(embd=t["embd"].astype(np.float64)), "dtype of embd: got F64"),
    "NaN": (put("blk.0.ffn_up", (1, 2), np.nan), r"blk\.0\.ffn_up\[1, 2\]: got nan"),
    "infinity": (put("logits", (2, 19), -np.inf), r"logits\[2, 19\]: got -inf"),
    "id out of range": (put("sampling.0.ids", (1,), 20), r"sampling\.0: got ids or values out of range"),
    "negative id": (put("penalized.0.ids", (0,), -1), r"penalized\.0: got ids or values"),
    "NaN probability": (put("sampling.0.probabilities", (0,), np.nan), r"sampling\.0: got ids or values"),
}


@pytest.mark.parametrize(("edit", "message"), DAMAGES.values(), ids=DAMAGES.keys())
def test_damaged_tensors_are_an_error(folder: Path, edit: Callable[[Tensors], object], message: str) -> None:
    read_all(folder)
    edit_tensors(folder, edit)
    with pytest.raises(DumpError, match=message):
        read_all(folder)


def test_a_truncated_file_with_its_own_checksum_is_an_error(folder: Path) -> None:
    data = (folder / ENTRY.file).read_bytes()[:300]
    (folder / ENTRY.file).write_bytes(data)
    checksum = hashlib.sha256(data).hexdigest()
    edit_manifest(folder, lambda document: document["dumps"][0].update(sha256=checksum))
    with pytest.raises(DumpError, match="is not readable: .*wanted recorded tensors"):
        read_all(folder)


WRONG_FIELDS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "newer schema": (lambda d: d.update(schema=2), "schema: got 2, wanted 1"),
    "no schema": (lambda d: d.pop("schema"), "schema: got nothing"),
    "layers without end": (
        lambda d: d["dumps"][0].update(n_layers=10**9, blocks=[0, 2]),
        "n_layers: got 1000000000",
    ),
    "70 bits": (lambda d: d["dumps"][0].update(n_layers=1 << 70), "more than 64 bits"),
    "margins missing": (
        lambda d: d["dumps"][0]["continuation"].update(margins=[]),
        "margins: got 0, wanted 3",
    ),
    "ended by nobody": (
        lambda d: d["dumps"][0]["continuation"].update(ended_by="me"),
        "ended_by: got 'me', wanted eos or max_tokens",
    ),
    "no base64": (
        lambda d: d["dumps"][0]["continuation"].update(text_base64="*"),
        "text_base64: got no base64",
    ),
    "row beyond": (
        lambda d: d["dumps"][0]["sampling"][0].update(row=3),
        r"sampling\[0\]: row: got 3, wanted 0 to 2",
    ),
    "cold": (
        lambda d: d["dumps"][0]["sampling"][0].update(temperature=-1),
        "temperature: got -1.0, wanted 0 or more",
    ),
    "no penalty": (
        lambda d: d["dumps"][0]["penalized"][0].update(repeat_penalty=0.0),
        "repeat_penalty: got 0.0",
    ),
    "token below 0": (
        lambda d: d["dumps"][0].update(greedy_tokens=[4, 5, -6]),
        "token ids: got a number below 0",
    ),
    "positions fall": (
        lambda d: d["dumps"][0].update(positions=[3, 2, 1]),
        "positions: got numbers that do not rise",
    ),
    "context within": (
        lambda d: d["dumps"][0].update(context=1),
        "context: got 1, wanted [0-9]+ or more: a cell for each token",
    ),
    "NUL in the file": (
        lambda d: d["dumps"][0].update(file="a\0.safetensors"),
        "a plain \\*.safetensors name",
    ),
    "no sha256": (lambda d: d["model"].update(weights_sha256="5A" * 32), "weights_sha256: got '5A5A"),
    "a short sha256": (lambda d: d["dumps"][0].update(sha256="5a"), "sha256: got '5a', wanted 64 digits"),
    "no model": (lambda d: d.pop("model"), "model: got nothing"),
    "model a list": (lambda d: d.update(model=[]), r"model: got \[\], wanted a JSON object"),
    "no weights": (lambda d: d["model"].pop("weights_sha256"), "weights_sha256: got nothing"),
    "origin": (lambda d: d["model"].update(derived_from={"sha256": "x"}), "derived_from: how: got nothing"),
    "origin a word": (lambda d: d["model"].update(derived_from="x"), "derived_from: got 'x', wanted a JSON"),
    "no sampling": (lambda d: d["dumps"][0].pop("sampling"), "sampling: got nothing"),
    "a number's name": (lambda d: d["model"]["hyperparameters"].update(n="4"), "hyperparameters: n: got '4'"),
    "threads": (lambda d: d["producer"].update(threads="1"), "threads: got '1', wanted a whole number"),
    "flag": (
        lambda d: d["producer"].update(flash_attention=0),
        "flash_attention: got 0, wanted true or false",
    ),
    "token": (lambda d: d["dumps"][0].update(token_ids=[1, True, 7]), r"token_ids\[1\]: got True"),
    "no tokens": (
        lambda d: d["dumps"][0].update(token_ids=[], positions=[], greedy_tokens=[]),
        "token_ids: got",
    ),
    "positions": (lambda d: d["dumps"][0].update(positions=[0, 1]), "positions: got 2, wanted 3"),
    "greedy": (lambda d: d["dumps"][0].update(greedy_tokens=[]), "greedy_tokens: got 0, wanted 3"),
    "block": (lambda d: d["dumps"][0].update(blocks=[0, 3]), "blocks"),
    "block twice": (lambda d: d["dumps"][0].update(blocks=[0, 0]), "blocks"),
    "point": (lambda d: d["dumps"][0].update(points=["out", "Qcur"]), "points"),
    "outside": (lambda d: d["dumps"][0].update(file="../hello.safetensors"), "file"),
    "margin": (lambda d: d["dumps"][0]["continuation"].update(margins=[None]), r"margins\[0\]"),
    "same name": (lambda d: d["dumps"].append(d["dumps"][0]), "wanted each once"),
}


@pytest.mark.parametrize(("edit", "message"), WRONG_FIELDS.values(), ids=WRONG_FIELDS.keys())
def test_a_wrong_manifest_is_an_error(
    folder: Path, edit: Callable[[dict[str, Any]], object], message: str
) -> None:
    edit_manifest(folder, edit)
    with pytest.raises(DumpError, match=message):
        open_dumps(folder)


def test_a_folder_without_dumps_says_how_to_make_them(tmp_path: Path) -> None:
    with pytest.raises(DumpError, match="does not exist; record dumps with: llama-ckpt capture"):
        open_dumps(tmp_path)


def test_a_manifest_that_is_no_json_is_an_error(folder: Path) -> None:
    (folder / "manifest.json").write_bytes(b"\xff{")
    with pytest.raises(DumpError, match="is not readable: .*wanted a manifest in JSON"):
        open_dumps(folder)


def test_a_token_beyond_the_vocabulary_is_an_error(folder: Path) -> None:
    edit_manifest(folder, lambda document: document["dumps"][0].update(greedy_tokens=[4, 5, 20]))
    with pytest.raises(DumpError, match="tokens in the manifest: got 20, wanted ids from 0 to 19"):
        read_all(folder)


def test_a_wrong_checksum_of_weights_is_an_error_for_the_right_file(folder: Path) -> None:
    dumps = open_dumps(folder)
    dumps.require_model(MODEL.sha256, lambda: MODEL.weights_sha256, 10, "m.gguf")
    with pytest.raises(DumpError, match="recorded from other weights"):
        dumps.require_model(MODEL.sha256, lambda: "00" * 32, 10, "m.gguf")


def test_an_unknown_dump_is_named_with_those_that_exist(folder: Path) -> None:
    with pytest.raises(DumpError, match="got 'goodbye', wanted hello"):
        open_dumps(folder).dump("goodbye")


def test_dumps_of_other_weights_are_refused(folder: Path) -> None:
    dumps = open_dumps(folder)
    dumps.require_weights(MODEL.weights_sha256, "same.gguf")
    with pytest.raises(DumpError, match=r"other weights \(sample\) than mine.gguf"):
        dumps.require_weights("00" * 32, "mine.gguf")


def test_dumps_under_another_configuration_are_refused(folder: Path) -> None:
    dumps = open_dumps(folder)
    dumps.require_hyperparameters({"rms_norm_eps": 1e-5}, "same.gguf")
    with pytest.raises(DumpError, match=r"attention_factor of mine.gguf: got 2.0, wanted None"):
        dumps.require_hyperparameters({"rms_norm_eps": 1e-5, "attention_factor": 2.0}, "mine.gguf")
    with pytest.raises(DumpError, match=r"rms_norm_eps of mine.gguf: got 1e-06, wanted 1e-05"):
        dumps.require_hyperparameters({"rms_norm_eps": 1e-6}, "mine.gguf")


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "model": ({"model": replace(MODEL, sha256="00" * 32)}, "dumps of another model"),
    "producer": ({"producer": replace(PRODUCER, threads=8)}, "recorded in another way"),
    "tensors": ({"tensors": {}}, "missing tensors"),
    "NaN": ({"tensors": tensors() | {"embd": np.full((3, 8), np.nan, np.float32)}}, "wanted a finite number"),
    "entry": ({"entry": replace(ENTRY, positions=(0,))}, "positions"),
}


@pytest.mark.parametrize(("changed", "message"), CHANGES.values(), ids=CHANGES.keys())
def test_a_refused_dump_changes_nothing(folder: Path, changed: dict[str, Any], message: str) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    right = {"model": MODEL, "producer": PRODUCER, "entry": ENTRY, "tensors": tensors()}
    with pytest.raises(DumpError, match=message):
        write_dump(folder, **(right | changed))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("types", "backend", "tight"),
    [(("F32",), "cpu", True), (("F16", "F32"), "cpu", False), (("F32",), "cuda", False)],
)
def test_only_float32_weights_on_the_cpu_are_tight(types: tuple[str, ...], backend: str, tight: bool) -> None:
    manifest = Manifest(replace(MODEL, tensor_types=types), replace(PRODUCER, backend=backend), ())
    assert manifest.tight is tight


@given(
    prompt=st.none() | st.text(),
    text=st.text(),
    tokens=st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=20),
    margin=st.floats(allow_nan=False, allow_infinity=False),
)
def test_any_manifest_survives_its_text(
    tmp_path_factory: pytest.TempPathFactory,
    prompt: str | None,
    text: str,
    tokens: list[int],
    margin: float,
) -> None:
    ids = tuple(tokens)
    continuation = Continuation(ids, (margin,) * len(ids), "max_tokens", text, "")
    rows = {"token_ids": ids, "positions": tuple(range(7, 7 + len(ids))), "greedy_tokens": ids}
    settings = {"sampling": (), "penalized": (), "sha256": "5a" * 32}
    entry = replace(ENTRY, prompt=prompt, continuation=continuation, **rows, **settings)
    manifest = Manifest(MODEL, PRODUCER, (entry,))
    path = tmp_path_factory.mktemp("manifest") / "manifest.json"
    path.write_text(manifest_text(manifest))
    assert read_manifest(path) == manifest
