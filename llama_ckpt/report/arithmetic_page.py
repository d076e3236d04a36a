"""The pages of declared arithmetic: its lines, the roundings that they name, and the profiles."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator, Mapping

from llama_ckpt.arithmetic.formats import FORMATS, described
from llama_ckpt.arithmetic.profiles import PROFILES
from llama_ckpt.arithmetic.record import ANGLES, Arithmetic, arithmetic_lines
from llama_ckpt.report.pages import markdown_table

__all__ = ["arithmetic_page", "profile_page"]

INTRODUCTION = """\
# Arithmetic, as a program declares it

A program that rounds on purpose, activations to 8-bit blocks or keys to float16, is off by what that costs,
and a bug behind it is out of sight. So let it say what it rounds: the oracle then rounds at the same places,
computes exactly beside them, and what is left is judged as in float32.

An arithmetic is a profile's name, or JSON that begins with one:

```
{"like": "llama.cpp-cpu", "name": "mine", "keys": "float16", "values": "float16"}
```

It is declared with `compare --arithmetic`, with `validate --impl … --arithmetic`, or as `arithmetic` in the
header of a dump. Every report then has two numbers: what the arithmetic costs, and what is left unexplained.
Three things are promised of it:

- A profile has no fitted number. Each of its lines was read in a program's source.
- What a program computes to round, a scale and the division by it, is computed here in float32 too, in the
  program's own order: so its whole numbers are the program's.
- Beside the roundings float32's limits hold for the error that is made in a step, and nothing wider; where
  float32's last bit decides between two neighbours of a format, the step may fall either way, and no other.

A whole run may part from another right one, where float32's last bit decides otherwise early on. It is held
to four times what noise of float32's size comes to in the same arithmetic, and to no less than what two right
runs part by: the root of two of what the roundings cost, by chance a little more in small tensors, twice the
cost in a row, and in an element twice that root, as it falls by a whole step where rounding costs it half of
one. Of 20,000 tensors of right programs (three models, of 5, 12 and 32 blocks; six arithmetics, four orders
of summation) 1% needed more than the noise. They used up to 0.85 of the cost in a tensor, 1.24 in a row,
1.20 in an element; of three tokens alone one element used 2.2.

The ladder holds the recorded llama.cpp to the profile of its program as well (`validate` on a quantized
file): where it is off, both numbers stand beside the verdict, and what is left has float32's limits, the
absolute ones among them. Without `--impl`, `validate --arithmetic` says what the recorded program rounds.

A program that rounds and does not say
so is tried with every profile and with single roundings, place by place: where they explain all of it, it
"differs by arithmetic, no bug seen", exit code 3, with what to declare; where a bug stands behind them, that
is named and fails.

