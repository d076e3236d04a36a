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

if TYPE_CHECKING:
    from llama_ckpt.config import LlamaConfig as LlamaConfig
    from llama_ckpt.diagnose.compare_dump import compare_dump as compare_dump
    from llama_ckpt.export import export_weights as export_weights
    from llama_ckpt.gguf_file import GGUFFile as GGUFFile
    from llama_ckpt.gguf_file import open_gguf as open_gguf
    from llama_ckpt.ladder import LadderReport as LadderReport
    from llama_ckpt.ladder import discover as discover
    from llama_ckpt.ladder import validate as validate
    from llama_ckpt.model import Model as Model
    from llama_ckpt.model import generate as generate
    from llama_ckpt.model import load as load
    from llama_ckpt.module_recorder import record as record
    from llama_ckpt.seeded_model import make_seeded as make_seeded
    from llama_ckpt.tokenizer import Tokenizer as Tokenizer

__version__ = "0.1.0"

__all__ = [
    "GGUFFile",
    "LadderReport",
    "LlamaCkptError",
    "LlamaConfig",
    "Model",
    "Tokenizer",
    "__version__",
    "compare_dump",
    "discover",
    "export_weights",
    "generate",
    "load",
    "make_seeded",
    "open_gguf",
    "record",
    "validate",
]

_HOMES = {
    "GGUFFile": "gguf_file",
    "LadderReport": "ladder",
    "LlamaConfig": "config",
    "Model": "model",
    "Tokenizer": "tokenizer",
    "compare_dump": "diagnose.compare_dump",
    "discover": "ladder",
    "export_weights": "export",
    "generate": "model",
    "load": "model",
    "make_seeded": "seeded_model",
    "open_gguf": "gguf_file",
    "record": "module_recorder",
    "validate": "ladder",
}
"""Public name to the module of this package that defines it."""

_STAND_ON_CHECKPOINTS = {"ladder", "model"}


def __getattr__(name: str) -> Any:
    """Import the module that defines a public name, on its first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'llama_ckpt' has no attribute {name!r}")
    home = _HOMES[name]
    if home in _STAND_ON_CHECKPOINTS:
        from llama_ckpt.shadowing import check_checkpoints

        check_checkpoints()
    value = getattr(importlib.import_module(f"llama_ckpt.{home}"), name)
    globals()[name] = value  # the next use finds it without coming here
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
