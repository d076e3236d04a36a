"""The committed dumps: what `make reference-dumps` makes, and what llama.cpp still computes."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import reference_dumps
from llama_ckpt.capture import capture
from llama_ckpt.dumps.manifest import DumpEntry
from llama_ckpt.dumps.reference import Dump, DumpSet, open_dumps, point_names
from llama_ckpt.gguf.file import open_gguf, weights_sha256
from llama_ckpt.making.derive import derive
from tests.capture.formulas import relations

FOLDERS = {name: open_dumps(folder) for name, folder in reference_dumps.dump_folders().items()}
DUMPS = [(weights, name) for weights, dumps in FOLDERS.items() for name in dumps.names]
each_dump = pytest.mark.parametrize(("weights", "name"), DUMPS, ids=[f"{w}-{n}" for w, n in DUMPS])
each_folder = pytest.mark.parametrize("weights", FOLDERS)

ELSEWHERE = {"f32": 2e-5, "f16": 1e-2, "q8_0": 0.1, "q4_0": 0.1}
"""Largest relative distance of a tensor between builds for different instructions: at least ten times
what AVX2 and AVX-512 differ by at the logits with float32 (1.1e-6) and F16 weights (9e-4); with quantized
weights twice what llama.cpp on a GPU and on a CPU differ by, since a rounded activation may fall either
way."""


def tool() -> ModuleType:
    """`tools/make_reference_dumps.py`, which is no module of a package."""
    path = Path(__file__).parents[2] / "tools" / "make_reference_dumps.py"
    spec = importlib.util.spec_from_file_location("make_reference_dumps", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The embedded model in every type that dumps are committed for."""
    folder = tmp_path_factory.mktemp("models")
    source = reference_dumps.embedded_model()
    made = {name: derive(source, name, folder / f"{name}.gguf").path for name in FOLDERS if name != "f16"}
    return made | {"f16": source}


def test_what_is_committed_is_what_the_tool_plans() -> None:
    plans = tool().PLANS
    assert set(plans) == set(FOLDERS) == {"f32", "f16", "q8_0", "q4_0"}
    for weights, dumps in FOLDERS.items():
        assert [plan.name for plan in plans[weights]] == list(dumps.names)
        for plan, entry in zip(plans[weights], dumps.entries, strict=True):
            assert entry.blocks == (plan.blocks or tuple(range(entry.n_layers)))
            assert (entry.prompt, entry.positions[0]) == (plan.prompt, plan.positions_from)
            assert len(entry.continuation.token_ids) == plan.max_tokens
            assert entry.last_logits_only == plan.last_logits_only


def test_the_promised_prompts_are_there() -> None:
    for dumps in FOLDERS.values():
        assert dumps.entry("hello").token_ids == (1, 15043)
    float32 = FOLDERS["f32"]
    assert len(float32.entry("eight-tokens").token_ids) == 8
    assert len(float32.entry("one-token").token_ids) == 1
    assert min(float32.entry("far-positions").positions) >= 4000
    assert len(float32.entry("sixty-four-tokens").token_ids) == 64


def test_committed_files_are_small() -> None:
    folders = reference_dumps.dump_folders().values()
    assert sum(path.stat().st_size for folder in folders for path in folder.iterdir()) <= tool().ALL_BYTES


@each_folder
def test_manifests_belong_to_the_derived_files(weights: str, models: dict[str, Path]) -> None:
    recorded, file = FOLDERS[weights].manifest.model, open_gguf(models[weights])
    assert (recorded.sha256, recorded.weights_sha256) == (file.sha256(), weights_sha256(file))
    assert weights.upper() in recorded.tensor_types
    source = open_gguf(models["f16"]).sha256()
    assert (recorded.derived_from or {}).get("sha256") == (None if weights == "f16" else source)


def test_the_upcast_has_the_same_weights() -> None:
    f16, f32 = FOLDERS["f16"].manifest, FOLDERS["f32"].manifest
    assert f16.model.weights_sha256 == f32.model.weights_sha256
    assert f32.tight and not f16.tight


