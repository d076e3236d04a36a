"""tinygrad 0.14: the same with keys and values rounded to float16 for the cache, whatever is computed in."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from tools.other_llamas.job import ModelFiles, Program, Runner
from tools.other_llamas.programs import tinygrad_llm

__all__ = ["PROGRAM"]


def load(files: ModelFiles, dtype: str) -> Runner:
    """The model; its wheel lacks the module with kernels for one GPU, of which a CPU uses a plain layer."""
    tinygrad_llm.choose_back_end()
    os.environ["CC"] = str(_clang())
    from tinygrad import nn

    kernels, amd = ModuleType("tinygrad.llm.kernels"), ModuleType("tinygrad.llm.kernels.amd")
    names: dict[str, Any] = {
        "Linear": nn.Linear,
        "gated_delta_prefill": None,
        "flash_attention": None,
        "amd_custom_kernels_supported": lambda *_: False,
    }
    vars(amd).update(names)
    sys.modules |= {kernels.__name__: kernels, amd.__name__: amd}
    return tinygrad_llm.load(files, dtype)


def _clang() -> Path:
    """A command that compiles as clang does, which it calls for small programs; a package brings it along."""
    script = Path(sys.prefix) / "clang.sh"
    script.write_text(
        "#!/bin/sh\n"
        'for a; do shift; case $a in --target=*) ;; *) set -- "$@" "$a";; esac; done\n'
        f"exec {sys.executable} -m ziglang cc -fno-sanitize=undefined -fno-stack-protector "
        '"$@" -g0 -fno-asynchronous-unwind-tables -target x86_64-freestanding-none\n'
    )
    script.chmod(0o755)
    return script


PROGRAM = Program(
    "tinygrad 0.14, tinygrad.llm",
    "tinygrad_half_cache",
    load,
    deviates="keys and values lie in float16 in the cache of a float32 run",
    at=("attn_scores", "attn_probs"),
    rounds="keys and values in float16",
)
