"""Several dumps of one prompt side by side: three versions, three machines, float32 beside bfloat16.

    found = side_by_side({"before": "a.safetensors", "after": lc.compare("b.safetensors")})
    found.reason           # "before passes; after fails; they part at blk.7.q_rope, where after is off"
    found.to_html("page.html")

Each is judged by itself against what is exact; what is said of them together is who is nearest to that where.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

from llama_ckpt.comparing.compare_dump import compare_dump
from llama_ckpt.dumps.names_map import DumpMap, read_map
from llama_ckpt.dumps.stored_points import in_order
from llama_ckpt.dumps.theirs import open_their_dump
from llama_ckpt.errors import OptionError
from llama_ckpt.json_values import finite
from llama_ckpt.listing import listed
from llama_ckpt.points import split_name
from llama_ckpt.results import SIDE_BY_SIDE, Result, worst_exit_code

__all__ = ["SideBySide", "SidePoint", "side_by_side"]

Record: TypeAlias = Mapping[str, Any]

SCHEMA = 2
MOST = 26
"""So many dumps; each has a letter on the page."""

ALIKE = 2.0
"""Errors within this factor of the smallest are alike: the order of a sum moves them by no more."""


@dataclass(frozen=True)
class SidePoint:
    """One point in all dumps.

    Attributes:
        name, block, point: as of a `ComparedPoint`.
        error_kind: "own" where each dump has it, made since the same recorded inputs; else "total".
        errors: of each dump, relative to what is exact; None where it has none. allowed: to each.
        made: of each dump, where its error is made; None where the point was not recorded.
        nearest: the names of those whose error is the smallest, or like it; empty where all are alike.
    """

    name: str
    block: int | None
    point: str
    error_kind: str
    errors: tuple[float | None, ...]
    allowed: tuple[float | None, ...]
    made: tuple[str | None, ...]
    nearest: tuple[str, ...]


@dataclass(repr=False)
class SideBySide(Result):
    """Several dumps, and who is nearest to what is exact where.

    Attributes:
        reports: the JSON of each comparison by the name that it goes by here.
        points: in the order of the data's flow, each that any of them has.
    """

    reports: dict[str, Record]
    points: list[SidePoint]

    @property
    def exit_code(self) -> int:
        """The worst one's: 1 where any fails, else 3 where any differs by arithmetic, else 0."""
        return worst_exit_code(self.reports.values())

    @property
    def verdict(self) -> str:
        """ "pass", "fail" or "arithmetic", as of the worst."""
        return {0: "pass", 3: "arithmetic"}.get(self.exit_code, "fail")

    @property
    def parting(self) -> SidePoint | None:
        """The first point at which some are off and others are not; None where they never part."""
        for one in self.points:
            known = [made for made in one.made if made is not None]
            if any(made not in ("", "inherited") for made in known) and "" in known:
                return one
        return None

    @property
    def reason(self) -> str:
        """Who passes, where they part, who is nearest at the end."""
        words = {"pass": "pass", "fail": "fail", "arithmetic": "differ by arithmetic"}
        said = []
        for verdict, word in words.items():
            names = [name for name, report in self.reports.items() if report["verdict"] == verdict]
            one = {"pass": "passes", "fail": "fails", "arithmetic": "differs by arithmetic"}[verdict]
            said += [f"{listed(names)} {one if len(names) == 1 else word}"] if names else []
        parted = self.parting
        if parted is not None:
            off = [name for name, made in zip(self.reports, parted.made, strict=True) if made]
            said.append(f"they part at {parted.name}, where {listed(off)} {_is(off)} off")
        elif self.points and (near := self.points[-1].nearest):
            said.append(f"{listed(near)} {_is(near)} nearest to what is exact at {self.points[-1].name}")
        return "; ".join(said)

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dumps`: `dumps` holds each comparison's report, `points` this one's own."""
        plain: dict[str, Any] = finite({"points": [asdict(one) for one in self.points]})
        dumps = [{"name": name, "report": dict(report)} for name, report in self.reports.items()]
        parted = self.parting
        return {
            "schema": SCHEMA,
            "kind": SIDE_BY_SIDE,
            "verdict": self.verdict,
            "reason": self.reason,
            "parting": None if parted is None else parted.name,
            "dumps": dumps,
            **plain,
        }


def side_by_side(
    dumps: Mapping[str, Result | str | Path] | Sequence[str | Path],
    *,
    names: str | Path | None = None,
    **options: Any,
) -> SideBySide:
    """Hold several dumps of one prompt, each judged by itself, beside each other.

    Args:
        dumps: files, or by any names files or what `compare` gave or `load_result` read.
        names: what the names, axes and layouts of the files mean, as `--map`.
        options: of `compare_dump`, for the files: reference, model, dump, dtype, arithmetic, partial,
            progress.

    Raises:
        OptionError: fewer than two; dumps of other tokens or of another model; no comparison.
        LlamaCkptError: as `compare_dump`, of any.
    """
    given = dumps if isinstance(dumps, Mapping) else dict(zip(labels(dumps), dumps, strict=True))
    if not 2 <= len(given) <= MOST:
        raise OptionError("side by side", got=f"{len(given)} dumps", wanted=f"2 to {MOST}")
    files = {name: one for name, one in given.items() if not isinstance(one, Result)}
    _check_declared(files, DumpMap() if names is None else read_map(names))
    reports: dict[str, Record] = {}
    for name, one in given.items():
        found = one if isinstance(one, Result) else compare_dump(one, names=names, **options)
        reports[name] = found.to_json()
        if reports[name].get("kind") != "comparison":
            raise OptionError(name, got="another report", wanted="the comparison of a dump")
    _check_same({name: _run(report) for name, report in reports.items()})
    return SideBySide(reports, _points(reports))


def labels(paths: Sequence[str | Path]) -> list[str]:
    """A short name for each file: its own without the suffix, with as many folders as tell them apart."""
    parts = [os.path.splitext(os.path.abspath(path))[0].split(os.sep) for path in paths]
    for depth in range(1, max(map(len, parts), default=1) + 1):
        short = ["/".join(one[-depth:]) for one in parts]
        if len(set(short)) == len(short):
            return short
    return [f"{number}: {one[-1]}" for number, one in enumerate(parts, start=1)]  # one file several times


def _check_declared(files: Mapping[str, Any], known: DumpMap) -> None:
    """What dumps declare of their runs is compared before anything takes long."""
    declared = {name: open_their_dump(path, known).declared for name, path in files.items()}
    _check_same({n: {"tokens": d.token_ids, "weights": d.weights_sha256} for n, d in declared.items()})


def _run(report: Record) -> Record:
    """What has to be the same of all comparisons, None where it is not known."""
    model = report["model"]
    return {
        "tokens": tuple(report["token_ids"]),
        "weights": report["yours"].get("weights_sha256"),
        "model": None if model is None else (model["name"], model["n_layers"]),
    }


def _check_same(runs: Mapping[str, Record]) -> None:
    firsts: dict[str, tuple[str, Any]] = {}
    for name, run in runs.items():
        for what, value in run.items():
            if not value:
                continue
            first, wanted = firsts.setdefault(what, (name, value))
            if value != wanted:
                raise OptionError(
                    name,
                    got=f"other {what} than {first}",
                    wanted="dumps of one prompt and model",
                    hint="compare it by itself",
                )


def _points(reports: Mapping[str, Record]) -> list[SidePoint]:
    by_name = [{one["name"]: one for one in report["points"]} for report in reports.values()]
    order = in_order({name for points in by_name for name in points})
    return [_side(name, [points.get(name) for points in by_name], tuple(reports)) for name in order]


def _side(name: str, records: Sequence[Record | None], names: tuple[str, ...]) -> SidePoint:
    kind = "own" if _alike_own(records) else "total"
    judged: list[Record | None] = [one[kind] if one else None for one in records]
    errors = tuple(one["err"] if one else None for one in judged)
    broken = [one is not None and one["err"] is None and one["verdict"] == "fail" for one in judged]
    near = _nearest(errors, broken)
    block, point = split_name(name)
    return SidePoint(
        name,
        block,
        point,
        kind,
        errors,
        tuple(one["limit"] if one else None for one in judged),
        tuple(None if one is None else one["made"] for one in records),
        tuple(names[place] for place in near),
    )


def _alike_own(records: Sequence[Record | None]) -> bool:
    """Whether all own errors are there, and made since the same recorded inputs."""
    there = [one for one in records if one is not None]
    since = {tuple(one["computed_from"]) for one in there}
    return len(since) == 1 and all(one["own"] is not None for one in there)


def _nearest(errors: Sequence[float | None], broken: Sequence[bool]) -> list[int]:
    """Whose error is within `ALIKE` of the smallest; none where that is everybody's."""
    known = {place: one for place, one in enumerate(errors) if one is not None and math.isfinite(one)}
    if not known or len(known) + sum(broken) < 2:
        return []
    least = min(known.values())
    near = [place for place, one in known.items() if one <= ALIKE * least]
    return near if len(near) < len(known) + sum(broken) else []


def _is(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"