@each_dump
def test_a_committed_dump_is_sound(weights: str, name: str) -> None:
    dump = FOLDERS[weights].dump(name)
    assert list(dump) == [*point_names(dump.entry), "last_logits"]
    assert len(dump.entry.sampling) >= 8 and len(dump.entry.penalized) == 1
    for array in dump.values():
        assert array.any()


@each_dump
def test_a_committed_dump_satisfies_its_formulas(weights: str, name: str) -> None:
    """Of float32 dumps everything; of the others what involves no weights is float32 as well."""
    dump = FOLDERS[weights].dump(name)
    for block in dump.entry.blocks:
        for point, got, wanted in relations(dump, block, dump.entry.positions):
            limit = 1e-3 if dump.entry.positions[0] and point.endswith("_rope") else 2e-5
            scale = max(1.0, float(np.abs(wanted).max()))
            assert np.abs(got - wanted).max() <= limit * scale, (block, point)


@each_dump
def test_recorded_choices_are_those_of_the_recorded_logits(weights: str, name: str) -> None:
    dump = FOLDERS[weights].dump(name)
    if dump.entry.last_logits_only:
        assert dump["last_logits"].argmax() == dump.entry.greedy_tokens[-1]
    else:
        np.testing.assert_array_equal(dump["logits"].argmax(axis=1), dump.entry.greedy_tokens)
        np.testing.assert_array_equal(dump["logits"][-1], dump["last_logits"])
    if dump.entry.continuation.token_ids:
        assert dump.entry.continuation.token_ids[0] == dump.entry.greedy_tokens[-1]


@pytest.fixture(scope="module")
def again(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, DumpSet]]:
    """Every committed dump, recorded again from its own entry in the manifest."""
    out = tmp_path_factory.mktemp("again")
    for weights, name in DUMPS:
        entry, manifest = FOLDERS[weights].entry(name), FOLDERS[weights].manifest
        capture(
            models[weights],
            prompt=entry.prompt,
            tokens=None if entry.prompt is not None else entry.token_ids,
            positions_from=entry.positions[0],
            max_tokens=len(entry.continuation.token_ids),
            name=name,
            blocks=entry.blocks,
            last_logits_only=entry.last_logits_only,
            out=out / weights,
            n_threads=manifest.producer.threads,
            derived_from=manifest.model.derived_from,
        )
    yield {weights: open_dumps(out / weights) for weights in FOLDERS}
    shutil.rmtree(out)


def comparable(entry: DumpEntry) -> dict[str, Any]:
    """What two builds agree on: all but the last bits, and what follows from them."""
    fields = asdict(entry)
    for field in ("sha256", "sampling", "penalized"):
        del fields[field]
    del fields["continuation"]["margins"]
    return fields


@pytest.mark.llama_cpp
@each_folder
def test_recording_again_gives_the_committed_manifest(weights: str, again: dict[str, DumpSet]) -> None:
    committed, new = FOLDERS[weights].manifest, again[weights].manifest
    if new.producer.system_info == committed.producer.system_info:
        assert new == committed
        folders = (FOLDERS[weights].path, again[weights].path)
        assert len({(folder / "manifest.json").read_bytes() for folder in folders}) == 1
    else:
        assert new.model == committed.model
        assert [comparable(entry) for entry in new.dumps] == [comparable(entry) for entry in committed.dumps]


@pytest.mark.llama_cpp
@each_dump
def test_recording_again_gives_the_committed_tensors(
    weights: str, name: str, again: dict[str, DumpSet]
) -> None:
    committed, new = FOLDERS[weights].dump(name), again[weights].dump(name)
    assert list(new) == list(committed)
    same = again[weights].manifest.producer.system_info == FOLDERS[weights].manifest.producer.system_info
    limit = 0.0 if same else ELSEWHERE[weights]
    for point, difference in differences(committed, new).items():
        assert difference <= limit, point


def differences(committed: Dump, new: Dump) -> dict[str, float]:
    """Relative distance of every tensor; 0.0 where all bits are equal."""
    found = {}
    for point, wanted in committed.items():
        distance = np.linalg.norm(new[point].astype(np.float64) - wanted.astype(np.float64))
        same = wanted.tobytes() == new[point].tobytes()
        found[point] = 0.0 if same else float(distance / np.linalg.norm(wanted.astype(np.float64)))
    return found
