"""Comparing a dump that any program wrote: one call, from the file to the verdict.

    report = compare_dump("mine.safetensors")                         # a dump of the embedded model
    report = compare_dump("mine.safetensors", reference="dumps", model="mine.gguf")
    report.verdict, report.first_wrong, report.diagnoses[0].sentence()

Memory holds one block of the model and of the dump at a time. No torch.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from llama_ckpt.arithmetic.record import Arithmetic, arithmetic_lines
from llama_ckpt.comparing.arithmetic_costs import ArithmeticCosts
from llama_ckpt.comparing.as_far import as_far, is_told, note_stretches
from llama_ckpt.comparing.comparison import ComparedPoint, Comparison, NextStep
from llama_ckpt.comparing.completeness import is_complete_of_its_kind, lint_missing, wanted_of
from llama_ckpt.comparing.half_numbers import half_numbers, in_half, is_told_better
from llama_ckpt.comparing.nearest import DataFlow
from llama_ckpt.comparing.scan import scan
from llama_ckpt.comparing.sequences import of_sequences
from llama_ckpt.comparing.sides import Sides, open_sides
from llama_ckpt.comparing.suspicions import lint_scan
from llama_ckpt.comparing.undeclared import Undeclared
from llama_ckpt.comparing.walk import Walk
from llama_ckpt.dumps.names_map import DumpMap, read_map
from llama_ckpt.dumps.sequences import sequences_of
from llama_ckpt.dumps.theirs import TheirDump, open_their_dump
from llama_ckpt.points import ALL_POINTS, split_name
from llama_ckpt.threads import model_bytes, numpy_threads

__all__ = ["compare_dump"]

MOST_TRIED = 3
"""So many arithmetics that put a dump as far off are held against it, each a comparison of its own."""


def compare_dump(
    theirs: str | Path,
    *,
    reference: str | Path | None = None,
    model: str | Path | None = None,
    names: str | Path | None = None,
    dump: str | None = None,
    dtype: str | None = None,
    arithmetic: object = None,
    partial: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> Comparison:
    """Judge every tensor of a dump.

    Args:
        theirs: a safetensors file, see `their_dump`.
        reference: a folder of llama.cpp's dumps; model: a GGUF file, or a folder of Hugging Face's, for the
            oracle. Without both: the embedded model and its dumps; with one of them, the other is left out,
            and what cannot be told then is said.
        names: a map of names, axes and layouts, see `dump_map`.
        dump: the name of the reference's dump; None finds it by the tokens.
        dtype: what their program computes in; None: what the dump declares, else how it is stored.
        arithmetic: what their program rounds on purpose: an `Arithmetic`, a profile's name, or lines as JSON
            has them; None: what the dump declares.
        partial: points that are not there are not missing.
        progress: called with what is being done, how far it is, and of how many steps.

    Raises:
        LlamaCkptError: bad input: a file, an option, dumps of another model than the one given.
    """
    began = time.perf_counter()
    opened = open_their_dump(theirs, DumpMap() if names is None else read_map(names))
    parts = sequences_of(opened)
    options = {"reference": reference, "model": model, "map": names, "dump": dump, "dtype": dtype}

    def compared(part: TheirDump) -> Comparison:
        sides = open_sides(
            part, reference=reference, model=model, dump=dump, dtype=dtype, arithmetic=arithmetic
        )
        with numpy_threads(0 if sides.file is None else model_bytes(Path(sides.file.path))):
            return _compared(sides, partial, options, progress)

    result = of_sequences(opened, parts, compared) if parts else compared(opened)
    result.seconds = time.perf_counter() - began
    return result


def _compared(
    sides: Sides,
    partial: bool,
    options: dict[str, Any],
    progress: Callable[[str, int, int], None] | None,
) -> Comparison:
    """Judge the dump of one sequence; where it is wrong, once more with the roundings that explain it."""
    result, undeclared = _judged(sides, partial, options, progress)
    if undeclared is not None and result.verdict != "pass":

        def judged(arithmetic: Arithmetic | None, explain: bool = True) -> Comparison:
            again = sides if arithmetic is None else replace(sides, arithmetic=arithmetic)
            first = arithmetic is not None
            return _judged(again, partial, options, progress, first=first, explain=explain)[0]

        result = _with_roundings(result, undeclared, judged)
    kind = half_numbers(sides, options["dtype"]) if result.verdict == "fail" else None
    if kind is not None and not is_told_better(result, kind):
        again, _ = _judged(replace(sides, dtype=kind), partial, options, progress)
        result = in_half(again, kind) if _made(again) < _made(result) else result
    if result.verdict == "arithmetic" and result.arithmetic is not None:
        command = f"{_command(shlex.quote(str(sides.theirs.path)), options)} {result.arithmetic.option}"
        again_so = f"{command} --partial" if partial else command
        result.next.append(NextStep("declare what is rounded", again_so))
    return result


def _with_roundings(
    result: Comparison, undeclared: Undeclared, judged: Callable[..., Comparison]
) -> Comparison:
    """A comparison with the roundings that explain what is wrong, or that put a right program as far off.

    Args:
        judged: the same beside some roundings; of None once more without, everything explained. Given False
            nothing is: where single steps have shown nothing, most of what is tried is not it.
    """
    over, shown = undeclared.over_blocks, undeclared.is_shown
    for found in undeclared.found()[:MOST_TRIED]:
        again, fits = judged(found, shown), over.of(found)
        proved = over.proves(fits) or (shown and not fits)
        if not proved and not _made(again):
            if not is_told(result):
                held = again if shown else result
                held.arithmetic = as_far(over, fits, undeclared.said, shown=shown)
                return held
            return result
        known = proved or shown or over.is_likely
        if _made(again) < _made(result) and again.arithmetic is not None and known:
            again = again if shown else judged(found)
            assert again.arithmetic is not None
            again.arithmetic.declared, again.arithmetic.words = False, undeclared.said(found)
            note_stretches(again.arithmetic, over, fits)
            return again
    return judged(None) if undeclared.waited else result


def _made(result: Comparison) -> int:
    """At how many points an error is made."""
    return sum(point.made in ("here", "between") for point in result.points)


def _judged(
    sides: Sides,
    partial: bool,
    options: dict[str, Any],
    progress: Callable[[str, int, int], None] | None,
    *,
    first: bool = True,
    explain: bool = True,
) -> tuple[Comparison, Undeclared | None]:
    """Judge a dump; with it what was tried of roundings that it does not declare; `first` as there.

    `explain`: whether what is wrong is explained.
    """
    result, undeclared = _begun(sides), None
    looked = scan(sides.theirs, progress)
    wanted = wanted_of(sides.theirs, sides.n_layers, experts=sides.n_used > 0)
    result.of = len(wanted) if not partial else len(sides.theirs.names)
    of_the_run = len(result.findings)
    if sides.comparable:
        walk = Walk(sides, looked, result, progress, explains=explain)
        if walk.undeclared is not None:
            walk.undeclared.first = first
        with np.errstate(all="ignore"):  # a diverging program overflows; its points say so
            walk.run()
        undeclared = walk.undeclared
        result.diagnoses += walk.explainer.diagnoses
        result.notes += walk.explainer.notes
        walk.say_ties()
        walk.say_what_hides()
        names_there = [name for name in wanted if _is_there(name, sides, set(walk.shifts))]
    else:
        names_there = list(sides.theirs.names)
    # What looks like a slip of the recorder is told once it is known whether the tensors are right.
    result.findings[of_the_run:of_the_run] = lint_scan(looked, sides.token_ids, sides.positions)
    if not partial:
        result.findings += lint_missing(names_there, wanted)
    _say_what_was_skipped(result, sides, partial)
    result.next += _next_steps(result, sides, shlex.quote(str(sides.theirs.path)), options, partial)
    return result, undeclared


def _say_what_was_skipped(result: Comparison, sides: Sides, partial: bool) -> None:
    """The points of the model that were not judged, since they were not recorded."""
    names = DataFlow(sides.n_layers, sides.n_used > 0).names
    result.skipped = tuple(name for name in names if name not in sides.theirs.names)
    if result.skipped and not partial and is_complete_of_its_kind(sides.theirs):
        n = len(names) - len(result.skipped)
        note = f"recorded: {n} of the model's {len(names)} points; the others are not judged"
        result.notes.append(note)


def _is_there(name: str, sides: Sides, shifted: set[str]) -> bool:
    """A shifted layer's tensors stand under other numbers; the one without a place is not missed."""
    return name in sides.theirs.names or split_name(name)[1] in shifted


