"""Recording a live torch module: a dump under the neutral names, of the program as it is.

    import llama_ckpt as lc

    recorded = lc.record(model, [1, 15043])                  # known programs need no mapping
    recorded = lc.record(mine, x, mapping={"layers.{N}.norm1": "blk.{N}.attn_norm"})
    recorded.save("mine.safetensors")                        # llama-ckpt compare mine.safetensors

Hooks show what submodules hand on, a watch what attention is given; nothing is replaced. The module runs
again without either, and where that gives other outputs nothing is recorded. Copies of key heads and empty
slots of a cache are left out, and `notes` say what was undone; features keep the program's order, which
`compare` recognizes. What a program does out of sight is no point of the dump, and the dump says so.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from llama_ckpt.dumps.batches import call_of, of_several, rows_of, settled
from llama_ckpt.dumps.hooks import BLOCK, COMPILED, Mapped, hooks, places, submodules
from llama_ckpt.dumps.inputs import Inputs, arguments_of, call, declared_rows, declared_run
from llama_ckpt.dumps.masks import Rows
from llama_ckpt.dumps.program import known_programs
from llama_ckpt.dumps.recorder import Recorder, as_numpy, computed_in, dtype_name
from llama_ckpt.dumps.same import run_watched
from llama_ckpt.dumps.scratch import Scratch, keeping_in
from llama_ckpt.dumps.settle import Run, settle
from llama_ckpt.dumps.theirs import save_dump
from llama_ckpt.dumps.watching import watching
from llama_ckpt.errors import OptionError, ShapeError
from llama_ckpt.listing import some
from llama_ckpt.points import EXPERT_POINTS, MODEL_POINTS, block_point, points_in_block, split_name

__all__ = ["Recorded", "known_mapping", "look_on", "record"]


@dataclass
class Recorded:
    """What a recording yields.

    Attributes:
        tensors: full point name to float32, token first, a batch of one left out; of a batch the rows of its
            sequences one after the other.
        token_ids, positions: of the run; None where the inputs don't tell.
        dtype: what the module computes in, by what its projections give.
        notes: sentences on what was recognized and how it was recorded.
        points, blocks: what was recorded on purpose; None: all there are.
        rows: the sequence of each row and which are padding; None: one sequence without.
        scratch: the folder that tensors are kept in, where there is one.
    """

    tensors: dict[str, NDArray[Any]]
    token_ids: tuple[int, ...] | None = None
    positions: tuple[int, ...] | None = None
    dtype: str | None = "float32"
    notes: list[str] = field(default_factory=list)
    points: tuple[str, ...] | None = None
    blocks: tuple[int, ...] | None = None
    rows: Rows | None = None
    scratch: Scratch | None = field(default=None, repr=False)

    def save(self, path: str | Path, *, weights_sha256: str | None = None) -> None:
        """Write it as a dump that `llama-ckpt compare` reads.

        Args:
            path: the safetensors file.
            weights_sha256: of the weights that were loaded, as a manifest or an export declares it.
        """
        save_dump(
            path,
            self.tensors,
            token_ids=self.token_ids,
            positions=self.positions,
            weights_sha256=weights_sha256,
            dtype=self.dtype,
            points=self.points,
            blocks=self.blocks,
            producer="llama_ckpt.record",
            notes="; ".join(self.notes) or None,
            sequences=None if self.rows is None else self.rows.sequences,
            padding=None if self.rows is None else self.rows.padding,
        )


def record(
    module: nn.Module, inputs: Inputs, *, mapping: Mapped | None = None, scratch: str | Path | None = None
) -> Recorded:
    """Run a module and keep the tensors at the points that the mapping names, and those of attention.

    Args:
        module: a live torch module.
        inputs: token ids `[n]` or `[batch, n]` as a list or a tensor, any one tensor, or keyword arguments,
            of which `attention_mask` says what is padding.
            Ids and positions are declared in the dump where they go by a name that is known: `input_ids`,
            `tokens`, `idx`, `x`; `position_ids`, `input_pos`, `start_pos`.
        mapping: path of a submodule to a full point name, see `hooks`. None: the module must be of a kind
            that is known (`dumps/programs`), by the paths of its submodules.
        scratch: a folder with room for twice the recording, where tensors are kept as they come: memory then
            holds those of a block or two. None: all in memory.

    Raises:
        OptionError: an unknown kind of module without a mapping, no such folder, a path or point that there
            is not, or a module that computes something else while it is watched.
        ShapeError: a batch of something else than token ids, a point recorded twice, a cache of earlier
            tokens (`recording` takes such).
    """
    folder = None if scratch is None else Scratch(scratch)
    with keeping_in(folder):
        recorded = _recorded(module, inputs, mapping)
    recorded.scratch = folder
    return recorded


def _recorded(module: nn.Module, inputs: Inputs, mapping: Mapped | None) -> Recorded:
    args, kwargs = arguments_of(inputs, module)
    run = Run()
    if mapping is None:
        mapping = known_mapping(module, run)
    if of_several(args, kwargs):
        run.call = call_of(args, kwargs)
    else:
        run.token_ids, run.positions = declared_run(args, kwargs)
        _declare_rows(run, kwargs)
    if module.training:
        run.note("recorded in training mode, with its dropout where there is any: eval() turns that off")
    with torch.no_grad(), _uncompiled(module, run):
        run_watched(
            module,
            lambda: call(module, args, kwargs),
            lambda: look_on(module, mapping, run),
            lambda: look_on(module, mapping, Run()),
            run.note,
        )
    if run.call is None:
        recorder = settle(run)
    else:
        recorder, run.rows = settled(run)
        rows = rows_of(run.call)
        run.token_ids, run.positions = tuple(rows["token_ids"]), tuple(rows["positions"])
    points, blocks = _declared(recorder, mapping, module, run)
    dtype = computed_in(recorder.dtypes)
    return Recorded(
        recorder.tensors, run.token_ids, run.positions, dtype, run.notes, points, blocks, run.rows
    )


def _declare_rows(run: Run, kwargs: Mapping[str, Any]) -> None:
    """Which rows are padding, or another sequence's, by what the module is handed."""
    if run.token_ids is not None:
        run.rows, other = declared_rows(kwargs, run.positions, len(run.token_ids))
        if other is not None:
            run.note(other)


