"""What a run that was judged gives in Python and in a notebook: of a dump and of the ladder the same.

    found = lc.compare("mine.safetensors")
    found                      # one line; in a notebook the verdict, the strip of layers, what is wrong
    if not found: …            # found.passed
    found.to_frame()           # a row for each point and kind of error; to_rows() without pandas
    found.save("found.json"); lc.load_result("found.json").to_html("found.html")

Everything is drawn from the JSON, so that what was saved shows as it did.
"""

from __future__ import annotations

import importlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from llama_ckpt.errors import MissingPartError, OptionError
from llama_ckpt.outside import read_json
from llama_ckpt.whole_files import write_whole

__all__ = ["SIDE_BY_SIDE", "Result", "SavedResult", "load_result", "worst_exit_code"]

SIDE_BY_SIDE = "side_by_side"
"""The kind of a report of several dumps."""

KINDS = {
    "comparison": frozenset(
        {"verdict", "reason", "points", "layers", "findings", "diagnoses", "next", "yours"}
    ),
    "ladder": frozenset({"checkpoints", "model", "dtype", "device", "notes"}),
    SIDE_BY_SIDE: frozenset({"verdict", "reason", "dumps", "points"}),
}
"""What a report is of, and fields that it has at least."""


class Result(ABC):
    """A run that was judged."""

    @property
    @abstractmethod
    def exit_code(self) -> int:
        """What the command line ends with: 0 where all is right."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """The report as `--json` writes it, plain values throughout."""

    @property
    def passed(self) -> bool:
        """Whether all is right; what a result is where it is asked for as a condition."""
        return self.exit_code == 0

    def __bool__(self) -> bool:
        return self.passed

    def __repr__(self) -> str:
        said: str = _drawn("headline", "headline")(self.to_json())
        line = f"<{type(self).__name__} {said}>"
        return line if len(line) <= MOST else f"{line[: MOST - 2]}…>"

    def _repr_html_(self) -> str:
        fragment: str = _drawn("notebook", "fragment")(self.to_json())
        return fragment

    def to_dict(self) -> dict[str, Any]:
        """The same as `to_json`."""
        return self.to_json()

    def to_rows(self) -> list[dict[str, Any]]:
        """A flat record for each point and kind of error: name, block, point, kind, verdict, err, limit, …"""
        rows: list[dict[str, Any]] = _drawn("notebook", "rows")(self.to_json())
        return rows

    def to_frame(self) -> Any:
        """`to_rows` as a pandas DataFrame.

        Raises:
            MissingPartError: pandas is not installed.
        """
        try:
            pandas = importlib.import_module("pandas")
        except ModuleNotFoundError as error:
            what = "to_frame needs pandas, which is not installed"
            raise MissingPartError(what, hint="pip install pandas, or take to_rows()") from error
        return pandas.DataFrame(self.to_rows())

    def to_html(self, path: str | os.PathLike[str] | None = None) -> str:
        """The whole page, self-contained; written to `path` where one is given."""
        page: str = _drawn("html", "page")(self.to_json())
        if path is not None:
            write_whole(path, page)
        return page

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the report as JSON; `load_result` reads it."""
        text = json.dumps(self.to_json(), indent=1, allow_nan=False)
        write_whole(path, text + "\n")


MOST = 200
"""Characters of the line that stands for a result."""


class SavedResult(Result):
    """A result that was read from its JSON.

    Args:
        record: the JSON of a comparison's, a ladder's or several dumps' report.
    """

    def __init__(self, record: dict[str, Any]) -> None:
        self._record = record

    @property
    def exit_code(self) -> int:
        """As of the run that was saved."""
        record = self._record
        if record["kind"] != "ladder":
            return _exit_code(record)
        shown = [one["verdict"] for one in record["checkpoints"] if one["verdict"] != "hidden"]
        return 0 if shown and set(shown) == {"pass"} else 1

    @property
    def verdict(self) -> str:
        """ "pass", "fail" or "arithmetic"."""
        return str(self._record.get("verdict") or ("pass" if self.passed else "fail"))

    @property
    def reason(self) -> str:
        """The verdict's reason in one sentence."""
        said: str = _drawn("headline", "headline")(self._record)
        return str(self._record.get("reason") or said.partition(": ")[2])

    def to_json(self) -> dict[str, Any]:
        """The record as it was read."""
        return self._record


def worst_exit_code(reports: Iterable[Mapping[str, Any]]) -> int:
    """Of several comparisons' JSON: 1 where any fails, else 3 where any differs by arithmetic, else 0."""
    codes = {_exit_code(report) for report in reports}
    return 1 if 1 in codes else max(codes, default=0)


def _exit_code(comparison: Mapping[str, Any]) -> int:
    return {"pass": 0, "arithmetic": 3}.get(comparison["verdict"], 1)


def load_result(path: str | os.PathLike[str]) -> SavedResult:
    """Read what `save` or `--json` wrote.

    Raises:
        OptionError: no file that can be read, or no report.
    """
    wanted = "a report that save() or --json wrote"
    record = read_json(path, OptionError, wanted)
    kind = record.get("kind") if isinstance(record, dict) else None
    needed = KINDS.get(kind) if isinstance(kind, str) else None
    if needed is None or not needed <= record.keys():
        raise OptionError(str(path), got="JSON of something else", wanted=wanted)
    return SavedResult(record)


def _drawn(module: str, name: str) -> Callable[[Any], Any]:
    """A function of the package that draws reports from their JSON.

    That package reads this one's records and stands above it, so it is looked up when it is asked for, as the
    package's public names are.
    """
    found: Callable[[Any], Any] = getattr(importlib.import_module(f"llama_ckpt.report.{module}"), name)
    return found
