"""Whether a run that a dump declares is one: its rows held against the file, the context and the memory.

A dump of two megabytes can declare a million tokens, and the exact run of these would take 29 TiB for the
scores of one block. numpy only.
"""

from __future__ import annotations

from collections.abc import Sequence

from llama_ckpt.dumps.theirs import TheirDump
from llama_ckpt.errors import DumpError
from llama_ckpt.spare_memory import spare_bytes
from llama_ckpt.weights.config import LlamaConfig

__all__ = ["check_positions", "check_room"]


def check_positions(path: object, positions: Sequence[int] | None) -> None:
    """Refuse positions that no program has: llama.cpp's are 31 bits.

    Raises:
        DumpError: one is below 0, or from 2^31 on.
    """
    outside = [one for one in positions or () if not 0 <= one < 1 << 31]
    if outside:
        raise DumpError(f"{path}: positions", got=outside[0], wanted="numbers from 0 on, below 2^31")


def check_room(theirs: TheirDump, n: int, config: LlamaConfig | None) -> None:
    """Refuse more tokens than the dump has rows, or than there is memory to compute.

    Raises:
        DumpError: what is asked for, and what there is.
    """
    most = max(theirs.most_rows, config.context_length if config else 0)
    if n > most:
        wanted = f"{most} at most: no tensor has as many rows" + (", no context so many" if config else "")
        raise DumpError(f"{theirs.path}: token_ids", got=f"{n} tokens", wanted=wanted)
    scores = 8 * n * n * (config.n_heads if config else 1)
    spare = spare_bytes()
    if spare and scores > spare:
        got, wanted = f"{scores:,} bytes for the scores of {n} tokens", f"the {spare:,} that are free"
        raise DumpError(f"{theirs.path}: the memory of a block", got=got, wanted=wanted)
