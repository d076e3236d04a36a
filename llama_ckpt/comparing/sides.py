"""What a dump is held against: a reference dump of the same prompt, a model for the oracle, or both.

Opens all of it, decides which of the reference's dumps it is, and lints the run: after this it stands
which tokens were computed, at which positions, in which precision. numpy only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llama_ckpt.arithmetic.profiles import arithmetic_of
from llama_ckpt.arithmetic.record import Arithmetic
from llama_ckpt.comparing.comparison import LintFinding
from llama_ckpt.comparing.fitting import axis_sizes, sizes_from_shapes
from llama_ckpt.comparing.lint import lint_run
from llama_ckpt.comparing.room import check_positions, check_room
from llama_ckpt.dumps.manifest import DumpEntry
from llama_ckpt.dumps.reference import Dump, DumpSet, open_dumps
from llama_ckpt.dumps.theirs import TheirDump
from llama_ckpt.errors import DumpError, OptionError
from llama_ckpt.gguf.file import GGUFFile, open_gguf, weights_sha256
from llama_ckpt.hugging_face.folder import model_file
from llama_ckpt.judging.limits import MAY_BE_WIDER
from llama_ckpt.judging.metrics import relative_error
from llama_ckpt.listing import some
from llama_ckpt.oracle.weights import OracleWeights
from llama_ckpt.points import split_name
from llama_ckpt.precisions import DTYPES
from llama_ckpt.weights.config import LlamaConfig
from reference_dumps import dump_folder, embedded_model

__all__ = ["Sides", "open_sides"]


@dataclass
class Sides:
    """Everything that a comparison needs.

    Attributes:
        theirs: their dump.
        dumps, dump: the reference's folder and its dump of this prompt; None where nothing can be
            compared with it.
        tight: whether llama.cpp computed in float32 throughout.
        file, config, weights: the model; None without one.
        token_ids, positions: what was computed.
        sizes: how long each axis is, by name.
        n_layers: of the model.
        dtype: whose limits hold.
        arithmetic: what their program declares that it rounds; None where it declares nothing.
        findings, notes, cannot_tell: what was seen on the way.
        comparable: False where nothing is left to compare with.
        unrecorded: the reference has other prompts, and not this one.
    """

    theirs: TheirDump
    dumps: DumpSet | None = None
    dump: Dump | None = None
    file: GGUFFile | None = None
    config: LlamaConfig | None = None
    weights: OracleWeights | None = None
    token_ids: tuple[int, ...] = ()
    positions: tuple[int, ...] = ()
    sizes: dict[str, int] = field(default_factory=dict)
    n_layers: int = 0
    dtype: str = "float32"
    arithmetic: Arithmetic | None = None
    findings: list[LintFinding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    cannot_tell: list[str] = field(default_factory=list)
    comparable: bool = True
    unrecorded: bool = False

    @property
    def tight(self) -> bool:
        """Whether llama.cpp's tensors are those of float32 throughout."""
        return self.dumps is not None and self.dumps.manifest.tight

    @property
    def n_used(self) -> int:
        """How many experts compute a token in a mixture of these; 0 for a dense model."""
        if self.config is not None:
            return self.config.n_experts_used if self.config.n_experts else 0
        return self.sizes.get("rank", 0)


