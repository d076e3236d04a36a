"""What was judged already, kept by the commit that judged it: a run that was cut off goes on where it was."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tools.other_llamas.catalogue import keys, program
from tools.other_llamas.environments import OTHERS, ROOT
from tools.other_llamas.job import Run
from tools.other_llamas.judge import Errors, Judged
from tools.other_llamas.models import LENGTHS, MODELS

__all__ = ["Kept", "everything", "state"]

ON_TRIAL = ("llama_ckpt", "checkpoints")
"""What judges, and the layers that the others stand beside."""


def everything(device: str) -> list[Run]:
    """Every run on a device that the page tells of."""
    return [
        Run(key, model, dtype, length, device)
        for model in MODELS
        for key in keys()
        if device in program(key).devices
        if not program(key).only or model in program(key).only
        for dtype in program(key).dtypes
        for length in program(key).tokens or LENGTHS
    ]


def state() -> str:
    """The last commit that changed what is on trial; "+" behind it where it has been changed since."""
    commit = _git("log", "-1", "--format=%h", "--abbrev=10", "--", *ON_TRIAL)
    return commit + "+" * bool(_git("status", "--porcelain", "--", *ON_TRIAL)) if commit else "no commit"


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, check=False, capture_output=True, text=True)
    return done.stdout.strip()


class Kept:
    """The results of one state, a file each."""

    def __init__(self, of: str) -> None:
        self.folder = OTHERS / "results" / of
        self.folder.mkdir(parents=True, exist_ok=True)

    def _path(self, one: Run) -> Path:
        return self.folder / f"{'-'.join(map(str, one))}.json"

    def __contains__(self, one: Run) -> bool:
        return self._path(one).is_file()

    def add(self, result: Judged) -> None:
        """Keep it, instead of an earlier one of the same run."""
        path = self._path(result.run)
        path.write_text(json.dumps(asdict(result), indent=1), encoding="utf-8")

    def all(self, device: str) -> Iterator[Judged]:
        """Of the runs on a device that the page tells of."""
        for one in everything(device):
            if one in self:
                yield _read(self._path(one))


def _read(path: Path) -> Judged:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    found["points"] = {name: Errors(**errors) for name, errors in found["points"].items()}
    return Judged(**found)
