"""Small random SPM vocabularies, and texts that are awkward for them.

The real vocabulary leaves much of llama.cpp's tokenizer unused: equal scores, user-defined and unused tokens,
special tokens that a merge can reach, texts that make a token special whatever its type says.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import gguf

__all__ = ["random_text", "random_vocabulary", "write_vocabulary"]

KEY = "tokenizer.ggml."
SPACE = "\u2581"
ALPHABETS = ("ab", "abc" + SPACE, "aé", "abü😀\n" + SPACE, "<s>/" + SPACE)
# At most one of those that name one role: of two, llama.cpp takes what its hash table yields first.
NAMED = (
    *("[PAD]", "<PRE>", SPACE + "<SUF>", "<MID>", "<REPO>", "<|file_sep|>", "<EOT>", "<eos>", "<|eom_id|>"),
    *("<|im_end|>", "<|im_start|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>"),
    *("<|tool_response>", "<|channel|>", "<|start|>", "<|endoftext|>", "unused1"),
    *("a b", "  ", "\n\n", "a" + SPACE),
)
TYPES = (1,) * 30 + (0, 2, 3, 4, 5)


def random_vocabulary(rng: random.Random) -> dict[str, Any]:
    """The tokenizer's metadata of a GGUF file, by key; tokens are `bytes`."""
    tokens = {b"<unk>": 2, b"<s>": 3, b"</s>": 3}
    if rng.random() < 0.9:
        tokens |= {b"<0x%02X>" % byte: 6 for byte in range(256)}
    else:
        tokens |= {bytes([byte]): 1 for byte in range(1, 256)}
    symbols = [symbol.encode() for symbol in rng.choice(ALPHABETS)] + [b"\xc3"] * (rng.random() < 0.3)
    for _ in range(rng.randrange(5, 60)):
        text = b"".join(rng.choices(symbols, k=rng.choice((1, 1, 2, 2, 2, 3, 3, 4, 5, 6))))
        tokens.setdefault(text, rng.choice(TYPES))
    for name in rng.sample(NAMED, rng.choice((0, 0, 1, 3, 8))):
        tokens.setdefault(name.encode(), rng.choice((1, 3, 4, 4, 5)))
    n = len(tokens)
    metadata: dict[str, Any] = {KEY + "model": "llama", KEY + "tokens": list(tokens)}
    if b"<|endoftext|>" in tokens and rng.random() < 0.5:
        metadata["general.name"] = "A Phi-3 of sorts"  # special tokens then swallow the space behind them
    if rng.random() < 0.9:
        metadata[KEY + "scores"] = [rng.choice((-rng.randrange(8), -i, 0)) / 4 for i in range(n)]
    if rng.random() < 0.9:
        metadata[KEY + "token_type"] = list(tokens.values())
    for key in ("add_bos_token", "add_eos_token", "add_space_prefix"):
        if rng.random() < 0.5:
            metadata[KEY + key] = rng.random() < 0.5
    for key in ("bos", "eos", "eot", "fim_pad", "prefix"):
        if rng.random() < 0.3:
            metadata[f"{KEY}{key}_token_id"] = rng.choice((1, 2, rng.randrange(n), 100_000))
    return metadata


def random_text(rng: random.Random, metadata: dict[str, Any]) -> bytes:
    """A text made of the vocabulary's own tokens, spaces, and what may be special."""
    tokens = metadata[KEY + "tokens"][3:]
    parts = (
        lambda: rng.choice(tokens),
        lambda: rng.choice(tokens).replace(SPACE.encode(), b" "),
        lambda: rng.choice(NAMED).encode(),
        lambda: rng.choice((b"</s>", b"<s>", b"\n ", b" ", b"  ", b"ab" * 6, b"a" * 9)),
        lambda: bytes([rng.randrange(1, 256)]),
    )
    return b"".join(rng.choice(parts)() for _ in range(rng.randrange(1, 9)))


def write_vocabulary(path: Path, metadata: dict[str, Any]) -> None:
    """A GGUF file of metadata alone, which llama.cpp opens for its vocabulary."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(64)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    for key, value in metadata.items():
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        else:
            writer.add_string(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
