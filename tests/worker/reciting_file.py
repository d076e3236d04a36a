"""A GGUF file of a Llama that recites: each letter is followed by a known token, whatever stands before.

a → the four bytes of 🦙 → b → c → … → m → EOS          n → not a number
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGUFValueType

from tests.gguf_files import write_llama

EOS, BYTES, LETTERS = 2, 3, 260
LLAMA = "🦙".encode()
RECITED = "🦙bcdefghijklm"
"""What comes after "a"."""


def letter(character: str) -> int:
    """The token of a small letter."""
    return LETTERS + ord(character) - ord("a")


def write_reciting(path: Path) -> Path:
    """Write it and return its path."""
    script = [letter("a"), *(BYTES + byte for byte in LLAMA), *map(letter, RECITED[1:]), EOS]
    width = len(script) + 1
    token_embd, output = np.zeros((320, width), np.float32), np.zeros((320, width), np.float32)
    for i, (token, following) in enumerate(zip(script, script[1:], strict=False)):
        token_embd[token, i] = 1.0
        output[following, i] = 8.0
    token_embd[[0, 1, 259], width - 1] = 1.0  # what a prompt has besides letters
    token_embd[letter("n")] = np.nan
    zeros = {f"blk.0.{name}.weight": np.zeros(shape, np.float32) for name, shape in _matrices(width).items()}
    return write_llama(
        path, width=width, n_heads=1, n_kv_heads=1, head_dim=2, ffn=2, n_layers=1,
        keys={"general.name": ("reciting", GGUFValueType.STRING)},
        tensors={"token_embd.weight": token_embd, "output.weight": output, **zeros},
    )  # fmt: skip


def _matrices(width: int) -> dict[str, tuple[int, int]]:
    inward = dict.fromkeys(("attn_q", "attn_k", "attn_v", "ffn_gate", "ffn_up"), (2, width))
    return inward | dict.fromkeys(("attn_output", "ffn_down"), (width, 2))
