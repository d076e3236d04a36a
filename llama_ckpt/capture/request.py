"""What to record: the request that the recorder's process is started with, as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

__all__ = ["Request"]


@dataclass(frozen=True)
class Request:
    """One recording.

    Attributes:
        model: path of the GGUF file.
        prompt: text, tokenized by llama.cpp with the special tokens that the file asks for, or None.
        token_ids: the tokens where there is no prompt; empty otherwise.
        positions_from: position of the first token; the cache is empty before it.
        max_tokens: length of the greedy continuation.
        blocks: the blocks to record in full, or None for all.
        n_threads: llama.cpp's threads.
        n_gpu_layers: blocks on the GPU; more than the model has puts everything there.
    """

    model: str
    prompt: str | None = None
    token_ids: tuple[int, ...] = ()
    positions_from: int = 0
    max_tokens: int = 0
    blocks: tuple[int, ...] | None = None
    n_threads: int = 1
    n_gpu_layers: int = 0

    def write(self, path: Path) -> None:
        """Write the request as JSON."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Request:
        """Read a request that `write` wrote."""
        fields = json.loads(path.read_text(encoding="utf-8"))
        blocks = fields.pop("blocks")
        token_ids = tuple(fields.pop("token_ids"))
        return cls(**fields, token_ids=token_ids, blocks=None if blocks is None else tuple(blocks))
