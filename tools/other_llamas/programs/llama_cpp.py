"""llama.cpp through its binding, as `llama-ckpt capture` records it: float32, no flash attention."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from tools.other_llamas.job import ModelFiles, Program, Runner

__all__ = ["PROGRAM"]


def load(files: ModelFiles, dtype: str) -> Runner:
    """Every tensor that llama.cpp's graph has a name for."""
    from llama_ckpt.capture import capture
    from llama_ckpt.dumps.reference import open_dumps

    def run(token_ids: Sequence[int]) -> Mapping[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            capture(files.gguf, out=folder, tokens=token_ids, max_tokens=0, name="run")
            dump = open_dumps(folder).dump("run")
            return {name: dump[name].copy() for name in dump if name != "last_logits"}

    return run


PROGRAM = Program("llama.cpp (llama-cpp-python 0.3.36)", "", load, measure=True)