def known_mapping(module: nn.Module, run: Run) -> Mapped:
    """The mapping of a program that is known, by the paths of its submodules, also within another module.

    Raises:
        OptionError: none is.
    """
    names = [name for name, _ in submodules(module)]
    known = []
    for key, program in known_programs():
        known.append(key)
        landmark = next(path for path in program.mapping if BLOCK not in path)
        for prefix in (name.removesuffix(landmark) for name in names if name.endswith(landmark)):
            mapping = program.mapping_for(lambda path, prefix=prefix: bool(places(module, prefix + path)))
            if mapping is not None and prefix[-1:] in ("", "."):
                run.note(f"recognized as {program.name} by its submodules")
                return {prefix + path: points for path, points in mapping.items()}
    raise OptionError(
        "mapping",
        got=f"none for {type(module).__name__}",
        wanted=f"paths of submodules and points, or a program that is known: {', '.join(known)}",
    )


@contextmanager
def look_on(module: nn.Module, mapping: Mapped, run: Run) -> Iterator[None]:
    """While it lasts, what hooks and the watch see goes into `run`."""

    def show(points: str, tensor: Tensor) -> None:
        if points in run.shown:
            wanted = "one: a single pass over the prompt"
            raise ShapeError(points, got="two tensors in one call", wanted=wanted)
        run.shown[points] = as_numpy(tensor, points)
        run.dtypes[points] = dtype_name(tensor)

    with hooks(module, mapping, show), watching(module, list(mapping)) as told:
        yield
        run.attention = told()


@contextmanager
def _uncompiled(module: nn.Module, run: Run) -> Iterator[None]:
    """While it lasts, what `torch.compile` made runs as it was written: in one piece nothing can be seen."""
    with ExitStack() as stack:
        if "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        if any(
            hasattr(part, COMPILED) or getattr(part, "_compiled_call_impl", None) for part in module.modules()
        ):
            run.note("compiled by torch.compile; what was recorded is the module as it runs uncompiled")
        yield


def _declared(
    recorder: Recorder, mapping: Mapped, module: nn.Module, run: Run
) -> tuple[tuple[str, ...] | None, tuple[int, ...] | None]:
    """The points that were seen, where they are not all, and the blocks, where the mapping names some alone.

    What was seen in some of the blocks only is not declared.
    """
    inside = {path for path in mapping if BLOCK in path}
    blocks = {int(number) for path in inside for _, number in places(module, path) if number is not None}
    some_alone = not blocks
    blocks = blocks or {b for b, _ in map(split_name, recorder.tensors) if b is not None}
    seen = [point.name for point in MODEL_POINTS if point.name in recorder.tensors]
    experts = any(split_name(name)[1] in {p.name for p in EXPERT_POINTS} for name in recorder.tensors)
    inside_block = [point.name for point in points_in_block(experts=experts)]
    for name in inside_block:
        count = sum(block_point(block, name) in recorder.tensors for block in blocks)
        if count == len(blocks) and blocks:
            seen.append(name)
        elif count:
            run.note(f"{name} was seen in {count} of {len(blocks)} blocks")
    missing = [p for p in (*(point.name for point in MODEL_POINTS), *inside_block) if p not in seen]
    if missing:
        inner = {"attn_scores", "attn_probs"} <= set(missing) and "q_rope" in seen
        why = "; scores and probabilities stay inside a fused attention, an eager one shows them"
        run.note(f"not seen, so no points of this dump: {some(missing, 6)}{why if inner else ''}")
    every = None if not missing else tuple(seen)
    return every, tuple(sorted(blocks)) if some_alone and blocks else None
