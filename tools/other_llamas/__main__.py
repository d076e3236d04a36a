"""The command: set up, run, judge, write the page; exit 1 where a right program was condemned."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import groupby

from llama_ckpt.points import split_name
from llama_ckpt.precisions import DTYPES
from tools.other_llamas import __doc__ as ABOUT
from tools.other_llamas.catalogue import CHEAPEST, keys, program
from tools.other_llamas.environments import ROOT, prepared
from tools.other_llamas.job import Run
from tools.other_llamas.judge import DriverError, Judged, judged
from tools.other_llamas.models import LENGTHS, MODELS, missing, model_files, reference
from tools.other_llamas.page import page
from tools.other_llamas.results import Kept, everything, state

PAGE = ROOT / "docs" / "other_llamas.md"


def main() -> None:
    """Parse, run, report."""
    options = _options()
    if options.list:
        print("\n".join(f"{key:24} {program(key).title}" for key in keys()))
        return
    now = state()
    kept = Kept(now)
    asked = _wanted(options)
    wanted = [one for one in asked if options.again or one not in kept]
    for name in sorted({program(one.key).environment for one in wanted} - {""}):
        prepared(name)
    failed = 0
    for result in _all(wanted, options.tokens):
        if isinstance(result, DriverError):
            failed += 1
            print(f"NOT RUN: {result}", file=sys.stderr, flush=True)
        else:
            kept.add(result)
            print(_line(result), flush=True)
    if not (options.cheapest or options.no_page):
        PAGE.write_text(page(kept.all(), everything(), now), encoding="utf-8")
        print(f"{PAGE.relative_to(ROOT)}: written")
    bad = sum(judged_wrongly(one) for one in kept.all() if one.run in asked)
    print(f"{bad} of these runs judged otherwise than they should be; {failed} programs could not be run")
    sys.exit(1 if bad or failed else 0)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=ABOUT, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--list", action="store_true", help="the programs")
    parser.add_argument("--only", nargs="+", metavar="KEY", help="these programs")
    parser.add_argument("--cheapest", action="store_true", help="what continuous integration runs; no page")
    parser.add_argument("--again", action="store_true", help="also what this commit has judged already")
    parser.add_argument("--no-page", action="store_true", help="leave docs/other_llamas.md as it is")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--tokens", nargs="+", type=int, default=list(LENGTHS), choices=LENGTHS)
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=DTYPES)
    return parser.parse_args()


def _wanted(options: argparse.Namespace) -> list[Run]:
    """The runs that are asked for, of models that are here."""
    chosen = CHEAPEST if options.cheapest else options.only or keys()
    for key in chosen:
        program(key)  # or it ends here
    models = [name for name in options.models if not missing(name)]
    for name in sorted({*options.models} - {*models}):
        print(missing(name), file=sys.stderr)
    return [
        one
        for one in everything()
        if one.key in chosen
        and one.model in models
        and one.length in options.tokens
        and one.dtype in options.dtypes
    ]


def _all(wanted: Sequence[Run], lengths: Sequence[int]) -> Iterator[Judged | DriverError]:
    """Every run, model by model; the runs of one program in one dtype load it once."""
    for name, of_model in groupby(wanted, lambda one: one.model):
        files = model_files(name)
        recorded = reference(files, lengths)
        for (key, dtype), runs in groupby(of_model, lambda one: (one.key, one.dtype)):
            try:
                yield from judged(key, files, dtype, [one.length for one in runs], recorded)
            except DriverError as error:
                yield error


def judged_wrongly(result: Judged) -> bool:
    """Whether a right program was condemned, or a deviating one elsewhere than where it deviates."""
    one = program(result.key)
    if not one.deviates:
        return not result.passed
    return split_name(result.first)[1] not in one.at


def _line(result: Judged) -> str:
    """What is said of a run, and whether it was judged otherwise than it should be."""
    said = "pass" if result.passed else f"FAIL {result.sentence}"
    where = f"{result.key:26} {result.model:11} {result.dtype:9} {result.length:4} tokens"
    return f"{where}  {'NOT AS IT SHOULD BE: ' if judged_wrongly(result) else ''}{said}"


if __name__ == "__main__":
    began = time.monotonic()
    try:
        main()
    finally:
        seconds = math.ceil(time.monotonic() - began)
        print(f"{seconds} s", file=sys.stderr)
