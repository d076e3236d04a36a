"""Holds a watched run against plain ones, bit for bit: a recorder that changes what it records is refused.

The watched run comes first, on the module as it was handed over. Buffers, where caches live, are put back
before each further run.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from llama_ckpt.errors import OptionError

__all__ = ["run_watched"]


def run_watched(
    module: nn.Module,
    run: Callable[[], Any],
    watch: Callable[[], AbstractContextManager[Any]],
    watch_again: Callable[[], AbstractContextManager[Any]],
    note: Callable[[str], None],
) -> None:
    """Run a module while it is watched, and make sure that it gives the same when nobody watches.

    Args:
        module: what runs. run: calls it on inputs of its own, and returns what it gives.
        watch: what records; watch_again: the same with nothing kept, for a further run.
        note: is told where a module does not repeat itself.

    Raises:
        OptionError: two plain runs agree and the watched one does not.
    """
    state = _State(module)
    with watch():
        watched = _outputs(run())
    try:
        plain = [_outputs(state.again(run))]
        if _same(watched, plain[0]):
            return
        plain.append(_outputs(state.again(run)))
        if not _same(*plain):
            why = ", in training mode: call eval() first" if module.training else ""
            note(f"the module does not repeat itself: two plain runs gave different outputs{why}")
            return
        with watch_again():
            watched = _outputs(state.again(run))
    except OptionError:
        raise
    except Exception as error:
        note(f"whether watching changes the outputs is not known: a second run failed ({error})")
        return
    if _same(watched, plain[0]):
        note("a first run gives other outputs than those after it: the first was recorded")
        return
    raise OptionError(
        f"the outputs of {type(module).__name__} while it is watched",
        got="others than of two plain runs, which agree",
        wanted="the same bits",
        hint="write its tensors from inside, with lc.Recorder, or say with mapping which few to hook",
    )


class _State:
    """A module's buffers and torch's random numbers, as they were before the first run."""

    def __init__(self, module: nn.Module) -> None:
        self.buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
        self.random = torch.get_rng_state()

    def again(self, run: Callable[[], Any]) -> Any:
        """Run once more from the same state."""
        torch.set_rng_state(self.random)
        for buffer, saved in self.buffers:
            if not _same([buffer], [saved]):
                buffer.copy_(saved)
        return run()


def _outputs(value: Any) -> list[Tensor]:
    return [leaf.detach().clone() for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def _same(first: list[Tensor], second: list[Tensor]) -> bool:
    return len(first) == len(second) and all(map(_same_bits, first, second))


def _same_bits(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    flat = [x.contiguous().reshape(-1).view(torch.uint8) for x in (a, b)]
    return torch.equal(*flat)
