"""A recorder that changes what it records refuses, and a module that does not repeat itself is noted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from llama_ckpt.dumps.record import record
from llama_ckpt.errors import OptionError

MAPPING = {"norm": "output_norm"}
X = torch.ones(3, 4)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.Identity()
        self.calls = 0
        self.filled = nn.Buffer(torch.zeros(1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.step(self.norm(x))

    def step(self, x: Tensor) -> Tensor:
        return x


class Shy(Small):
    """Computes something else while it is looked at, as a program does that avoids a kernel under hooks."""

    def step(self, x: Tensor) -> Tensor:
        return x * (1 + 2**-23 * bool(self.norm._forward_hooks))


class Restless(Small):
    def step(self, x: Tensor) -> Tensor:
        return x * self.calls


class Warm(Small):
    def step(self, x: Tensor) -> Tensor:
        return x * min(self.calls, 2)


class Cached(Small):
    """Where its next token goes stands in a buffer."""

    def step(self, x: Tensor) -> Tensor:
        self.filled += 1
        return x * self.filled


class Dropping(Small):
    def step(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, 0.5)


def notes(module: nn.Module) -> str:
    recorded = record(module, X, mapping=MAPPING)
    assert np.array_equal(recorded.tensors["output_norm"], X.numpy())
    return "; ".join(recorded.notes)


def test_a_module_that_computes_something_else_while_it_is_watched_is_refused() -> None:
    module = Shy()
    with pytest.raises(OptionError, match="got others than of two plain runs, which agree, wanted the same"):
        record(module, X, mapping=MAPPING)
    assert not module.norm._forward_hooks


def test_what_does_not_repeat_itself_is_recorded_with_a_note() -> None:
    assert "does not repeat itself: two plain runs gave different outputs, in training" in notes(Restless())
    assert "call eval()" not in notes(Restless().eval())
    assert "a first run gives other outputs than those after it" in notes(Warm())


@pytest.mark.parametrize("kind", [Small, Cached, Dropping])
def test_the_same_state_gives_the_same_bits(kind: Any) -> None:
    """Buffers, where caches live, and random numbers are put back before the second run."""
    module = kind()
    assert "repeat" not in notes(module) and "first run" not in notes(module)


def test_one_run_is_all_that_is_left_of_it() -> None:
    module = Cached()
    record(module, X, mapping=MAPPING)
    assert module.filled.item() == 1


def test_a_cache_that_is_handed_in_stays_as_it_was() -> None:
    class Filling(Small):
        def forward(self, x: Tensor, cache: list[Tensor]) -> Tensor:  # type: ignore[override]
            cache.append(self.norm(x))
            return torch.stack(cache).sum(0)

    cache: list[Tensor] = []
    recorded = record(Filling(), {"x": X, "cache": cache}, mapping=MAPPING)
    assert cache == [] and not any("repeat" in note for note in recorded.notes)
