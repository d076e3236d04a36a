"""llama_ckpt: names the first layer of a Llama-2 that is wrong, and serves as the one that is right.

    import llama_ckpt as lc

    model = lc.load("model.gguf", device="auto", dtype="float32")
    ids = model.tokenizer.encode("Hello", add_bos=True)  # [1, 15043]
    rows = model.logits(ids)  # [n_tokens, vocab]
    for piece in lc.generate(model, "Hello", max_tokens=10):
        print(piece, end="")

Importing this package loads neither torch nor the checkpoints: each public name brings its own
module in when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from llama_ckpt.errors import LlamaCkptError
from llama_ckpt.parts import parts_needed
from llama_ckpt.version import __version__

if TYPE_CHECKING:
    from llama_ckpt.arithmetic.record import Arithmetic as Arithmetic
    from llama_ckpt.comparing.compare_dump import compare_dump as compare_dump
    from llama_ckpt.comparing.side_by_side import side_by_side as side_by_side
    from llama_ckpt.dumps.record import record as record
    from llama_ckpt.dumps.recorder import Recorder as Recorder
    from llama_ckpt.dumps.recording import recording as recording
    from llama_ckpt.generation import generate as generate
    from llama_ckpt.gguf.file import GGUFFile as GGUFFile
    from llama_ckpt.gguf.file import open_gguf as open_gguf
    from llama_ckpt.ladder.climb import validate as validate
    from llama_ckpt.ladder.discovery import discover as discover
    from llama_ckpt.ladder.report import LadderReport as LadderReport
    from llama_ckpt.making.export import export_weights as export_weights
    from llama_ckpt.making.seeded_model import make_seeded as make_seeded
    from llama_ckpt.model import Model as Model
    from llama_ckpt.model import load as load
    from llama_ckpt.ranks.any_run import compare as compare
    from llama_ckpt.results import load_result as load_result
    from llama_ckpt.tokens.tokenizer import Tokenizer as Tokenizer
    from llama_ckpt.weights.config import LlamaConfig as LlamaConfig

__all__ = [
    "Arithmetic",
    "GGUFFile",
    "LadderReport",
    "LlamaCkptError",
    "LlamaConfig",
    "Model",
    "Recorder",
    "Tokenizer",
    "__version__",
    "compare",
    "compare_dump",
    "discover",
    "export_weights",
    "generate",
    "load",
    "load_result",
    "make_seeded",
    "open_gguf",
    "record",
    "recording",
    "side_by_side",
    "validate",
]

_HOMES = {
    "Arithmetic": "arithmetic.record",
    "GGUFFile": "gguf.file",
    "LadderReport": "ladder.report",
    "LlamaConfig": "weights.config",
    "Model": "model",
    "Recorder": "dumps.recorder",
    "Tokenizer": "tokens.tokenizer",
    "compare": "ranks.any_run",
    "compare_dump": "comparing.compare_dump",
    "discover": "ladder.discovery",
    "export_weights": "making.export",
    "generate": "generation",
    "load": "model",
    "load_result": "results",
    "make_seeded": "making.seeded_model",
    "open_gguf": "gguf.file",
    "record": "dumps.record",
    "recording": "dumps.recording",
    "side_by_side": "comparing.side_by_side",
    "validate": "ladder.climb",
}
"""Public name to the module of this package that defines it."""

_STAND_ON_CHECKPOINTS = {"generation", "ladder.climb", "ladder.discovery", "ladder.report", "model"}


def __getattr__(name: str) -> Any:
    """Import the module that defines a public name, on its first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'llama_ckpt' has no attribute {name!r}")
    home = _HOMES[name]
    if home in _STAND_ON_CHECKPOINTS:
        from llama_ckpt.shadowing import check_checkpoints

        check_checkpoints()
    with parts_needed(f"llama_ckpt.{name}"):
        value = getattr(importlib.import_module(f"llama_ckpt.{home}"), name)
    globals()[name] = value  # the next use finds it without coming here
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
