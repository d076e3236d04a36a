"""The manifest of a folder of reference dumps: what was recorded, from which weights, by what.

`manifest.json` is plain JSON, the same for every language. Everything in it is checked when it
is read: a field that is missing, of the wrong type or at odds with another is a `DumpError`
that names the field. It holds no time and no path, so two recordings of the same model by the
same program are the same bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from llama_ckpt.errors import DumpError
from llama_ckpt.points import BLOCK_POINTS

__all__ = [
    "SCHEMA",
    "Continuation",
    "DumpEntry",
    "Manifest",
    "ModelRecord",
    "Producer",
    "Sampling",
    "check_entry",
    "manifest_text",
    "read_manifest",
]

SCHEMA = 1
"""The manifest format that this version writes and reads."""

T = TypeVar("T")


@dataclass(frozen=True)
class ModelRecord:
    """The model that was recorded.

    Attributes:
        name: the file's `general.name`, or the file's own name where it has none.
        sha256: of the GGUF file.
        weights_sha256: over the dequantized float32 values (see `gguf_file.weights_sha256`);
            the same for an F16 file and its exact float32 upcast.
        tensor_types: the element types of the file's tensors, sorted: `("F16", "F32")`.
        derived_from: None, or `{"sha256": of the file it was made from, "how": …}`.
    """

    name: str
    sha256: str
    weights_sha256: str
    tensor_types: tuple[str, ...]
    derived_from: Mapping[str, str] | None = None

    @property
    def weight_type(self) -> str:
        """The type of the matrices, as `derive` takes it: `"Q8_0"`. Norms are float32 in every file.

        Of a mixture (`Q4_K_M`) it is the first in the alphabet, and no file can be made from it.
        """
        return next((kind for kind in self.tensor_types if kind != "F32"), "F32")


@dataclass(frozen=True)
class Producer:
    """The program that was recorded, and how it ran.

    Attributes:
        name: `"llama.cpp"`.
        version: llama.cpp's and ggml's version.
        llama_cpp_python: version of the package that it came in.
        system_info: what `llama_print_system_info` says: the instruction sets that decide the bits.
        backend: `"cpu"`, `"cuda"`, ….
        flash_attention: whether attention ran as one fused kernel.
        type_k, type_v: element types of the KV cache.
        threads: number of threads; the bits do not depend on it.
        extra_buffers: whether weights were repacked (`use_extra_bufts`), which decides bits of
            some quantized types.
    """

    name: str
    version: str
    llama_cpp_python: str
    system_info: str
    backend: str
    flash_attention: bool
    type_k: str
    type_v: str
    threads: int
    extra_buffers: bool


@dataclass(frozen=True)
class Continuation:
    """llama.cpp's greedy continuation, token by token through its own KV cache.

    Attributes:
        token_ids: the chosen tokens; the end-of-sequence token is not among them.
        margins: best logit minus second best, one for each choice: as many as `token_ids`, and
            one more where the last choice was the end-of-sequence token.
        ended_by: `"eos"` or `"max_tokens"`.
        text: the pieces of `llama_token_to_piece`, joined, bytes that are no UTF-8 replaced.
        text_base64: the same bytes as they were.
    """

    token_ids: tuple[int, ...]
    margins: tuple[float, ...]
    ended_by: str
    text: str
    text_base64: str


@dataclass(frozen=True)
class Sampling:
    """A setting of llama.cpp's sampler chain; its probabilities are in the dump's file.

    Attributes:
        temperature, top_k, top_p, min_p: as in `softmax`; 0, 1.0 and 0.0 switch the last three off.
        row: the row of `logits` that it was applied to.
        repeat_penalty: 1.0 is off.
        penalty_tokens: the tokens that the penalty counts.
    """

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    row: int
    repeat_penalty: float = 1.0
    penalty_tokens: tuple[int, ...] = ()


@dataclass(frozen=True)
class DumpEntry:
    """One dump: one prompt through the whole model.

    Attributes:
        name, file, sha256: the dump's name, its safetensors file, and that file's checksum.
        prompt: the text, or None where token ids were given.
        token_ids, positions: one of each for each row.
        n_layers: number of blocks of the model.
        blocks: the blocks recorded in full; of the others only `blk.N.out`.
        points: neutral names of the points recorded in those blocks.
        greedy_tokens: llama.cpp's greedy choice after each row.
        continuation: its greedy continuation after the last row.
        sampling: settings of the sampler chain, tokens not penalized.
        penalized: settings with a repetition penalty.
    """

    name: str
    file: str
    sha256: str
    prompt: str | None
    token_ids: tuple[int, ...]
    positions: tuple[int, ...]
    n_layers: int
    blocks: tuple[int, ...]
    points: tuple[str, ...]
    greedy_tokens: tuple[int, ...]
    continuation: Continuation
    sampling: tuple[Sampling, ...] = ()
    penalized: tuple[Sampling, ...] = ()


@dataclass(frozen=True)
class Manifest:
    """A whole manifest: one model, one producer, any number of dumps."""

    model: ModelRecord
    producer: Producer
    dumps: tuple[DumpEntry, ...]

    @property
    def float32(self) -> bool:
        """True where llama.cpp computed in float32 throughout: absolute limits hold for such dumps.

        With F16 or quantized weights it rounds activations; on a GPU even float32 weights may go
        through TF32.
        """
        return self.model.tensor_types == ("F32",) and self.producer.backend == "cpu"


def manifest_text(manifest: Manifest) -> str:
    """The manifest as JSON text: fields in a fixed order, a list of numbers on one line."""
    document = {"schema": SCHEMA, **asdict(manifest)}
    text = json.dumps(document, indent=1, ensure_ascii=True)
    # A string never holds a raw newline in JSON, so this touches lists of plain values only.
    return re.sub(r"\[\n\s+([^\[\]{}]*?)\n\s+\]", _one_line, text) + "\n"


def _one_line(match: re.Match[str]) -> str:
    return "[" + re.sub(r"\n\s+", " ", match.group(1)) + "]"


def read_manifest(path: Path) -> Manifest:
    """Read and check a `manifest.json`.

    Raises:
        DumpError: the file is missing, no JSON, of another schema, or a field is wrong.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DumpError(
            f"{path} does not exist", hint="record dumps with: llama-ckpt capture --model M.gguf --out DIR"
        ) from error
    except (OSError, ValueError) as error:
        raise DumpError(f"{path} is not readable as JSON", got=error) from error
    root = _Fields(document, str(path))
    if root.take("schema", int) != SCHEMA:
        raise DumpError(f"{path}: schema", got=root.take("schema", int), wanted=SCHEMA)
    dumps = tuple(_entry(fields) for fields in root.records("dumps"))
    names = [entry.name for entry in dumps]
    if len(set(names)) != len(names):
        raise DumpError(f"{path}: names of dumps", got=names, wanted="each name once")
    return Manifest(_model(root.record("model")), _producer(root.record("producer")), dumps)


