"""Small Llamas of any shape for the recorder's tests, written by `gguf`'s own writer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

__all__ = ["SmallLlama", "write_small_llama"]

# Unknown, BOS and EOS, all bytes, and letters: the least that llama.cpp takes as a vocabulary.
TOKENS = [b"<unk>", b"<s>", b"</s>"] + [f"<0x{byte:02X}>".encode() for byte in range(256)]
TOKENS += [letter.encode() for letter in "abcdefghijklmnopqrstuvwxyzHW▁"]


@dataclass(frozen=True)
class SmallLlama:
    """The shape of a small Llama; `value_length` other than None contradicts `head_dim`."""

    width: int = 32
    n_heads: int = 4
    n_kv_heads: int = 4
    head_dim: int = 8
    ffn: int = 48
    n_layers: int = 2
    value_length: int | None = None

    def shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Every tensor's name and shape [out, in]."""
        value = self.value_length or self.head_dim
        yield "token_embd.weight", (len(TOKENS), self.width)
        yield "output.weight", (len(TOKENS), self.width)
        yield "output_norm.weight", (self.width,)
        for block in range(self.n_layers):
            for name, shape in {
                "attn_norm": (self.width,),
                "ffn_norm": (self.width,),
                "attn_q": (self.n_heads * self.head_dim, self.width),
                "attn_k": (self.n_kv_heads * self.head_dim, self.width),
                "attn_v": (self.n_kv_heads * value, self.width),
                "attn_output": (self.width, self.n_heads * self.head_dim),
                "ffn_gate": (self.ffn, self.width),
                "ffn_up": (self.ffn, self.width),
                "ffn_down": (self.width, self.ffn),
            }.items():
                yield f"blk.{block}.{name}.weight", shape


def write_small_llama(path: Path, shape: SmallLlama, *, eos: int = 2) -> Path:
    """Write a float32 model with random weights, the same each time; `eos` ends its texts."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(shape.n_layers)
    writer.add_context_length(4096)
    writer.add_embedding_length(shape.width)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.n_heads)
    writer.add_head_count_kv(shape.n_kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.value_length or shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(TOKENS)
    writer.add_token_scores([-float(index) for index in range(len(TOKENS))])
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * (len(TOKENS) - 259))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(eos)
    generator = np.random.default_rng(0)
    for name, sizes in shape.shapes():
        writer.add_tensor(name, _values(generator, sizes))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _values(generator: np.random.Generator, sizes: tuple[int, ...]) -> NDArray[np.float32]:
    noise = generator.standard_normal(sizes)
    # Norm weights lie around 1; the others keep the size of what they are multiplied with.
    values = 1 + 0.2 * noise if len(sizes) == 1 else 1.5 * noise / np.sqrt(sizes[-1])
    return values.astype(np.float32)