def open_sides(
    theirs: TheirDump,
    *,
    reference: str | Path | None = None,
    model: str | Path | None = None,
    dump: str | None = None,
    dtype: str | None = None,
    arithmetic: object = None,
) -> Sides:
    """Open what a dump is held against.

    Args:
        theirs: their dump, open.
        reference: a folder of reference dumps. Without it and without `model`: the embedded model's.
        model: a GGUF file, for the oracle. Without it and without `reference`: the embedded model.
        dump: the name of the reference's dump; None finds it by the tokens.
        dtype: what their program computes in; None: what the dump declares, else how it is stored.
        arithmetic: what it rounds, as `arithmetic_of` takes it; None: what the dump declares.

    Raises:
        LlamaCkptError: a file that cannot be read, dumps of another model, tokens that nobody knows.
    """
    if reference is None and model is None:
        reference, model = dump_folder("f32"), embedded_model()
    sides = Sides(theirs)
    if model is not None:
        _open_model(sides, model)
    if reference is not None:
        _open_reference(sides, Path(reference), dump)
    _lint_the_run(sides, dump)
    if sides.config is not None and sides.positions:
        own = max(sides.positions) + 1 if sides.dump is None else sides.dump.entry.needed_context
        sides.config = sides.config.for_context(own)
    sides.sizes = _sizes(sides)
    sides.dtype = _dtype(sides.theirs, dtype)
    _declare(sides, sides.theirs.declared.arithmetic if arithmetic is None else arithmetic)
    _say_what_is_lacking(sides)
    return sides


def _open_model(sides: Sides, model: str | Path) -> None:
    sides.file = open_gguf(model_file(Path(model)))
    sides.config = LlamaConfig.from_gguf(sides.file)
    sides.weights = OracleWeights(sides.file, sides.config)
    sides.n_layers = sides.config.n_layers


def _open_reference(sides: Sides, folder: Path, name: str | None) -> None:
    dumps = open_dumps(folder)
    if (file := sides.file) is not None:
        dumps.require_model(file.sha256(), lambda: weights_sha256(file), file.nbytes, str(file.path))
    if sides.file is not None and sides.config is not None:
        dumps.require_hyperparameters(sides.config.hyperparameters, str(sides.file.path))
    sides.dumps = dumps
    entry = dumps.entry(name) if name is not None else _find_entry(sides, dumps)
    if entry.last_row:
        raise DumpError(
            f"{dumps.path}/{entry.name}",
            got="the last token's row alone",
            wanted="a whole dump to compare with",
            hint="record it: llama-ckpt capture",
        )
    sides.dump = dumps.dump(entry.name)
    sides.n_layers = sides.dump.entry.n_layers


def _find_entry(sides: Sides, dumps: DumpSet) -> DumpEntry:
    """The dump of the same tokens; where none is, the one that the lint can say most about."""
    declared = sides.theirs.declared
    if len(dumps.entries) == 1:
        return dumps.entries[0]
    if declared.token_ids is None:
        return _nearest_entry(sides, dumps)
    ranked = sorted(
        dumps.entries, key=lambda entry: _unlikeness(entry, declared.token_ids, declared.positions)
    )
    return ranked[0]


def _unlikeness(entry: DumpEntry, token_ids: Any, positions: Any) -> tuple[bool, bool, bool, int]:
    same = entry.token_ids == token_ids
    return (
        not (same and positions in (None, entry.positions)),
        not same,
        entry.token_ids[1:] != token_ids,
        abs(len(entry.token_ids) - len(token_ids)),
    )


def _nearest_entry(sides: Sides, dumps: DumpSet) -> DumpEntry:
    """Without declared tokens: the dump whose first shared tensor is nearest to theirs."""
    found = []
    for entry in dumps.entries:
        dump = dumps.dump(entry.name)
        distance = _distance(sides.theirs, dump)
        if distance is not None:
            found.append((distance, entry))
    if not found:
        few = ", ".join(dumps.names)
        what = f"{sides.theirs.path}: which of the reference's dumps it is"
        raise OptionError(
            what, got="no token_ids in __metadata__", wanted=few, hint="say it with --dump NAME"
        )
    found.sort(key=lambda each: each[0])
    name, point = found[0][1].name, sides.theirs.names[0]
    sides.notes.append(f"tokens are not declared: taken for those of {name!r}, which is nearest by {point}")
    return found[0][1]


def _distance(theirs: TheirDump, dump: Dump) -> float | None:
    """Of the first point that both have with as many values; rows after a missing BOS count too."""
    for name in theirs.names:
        if name not in dump:
            continue
        x, r = np.nan_to_num(theirs.raw(name).astype(np.float64)), dump[name].astype(np.float64)
        if x.size != r.size:
            x, r = (x.reshape(-1), r[1:].reshape(-1)) if x.size == r[1:].size else (x, x[:0])
        if r.size:
            return relative_error(x.reshape(-1), r.reshape(-1))
    return None