class _Fields:
    """A JSON object whose fields are taken with a check of their type."""

    def __init__(self, value: object, where: str) -> None:
        if not isinstance(value, dict):
            raise DumpError(where, got=type(value).__name__, wanted="a JSON object")
        self.value: dict[str, Any] = value
        self.where = where

    def take(self, key: str, kind: type[T]) -> T:
        return _typed(self._found(key), kind, f"{self.where}: {key}")

    def optional(self, key: str, kind: type[T]) -> T | None:
        return None if self._found(key) is None else self.take(key, kind)

    def several(self, key: str, kind: type[T]) -> tuple[T, ...]:
        items = self.take(key, list)
        return tuple(_typed(item, kind, f"{self.where}: {key}[{i}]") for i, item in enumerate(items))

    def _found(self, key: str) -> Any:
        if key not in self.value:
            raise DumpError(f"{self.where}: {key}", got="nothing", wanted="a value")
        return self.value[key]

    def record(self, key: str) -> _Fields:
        return _Fields(self._found(key), f"{self.where}: {key}")

    def records(self, key: str) -> list[_Fields]:
        return [_Fields(item, f"{self.where}: {key}[{i}]") for i, item in enumerate(self.take(key, list))]


def _typed(value: Any, kind: type[T], where: str) -> T:
    if kind is float and type(value) is int:
        value = float(value)
    # bool is a subclass of int: `type() is` keeps `true` out of the numbers.
    if type(value) is not kind:
        raise DumpError(where, got=repr(value)[:60], wanted=kind.__name__)
    return value


