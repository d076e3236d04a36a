"""A model's weights as safetensors, for programs that cannot read GGUF yet.

    export_weights("model.gguf", "weights.safetensors")                              # GGUF's names and order
    export_weights("model.gguf", "hf/model.safetensors", layout="hf", dtype="float16")   # with a config.json

`gguf` keeps the file's own names (`blk.0.attn_q.weight`) and row order: pairs of RoPE are neighbours.
`hf` has Hugging Face's names, the rows of Q and K in half-split order, and a `config.json` beside it, so
that `LlamaForCausalLM.from_pretrained(folder)` loads it. Every matrix is [out, in]. The configuration and,
of float32, `weights_sha256`, which a dump of this model declares, stand in `__metadata__`. One tensor is
in memory at a time; numpy only.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.errors import OptionError
from llama_ckpt.gguf.file import GGUFFile, open_gguf, weights_sha256
from llama_ckpt.weights.config import LlamaConfig
from llama_ckpt.weights.llama_tensors import check_llama
from llama_ckpt.weights.tensor_names import BLOCK_TENSORS, MODEL_TENSORS, expected_shapes

__all__ = ["EXPORTED_TYPES", "LAYOUTS", "export_weights", "halves_from_pairs"]

LAYOUTS = ("gguf", "hf")
"""How the exported tensors may be named and ordered."""

EXPORTED_TYPES = {"float32": ("F32", 4), "float16": ("F16", 2), "bfloat16": ("BF16", 2)}
"""What they may be written in: safetensors' name and the size of an element."""

HF_BLOCK = {
    "attn_norm": "input_layernorm",
    "wq": "self_attn.q_proj",
    "wk": "self_attn.k_proj",
    "wv": "self_attn.v_proj",
    "wo": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "w_gate": "mlp.gate_proj",
    "w_up": "mlp.up_proj",
    "w_down": "mlp.down_proj",
}
HF_MODEL = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


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
        model: a GGUF file of a Llama.
        out: the safetensors file; for `hf` a `config.json` is written beside it.
        layout: "gguf" or "hf". dtype: "float32", which is exact, "float16" or "bfloat16".
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
    file = open_gguf(model)
    config = LlamaConfig.from_gguf(file)
    check_llama(file, config)
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {
        "format": "pt",
        "layout": layout,
        "config": json.dumps(asdict(config)),
        "producer": "llama-ckpt export",
    }
    if dtype == "float32":  # what is rounded are other weights
        metadata["weights_sha256"] = weights_sha256(file)
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as stream:
            _write(stream, file, config, layout, dtype, metadata, progress)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    if layout == "gguf":
        return [path]
    beside = path.with_name("config.json")
    beside.write_text(json.dumps(_hf_config(file, config, dtype), indent=1) + "\n", encoding="utf-8")
    return [path, beside]


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
    shapes = expected_shapes(config)
    header: dict[str, Any] = {"__metadata__": metadata}
    place = 0
    for name, shape in shapes.items():
        end = place + size * int(np.prod(shape))
        exported = _exported_name(name, layout)
        header[exported] = {"dtype": kind, "shape": list(shape), "data_offsets": [place, end]}
        place = end
    text = json.dumps(header).encode("utf-8")
    text += b" " * (-len(text) % 8)
    stream.write(struct.pack("<Q", len(text)) + text)
    for number, name in enumerate(shapes):
        if progress:
            progress(name, number, len(shapes))
        values = file.float32(name)
        if layout == "hf":
            values = _hf_order(name, values, config)
        stream.write(_encoded(name, values, dtype))


def _exported_name(name: str, layout: str) -> str:
    if layout == "gguf":
        return name
    for field, own in MODEL_TENSORS.items():
        if name == own:
            return f"{HF_MODEL[field]}.weight"
    _, number, suffix = name.split(".", 2)
    field = next(field for field, own in BLOCK_TENSORS.items() if own == suffix)
    return f"model.layers.{number}.{HF_BLOCK[field]}.weight"


def _hf_order(name: str, values: NDArray[np.float32], config: LlamaConfig) -> NDArray[np.float32]:
    heads = {BLOCK_TENSORS["wq"]: config.n_heads, BLOCK_TENSORS["wk"]: config.n_kv_heads}
    n_heads = heads.get(name.split(".", 2)[-1])
    return values if n_heads is None else halves_from_pairs(values, n_heads)


def halves_from_pairs(w: NDArray[Any], n_heads: int) -> NDArray[Any]:
    """Rows of a projection `[n_heads * head_dim, in]` from GGUF's order into Hugging Face's.

    In each head row 2i comes to i and row 2i + 1 to i + head_dim / 2.
    """
    pairs = w.reshape(n_heads, -1, 2, *w.shape[1:])  # [n_heads, head_dim / 2, 2, in]
    return pairs.swapaxes(1, 2).reshape(w.shape)


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


def _hf_config(file: GGUFFile, config: LlamaConfig, dtype: str) -> dict[str, Any]:
    """What `transformers` needs to build the same model."""
    scaled = {"rope_type": "linear", "factor": config.rope_scale}
    plain = {"rope_type": "default"}
    ids = dict(_special_ids(file))
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": config.width,
        "intermediate_size": config.ffn,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "rope_parameters": {
            **(scaled if config.rope_scale != 1.0 else plain),
            "rope_theta": config.rope_theta,
        },
        "rope_scaling": scaled if config.rope_scale != 1.0 else None,
        "tie_word_embeddings": config.tied_output,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": dtype,
        "dtype": dtype,
        **ids,
    }


def _special_ids(file: GGUFFile) -> Iterator[tuple[str, int]]:
    for name in ("bos", "eos"):
        value = file.metadata.get(f"tokenizer.ggml.{name}_token_id")
        if isinstance(value, int):
            yield f"{name}_token_id", value
