"""Two pages under `docs/`, made of the report that `llama-ckpt mutants --json docs/mutants.json` wrote."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, TypeAlias

__all__ = ["bugs_page", "metrics_page"]

Report: TypeAlias = Mapping[str, Any]

BUGS = """\
# The catalogue: bugs, and what is no bug

{bugs} mistakes that people make, each a patch of the float64 oracle, and {benign} right programs that round
otherwise. `llama-ckpt mutants` runs them all: a bug is laid over a program that computes in float32, with
another order of sums for each seed, and held against the oracle as the ladder does it. The figures here are
of {seeds} seeds, each with a small model of four shapes, the fourth a mixture of experts for its own bugs,
and of llama.cpp's dumps of the embedded model: {n_prompts} prompts, {runs} runs.

- {killed_by_named_checkpoint} of {bugs} are killed by the checkpoint that they name and not by an earlier
  one, on every prompt that can show them.
- {named_first} are named first by the diagnosis, every time. {indistinguishable} of them shared the first
  place on some prompt with a bug that gives the same tensor there; the diagnosis says so.
- {false_alarms} false alarms on {benign} benign variants.

What a prompt cannot show is not counted there: a wrong group where nothing is grouped, a window of four
tokens over four tokens.

Columns: the point where it is first seen; what the structure of the residual says, before any bug is tried;
the metrics of other tools that miss it on some prompt (see [metrics](metrics.md)).
"""

METRICS = """\
# Metrics: this project's, and other tools'

With x yours, the tensor on trial, and o exact (see the [glossary](glossary.md)), a point passes when five
measures are within what is allowed: the largest of a correct program of that precision, times a margin:

| measure | formula | what it is for |
| --- | --- | --- |
| error (`err` in JSON) | ‖x − o‖ / ‖o‖ | the whole tensor |
| row_err | the same for each token's row, the largest | one bad token among many |
| element_err | abs(x − o) / (abs(o) + rms of its row), the largest | one bad element |
| gain | ⟨x − o, o⟩ / ⟨o, o⟩ | a scale that is slightly off |
| bias | mean(x − o) / rms(o) | an offset that is slightly off |

Other tools compare x with a reference tensor by one measure and one fixed limit. All of them were run on the
same tensors of the [catalogue](bugs.md): the {of} bugs that show in tensors (the other {integers} show in
token ids, which everybody compares exactly) and the {benign} benign variants, {float32} of them in float32
and {half} in half precision.

A bug is missed when on some prompt the metric passes every point of the checkpoint that should kill it; in
brackets, those missed on every prompt. A benign variant is condemned when on some prompt the metric fails
one of its points.
"""

AFTER = """\

A single limit cannot be right for all: the tightest of them refuses float32 programs that only sum in
another order, and every other one passes bugs that change the text.
"""


def bugs_page(report: Report) -> str:
    """`docs/bugs.md`: both catalogues, checkpoint by checkpoint."""
    head = BUGS.format(**report, n_prompts=len(report["prompts"]), runs=report["cases"]["runs"])
    return "\n".join([head, *_bug_tables(report), *_variant_table(report)]) + "\n"


def _bug_tables(report: Report) -> Iterator[str]:
    for checkpoint, rows in groupby(report["catalogue"], key=lambda row: row["checkpoint"]):
        yield f"## Checkpoint {checkpoint}\n"
        heads = ("bug", "what the wrong program does", "seen at", "structure", "missed by")
        cells = ((f"`{row['name']}`", _sentence(row), *_seen(row), _missed_by(row)) for row in rows)
        yield from _table(heads, cells)
        yield ""


def _sentence(row: Mapping[str, Any]) -> str:
    alike = ", ".join(f"`{name}`" for name in row["indistinguishable_from"])
    share = f"{row['named_in_group']} of {row['prompts']} prompts"
    return f"{row['sentence']} (alike with {alike} on {share})" if alike else str(row["sentence"])


def _seen(row: Mapping[str, Any]) -> tuple[str, str]:
    points = ", ".join(f"`{point}`" for point in row["points"])
    return points, ", ".join(sorted(row["structure"])) or "–"


def _missed_by(row: Mapping[str, Any]) -> str:
    if None in row["missed_by"].values():
        return "integers"
    return ", ".join(name for name, missed in row["missed_by"].items() if missed) or "–"


def _variant_table(report: Report) -> Iterator[str]:
    yield "## What is no bug\n"
    yield "Each must keep the limits of its precision, at every point of the ladder.\n"
    cells = (
        (f"`{one['name']}`", one["sentence"], one["dtype"], one["points"], len(one["false_alarms"]))
        for one in report["variants"]
    )
    yield from _table(
        ("variant", "what it does otherwise", "precision", "points judged", "false alarms"), cells
    )


def metrics_page(report: Report) -> str:
    """`docs/metrics.md`: formulas, and what each metric misses and condemns."""
    kinds = [variant["dtype"] for variant in report["variants"]]
    of = report["metrics"][0]["of"]
    counts = {"of": of, "integers": report["bugs"] - of, "benign": len(kinds)}
    counts |= {"float32": kinds.count("float32"), "half": len(kinds) - kinds.count("float32")}
    heads = (
        "metric",
        "used by",
        "formula",
        "bugs missed",
        "float32 variants condemned",
        "half-precision ones",
    )
    rows = [*_table(heads, map(_metric_cells, report["metrics"])), AFTER, *_always_missed(report)]
    return "\n".join([METRICS.format(**counts), *rows]) + "\n"


def _metric_cells(metric: Mapping[str, Any]) -> tuple[object, ...]:
    missed = f"{metric['missed']} ({metric['always_missed']})"
    return (
        metric["name"],
        metric["used_by"],
        metric["formula"],
        missed,
        metric["condemned_float32"],
        metric["condemned_half"],
    )


def _always_missed(report: Report) -> Iterator[str]:
    """By metric, the bugs that it never sees."""
    yield "## Bugs that a metric never sees\n"
    for metric in report["metrics"][1:]:
        name = metric["name"]
        never = [
            f"`{row['name']}`" for row in report["catalogue"] if row["missed_by"][name] == row["prompts"]
        ]
        yield f"- **{name}**: {', '.join(never) or 'none'}"


def _table(heads: Sequence[str], rows: Iterable[Iterable[object]]) -> Iterator[str]:
    yield "| " + " | ".join(heads) + " |"
    yield "| " + " | ".join("---" for _ in heads) + " |"
    for row in rows:
        yield "| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |"
