"""The command: set up, run, judge, write the page; exit 1 where a right program was condemned."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llama_ckpt.points import split_name
from tools.other_llamas import __doc__ as ABOUT
from tools.other_llamas.catalogue import CHEAPEST, keys, program
from tools.other_llamas.environments import OTHERS, ROOT, prepared
from tools.other_llamas.judge import DriverError, Errors, Judged, judged
from tools.other_llamas.models import LENGTHS, MODELS, model_files, reference
from tools.other_llamas.page import page

RESULTS = OTHERS / "results"
PAGE = ROOT / "docs" / "other_llamas.md"


def main() -> None:
    """Parse, run, report."""
    options = _options()
    if options.list:
        print("\n".join(f"{key:24} {program(key).title}" for key in keys()))
        return
    chosen = CHEAPEST if options.cheapest else options.only or keys()
    for name in sorted({program(key).environment for key in chosen} - {""}):
        prepared(name)
    bad = failed = 0
    for result in _all(chosen, options):
        if isinstance(result, DriverError):
            failed += 1
            print(f"NOT RUN: {result}", file=sys.stderr, flush=True)
            continue
        bad += _say(result)
        _keep(result)
    if not (options.cheapest or options.no_page):
        PAGE.write_text(page(_kept()), encoding="utf-8")
        print(f"{PAGE.relative_to(ROOT)}: written")
    print(f"{bad} of these runs judged otherwise than they should be; {failed} programs could not be run")
    sys.exit(1 if bad or failed else 0)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=ABOUT, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--list", action="store_true", help="the programs")
    parser.add_argument("--only", nargs="+", metavar="KEY", help="these programs")
    parser.add_argument("--cheapest", action="store_true", help="what continuous integration runs; no page")
    parser.add_argument("--no-page", action="store_true", help="leave docs/other_llamas.md as it is")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--tokens", nargs="+", type=int, default=list(LENGTHS))
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "float16", "bfloat16"))
    return parser.parse_args()


def _all(chosen: Any, options: argparse.Namespace) -> Iterator[Judged | DriverError]:
    """Every program that is asked for on every model in every dtype, model by model."""
    for name in options.models:
        files = model_files(name)
        recorded = reference(files, options.tokens)
        for key in chosen:
            one = program(key)
            if one.only and name not in one.only:
                continue
            for dtype in one.dtypes:
                if options.dtypes is not None and dtype not in options.dtypes:
                    continue
                lengths = [n for n in options.tokens if not one.tokens or n in one.tokens]
                if not lengths:
                    continue
                try:
                    yield from judged(key, files, dtype, lengths, recorded)
                except DriverError as error:
                    yield error


def judged_wrongly(result: Judged) -> bool:
    """Whether a right program was condemned, or a deviating one elsewhere than where it deviates."""
    one = program(result.key)
    if not one.deviates:
        return not result.passed
    return split_name(result.first)[1] not in one.at


def _say(result: Judged) -> bool:
    """A line for a run; whether it was judged otherwise than it should be."""
    wrong = judged_wrongly(result)
    said = "pass" if result.passed else f"FAIL {result.sentence}"
    where = f"{result.key:26} {result.model:9} {result.dtype:9} {result.length:4} tokens"
    print(f"{where}  {'NOT AS IT SHOULD BE: ' if wrong else ''}{said}", flush=True)
    return wrong


def _keep(result: Judged) -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{result.key}-{result.model}-{result.dtype}-{result.length}.json"
    path.write_text(json.dumps(asdict(result), indent=1), encoding="utf-8")


def _kept() -> Iterator[Judged]:
    """All results so far of programs that there still are."""
    for path in sorted(RESULTS.glob("*.json")):
        if path.name.partition("-")[0] in keys():
            yield _read(path)


def _read(path: Path) -> Judged:
    found = json.loads(path.read_text(encoding="utf-8"))
    found["points"] = {name: Errors(**errors) for name, errors in found["points"].items()}
    return Judged(**found)


if __name__ == "__main__":
    began = time.monotonic()
    try:
        main()
    finally:
        seconds = math.ceil(time.monotonic() - began)
        print(f"{seconds} s", file=sys.stderr)
