"""One look at both kinds of report, for the page: a ladder's and a comparison's JSON in the same terms.

Both judge each tensor once for its own error and once in total.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from llama_ckpt.listing import listed, some
from llama_ckpt.points import ALL_BLOCK_POINTS, MODEL_POINTS, split_name
from llama_ckpt.report.words import WHO

__all__ = ["Curve", "DrawnPoint", "View", "view"]

Record: TypeAlias = Mapping[str, Any]

FLOW = (
    "token_ids",
    "embd",
    *(p.name for p in ALL_BLOCK_POINTS),
    *(p.name for p in MODEL_POINTS if p.name != "embd"),
)

TEXT = ("continuation", "text")
"""Points that are no tensors."""


@dataclass(frozen=True)
class DrawnPoint:
    """One verdict on one tensor.

    Attributes:
        name, block, point: full name, block (None outside), neutral name.
        kind: "own" or "total".
        dump: the recording, "" in a comparison.
        verdict: the record of `compare.PointVerdict`.
        made: "here", "inherited", "unknown" or "".
    """

    name: str
    block: int | None
    point: str
    kind: str
    dump: str
    verdict: Record
    made: str = ""

    @property
    def ratio(self) -> float | None:
        """Error over what is allowed; infinite where it failed without one; None without either."""
        err, limit = self.verdict["err"], self.verdict["limit"]
        if err is not None and limit:
            return max(float(err / limit), 1.01) if self.failed else float(err / limit)
        return float("inf") if self.failed else 0.0 if err == 0 else None

    @property
    def failed(self) -> bool:
        """Whether this verdict is a failure."""
        return bool(self.verdict["verdict"] == "fail")


@dataclass(frozen=True)
class Curve:
    """A line of the chart of growth: a name and a value for each block, None where there is none.

    Attributes:
        css: the class that colours it; "" for one of its name.
    """

    name: str
    values: Sequence[float | None]
    css: str = ""


@dataclass
class View:
    """What the page shows.

    Attributes:
        title, verdict, sentence: the head.
        facts: name and text, for the head.
        steps: what to do next: why, and a command.
        findings: of the lint, or failing checkpoints: kind, message, hint.
        explained: what the first wrong points look like: point, sentence, figures.
        judged: every verdict.
        curves: of the growth of the error, and which point they are of.
        amplification: from block to block, by the comparison; empty in a ladder.
        rows: errors by token: label, block, errors.
        edges, histograms: counts of elements by error, by point and kind.
        tokens: greedy tokens and who is right.
        token_ids, token_texts: of the prompt.
        first: the first wrong point and maps of where in it the error lies.
        checkpoints: rows of the ladder.
        provenance: name and text.
        about: points, or a checkpoint's id, that the first errors are made at.
        notes: sentences.
    """

    title: str
    verdict: str
    sentence: str
    facts: list[tuple[str, str]] = field(default_factory=list)
    steps: list[tuple[str, str]] = field(default_factory=list)
    findings: list[tuple[str, str, str]] = field(default_factory=list)
    explained: list[Record] = field(default_factory=list)
    judged: list[DrawnPoint] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    curve_point: str = "out"
    amplification: list[float | None] = field(default_factory=list)
    rows: list[tuple[str, int, Sequence[float | None]]] = field(default_factory=list)
    rows_dump: str = ""
    edges: Sequence[int] = ()
    histograms: list[Record] = field(default_factory=list)
    tokens: list[Record] = field(default_factory=list)
    token_ids: Sequence[int] = ()
    token_texts: Sequence[str] = ()
    first: Record | None = None
    checkpoints: list[Record] = field(default_factory=list)
    provenance: list[tuple[str, str]] = field(default_factory=list)
    about: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def n_blocks(self) -> int:
        """How many blocks there are anything about."""
        blocks = [one.block for one in self.judged if one.block is not None]
        return max([*blocks, len(self.curves[0].values) - 1 if self.curves else -1], default=-1) + 1

    def points(self) -> list[str]:
        """The neutral points that were judged, in the order of the data's flow; no text."""
        found = dict.fromkeys(one.point for one in self.judged if one.point not in TEXT)
        return sorted(found, key=lambda point: FLOW.index(point) if point in FLOW else len(FLOW))