def _lint_the_run(sides: Sides, asked: str | None) -> None:
    """Decide which tokens were computed; let go of what they cannot be compared with.

    Args:
        asked: the recording that the user named, whose prompt it then has to be.
    """
    declared, entry = sides.theirs.declared, sides.dump.entry if sides.dump else None
    weights = sides.dumps.manifest.model.weights_sha256 if sides.dumps else None
    if weights is None and sides.file is not None and declared.weights_sha256 is not None:
        weights = weights_sha256(sides.file)
    tokens = declared.token_ids if declared.token_ids is not None else _tokens_by_embedding(sides, entry)
    if tokens is None:
        what = f"{sides.theirs.path}: the tokens that were computed"
        raise DumpError(what, got="nothing", wanted="token_ids in __metadata__, or --reference DIR")
    positions = declared.positions
    if positions is None:
        positions = entry.positions if entry and entry.token_ids == tokens else tuple(range(len(tokens)))
    if len(positions) != len(tokens):
        got = f"{len(positions)} positions for {len(tokens)} tokens"
        raise DumpError(f"{sides.theirs.path}: __metadata__", got=got, wanted="one of each for each row")
    check_positions(sides.theirs.path, positions)
    sides.token_ids, sides.positions = tokens, positions
    _check_vocabulary(sides)
    check_room(sides.theirs, len(tokens), sides.config)
    run = {"token_ids": tokens, "positions": positions}
    if entry is not None:
        run = {"token_ids": entry.token_ids, "positions": entry.positions}
    if entry is not None and asked is None and _is_another_prompt(sides, entry):
        sides.cannot_tell.append(
            f"no recording in {sides.dumps.path if sides.dumps else ''} has these tokens: "
            "the exact run alone judges, and llama.cpp is not compared"
        )
        sides.dump, sides.unrecorded = None, True
        run = {"token_ids": tokens, "positions": positions}
    facts = type(declared)(tokens, positions, declared.weights_sha256)
    sides.findings += lint_run(facts, **run, weights_sha256=weights)
    kinds = {finding.kind for finding in sides.findings}
    if kinds and sides.dump is not None:
        sides.cannot_tell.append("llama.cpp: not compared, since the dump is of another run")
        sides.dump = None
    if "other_weights" in kinds or (kinds and sides.weights is None):
        sides.comparable = False


def _is_another_prompt(sides: Sides, entry: DumpEntry) -> bool:
    """Whether no recording has this prompt, and it is no recorded one with its first token lost or doubled.

    Where there is a model to compute it with, that is no mistake.
    """
    own, recorded = sides.token_ids, entry.token_ids
    doubled = own[1:] == recorded and own[:1] == recorded[:1]
    return sides.weights is not None and own not in (recorded, recorded[1:]) and not doubled


def _check_vocabulary(sides: Sides) -> None:
    vocab = sides.config.vocab_size if sides.config else None
    if vocab is None and sides.dump is not None:
        vocab = sides.dump.vocab_size
    outside = [token for token in sides.token_ids if token < 0 or (vocab is not None and token >= vocab)]
    if outside or not sides.token_ids:
        got = outside[0] if outside else "none"
        wanted = f"ids from 0 to {vocab - 1}" if vocab else "ids from 0 on"
        raise DumpError(f"{sides.theirs.path}: token_ids", got=got, wanted=wanted)


