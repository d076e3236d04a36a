"""Recording every forward call of a module while a context lasts, also those of `generate`.

    with lc.recording(model) as run:
        model.generate(ids, attention_mask=mask, max_new_tokens=5)
    run.save("mine.safetensors")                             # llama-ckpt compare mine.safetensors

Each call is a call of the dump (`calls.py`): a batch's lines are its sequences, what the mask leaves out is
padding, positions are those that the model was handed, and a cache of earlier tokens is read as it lies.
Nothing is replaced and nothing run twice, so that what a second run would give is not compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from llama_ckpt.dumps.attention import Attention
from llama_ckpt.dumps.hooks import Mapped
from llama_ckpt.dumps.inputs import IDS
from llama_ckpt.dumps.record import known_mapping, look_on
from llama_ckpt.dumps.recorder import computed_in
from llama_ckpt.dumps.settle import Run, settle
from llama_ckpt.dumps.theirs import save_dump
from llama_ckpt.errors import OptionError, ShapeError
from llama_ckpt.points import split_name

__all__ = ["RecordedRun", "recording"]

QUANTIZED = "Quantized"
"""In the name of a cache's class: what it gives back is not what it was given."""


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
def recording(module: nn.Module, *, mapping: Mapped | None = None) -> Iterator[RecordedRun]:
    """While it lasts, every forward call of the module is recorded.

    Args:
        module: a live torch module whose forward call takes token ids.
        mapping: as of `record`.

    Raises:
        OptionError: an unknown kind of module, or a cache that does not give back what it was given.
    """
    said = Run()
    paths = known_mapping(module, said) if mapping is None else mapping
    made = RecordedRun(notes=said.notes)
    stack, run = ExitStack(), [Run()]

    def begin(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        _refuse_inexact(kwargs.get("past_key_values"))
        run[0] = Run()
        run[0].call = _call_of(args, kwargs)
        stack.enter_context(look_on(module, paths, run[0]))

    def end(*_: Any) -> None:
        stack.close()
        _add(made, run[0])

    handles = [module.register_forward_pre_hook(begin, with_kwargs=True)]
    handles.append(module.register_forward_hook(end))
    try:
        yield made
    finally:
        stack.close()
        for handle in handles:
            handle.remove()


def _refuse_inexact(cache: Any) -> None:
    if QUANTIZED in type(cache).__name__:
        got = type(cache).__name__
        wanted = "a cache that gives back what it was given: its keys are rounded, and no point shows them"
        raise OptionError("past_key_values", got=got, wanted=wanted)


def _call_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, NDArray[np.int64]]:
    """Token ids, positions and padding of a call, `[batch, n]` each."""
    named = (kwargs[name] for name in IDS if isinstance(kwargs.get(name), Tensor))
    ids: Any = args[0] if args else next(named, None)
    if not isinstance(ids, Tensor) or ids.is_floating_point() or ids.ndim not in (1, 2):
        raise ShapeError("inputs of a call", got=type(ids).__name__, wanted="token ids, [n] or [batch, n]")
    tokens = ids.detach().cpu().numpy().astype(np.int64)
    tokens = tokens.reshape(1, -1) if tokens.ndim == 1 else tokens
    n = tokens.shape[1]
    at = next((kwargs[k] for k in ("position_ids", "cache_position") if kwargs.get(k) is not None), None)
    cache: Any = kwargs.get("past_key_values")
    start = int(cache.get_seq_length()) if hasattr(cache, "get_seq_length") else 0
    first = np.arange(start, start + n) if at is None else at.detach().cpu().numpy()
    positions = np.broadcast_to(first.reshape(-1, n), tokens.shape).astype(np.int64)
    padding = _padding(kwargs.get("attention_mask"), tokens, start)
    return {"token_ids": tokens, "positions": positions, "padding": padding, "start": np.array(start)}


def _padding(mask: Any, tokens: NDArray[np.int64], start: int) -> NDArray[np.int64]:
    """Which of a call's tokens the mask leaves out, `[batch, n]`.

    Args:
        mask: `[batch, keys]`, or `[batch, 1, n, keys]` as attention takes it: true, or 0.0, where seen.
        start: how many keys come before the call's own.
    """
    batch, n = tokens.shape
    if isinstance(mask, Mapping):  # one for each kind of layer, of which a Llama has one
        mask = next(iter(mask.values()), None)
    if not isinstance(mask, Tensor) or mask.ndim not in (2, 4) or mask.shape[-1] < start + n:
        return np.zeros_like(tokens)
    given = mask.detach().cpu()
    own = (given.float() if given.is_floating_point() else given).numpy()[..., start : start + n]
    if mask.ndim == 2:
        return np.asarray(own == 0, np.int64)
    last = own[:, 0, -1]  # the call's last row sees every token before it that is none of padding
    seen = last >= 0 if given.is_floating_point() else last != 0
    return np.asarray(~np.broadcast_to(seen, (batch, n)), np.int64)


def _add(made: RecordedRun, run: Run) -> None:
    """One call's tensors and rows."""
    call = run.call
    assert call is not None
    batch, n = call["token_ids"].shape
    lines = [settle(_line(run, line, batch)) for line in range(batch)]
    shared = [name for name in lines[0].tensors if all(name in one.tensors for one in lines)]
    tensors = {name: np.concatenate([one.tensors[name] for one in lines]) for name in shared}
    if "logits" in tensors and len(tensors["logits"]) != batch * n:
        del tensors["logits"]
        note = "logits of the last token alone are not kept"
        made.notes += [note] if note not in made.notes else []
    for sentence in run.notes:
        made.notes += [sentence] if sentence not in made.notes else []
    made.calls.append(tensors)
    made.dtype = computed_in(lines[0].dtypes)
    facts = {key: call[key].reshape(-1).tolist() for key in ("token_ids", "positions", "padding")}
    facts["sequences"] = [line for line in range(batch) for _ in range(n)]
    facts["calls"] = [len(made.calls) - 1] * (batch * n)
    for key, numbers in facts.items():
        made.rows.setdefault(key, []).extend(numbers)


def _line(run: Run, line: int, batch: int) -> Run:
    """What was seen of one line of a batch."""
    assert run.call is not None

    def cut(x: NDArray[Any] | None) -> NDArray[Any] | None:
        if x is None or batch == 1:
            return x
        each = len(x) // batch
        return x[line * each : (line + 1) * each]

    shown = {name: x if batch == 1 else x[line : line + 1] for name, x in run.shown.items()}
    parts = ("q", "k", "v", "scores", "probs", "context")
    attention: dict[int, Attention] = {}
    for block, seen in run.attention.items():
        of_line: dict[str, Any] = {part: cut(getattr(seen, part)) for part in parts}
        attention[block] = replace(seen, **of_line)
    tokens, positions = (tuple(run.call[key][line].tolist()) for key in ("token_ids", "positions"))
    start = int(run.call["start"])
    return Run(shown, run.dtypes, attention, tokens, positions, None, run.notes, None, start)
