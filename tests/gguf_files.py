"""Small GGUF files for tests: whole Llamas with random weights, and headers made byte by byte."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType, GGUFWriter
from gguf.quants import quantize
from numpy.typing import NDArray

T = GGMLQuantizationType
V = GGUFValueType

HALF_FIELDS: dict[T, tuple[int, ...]] = {
    **dict.fromkeys((T.Q4_0, T.Q5_0, T.Q8_0, T.IQ4_NL, T.IQ4_XS), (0,)),
    **dict.fromkeys((T.Q4_1, T.Q5_1, T.Q4_K, T.Q5_K), (0, 2)),
    **{T.Q2_K: (80, 82), T.Q3_K: (108,), T.Q6_K: (208,)},
    **dict.fromkeys((T.IQ1_S, T.IQ2_XXS, T.IQ2_XS, T.IQ2_S, T.IQ3_XXS, T.IQ3_S), (0,)),
    **{T.TQ1_0: (52,), T.TQ2_0: (64,)},
}
"""Where in a block the float16 scales stand."""


def random_rows(
    type: T, shape: tuple[int, int], rng: np.random.Generator, *, scale: float | None = None
) -> NDArray[np.uint8]:
    """Random bytes for a matrix [out, in] of that type: uint8 [out, row_bytes].

    With `scale`, the float16 scales of quantized blocks are finite: uniform from 0 to `scale`.
    """
    block, block_bytes = GGML_QUANT_SIZES[type]
    rows = rng.integers(0, 256, (shape[0], shape[1] // block * block_bytes), dtype=np.uint8)
    if scale is not None:
        blocks = rows.reshape(-1, block_bytes)
        _other_scales(blocks, type, rng, scale)
        for at in HALF_FIELDS.get(type, ()):
            halves = (rng.random(len(blocks)) * scale).astype("<f2")
            blocks[:, at : at + 2] = halves.view(np.uint8).reshape(-1, 2)
    return rows


def _other_scales(blocks: NDArray[np.uint8], type: T, rng: np.random.Generator, scale: float) -> None:
    """Scales that are no float16 in one place: finite, and of the size of `scale`."""
    if type == T.IQ1_M:  # a float16 in the top nibbles of four words
        bits = (rng.random(len(blocks)) * scale).astype("<f2").view("<u2")
        words = blocks[:, 48:56].copy().view("<u2") & 0x0FFF
        for place in range(4):
            words[:, place] |= ((bits >> (4 * place)) & 15) << 12
        blocks[:, 48:56] = words.view(np.uint8)
    if type == T.MXFP4:  # an exponent
        blocks[:, 0] = 127 + int(np.log2(scale)) - rng.integers(0, 4, len(blocks))
    if type == T.NVFP4:  # E4M3
        blocks[:, :4] = rng.integers(0, 16, (len(blocks), 4)) + 8 * max(0, 7 + int(np.log2(scale)))


def packed(values: NDArray[np.float32], type: T, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A matrix [out, in] in that type; for types that `gguf` cannot write, random blocks of its size."""
    try:
        rows = quantize(values, type)
    except NotImplementedError:
        return random_rows(type, (values.shape[0], values.shape[1]), rng, scale=1e-3)
    return np.ascontiguousarray(rows).view(np.uint8).reshape(values.shape[0], -1)


SPECIALS = ("unknown", "bos", "eos")
"""The first tokens of `vocabulary`."""


def vocabulary(n: int) -> dict[str, tuple[Any, V, V]]:
    """Keys of a SentencePiece vocabulary of `n` tokens: specials, 256 bytes, then made-up pieces."""
    texts = [b"<unk>", b"<s>", b"</s>"] + [b"<0x%02X>" % byte for byte in range(256)]
    texts += ["▁".encode()] + [b"%c" % letter for letter in range(ord("a"), ord("z") + 1)]
    texts += ["▁p".encode() + str(number).encode() for number in range(max(0, n - len(texts)))]
    types = [2, 3, 3] + [6] * 256 + [1] * (len(texts) - 259)
    scores = [0.0] * 259 + [-float(rank) for rank in range(len(texts) - 259)]
    return {
        "tokenizer.ggml.tokens": (texts[:n], V.ARRAY, V.STRING),
        "tokenizer.ggml.scores": (scores[:n], V.ARRAY, V.FLOAT32),
        "tokenizer.ggml.token_type": (types[:n], V.ARRAY, V.INT32),
    }