def _begun(sides: Sides) -> Comparison:
    """An empty comparison with what is known of both sides."""
    manifest = sides.dumps.manifest if sides.dumps is not None else None
    reference: dict[str, Any] | None = None
    if sides.dumps is not None and manifest is not None:
        producer = manifest.producer
        reference = {
            "path": str(sides.dumps.path),
            "dump": sides.dump.entry.name if sides.dump is not None else None,
            "producer": f"{producer.name} {producer.version}".replace("llama.cpp llama.cpp", "llama.cpp"),
            "system_info": producer.system_info,
            "backend": producer.backend,
            "tensor_types": list(manifest.model.tensor_types),
            "weights_sha256": manifest.model.weights_sha256,
        }
    model = None
    if sides.file is not None and sides.config is not None:
        model = {"path": str(sides.file.path), "name": sides.config.name, "n_layers": sides.config.n_layers}
    declared = sides.theirs.declared
    return Comparison(
        theirs={
            "path": str(sides.theirs.path),
            "tensors": len(sides.theirs.names),
            "producer": declared.producer,
            "weights_sha256": declared.weights_sha256,
        },
        reference=reference,
        model=model,
        dtype=sides.dtype,
        token_ids=sides.token_ids,
        positions=sides.positions,
        findings=list(sides.findings),
        cannot_tell=list(sides.cannot_tell),
        notes=list(sides.notes),
        arithmetic=_declared(sides),
        experts=sides.n_used > 0,
        token_texts=_token_texts(sides),
    )


