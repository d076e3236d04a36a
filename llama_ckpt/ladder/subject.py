"""A model on trial: its exact weights, its recordings, and the oracle's runs of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from llama_ckpt.ladder.recording import Recording
from llama_ckpt.model import Model
from llama_ckpt.oracle import llama as oracle
from llama_ckpt.oracle.on_cpu import HostOracleWeights
from llama_ckpt.oracle.weights import OracleWeights
from llama_ckpt.spare_memory import spare_bytes
from llama_ckpt.weights.packed_products import all_compiled, weights_for_few_rows
from llama_ckpt.weights.records import ModelWeights, unpacked

__all__ = ["Subject", "keeper"]

UNPACKED_BYTES: Final = 1 << 30
"""A model whose matrices take at most so many bytes is small."""


@dataclass(frozen=True)
class Subject:
    """A model on trial, its exact weights, and the recordings to hold it against.

    `answers` holds the oracle's runs by recording, so that several trials of a subject share them.
    """

    label: str
    model: Model
    weights: OracleWeights
    recordings: tuple[Recording, ...]
    answers: dict[str, dict[str, NDArray[np.float64]]] = field(default_factory=dict)

    @cached_property
    def rounded_weights(self) -> OracleWeights:
        """The exact weights for an oracle that rounds them: as arrays, where they are in memory at all."""
        if not isinstance(self.weights, HostOracleWeights):
            return self.weights
        return OracleWeights(self.model.file, self.model.config, keep_last=True)

    @cached_property
    def writing(self) -> Model:
        """The model as it writes texts, a pass a token: its matrices are made once, where they fit.

        A large one writes as `generate` does, where all of its products are compiled.
        """
        if (shared := self._shared) is not None:
            if not all_compiled(self.model.weights):
                return replace(self.model, weights=shared)
            return replace(self.model, weights=weights_for_few_rows(self.model.weights)[0])
        most = UNPACKED_BYTES
        if self.model.device.type == "cpu":
            most = max(most, spare_bytes() // 2)
        if self._unpacked_bytes > most:
            return self.model
        return replace(self.model, weights=unpacked(self.model.weights, self.model.dtype))

    @property
    def at_work(self) -> Model:
        """The model as its layers are tried: packed as it is in the file, or, of a large one, as it writes.

        The values are the same; a large matrix takes longer to make than to multiply with a few rows.
        """
        if self._shared is not None:
            return self._large
        return self.model if self._unpacked_bytes <= UNPACKED_BYTES else self.writing

    @cached_property
    def _large(self) -> Model:
        assert self._shared is not None
        return replace(self.model, weights=self._shared)

    @property
    def _shared(self) -> ModelWeights | None:
        """What layers and oracle share of a large model, where the layers compute with the very values."""
        exact = self.model.device.type == "cpu" and self.model.dtype == torch.float32
        return self.weights.unpacked if exact and isinstance(self.weights, HostOracleWeights) else None

    @property
    def _unpacked_bytes(self) -> int:
        elements = sum(math.prod(info.shape) for info in self.model.file.tensors.values())
        return elements * self.model.dtype.itemsize

    def exact(self, recording: Recording) -> dict[str, NDArray[np.float64]]:
        """The oracle's run from a recording's tokens: every point that was recorded."""
        if recording.label not in self.answers:
            seen: dict[str, NDArray[np.float64]] = {}
            seen["logits"] = oracle.logits(
                recording.token_ids,
                self.weights,
                config=self.model.config,
                positions=recording.positions,
                tap=keeper(seen, recording),
            )
            self.answers[recording.label] = seen
        return self.answers[recording.label]


def keeper(seen: dict[str, Any], recording: Recording) -> Callable[[str, Any], None]:
    """A tap that keeps the points that were recorded: all 32 blocks of a 7B model would be gigabytes."""

    def keep(point: str, tensor: Any) -> None:
        if point in recording.tensors or point.endswith(".ffn_router"):  # near ties are looked for everywhere
            seen[point] = tensor

    return keep
