"""One program on ranks run, recorded and compared, and what was said held against what must be said."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llama_ckpt.comparing.comparison import Comparison
from llama_ckpt.dumps.theirs import save_dump
from llama_ckpt.gguf.file import open_gguf
from llama_ckpt.gguf.writing import TensorPlan, encode_rows, metadata_of, write_gguf
from llama_ckpt.making.seeded_model import make_seeded
from llama_ckpt.mutants.ranks.port import Array
from llama_ckpt.mutants.ranks.record import RankBug, RightRanks
from llama_ckpt.mutants.ranks.right import RIGHT
from llama_ckpt.mutants.ranks.wrong import WRONG
from llama_ckpt.ranks.compare import compare_ranks

__all__ = ["RankModels", "RankRun", "rank_bugs", "right_ranks", "run_ranks"]

_SIZES: dict[str, Any] = {
    "width": 64,
    "n_heads": 4,
    "n_kv_heads": 2,
    "ffn": 96,
    "n_layers": 4,
    "vocab": 320,
    "rope_theta": 5e5,
}
SHAPES: Mapping[str, Mapping[str, Any]] = {
    "plain": _SIZES,
    "wide": _SIZES | {"width": 128, "n_heads": 16, "n_layers": 2},
    "one-key-head": _SIZES | {"n_kv_heads": 1, "n_layers": 2},
    "four-key-heads": _SIZES | {"n_kv_heads": 4},
    "uneven": _SIZES | {"ffn": 100, "vocab": 322, "n_layers": 2},
}
BIASED = "biased"


def rank_bugs() -> tuple[RankBug, ...]:
    """Every fault."""
    return tuple(WRONG.bugs)


def right_ranks() -> tuple[RightRanks, ...]:
    """Every right program."""
    return tuple(RIGHT.right)


class RankModels:
    """The models, each made once in `folder` when it is asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str) -> Path:
        """The GGUF file of that name."""
        made = self.folder / f"ranks_{name}.gguf"
        if not made.exists():
            if name == BIASED:
                _with_biases(self.path("plain"), made)
            else:
                make_seeded(made, seed=1, type="F32", **SHAPES[name])
        return made


def _with_biases(source: Path, made: Path) -> None:
    """The same with a bias after each matrix that is cut by its inputs."""
    file = open_gguf(source)
    plans = [TensorPlan(one.name, one.shape, one.type) for one in file.tensors.values()]
    norms = [plan for plan in plans if plan.name.endswith("attn_norm.weight")]
    for norm in norms:
        for point in ("attn_output", "ffn_down"):
            plans.append(
                TensorPlan(norm.name.replace("attn_norm.weight", f"{point}.bias"), norm.shape, norm.type)
            )

    def rows(plan: TensorPlan, first: int, n: int) -> Array:
        if plan.name.endswith(".bias"):
            seed = [len(plan.name), int(plan.name.split(".")[1])]
            values = np.random.default_rng(seed).normal(size=(n, plan.row_width)).astype(
                np.float32
            ) * np.float32(0.1)
        else:
            values = file.float32(plan.name, slice(first, first + n)).reshape(n, plan.row_width)
        return encode_rows(plan.name, values, plan.type)

    write_gguf(made, metadata_of(file), plans, rows)


@dataclass(frozen=True)
class RankRun:
    """What was said of one program.

    Attributes:
        caught: it did not pass. at: the first wrong point. ranks: those called wrong. said: the headline.
        right_point: both are as they must be. named: the sentence has what it must have.
    """

    name: str
    caught: bool
    at: str
    ranks: tuple[int, ...]
    said: str
    right_point: bool = False
    named: bool = False


def tokens_of(n: int) -> Sequence[int]:
    """BOS and others, in both halves of the vocabulary."""
    return [1, *np.random.default_rng(n).choice(np.arange(3, 320), n - 1, replace=False).tolist()]


def compared(one: RankBug | RightRanks, models: RankModels, **options: Any) -> Comparison:
    """What `compare` says of a program."""
    model, tokens = models.path(one.model), tokens_of(one.tokens)
    with np.errstate(all="ignore"):
        seen = one.program(model).run(tokens)
    paths = []
    for rank, tensors in enumerate(seen):
        paths.append(models.folder / f"rank_{rank}.safetensors")
        save_dump(paths[-1], tensors, token_ids=tokens, positions=range(one.tokens))
    plan = None
    if one.plan:
        plan = models.folder / "plan.txt"
        plan.write_text(one.plan, encoding="utf-8")
    return compare_ranks(paths, plan=plan, model=model, **options)


def run_ranks(one: RankBug | RightRanks, models: RankModels) -> RankRun:
    """One program on its ranks."""
    report = compared(one, models)
    first = report.first_wrong
    at = "" if first is None else first.name
    wrong = tuple(rank.rank for rank in report.ranks if rank.verdict == "fail")
    looks = report.diagnoses[0].sentence() if report.diagnoses else ""
    said = "; ".join(filter(None, [looks, *(finding.message for finding in report.findings)]))
    run = RankRun(one.name, report.exit_code != 0, at, wrong, said)
    if isinstance(one, RightRanks):
        return run
    named = re.search(one.right, said) is not None
    right_point = at in one.at.split() and wrong == one.ranks
    return RankRun(**vars(run) | {"right_point": right_point, "named": named})