def view(report: Record) -> View:
    """The view of a report's JSON, of either kind."""
    made = _comparison(report) if report.get("kind") == "comparison" else _ladder(report)
    maps = report.get("maps") or {"edges": [], "histograms": [], "rows": []}
    made.edges, made.histograms = maps["edges"], list(maps["histograms"])
    ends = [row for row in maps["rows"] if split_name(row["name"])[1] == "out"]
    lengths: dict[str, int] = {}
    for row in ends:
        lengths[row["dump"]] = len(row["errs"])
    made.rows_dump = max(lengths, key=lengths.__getitem__, default="")
    made.rows = [
        (row["name"], split_name(row["name"])[0] or 0, row["errs"])
        for row in ends
        if row["dump"] == made.rows_dump
    ]
    return made


def _comparison(report: Record) -> View:
    yours, reference, model = report["yours"], report["reference"], report["model"]
    made = View("Comparison of a dump", report["verdict"], report["reason"])
    made.facts = [
        ("yours", yours["path"]),
        ("compared", f"{report['compared']} of {report['of']} points"),
        ("precision", report["dtype"]),
        ("tokens", str(len(report["token_ids"]))),
    ]
    found = report["arithmetic"]
    if found is not None:
        how = "declared" if found["declared"] else "found out, not declared"
        made.facts.append(("rounds as", f"{found['name']}, {how}"))
        made.facts.append(("which costs", f"{found['costs'] or 0:.1e}"))
        made.facts.append(("left unexplained", f"{found['left'] or 0:.1e}"))
    if report["first_wrong"]:
        made.facts += [("first wrong", report["first_wrong"]), ("made", _made(report))]
        made.facts.append(("off", WHO[report["blame"]]))
        made.about = [split_name(report["first_wrong"])[1]]
    made.steps = [(step["why"], step["command"]) for step in report["next"]]
    made.findings = [(one["kind"], one["message"], one["hint"]) for one in report["findings"]]
    made.explained = list(report["diagnoses"])
    for point in report["points"]:
        for kind in ("own", "total"):
            if point[kind] is not None:
                made.judged.append(
                    DrawnPoint(
                        point["name"], point["block"], point["point"], kind, "", point[kind], point["made"]
                    )
                )
    layers = report["layers"]
    made.curves = [
        Curve(name, [layer[key] for layer in layers])
        for name, key in (
            ("own", "own"),
            ("inherited", "inherited"),
            ("total", "total"),
            ("reference", "reference"),
            ("allowed", "limit"),
        )
    ]
    made.amplification = [layer["amplification"] for layer in layers]
    made.tokens, made.token_ids = list(report["tokens"]), report["token_ids"]
    made.token_texts = report.get("token_texts", ())
    made.first = (report.get("maps") or {}).get("first")
    made.provenance = [("dump", yours["path"]), ("written by", yours["producer"] or "not declared")]
    made.provenance.append(("weights_sha256", _text(yours["weights_sha256"] or "not declared")))
    if reference is not None:
        made.provenance += [(f"reference: {key}", _text(value)) for key, value in reference.items()]
    if model is not None:
        made.provenance += [(f"model: {key}", _text(value)) for key, value in model.items()]
    made.provenance += [("tokens", _tokens(report)), ("positions", _text(report["positions"]))]
    made.notes = [f"cannot tell: {line}" for line in report["cannot_tell"]] + list(report["notes"])
    return made