def write_llama(
    path: Path,
    *,
    width: int = 64,
    n_heads: int = 4,
    n_kv_heads: int = 2,
    head_dim: int | None = None,
    ffn: int = 96,
    n_layers: int = 2,
    vocab: int = 320,
    type: T = T.F32,
    seed: int = 0,
    rms_norm_eps: float = 1e-5,
    rope_theta: float = 10000.0,
    tied_output: bool = False,
    keys: Mapping[str, tuple[Any, V]] | None = None,
    omit_keys: Sequence[str] = (),
    tensors: Mapping[str, NDArray[np.float32] | None] | None = None,
    architecture: str = "llama",
    mean: float = 0.0,
) -> Path:
    """Write a Llama with random weights and return its path.

    Args:
        head_dim: None writes no `attention.key_length`; the head size is then width / n_heads.
        type: of all matrices; norms are float32.
        keys: metadata to add or replace, name to value and GGUF type.
        omit_keys: metadata to leave out.
        tensors: tensors to add or replace, in float32; None leaves one out.
        mean: of each matrix's weights, in standard deviations.
    """
    rng = np.random.default_rng(seed)
    metadata: dict[str, tuple[Any, ...]] = {
        "general.name": ("test", V.STRING),
        "llama.block_count": (n_layers, V.UINT32),
        "llama.context_length": (128, V.UINT32),
        "llama.embedding_length": (width, V.UINT32),
        "llama.feed_forward_length": (ffn, V.UINT32),
        "llama.attention.head_count": (n_heads, V.UINT32),
        "llama.attention.head_count_kv": (n_kv_heads, V.UINT32),
        "llama.attention.layer_norm_rms_epsilon": (rms_norm_eps, V.FLOAT32),
        "llama.rope.freq_base": (rope_theta, V.FLOAT32),
        "llama.rope.dimension_count": (head_dim or width // n_heads, V.UINT32),
        "llama.vocab_size": (vocab, V.UINT32),
        "tokenizer.ggml.model": ("llama", V.STRING),
        **vocabulary(vocab),
        **{f"tokenizer.ggml.{name}_token_id": (id, V.UINT32) for id, name in enumerate(SPECIALS)},
        "tokenizer.ggml.add_bos_token": (True, V.BOOL),
        "tokenizer.ggml.add_space_prefix": (True, V.BOOL),
    }
    if head_dim is not None:
        metadata["llama.attention.key_length"] = (head_dim, V.UINT32)
        metadata["llama.attention.value_length"] = (head_dim, V.UINT32)
    metadata |= keys or {}

    shapes = _shapes(
        width, n_heads, n_kv_heads, head_dim or width // n_heads, ffn, n_layers, vocab, tied_output
    )
    values = {name: _values(shape, rng, mean) for name, shape in shapes.items()} | dict(tensors or {})
    kept = {key: value for key, value in metadata.items() if key not in omit_keys}
    _fill(GGUFWriter(path, architecture), kept, values, type, rng)
    return path


def _fill(
    writer: GGUFWriter,
    metadata: Mapping[str, tuple[Any, ...]],
    values: Mapping[str, NDArray[np.float32] | None],
    type: T,
    rng: np.random.Generator,
) -> None:
    """Metadata, then norms in float32 and matrices in that type, to a file."""
    for key, (value, *kinds) in metadata.items():
        writer.add_key_value(key, value, *kinds)
    for name, array in values.items():
        if array is not None and array.ndim == 1:
            writer.add_tensor(name, array)
        elif array is not None:
            writer.add_tensor(name, packed(array, type, rng), raw_dtype=type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _shapes(
    width: int, n_heads: int, n_kv_heads: int, head_dim: int, ffn: int, n_layers: int, vocab: int, tied: bool
) -> dict[str, tuple[int, ...]]:
    """Written out a second time on purpose: it checks `tensor_names.expected_shapes`."""
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (vocab, width), "output_norm.weight": (width,)}
    for block in range(n_layers):
        shapes |= {
            f"blk.{block}.attn_norm.weight": (width,),
            f"blk.{block}.attn_q.weight": (n_heads * head_dim, width),
            f"blk.{block}.attn_k.weight": (n_kv_heads * head_dim, width),
            f"blk.{block}.attn_v.weight": (n_kv_heads * head_dim, width),
            f"blk.{block}.attn_output.weight": (width, n_heads * head_dim),
            f"blk.{block}.ffn_norm.weight": (width,),
            f"blk.{block}.ffn_gate.weight": (ffn, width),
            f"blk.{block}.ffn_up.weight": (ffn, width),
            f"blk.{block}.ffn_down.weight": (width, ffn),
        }
    return shapes if tied else shapes | {"output.weight": (vocab, width)}


def _values(shape: tuple[int, ...], rng: np.random.Generator, mean: float) -> NDArray[np.float32]:
    normal = rng.standard_normal(shape, dtype=np.float32)
    scaled = 1 + normal / 8 if len(shape) == 1 else (normal + mean) / np.sqrt(shape[1])
    return scaled.astype(np.float32)


def string(text: bytes) -> bytes:
    """A GGUF string: length, then bytes."""
    return struct.pack("<Q", len(text)) + text


def key(name: bytes, kind: int, payload: bytes) -> bytes:
    """A metadata entry: name, type number, payload."""
    return string(name) + struct.pack("<I", kind) + payload


def tensor(name: bytes, dims: Sequence[int], kind: int, offset: int) -> bytes:
    """A tensor's entry; `dims` in GGUF's order, fastest first."""
    return string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def gguf_bytes(
    keys: Sequence[bytes] = (),
    tensors: Sequence[bytes] = (),
    data: bytes = b"",
    *,
    version: int = 3,
    n_keys: int | None = None,
    n_tensors: int | None = None,
    alignment: int = 32,
) -> bytes:
    """A whole file from its parts; the counts can be made to lie."""
    n_keys = len(keys) if n_keys is None else n_keys
    n_tensors = len(tensors) if n_tensors is None else n_tensors
    header = b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_keys) + b"".join((*keys, *tensors))
    return header + bytes(-len(header) % alignment) + data
