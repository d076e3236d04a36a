"""What a dump's tensors of whole numbers say of its rows, and how rows of several calls are counted.

`token_ids`, `positions`, `sequences`, `padding`, `calls`, `slots`, `copies` may be tensors; so may
`attention_mask`, which is padding the other way round. Of a batch they are `[batch, n]`, and a file's rows
are those of the first sequence, then those of the second. Where each call has tensors of its own
(`call.3.logits`), it has these as well (`call.3.token_ids`). numpy only.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.errors import DumpError

__all__ = ["CALL", "RUN", "RunFacts", "lines", "run_facts"]

INTEGERS = ("I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64", "BOOL")
MASK = "attention_mask"
COPIES = "copies"
RUN = ("token_ids", "positions", "sequences", "padding", "calls", "slots", COPIES)
"""What may be given as a tensor of integers as well as in the metadata."""

CALL = re.compile(r"call\.([0-9]{1,9})\.(.+)")
"""How a tensor is called that is of one call of several."""


@dataclass
class RunFacts:
    """What was found.

    Attributes:
        numbers: by name of `RUN`, in the order of the file's rows.
        batch: how many sequences lie side by side; None where it is not said.
        names: the tensors that were read.
    """

    numbers: dict[str, tuple[int, ...]] = field(default_factory=dict)
    batch: int | None = None
    names: set[str] = field(default_factory=set)


def run_facts(path: Path, file: Any, keys: Sequence[str]) -> RunFacts:
    """Read them.

    Raises:
        DumpError: of another type than whole numbers, or of some of the calls alone.
    """
    found = RunFacts()
    by_call: dict[int, dict[str, NDArray[Any]]] = {}
    for key in keys:
        match = CALL.fullmatch(key)
        call, name = (int(match.group(1)), match.group(2)) if match else (-1, key)
        if name in (*RUN, MASK):
            by_call.setdefault(call, {})[name] = _whole(path, file, key)
            found.names.add(key)
    plain = by_call.pop(-1, {})
    for call in sorted(by_call):
        _mask_as_padding(by_call[call])
    _mask_as_padding(plain)
    given = [plain.get("token_ids"), *(of.get("token_ids") for of in by_call.values())]
    for ids in given:
        if ids is not None and ids.ndim == 2 and len(ids) > 1:
            found.batch = len(ids)
    for name in (one for one in RUN if any(one in of for of in by_call.values())):
        if missing := [call for call, of in sorted(by_call.items()) if name not in of and name != COPIES]:
            what = f"{path}: call.{missing[0]}.{name}"
            raise DumpError(what, got="nothing", wanted="one for each call, or for none")
        parts = [of[name].reshape(-1) for _, of in sorted(by_call.items()) if name in of]
        found.numbers[name] = tuple(np.concatenate(parts).tolist())
    found.numbers |= {name: tuple(array.reshape(-1).tolist()) for name, array in plain.items()}
    if "calls" not in found.numbers and by_call and "token_ids" in found.numbers:
        of_each = [(call, of["token_ids"].size) for call, of in sorted(by_call.items())]
        found.numbers["calls"] = tuple(call for call, n in of_each for _ in range(n))
    return found


def _mask_as_padding(of: dict[str, NDArray[Any]]) -> None:
    """A mask has as many columns as there are keys; the last are those of the call."""
    mask = of.pop(MASK, None)
    if mask is None or "padding" in of:
        return
    n = of["token_ids"].shape[-1] if "token_ids" in of else mask.shape[-1]
    of["padding"] = (mask.reshape(-1, mask.shape[-1])[:, -n:] == 0).astype(np.int64)


def _whole(path: Path, file: Any, key: str) -> NDArray[np.int64]:
    kind = file.get_slice(key).get_dtype()
    if kind not in INTEGERS:
        raise DumpError(f"{path}: the type of {key}", got=kind, wanted="I32")
    return np.atleast_1d(np.asarray(file.get_tensor(key))).astype(np.int64)


def lines(n: int, batch: int | None, calls: Sequence[int] | None) -> tuple[int, ...] | None:
    """Of each row which sequence of the batch it is; None where there is no batch."""
    if batch is None:
        return None
    counts = Counter(calls or [0] * n)
    made = [row // max(1, rows // batch) for rows in counts.values() for row in range(rows)]
    return tuple(made)
