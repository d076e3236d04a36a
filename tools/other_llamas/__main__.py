"""The command: set up, run, judge, write the page; exit 1 where a right program was condemned."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
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

DEVICES = ("cpu", "cuda")
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
    failed = _run_all(wanted, options, kept)
    if not (options.cheapest or options.no_page):
        found = [one for device in DEVICES for one in kept.all(device)]
        devices = {"cpu", *(one.device for one in found)}
        wanted = [one for device in devices for one in everything(device)]
        PAGE.write_text(page(found, wanted, now), encoding="utf-8")
        print(f"{PAGE.relative_to(ROOT)}: written")
    bad = sum(judged_wrongly(one) for one in kept.all(options.device) if one.run in asked)
    print(f"{bad} of these runs judged otherwise than they should be; {failed} programs could not be run")
    sys.exit(1 if bad or failed else 0)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=ABOUT, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--list", action="store_true", help="the programs")
    parser.add_argument("--only", nargs="+", metavar="KEY", help="these programs")
    parser.add_argument("--cheapest", action="store_true", help="what continuous integration runs; no page")
    parser.add_argument("--again", action="store_true", help="also what this commit has judged already")
    parser.add_argument("--no-page", action="store_true", help="leave docs/other_llamas.md as it is")
    parser.add_argument("--device", default="cpu", choices=DEVICES, help="where the programs run")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="so many programs at a time")
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
        for one in everything(options.device)
        if one.key in chosen
        and one.model in models
        and one.length in options.tokens
        and one.dtype in options.dtypes
    ]


def _run_all(wanted: Sequence[Run], options: argparse.Namespace, kept: Kept) -> int:
    """Judge and keep every run; the runs of one program in one dtype load it once. How many programs fail."""
    models = {}
    for name in dict.fromkeys(one.model for one in wanted):
        files = replace(model_files(name), device=options.device)
        models[name] = files, reference(files, options.tokens)

    def run(asked: tuple[str, str, str], lengths: Sequence[int]) -> int:
        key, model, dtype = asked
        try:
            for result in judged(key, models[model][0], dtype, lengths, models[model][1]):
                kept.add(result)
                print(_line(result), flush=True)
        except DriverError as error:
            print(f"NOT RUN: {error}", file=sys.stderr, flush=True)
            return 1
        return 0

    together = groupby(wanted, lambda one: (one.key, one.model, one.dtype))
    units = [(asked, [one.length for one in runs]) for asked, runs in together]
    with ThreadPoolExecutor(options.jobs) as pool:
        return sum(pool.map(lambda unit: run(*unit), units))


def judged_wrongly(result: Judged) -> bool:
    """Whether a right program was condemned, or a deviating one elsewhere than where it deviates."""
    one = program(result.key)
    if not one.deviates:
        return not result.passed
    if one.rounds and result.sentence.startswith(f"differs by arithmetic, no bug seen: {one.rounds}"):
        return False
    return split_name(result.first)[1] not in one.at


def _line(result: Judged) -> str:
    """What is said of a run, and whether it was judged otherwise than it should be."""
    said = "pass" if result.passed else f"FAIL {result.sentence}"
    where = f"{result.key:26} {result.device:4} {result.model:11} {result.dtype:9} {result.length:4} tokens"
    return f"{where}  {'NOT AS IT SHOULD BE: ' if judged_wrongly(result) else ''}{said}"


if __name__ == "__main__":
    began = time.monotonic()
    try:
        main()
    finally:
        seconds = math.ceil(time.monotonic() - began)
        print(f"{seconds} s", file=sys.stderr)
