"""Recording every forward call of a module while a context lasts, also those of `generate`.

    with lc.recording(model) as run:
        model.generate(ids, attention_mask=mask, max_new_tokens=5)
    run.save("mine.safetensors")                             # llama-ckpt compare mine.safetensors

Each call is a call of the dump (`calls.py`): a batch's lines are its sequences, what the mask leaves out is
padding, positions are those that the model was handed, and a cache of earlier tokens is read as it lies.
Nothing is replaced and nothing run twice, so that what a second run would give is not compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from torch import nn

from llama_ckpt.dumps.batches import CACHE, call_of, rows_of, settled
from llama_ckpt.dumps.hooks import Mapped
from llama_ckpt.dumps.record import known_mapping, look_on
from llama_ckpt.dumps.recorder import computed_in
from llama_ckpt.dumps.scratch import Scratch, keeping_in
from llama_ckpt.dumps.settle import Run
from llama_ckpt.dumps.theirs import save_dump
from llama_ckpt.errors import OptionError
from llama_ckpt.points import split_name

__all__ = ["RecordedRun", "recording"]

QUANTIZED = "Quantized"
"""In the name of a cache's class: what it gives back is not what it was given."""

ORDER = "reorder_cache"
"""What transformers' beam search calls a cache with."""

KEPT = ("positions", "sequences", "padding")


@dataclass
class RecordedRun:
    """The calls of a run.

    Attributes:
        calls: of each its tensors by full point name, the rows of a batch's sequences one after the other.
        rows: of every row of all calls: `token_ids`, `positions`, `sequences`, `padding`, `calls`.
        dtype: what the module computes in. notes: sentences on how it was recorded.
    """

    calls: list[dict[str, NDArray[Any]]] = field(default_factory=list)
    rows: dict[str, list[int]] = field(default_factory=dict)
    dtype: str | None = None
    notes: list[str] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    """The sequence that each line of the batch is now."""
    ends: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Of each sequence that is a copy its first position and the end of what was copied."""
    most: int = 0
    """More than any sequence's number so far."""
    scratch: Scratch | None = field(default=None, repr=False)
    """The folder that tensors are kept in, where there is one."""

    def reordered(self, order: Sequence[int]) -> None:
        """The cache's lines were put in another order, as a beam search does: what moves is copied.

        Args:
            order: which line each line is from now on.
        """
        if len(order) != len(self.lines):
            return
        was, call = list(self.lines), len(self.calls)
        for line, source in enumerate(order):
            if source == line:
                continue
            number = was[source]
            at = [
                position
                for position, own, out in zip(*(self.rows[key] for key in KEPT), strict=True)
                if own == number and not out
            ]
            copied = self.ends.get(number, (min(at, default=0), 0))
            first, end = copied[0], max([copied[1], *(position + 1 for position in at)])
            self.rows.setdefault("copies", []).extend([call, number, self.most, first, end])
            self.ends[self.most] = first, end
            self.lines[line], self.most = self.most, self.most + 1

    def save(self, path: str | Path, *, weights_sha256: str | None = None) -> None:
        """Write it as a dump that `llama-ckpt compare` reads.

        Args:
            path: the safetensors file.
            weights_sha256: of the weights that were loaded, as a manifest or an export declares it.

        Raises:
            OptionError: no call was made.
        """
        if not self.calls:
            raise OptionError("the run", got="no call of the module", wanted="one while it was recorded")
        shared = [name for name in self.calls[0] if all(name in call for call in self.calls)]
        blocks = {block for block, _ in map(split_name, shared) if block is not None}
        rows: dict[str, Any] = dict(self.rows)
        seen = list(dict.fromkeys(split_name(name)[1] for name in shared))
        save_dump(
            path,
            {f"call.{i}.{name}": call[name] for i, call in enumerate(self.calls) for name in shared},
            **rows,
            points=seen,
            blocks=sorted(blocks) or None,
            dtype=self.dtype,
            weights_sha256=weights_sha256,
            producer="llama_ckpt.recording",
            notes="; ".join(self.notes) or None,
        )


@contextmanager
def recording(
    module: nn.Module, *, mapping: Mapped | None = None, scratch: str | Path | None = None
) -> Iterator[RecordedRun]:
    """While it lasts, every forward call of the module is recorded.

    Args:
        module: a live torch module whose forward call takes token ids.
        mapping, scratch: as of `record`.

    Raises:
        OptionError: an unknown kind of module, or a cache that does not give back what it was given.
    """
    said = Run()
    paths = known_mapping(module, said) if mapping is None else mapping
    made = RecordedRun(notes=said.notes, scratch=None if scratch is None else Scratch(scratch))
    stack, run, seen = ExitStack(), [Run()], ExitStack()

    def begin(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        _refuse_inexact(kwargs.get(CACHE))
        _see_order(kwargs.get(CACHE), made, seen)
        run[0] = Run()
        run[0].call = call_of(args, kwargs)
        stack.enter_context(keeping_in(made.scratch))
        stack.enter_context(look_on(module, paths, run[0]))

    def end(*_: Any) -> None:
        stack.close()
        with keeping_in(made.scratch):
            _add(made, run[0])

    handles = [module.register_forward_pre_hook(begin, with_kwargs=True)]
    handles.append(module.register_forward_hook(end))
    try:
        yield made
    finally:
        stack.close()
        seen.close()
        for handle in handles:
            handle.remove()


def _see_order(cache: Any, made: RecordedRun, seen: ExitStack) -> None:
    """Be told when a cache's lines are put in another order; it is done as it was."""
    if not hasattr(cache, ORDER) or ORDER in vars(cache):
        return
    really = getattr(cache, ORDER)

    def reorder(order: Any, *args: Any, **kwargs: Any) -> Any:
        made.reordered([int(line) for line in order])
        return really(order, *args, **kwargs)

    setattr(cache, ORDER, reorder)
    seen.callback(delattr, cache, ORDER)


def _refuse_inexact(cache: Any) -> None:
    if QUANTIZED in type(cache).__name__:
        got = type(cache).__name__
        wanted = "a cache that gives back what it was given: its keys are rounded, and no point shows them"
        raise OptionError(CACHE, got=got, wanted=wanted)


def _add(made: RecordedRun, run: Run) -> None:
    """One call's tensors and rows."""
    call = run.call
    assert call is not None
    recorder, _ = settled(run)
    made.notes += [sentence for sentence in run.notes if sentence not in made.notes]
    made.calls.append(recorder.tensors)
    made.dtype = computed_in(recorder.dtypes)
    batch = len(call["token_ids"])
    if not int(call["start"]) or len(made.lines) != batch:
        made.lines = list(range(batch))
    numbers = rows_of(call, made.lines) | {"calls": [len(made.calls) - 1] * call["token_ids"].size}
    for key, each in numbers.items():
        made.rows.setdefault(key, []).extend(each)
    made.most = max(made.most, *(number + 1 for number in numbers["sequences"]))