def _token_texts(sides: Sides) -> tuple[str, ...]:
    """The tokens as the vocabulary writes them, blanks as blanks."""
    pieces = None if sides.file is None else sides.file.metadata.get("tokenizer.ggml.tokens")
    if not isinstance(pieces, list) or max(sides.token_ids, default=0) >= len(pieces):
        return ()
    texts = (pieces[token] for token in sides.token_ids)
    plain = (text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text) for text in texts)
    return tuple(text.replace("\u2581", " ").replace("\u0120", " ") for text in plain)


def _declared(sides: Sides) -> ArithmeticCosts | None:
    """What the program says that it rounds, where there is a model to round."""
    found = sides.arithmetic
    if found is None or sides.weights is None:
        return None
    return ArithmeticCosts(found.name, found.source, arithmetic_lines(found))


def _command(theirs: str, options: Mapping[str, Any]) -> str:
    """The command that compares with these options."""
    return f"llama-ckpt compare {theirs}" + "".join(
        f" --{name} {shlex.quote(str(value))}" for name, value in options.items() if value is not None
    )


def _next_steps(
    result: Comparison, sides: Sides, theirs: str, options: dict[str, Any], partial: bool
) -> Iterator[NextStep]:
    """What to do now, the most useful first."""
    again = _command(theirs, options)
    for finding in result.findings:
        if finding.kind != "missing_point":
            yield NextStep(f"first {finding.hint}; then compare again", again)
            break
    first = result.first_wrong
    if first is not None and first.made in ("here", "between"):
        if (name := result.record_next) is not None:
            yield NextStep(f"record {name} next: it halves where the error can be")
        yield NextStep("what people get wrong there", f"llama-ckpt explain {_suspected(first, result)}")
    elif first is not None and first.made == "unknown":
        yield NextStep("with the model it can be told who is off, where, and why", f"{again} --model M.gguf")
    elif first is not None:
        yield NextStep(
            "no step is wrong by itself; look at how the error grows from layer to layer",
            f"{again} --html report.html",
        )
    elif all(finding.kind == "missing_point" for finding in result.findings) and result.findings:
        yield NextStep("what is there is right; record the rest, or say that it is all", f"{again} --partial")
    elif not result.findings and sides.weights is None:
        yield NextStep("the oracle judges more finely", f"{again} --model M.gguf")
    if sides.unrecorded and sides.file is not None:
        yield NextStep(
            "records llama.cpp on this prompt, to compare it too", _capture(sides, sides.file.path)
        )


def _capture(sides: Sides, model: Path) -> str:
    """The command that records the reference on the prompt of a dump."""
    ids = ",".join(map(str, sides.token_ids))
    command = f"llama-ckpt capture --model {shlex.quote(str(model))} --tokens {ids} --out dumps"
    return command + (f" --positions-from {sides.positions[0]}" if sides.positions[0] else "")


def _suspected(first: ComparedPoint, result: Comparison) -> str:
    """What `explain` has a page of: the point itself, or the layer that what is unseen belongs to."""
    unseen = [split_name(name) for name in first.since.unseen]
    if first.made == "here" or len(unseen) == 1:
        return split_name(first.name)[1]
    named = result.diagnoses[0].named if result.diagnoses else []
    if named and named[0].explained:
        return named[0].checkpoint
    functions = {ALL_POINTS[point].function for _, point in unseen} - {"add"}
    if len({block for block, _ in unseen}) == 1 and len(functions) == 1:
        return split_name(first.name)[1]
    return "block"