def _tokens_by_embedding(sides: Sides, entry: DumpEntry | None) -> tuple[int, ...] | None:
    """The reference's tokens; without its first where theirs has a row less, which is BOS."""
    if entry is None:
        return None
    n = len(entry.token_ids)
    dump = sides.dump
    if "embd" in sides.theirs.names and dump is not None:
        x, r = sides.theirs.raw("embd"), dump["embd"]
        if x.size == r[1:].size and x.size and np.array_equal(x.reshape(-1), r[1:].reshape(-1)):
            return entry.token_ids[1:]
    for name in ("embd", "output_norm", *(f"blk.{b}.out" for b in range(entry.n_layers))):
        if name in sides.theirs.names and sides.theirs.shape(name)[:1] == (n - 1,) and n > 2:
            return entry.token_ids[1:]
    return entry.token_ids


def _sizes(sides: Sides) -> dict[str, int]:
    n = len(sides.token_ids)
    if sides.config is not None:
        return axis_sizes(sides.config, n)
    shapes = sides.dump.shapes if sides.dump is not None else {}
    return {**sizes_from_shapes(shapes), "token": n, "key": n}


def _declare(sides: Sides, arithmetic: object) -> None:
    """Take what the program declares that it rounds; it needs the model, which is rounded as well."""
    if arithmetic is None:
        return
    sides.arithmetic = arithmetic_of(arithmetic)
    if sides.n_used:
        sides.arithmetic = None
        sides.cannot_tell.append(
            "a mixture of experts: what a declared arithmetic makes of it is not computed"
        )
        return
    if sides.weights is None:
        sides.cannot_tell.append("no --model: what a declared arithmetic makes of it cannot be computed")
        return
    # What is left beside the roundings that are declared is float32's own. A program that keeps its results
    # in half precision says so there; one that only stores its dump so has lost what that would need.
    kept = {sides.arithmetic.products, "float32"}
    if sides.dtype in kept:
        sides.dtype = "float32"
    else:
        sides.notes.append(
            f"stored as {sides.dtype}, which {sides.arithmetic.name} does not round to: judged by its limits"
        )


def _dtype(theirs: TheirDump, asked: str | None) -> str:
    """Whose limits hold: what was asked for, what is declared, or how the tensors are stored."""
    if asked is not None:
        if asked not in DTYPES:
            raise OptionError("--dtype", got=asked, wanted=" or ".join(DTYPES))
        return asked
    if theirs.declared.dtype is not None:
        return theirs.declared.dtype
    wider = {*MAY_BE_WIDER, "logits"}
    kinds = {name: theirs.dtype(name).replace("float64", "float32") for name in theirs.names}
    stored = {kind for name, kind in kinds.items() if split_name(name)[1] not in wider}
    # Where nothing else was recorded, what may be wider says what it is not wider than.
    stored = stored or set(kinds.values()) - {"float32"} or {"float32"}
    if len(stored) > 1:
        raise OptionError(
            f"{theirs.path}: what was computed in",
            got=f"tensors stored as {' and '.join(sorted(stored))}",
            wanted="one precision",
            hint="say it with --dtype",
        )
    return stored.pop()


def _say_what_is_lacking(sides: Sides) -> None:
    for line in _lacking(sides):
        sides.cannot_tell.append(line)
    declared = sides.theirs.declared
    if declared.notes:
        sides.notes.append(f"the dump says: {declared.notes}")
    silent = [key for key in ("token_ids", "positions", "weights_sha256") if getattr(declared, key) is None]
    if silent:
        sides.notes.append(f"not declared by the dump, so not checked: {', '.join(silent)}")
    if sides.theirs.unknown:
        few = some(sides.theirs.unknown, 4)
        sides.notes.append(f"{len(sides.theirs.unknown)} tensors are no points and were left out: {few}")


def _lacking(sides: Sides) -> Iterator[str]:
    if sides.weights is None:
        yield "no --model: own and inherited error are told apart only where no weights are needed"
        yield "no --model: whether you or llama.cpp is off cannot be told, and no bug can be named"
        if sides.dump is not None and sides.dump.entry.last_logits_only:
            yield "no --model: the reference kept the last token's logits alone, and yours are not judged"
        if sides.comparable and not sides.tight:
            yield "the reference rounds its activations: without --model only large errors are seen"
    if sides.dumps is None:
        yield "no --reference: llama.cpp is not compared"