Where whole blocks lie between what was recorded (the logits alone, or two ends of blocks), whole arithmetics
run from the tokens, or the last recorded end. One that leaves no more than float32 would leave of a right
program is proved, exit code 3. More often a tie fell otherwise on the way, and what follows is as large as
the roundings are: then the headline says so ("as far from exact as activations in 8-bit blocks would be:
1.2e-02, and they cost 1.0e-02; a bug smaller than that can't be seen; record blk.0.q, which tells, or declare
it"), with how many rows are explained whole, and the exit code stays 1. Models of over 134 million
parameters, and runs of over 537 million multiplications, are not tried so. Declared, such a dump passes, and
how large a bug would not be seen stands under "cannot tell"."""


ON_GPU = "transformers on a GPU (`comparing/test_right_on_cuda.py`)"
AS_SEEN = "what an H200 gave (`arithmetic/test_tensor_cores.py`)"
ENGINE = "the engine's text in Triton's interpreter (`engine/test_interpreted.py`)"
ENGINE_ON_GPU = "its kernels on a GPU (`engine/test_engine.py`)"
PORT = "a port in numpy"
LIVE = "llama.cpp itself (`arithmetic/test_llama_cpp_live.py`)"

RIGHT_PROGRAMS: Mapping[str, tuple[str, ...]] = {
    "float32": ("programs of others (docs/other_llamas.md)", f"{PORT} (`comparing/test_compare_dump.py`)"),
    "tf32": (f"{PORT} (`comparing/test_declared.py`)", ON_GPU, AS_SEEN),
    "bfloat16-torch": (
        "transformers (`comparing/test_right_transformers.py`)",
        "a port on torch's own steps (`comparing/test_declared.py`)",
        ON_GPU,
    ),
    "float16-torch": (
        "transformers (`comparing/test_right_transformers.py`)",
        "a port on torch's own steps (`comparing/test_declared.py`)",
        ON_GPU,
    ),
    "bfloat16-torch-sdpa": ("transformers (`comparing/test_right_transformers.py`)", ON_GPU),
    "float16-torch-sdpa": ("transformers (`comparing/test_right_transformers.py`)", ON_GPU),
    "llama.cpp-cpu": (
        "llama.cpp itself (`comparing/test_declared.py`, `arithmetic/test_llama_cpp.py`)",
        f"{PORT} (`comparing/test_right_rounding.py`)",
    ),
    "llama.cpp-cuda": (
        "llama.cpp's CUDA program, recorded (`arithmetic/test_llama_cpp_cuda.py`)",
        f"{PORT} for few rows and one for many (`comparing/test_right_rounding.py`)",
    ),
    "llama.cpp-cpu-f16-cache": (LIVE, f"{PORT} (`comparing/test_right_rounding.py`)"),
    "llama.cpp-cpu-flash": (LIVE, f"{PORT} (`comparing/test_right_rounding.py`)"),
    "w8a8-per-token": (
        "torch._int_mm (`comparing/test_right_rounding.py`)",
        f"{PORT} (`comparing/test_declared.py`)",
        ON_GPU,
    ),
    "fp8-per-tensor": (
        "torch._scaled_mm (`comparing/test_right_rounding.py`)",
        "a cast of torch's and a product in float32 (`comparing/test_right_rounding.py`)",
    ),
    "fp8-per-tensor-hopper": (ON_GPU, AS_SEEN, f"{PORT} (`comparing/test_right_rounding.py`)"),
    "fp8-per-tensor-hopper-fast": (ON_GPU, AS_SEEN),
    "candle-quantized": (
        "the package gguf's blocks (`comparing/test_right_rounding.py`)",
        f"{PORT} (`comparing/test_right_rounding.py`)",
    ),
    "fast": (ENGINE, ENGINE_ON_GPU),
    "high": (ENGINE, ENGINE_ON_GPU),
    "high-packed": (ENGINE, ENGINE_ON_GPU),
    "run.c": (
        f"{PORT} (`comparing/test_right_rounding.py`)",
        "transformers (`comparing/test_right_transformers.py`)",
    ),
    "runq.c": (
        f"{PORT} (`comparing/test_right_rounding.py`)",
        "one on torch's integers (`comparing/test_right_rounding.py`)",
    ),
}
"""By profile the right programs that pass as it says, each with where in tests/ that is held."""


def arithmetic_page() -> str:
    """All of the language."""
    parts = (_profiles(), _programs(), _lines(), _roundings())
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def _programs() -> Iterator[str]:
    yield "## Right programs of each"
    yield ""
    yield "None of them is condemned as it declares. Where only one stands, nobody has run a second here."
    yield ""
    rows = ((f"`{name}`", "; ".join(programs)) for name, programs in RIGHT_PROGRAMS.items())
    yield from markdown_table(("profile", "programs, and which of tests/ holds it"), rows)


def profile_page(name: str) -> str:
    """One profile: whose it is, where that was read, and its lines."""
    return "\n".join(_profile(PROFILES[name], "#")) + "\n"


def _profiles() -> Iterator[str]:
    yield INTRODUCTION
    yield ""
    yield "## Profiles"
    yield ""
    yield "Each was read in the program's source; no number in them was fitted."
    yield ""
    rows = ((f"`{one.name}`", one.about, one.source) for one in PROFILES.values())
    yield from markdown_table(("profile", "whose arithmetic", "read in"), rows)
    yield ""
    yield "`llama-ckpt explain NAME` prints a profile's lines."


def _profile(profile: Arithmetic, level: str) -> Iterator[str]:
    yield f"{level} Arithmetic `{profile.name}`"
    yield ""
    yield f"{profile.about[0].upper()}{profile.about[1:]}."
    yield ""
    yield f"Read in {profile.source}."
    yield ""
    lines = arithmetic_lines(profile)
    shown = {name: value for name, value in lines.items() if name not in ("about", "source")}
    yield "```"
    yield from json.dumps(shown, indent=2).splitlines()
    yield "```"
    yield ""
    yield "Every other line is float32, which the oracle's float64 stands for."


def _lines() -> Iterator[str]:
    yield "## Lines"
    yield ""
    rows = ((f"`{name}`", text) for name, text in _attributes())
    yield from markdown_table(("line", "what it says"), rows)
    yield ""
    yield "RoPE's angles:"
    yield ""
    yield from (f"- `{name}`: {text}" for name, text in ANGLES.items())


def _attributes() -> Iterator[tuple[str, str]]:
    """The record's lines and what its docstring says of each; `keys, values` share one."""
    text = (inspect.getdoc(Arithmetic) or "").partition("Attributes:\n")[2]
    entries = re.findall(r"^ {4}(\w[\w, ]*): (.*(?:\n {8,}.*)*)", text, re.M)
    for names, said in entries:
        for name in names.split(", "):
            yield name, re.sub(r"\s+", " ", said)


def _roundings() -> Iterator[str]:
    yield "## Roundings"
    yield ""
    yield from markdown_table(("name", "what it does"), ((f"`{name}`", described(name)) for name in FORMATS))