def _tokens(report: Record) -> str:
    """Each token's number, and its text where that is known."""
    texts = report.get("token_texts") or ()
    ids = report["token_ids"]
    named = [f"{one} {text!r}" for one, text in zip(ids, texts, strict=True)] if texts else ids
    return some(named, 64)


def _made(report: Record) -> str:
    """Where the first error is made."""
    between = report["between"]
    if between is None:
        return str(report["made"])
    tokens = ["the tokens"] if between["from_tokens"] else []
    return f"between {listed([*tokens, *between['from'], between['to']])}"


def _text(value: Any) -> str:
    if isinstance(value, list):
        return some(value, 64)
    return "—" if value is None else str(value)


def _ladder(report: Record) -> View:
    checkpoints = report["checkpoints"]
    failed = [one for one in checkpoints if one["verdict"] == "fail"]
    shown = [one for one in checkpoints if one["verdict"] != "hidden"]
    passed = sum(one["verdict"] == "pass" for one in shown)
    hidden = f", {len(checkpoints) - len(shown)} hidden" if len(shown) < len(checkpoints) else ""
    sentence = "every point within its limits" if shown else "nothing was compared"
    if failed:
        sentence = failed[0]["reason"]
    if failed and failed[0]["diagnoses"]:
        sentence = failed[0]["diagnoses"][0]["sentence"] or sentence
    verdict = "pass" if shown and passed == len(shown) else "fail"
    made = View("Validation", verdict, sentence)
    made.facts = [
        ("model", report["model"]),
        ("checkpoints", f"{passed} of {len(shown)} pass{hidden}"),
        ("precision", f"{report['dtype']} on {report['device']}"),
    ]
    if report["implementation"]:
        made.facts.append(("implementation", report["implementation"]))
    made.findings = [(f"checkpoint {one['id']}", one["reason"], one["title"]) for one in failed]
    made.explained = [found for one in failed for found in one["diagnoses"]]
    made.steps = [
        (f"what people get wrong in {one['title']}", f"llama-ckpt explain {one['id']}") for one in failed[:1]
    ]
    made.about = [one["id"] for one in failed[:1]]
    made.checkpoints = list(checkpoints)
    for checkpoint in checkpoints:
        for point in checkpoint["points"]:
            name, variant = point["name"], point["variant"]
            block, neutral = split_name(name)
            kind = "own" if point["error_kind"] == "own" else "total"
            full_name = f"{name} ({variant})" if variant else name
            made.judged.append(
                DrawnPoint(full_name, block, neutral.split(".")[0], kind, point["dump"], point)
            )
    made.curves, made.curve_point = _ladder_curves(made.judged)
    made.provenance = [(key, _text(report[key])) for key in ("model", "device", "dtype", "implementation")]
    made.provenance.append(("recordings", ", ".join(dict.fromkeys(one.dump for one in made.judged))))
    made.notes = list(report["notes"])
    return made


def _ladder_curves(judged: Iterable[DrawnPoint]) -> tuple[list[Curve], str]:
    """Own and total error by block, of the end of the blocks or of the first point that has many."""
    inside = [one for one in judged if one.block is not None and "(" not in one.name]
    points = list(dict.fromkeys(one.point for one in inside))
    if not points:
        return [], ""
    point = "out" if "out" in points else points[0]
    dumps = list(dict.fromkeys(one.dump for one in inside if one.point == point and one.kind == "own"))
    dump = dumps[0] if dumps else inside[0].dump
    mine = [one for one in inside if one.point == point and one.dump == dump]
    n = max(one.block or 0 for one in mine) + 1
    curves = []
    for name, kind, key in (
        ("own", "own", "err"),
        ("total", "total", "err"),
        ("reference", "total", "err_reference"),
        ("allowed", "total", "limit"),
    ):
        values: list[float | None] = [None] * n
        for one in mine:
            if one.kind == kind:
                values[one.block or 0] = one.verdict[key]
        curves.append(Curve(name, values))
    return curves, f"{point} of {dump}"
