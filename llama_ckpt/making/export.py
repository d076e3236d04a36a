"""A model's weights as safetensors, for programs that cannot read GGUF yet.

    export_weights("model.gguf", "weights.safetensors")                              # GGUF's names and order
    export_weights("model.gguf", "hf/model.safetensors", layout="hf", dtype="float16")   # with a config.json

`gguf` keeps the file's own names (`blk.0.attn_q.weight`) and row order: pairs of RoPE are neighbours.
`hf` has Hugging Face's names, the rows of Q and K in half-split order, and a `config.json` beside it, so
that `LlamaForCausalLM.from_pretrained(folder)` loads it; `meta` has Meta's names, neighbours, and a
`params.json`. Every matrix is [out, in]. The configuration and,
of float32, `weights_sha256`, which a dump of this model declares, stand in `__metadata__`. One tensor is
in memory at a time; numpy only.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.errors import OptionError
from llama_ckpt.gguf.file import GGUFFile, open_gguf, weights_sha256
from llama_ckpt.hugging_face.folder import model_file
from llama_ckpt.making.export_layouts import LAYOUTS, configuration, exported_tensors
from llama_ckpt.weights.config import LlamaConfig
from llama_ckpt.weights.llama_tensors import check_llama
from llama_ckpt.whole_files import appears_when_whole, write_whole

__all__ = ["EXPORTED_TYPES", "export_weights"]

EXPORTED_TYPES = {"float32": ("F32", 4), "float16": ("F16", 2), "bfloat16": ("BF16", 2)}
"""What they may be written in: safetensors' name and the size of an element."""


def export_weights(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    layout: str = "gguf",
    dtype: str = "float32",
    progress: Callable[[str, int, int], None] | None = None,
) -> list[Path]:
    """Write a model's weights.

    Args:
        model: a GGUF file of a Llama, or a folder of Hugging Face's.
        out: the safetensors file; for `hf` a `config.json` is written beside it, for `meta` a `params.json`.
        layout: "gguf", "hf" or "meta". dtype: "float32", which is exact, "float16" or "bfloat16".
        progress: called with the tensor's name, how many are done, and of how many.

    Returns:
        The files that were written.

    Raises:
        OptionError: an unknown layout or dtype, or a value that float16 cannot hold.
        ModelFileError, UnsupportedModelError: no Llama that can be read here.
    """
    for what, got, known in (("--layout", layout, LAYOUTS), ("--dtype", dtype, tuple(EXPORTED_TYPES))):
        if got not in known:
            raise OptionError(what, got=got, wanted=" or ".join(known))
    file = open_gguf(model_file(Path(model)))
    config = LlamaConfig.from_gguf(file)
    check_llama(file, config)
    path = Path(out)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(f"cannot make {path.parent}", got=error.strerror, wanted="a folder") from None
    metadata = {
        "format": "pt",
        "layout": layout,
        "config": json.dumps(asdict(config)),
        "producer": "llama-ckpt export",
    }
    if dtype == "float32":  # what is rounded are other weights
        metadata["weights_sha256"] = weights_sha256(file)
    with appears_when_whole(path) as part, part.open("wb") as stream:
        _write(stream, file, config, layout, dtype, metadata, progress)
    beside = configuration(file, config, layout, dtype)
    if beside is None:
        return [path]
    name, content = beside
    other = path.with_name(name)
    write_whole(other, json.dumps(content, indent=1) + "\n")
    return [path, other]


def _write(
    stream: BinaryIO,
    file: GGUFFile,
    config: LlamaConfig,
    layout: str,
    dtype: str,
    metadata: dict[str, str],
    progress: Callable[[str, int, int], None] | None,
) -> None:
    """The header, which needs shapes only, then one tensor after another."""
    kind, size = EXPORTED_TYPES[dtype]
    tensors = list(exported_tensors(config, layout))
    header: dict[str, Any] = {"__metadata__": metadata}
    place = 0
    for one in tensors:
        end = place + size * int(np.prod(one.shape))
        header[one.name] = {"dtype": kind, "shape": list(one.shape), "data_offsets": [place, end]}
        place = end
    text = json.dumps(header).encode("utf-8")
    text += b" " * (-len(text) % 8)
    stream.write(struct.pack("<Q", len(text)) + text)
    for number, one in enumerate(tensors):
        if progress:
            progress(one.name, number, len(tensors))
        stream.write(_encoded(one.name, one.values(file), dtype))


def _encoded(name: str, values: NDArray[np.float32], dtype: str) -> bytes:
    """The bytes of a tensor, rounded to nearest; bfloat16, which numpy lacks, by its bits."""
    if dtype == "float32":
        return np.ascontiguousarray(values, "<f4").tobytes()
    if dtype == "bfloat16":
        bits = np.ascontiguousarray(values, "<f4").view("<u4")
        rounded = bits + (0x7FFF + ((bits >> 16) & 1))
        quiet = np.where(np.isnan(values), bits | 0x400000, rounded)  # a NaN must not become an infinity
        return (quiet >> 16).astype("<u2").tobytes()
    with np.errstate(over="ignore"):
        half = values.astype("<f2")
    if not np.isfinite(half[np.isfinite(values)]).all():
        raise OptionError("--dtype", got=f"float16, which cannot hold {name}", wanted="float32 or bfloat16")
    return half.tobytes()
