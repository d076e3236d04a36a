"""What a driver is asked for: one model, one dtype, some prompts, and where the dumps go.

It crosses from the environment that judges into the program's own as a JSON file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

__all__ = ["Job", "ModelFiles", "Program", "Run", "Runner"]

Runner: TypeAlias = Callable[[Sequence[int]], Any]
"""Token ids to what `lc.record` gives, or to tensors by full point name, token first, q and k in any of the
two orders of RoPE's pairs."""


@dataclass(frozen=True)
class ModelFiles:
    """One model in the forms that programs read; paths as text.

    Attributes:
        name: what tables call it.
        gguf: float32 in GGUF.
        meta: a folder with `model.safetensors`, in Meta's names and order, float32.
        hf: a folder with `model.safetensors` and `config.json`, in Hugging Face's names and order, float32.
        weights_sha256: which a float32 dump declares.
        device: where the program is to run, "cpu" or "cuda".
    """

    name: str
    gguf: str
    hf: str
    meta: str
    weights_sha256: str
    device: str = "cpu"

    @property
    def weights(self) -> Path:
        """The safetensors file with Hugging Face's names."""
        return Path(self.hf) / "model.safetensors"

    @property
    def meta_weights(self) -> Path:
        """The one with Meta's."""
        return Path(self.meta) / "model.safetensors"

    @property
    def config(self) -> dict[str, Any]:
        """The numbers of the model, as Hugging Face's `config.json` names them."""
        found: dict[str, Any] = json.loads((Path(self.hf) / "config.json").read_text(encoding="utf-8"))
        return found


@dataclass(frozen=True)
class Program:
    """A program that somebody else wrote, as far as we drive it.

    Attributes:
        title: what it is, for the table.
        environment: name of the file under requirements/other_llamas/ that installs it; "" for what the
            environment of this tool has already.
        load: a model and a dtype to a function that runs a prompt.
        dtypes: what it computes in.
        deviates: what it is known to do otherwise than Llama-2, with its effect; "" for a right program.
            Condemning it is then wanted, and passing it is not.
        at: the points, by neutral name, one of which is where it does that: it must be condemned there.
        rounds: what the deviation is a rounding of, as compare may say instead, which finds such out.
        only: names of the models that it runs, where these are not all; tokens: lengths of the prompts.
        devices: where it can run.
        measure: ours or llama.cpp, which the others stand beside.
    """

    title: str
    environment: str
    load: Callable[[ModelFiles, str], Runner]
    dtypes: tuple[str, ...] = ("float32",)
    deviates: str = ""
    at: tuple[str, ...] = ()
    rounds: str = ""
    only: tuple[str, ...] = ()
    tokens: tuple[int, ...] = ()
    devices: tuple[str, ...] = ("cpu",)
    measure: bool = False


class Run(NamedTuple):
    """One that is judged: a program by its key, on a model by its name, in a dtype, on so many tokens."""

    key: str
    model: str
    dtype: str
    length: int
    device: str = "cpu"


@dataclass(frozen=True)
class Job:
    """One process of a driver: `prompts` are token ids and the file of their dump."""

    program: str
    model: ModelFiles
    dtype: str
    prompts: tuple[tuple[tuple[int, ...], str], ...]

    def write(self, path: Path) -> None:
        """As JSON."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @staticmethod
    def read(path: Path) -> Job:
        """What `write` wrote."""
        found = json.loads(path.read_text(encoding="utf-8"))
        prompts = tuple((tuple(ids), out) for ids, out in found["prompts"])
        return Job(found["program"], ModelFiles(**found["model"]), found["dtype"], prompts)
