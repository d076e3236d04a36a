"""The manifest of a folder of reference dumps: what was recorded, from which weights, by what.

`manifest.json` is plain JSON, the same for every language; `manifest_reader` reads and checks it.
It holds no time and no path, so two recordings of the same model by the same program are the same
bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass

__all__ = [
    "SCHEMA",
    "Continuation",
    "DumpEntry",
    "Manifest",
    "ModelRecord",
    "Producer",
    "Sampling",
    "manifest_text",
]

SCHEMA = 1
"""The manifest format that this version writes and reads."""


@dataclass(frozen=True)
class ModelRecord:
    """The model that was recorded.

    Attributes:
        name: the file's `general.name`, or the file's own name where it has none.
        sha256: of the GGUF file.
        weights_sha256: over the dequantized float32 values (see `gguf_file.weights_sha256`);
            the same for an F16 file and its exact float32 upcast.
        tensor_types: the element types of the file's tensors, sorted: `("F16", "F32")`.
        hyperparameters: `LlamaConfig.hyperparameters`: the same weights with another epsilon are
            another model, whatever their checksum.
        derived_from: None, or `{"sha256": of the file it was made from, "how": …}`.
    """

    name: str
    sha256: str
    weights_sha256: str
    tensor_types: tuple[str, ...]
    hyperparameters: Mapping[str, float]
    derived_from: Mapping[str, str] | None = None


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
        last_row: True where only the last token's row of every tensor is kept, and of the other blocks
            nothing: enough to hold a full-size model's own run against, in a megabyte.
        last_logits_only: True where of the logits no more is kept than `last_logits`: a row for each token
            would be most of a long prompt's dump.
        context: positions that llama.cpp's context had, where the model's numbers hang on it: LongRoPE.
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
    last_row: bool = False
    last_logits_only: bool = False
    context: int = 0

    @property
    def needed_context(self) -> int:
        """The context of the run, as far as it is known: what its tokens need, if no more is said."""
        return self.context or max(self.positions) + 1


@dataclass(frozen=True)
class Manifest:
    """A whole manifest: one model, one producer, any number of dumps."""

    model: ModelRecord
    producer: Producer
    dumps: tuple[DumpEntry, ...]

    @property
    def tight(self) -> bool:
        """True where llama.cpp computed in float32 throughout: absolute limits hold for such dumps.

        With F16 or quantized weights it rounds activations, a KV cache in float16 rounds keys and
        values; on a GPU even float32 weights may go through TF32.
        """
        cache = {self.producer.type_k, self.producer.type_v}
        return self.model.tensor_types == ("F32",) and self.producer.backend == "cpu" and cache == {"f32"}


def manifest_text(manifest: Manifest) -> str:
    """The manifest as JSON text: fields in a fixed order, a list of numbers on one line."""
    document = {"schema": SCHEMA, **asdict(manifest)}
    for entry in document["dumps"]:
        for part in ("last_row", "last_logits_only", "context"):
            if not entry[part]:
                del entry[part]  # whole dumps are the rule
    text = json.dumps(document, indent=1, ensure_ascii=True)
    # A string never holds a raw newline in JSON, so this touches lists of plain values only.
    return re.sub(r"\[\n\s+([^\[\]{}]*?)\n\s+\]", _one_line, text) + "\n"


def _one_line(match: re.Match[str]) -> str:
    return "[" + re.sub(r"\n\s+", " ", match.group(1)) + "]"
