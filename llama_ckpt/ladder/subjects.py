"""Which models and recordings a validation runs on: the embedded ones, given ones, or fresh captures.

Without arguments it is the embedded model in every type that dumps are committed for; the float32,
Q8_0 and Q4_0 files are derived from it on the spot and their checksums compared with the manifests'.
A model of the user's own is recorded first: as it is, and, where it is small enough, as its exact
float32 upcast too, which has the same weights and gives llama.cpp nothing to round.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.capture import Take, capture_takes
from llama_ckpt.cores import usable_cpus
from llama_ckpt.dumps.reference import LARGE, DumpSet, open_dumps
from llama_ckpt.errors import DumpError, ModelFileError
from llama_ckpt.gguf.file import GGUFFile, open_gguf, weights_sha256
from llama_ckpt.hugging_face.folder import model_file
from llama_ckpt.ladder.block_by_block import Progress, together
from llama_ckpt.ladder.recording import Recording, from_dump, from_last_row, from_oracle, prompt_ids
from llama_ckpt.ladder.subject import Subject
from llama_ckpt.making.derive import TYPES, derive
from llama_ckpt.model import Model, load
from llama_ckpt.oracle.on_device import oracle_weights
from llama_ckpt.oracle.weights import OracleWeights
from llama_ckpt.spare_memory import spare_bytes
from llama_ckpt.tokens.tokenizer import Tokenizer
from llama_ckpt.weights.config import LlamaConfig
from reference_dumps import embedded_model

__all__ = ["INSTALL_REFERENCE", "Selection", "select"]

INSTALL_REFERENCE = "pip install 'llama-ckpt[reference]'"
PROMPTS = ("Hello", "And God said unto Noah, Make thee an ark")
UPCAST_LIMIT = 2**30  # bytes of float32 weights up to which an upcast is recorded as well


@dataclass(frozen=True)
class Selection:
    """What to validate.

    Attributes:
        name: the model's path as the user gave it, or "embedded tiny-32l".
        subjects: in the order in which they are tried, each made when it is asked for.
        notes: what the user should know of how the recordings came about.
        compared: False where llama.cpp's part is missing.
    """

    name: str
    subjects: Iterator[Subject]
    notes: tuple[str, ...] = ()
    compared: bool = True


def select(
    model: str | Path | None,
    dumps: str | Path | None,
    *,
    device: str,
    dtype: str,
    oracle_only: bool,
    scratch: Path,
    progress: Progress | None = None,
) -> Selection:
    """Choose models and recordings.

    Args:
        model: a GGUF file, or a folder of Hugging Face's; None takes the embedded one.
        dumps: a folder of dumps, or a folder of such folders; None takes the embedded model's, or
            captures a given model's.
        device, dtype: as `load` takes them.
        oracle_only: leave llama.cpp out.
        scratch: an empty folder for derived files and captures; it must outlive the subjects.
        progress: called with what is being done, how far it is, and of how many steps.

    Raises:
        DumpError: a folder without dumps, or dumps of other weights.
    """
    path = model_file(Path(model)) if model is not None else embedded_model()
    name = str(model) if model is not None else "embedded tiny-32l"
    tokenizer = path_tokenizer(path)
    said = () if tokenizer.unsupported is None else (f"prompts are token ids: {tokenizer.unsupported}",)
    if oracle_only:
        return Selection(name, oracle_subject(path, device, dtype, progress), said)
    if dumps is None and model is not None:
        if importlib.util.find_spec("llama_cpp") is None:
            note = f"llama.cpp: not compared; to compare, {INSTALL_REFERENCE}"
            subject = oracle_subject(path, device, dtype, progress)
            return Selection(name, subject, (*said, note), compared=False)
        if progress is not None:
            progress("recording llama.cpp", 0, 0)
        folders = capture_all(path, tokenizer, scratch)
        note = f"llama.cpp was recorded for this run, prompts {', '.join(map(repr, PROMPTS))}"
        return Selection(name, recorded_subjects(path, folders, device, dtype, scratch), (*said, note))
    folders = dump_folders(Path(dumps) if dumps is not None else embedded_model().parent)
    return Selection(name, recorded_subjects(path, folders, device, dtype, scratch), said)


def path_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a model's file, without its weights."""
    file = open_gguf(path)
    return Tokenizer.for_model(file, LlamaConfig.from_gguf(file).vocab_size)


def dump_folders(folder: Path) -> list[Path]:
    """The folders that hold a manifest: this one, or those right below it."""
    if (folder / "manifest.json").exists():
        return [folder]
    below = sorted(path.parent for path in folder.glob("*/manifest.json"))
    if not below:
        raise DumpError(
            f"reference dumps in {folder}",
            got="no manifest.json",
            wanted="one there or in a folder below",
            hint="record them: llama-ckpt capture --model M.gguf --prompt TEXT --out DIR",
        )
    # Float32 first: those dumps are tight, so a failure there says most.
    return sorted(below, key=lambda path: (path.name != "f32", path.name != "f16", path.name))


def oracle_subject(
    path: Path, device: str, dtype: str, progress: Progress | None = None
) -> Iterator[Subject]:
    """The model against the oracle alone."""
    model = load(path, device=device, dtype=dtype)
    weights = oracle_weights(model.file, model.config, model.weights, model.device)
    answers: dict[str, dict[str, NDArray[np.float64]]] = {}
    runs = [partial(from_oracle, model, weights, prompt, answers) for prompt in PROMPTS]
    recordings = together(weights, runs, "the oracle's own run", progress)
    yield Subject("oracle", model, weights, tuple(recordings), answers)