def _model(fields: _Fields) -> ModelRecord:
    derived = None
    if fields.optional("derived_from", dict) is not None:
        origin = fields.record("derived_from")
        derived = {"sha256": origin.take("sha256", str), "how": origin.take("how", str)}
    return ModelRecord(
        name=fields.take("name", str),
        sha256=fields.take("sha256", str),
        weights_sha256=fields.take("weights_sha256", str),
        tensor_types=fields.several("tensor_types", str),
        derived_from=derived,
    )


def _producer(fields: _Fields) -> Producer:
    return Producer(
        name=fields.take("name", str),
        version=fields.take("version", str),
        llama_cpp_python=fields.take("llama_cpp_python", str),
        system_info=fields.take("system_info", str),
        backend=fields.take("backend", str),
        flash_attention=fields.take("flash_attention", bool),
        type_k=fields.take("type_k", str),
        type_v=fields.take("type_v", str),
        threads=fields.take("threads", int),
        extra_buffers=fields.take("extra_buffers", bool),
    )


def _entry(fields: _Fields) -> DumpEntry:
    entry = DumpEntry(
        name=fields.take("name", str),
        file=fields.take("file", str),
        sha256=fields.take("sha256", str),
        prompt=fields.optional("prompt", str),
        token_ids=fields.several("token_ids", int),
        positions=fields.several("positions", int),
        n_layers=fields.take("n_layers", int),
        blocks=fields.several("blocks", int),
        points=fields.several("points", str),
        greedy_tokens=fields.several("greedy_tokens", int),
        continuation=_continuation(fields.record("continuation")),
        sampling=tuple(_sampling(item) for item in fields.records("sampling")),
        penalized=tuple(_sampling(item) for item in fields.records("penalized")),
    )
    check_entry(entry, fields.where)
    return entry


def _continuation(fields: _Fields) -> Continuation:
    return Continuation(
        token_ids=fields.several("token_ids", int),
        margins=fields.several("margins", float),
        ended_by=fields.take("ended_by", str),
        text=fields.take("text", str),
        text_base64=fields.take("text_base64", str),
    )


def _sampling(fields: _Fields) -> Sampling:
    return Sampling(
        temperature=fields.take("temperature", float),
        top_k=fields.take("top_k", int),
        top_p=fields.take("top_p", float),
        min_p=fields.take("min_p", float),
        row=fields.take("row", int),
        repeat_penalty=fields.take("repeat_penalty", float),
        penalty_tokens=fields.several("penalty_tokens", int),
    )


def check_entry(entry: DumpEntry, where: str) -> None:
    """Check that the fields of an entry agree with each other.

    Raises:
        DumpError: which field, got, wanted.
    """
    n_tokens = len(entry.token_ids)
    block_points = {point.name for point in BLOCK_POINTS}
    wanted: list[tuple[str, object, object, bool]] = [
        ("token_ids", entry.token_ids, "at least one", n_tokens > 0),
        ("file", entry.file, "a plain *.safetensors name", _plain(entry.file)),
        ("positions", len(entry.positions), n_tokens, len(entry.positions) == n_tokens),
        ("greedy_tokens", len(entry.greedy_tokens), n_tokens, len(entry.greedy_tokens) == n_tokens),
        ("blocks", entry.blocks, f"below {entry.n_layers}, ascending", _ascending(entry)),
        ("points", entry.points, sorted(block_points), {"out"} <= set(entry.points) <= block_points),
    ]
    for field, got, right, holds in wanted:
        if not holds:
            raise DumpError(f"{where}: {field}", got=got, wanted=right)


def _plain(file: str) -> bool:
    return file == Path(file).name and file.endswith(".safetensors") and "\\" not in file


def _ascending(entry: DumpEntry) -> bool:
    in_range = all(0 <= block < entry.n_layers for block in entry.blocks)
    return in_range and list(entry.blocks) == sorted(set(entry.blocks))