def recorded_subjects(
    path: Path, folders: Sequence[Path], device: str, dtype: str, scratch: Path
) -> Iterator[Subject]:
    """One subject for each set of weights among the dumps; dumps of the same weights share a model."""
    groups: dict[str, list[DumpSet]] = {}
    for dumps in map(open_dumps, folders):
        groups.setdefault(dumps.manifest.model.weights_sha256, []).append(dumps)
    own = own_weights(open_gguf(path), [group[0] for group in groups.values()])
    if own not in groups and not any(derivable(path, group[0]) for group in groups.values()):
        next(iter(groups.values()))[0].require_weights(own, str(path))
    for weights_hash, group in groups.items():
        file = path if weights_hash == own else derived(path, group[0], scratch)
        model = load(file, device=device, dtype=dtype)
        for dumps in group:
            dumps.require_hyperparameters(model.config.hyperparameters, str(file))
            check_room(dumps, model.config)
        weights = oracle_weights(model.file, model.config, model.weights, model.device)
        for one, names in by_context(model, group).items():
            recordings = [open_one(dumps, name, one, weights) for dumps, name in names]
            yield Subject(group[0].path.name, one, weights, tuple(recordings))


def check_room(dumps: DumpSet, config: LlamaConfig) -> None:
    """Refuse a prompt and its continuation that the context does not hold, or the memory not the scores of.

    Raises:
        DumpError: a manifest can name 100,000 tokens, whose scores would take 298 GiB.
    """
    for entry in dumps.entries:
        n = len(entry.token_ids) + len(entry.continuation.token_ids)
        if (end := entry.positions[0] + n) > max(config.context_length, entry.context):
            wanted = f"{config.context_length} at most, the model's context"
            raise DumpError(f"{dumps.path}: {entry.name}: positions", got=f"{end} of them", wanted=wanted)
        scores, spare = 8 * n * n * config.n_heads, spare_bytes()
        if spare and scores > spare:
            got, wanted = f"{scores:,} bytes for the scores of {n} tokens", f"the {spare:,} that are free"
            raise DumpError(f"{dumps.path}: {entry.name}: memory", got=got, wanted=wanted)


def own_weights(file: GGUFFile, dumps: Sequence[DumpSet]) -> str:
    """`weights_sha256` of a file; of a large one that dumps were recorded from, their word for it."""
    records = [one.manifest.model for one in dumps]
    known = [record.weights_sha256 for record in records if record.sha256 == file.sha256()]
    return known[0] if known and file.nbytes > LARGE else weights_sha256(file)


def by_context(model: Model, group: Sequence[DumpSet]) -> dict[Model, list[tuple[DumpSet, str]]]:
    """The dumps of some folders, by the model as it was in their runs: LongRoPE hangs on the context."""
    found: dict[bool, tuple[Model, list[tuple[DumpSet, str]]]] = {}
    for dumps in group:
        for name in dumps.names:
            own = model.for_context(dumps.entry(name).needed_context)
            known = found.setdefault(own.config == model.config, (own, []))
            known[1].append((dumps, name))
    return dict(found.values())


def open_one(dumps: DumpSet, name: str, model: Model, weights: OracleWeights) -> Recording:
    """A dump that was recorded from the model's weights."""
    if dumps.entry(name).last_row:
        return from_last_row(dumps, name, model, weights)
    return from_dump(dumps, name, model, weights, tight=dumps.manifest.tight)


def derivable(path: Path, dumps: DumpSet) -> bool:
    """True where the dumps were recorded from a file made of this one."""
    origin = dumps.manifest.model.derived_from
    return origin is not None and origin["sha256"] == open_gguf(path).sha256()


def derived(path: Path, dumps: DumpSet, scratch: Path) -> Path:
    """Make the file that the dumps were recorded from, and check that it is the same."""
    record = dumps.manifest.model
    if record.derived_from is None or not derivable(path, dumps):
        dumps.require_weights(weights_sha256(open_gguf(path)), str(path))
    assert record.derived_from is not None
    out = scratch / f"{dumps.path.name}.gguf"
    derive(open_gguf(path), type_named(record.derived_from["how"]), out)
    made = open_gguf(out)
    if made.sha256() != record.sha256:
        raise ModelFileError(
            f"{record.derived_from['how']} file derived from {path}: sha256",
            got=made.sha256(),
            wanted=record.sha256,
        )
    return out


def type_named(how: str) -> str:
    """The type that `derive` was asked for, from the words that it left in a manifest."""
    found = [word for word in re.split(r"[ ,]+", how) if word in TYPES]
    if not found:
        raise DumpError(
            "derived_from.how in the manifest", got=how, wanted="a type among " + ", ".join(TYPES)
        )
    return found[0]


def capture_all(path: Path, tokenizer: Tokenizer, scratch: Path) -> list[Path]:
    """Record llama.cpp on the file, and on its float32 upcast where that is small enough."""
    file = open_gguf(path)
    files: dict[str, tuple[Path, Mapping[str, str] | None]] = {"as-is": (path, None)}
    elements = sum(_elements(info.shape) for info in file.tensors.values())
    if 4 * elements <= UPCAST_LIMIT:
        upcast = scratch / "f32.gguf"
        files["f32"] = (upcast, derive(file, "F32", upcast).derived_from)
    folders = []
    for label, (source, origin) in files.items():
        out = scratch / label
        takes = [_take(tokenizer, number) for number in range(len(PROMPTS))]
        capture_takes(source, takes, out=out, n_threads=usable_cpus(), derived_from=origin)
        folders.append(out)
    return folders


def _take(tokenizer: Tokenizer, number: int) -> Take:
    """One of the prompts: as a text, for llama.cpp's own tokenizer, where it can be held against ours."""
    token_ids, text = prompt_ids(tokenizer, PROMPTS[number])
    return Take(prompt=text, tokens=token_ids if text is None else None, name=f"prompt-{number}")


def _elements(shape: Sequence[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
