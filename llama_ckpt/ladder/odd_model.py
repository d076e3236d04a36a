"""A small model of sizes that no tile divides, and what goes through its layers.

Heads of 20, a feed-forward of 250, a width of 83: a kernel's last tile, a row that is left out, a stride
that is right for 64 alone show here and nowhere else. Weights and inputs come from a seed; the inputs are
the oracle's own run, as of a recording.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache, cached_property
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from llama_ckpt.oracle import llama as oracle
from llama_ckpt.oracle.weights import OracleBlockWeights
from llama_ckpt.points import SAMPLED
from llama_ckpt.weights.config import LlamaConfig
from llama_ckpt.weights.records import BlockWeights, ModelWeights

__all__ = ["SHAPES", "OddGiven", "OddModel", "Tried", "odd_model"]

Array = NDArray[np.float64]

SHAPES: Mapping[str, Mapping[str, Any]] = {
    "heads of 20": {"width": 83, "n_heads": 4, "n_kv_heads": 2, "head_dim": 20, "ffn": 250},
    "three heads": {"width": 63, "n_heads": 3, "n_kv_heads": 1, "head_dim": 34, "ffn": 33},
    "heads of 6": {"width": 47, "n_heads": 8, "n_kv_heads": 8, "head_dim": 6, "ffn": 129},
}
N_LAYERS, VOCAB = 2, 331
LARGE = {"token_embd": 1.0, "attn_norm": 1.0, "ffn_norm": 1.0, "output_norm": 1.0}


@dataclass(frozen=True, eq=False)
class OddWeights:
    """All weights in float64; attributes as of `ModelWeights`."""

    token_embd: Array
    blocks: tuple[OracleBlockWeights, ...]
    output_norm: Array
    output: Array


class Tried(Protocol):
    """A model that layers are tried on in a situation, and what goes through them there."""

    @property
    def config(self) -> LlamaConfig:
        """Its sizes."""

    @property
    def dtype(self) -> torch.dtype:
        """What layers compute in."""

    @property
    def device(self) -> str:
        """Where."""

    def given(self, n: int, first: int, exactly: bool) -> Any:
        """What a checkpoint's `cases` are given of n rows, for the oracle or for layers: a `points.Given`."""

    def recorded(self, name: str, rows: slice) -> NDArray[np.float32] | None:
        """A call's rows of a point as llama.cpp computed them; None where it did not."""


@dataclass(frozen=True, eq=False)
class OddModel:
    """A shape with its weights, in the precision on trial.

    Attributes:
        config: its sizes.
        exact: weights in float64 that the precision holds.
        dtype, device: what layers compute in, and where.
    """

    config: LlamaConfig
    exact: OddWeights
    dtype: torch.dtype
    device: str

    @cached_property
    def weights(self) -> ModelWeights:
        """The same weights for layers."""

        def block(one: OracleBlockWeights) -> BlockWeights:
            values = {f.name: getattr(one, f.name) for f in fields(one)}
            return BlockWeights(**{k: self._tensor(k, v) for k, v in values.items() if v is not None})

        exact = self.exact
        return ModelWeights(
            self._tensor("token_embd", exact.token_embd),
            tuple(block(one) for one in exact.blocks),
            self._tensor("output_norm", exact.output_norm),
            self._tensor("output", exact.output),
        )

    def _tensor(self, name: str, value: Array) -> torch.Tensor:
        dtype = torch.float32 if name.endswith("norm") else self.dtype
        return torch.from_numpy(value).to(self.device, dtype)

    @cache  # noqa: B019 (a few for as long as a climb lasts)
    def run(self, n: int, first: int) -> Mapping[str, Array]:
        """The oracle's run of n tokens, rounded to the precision on trial."""
        seen: dict[str, Array] = {}

        def keep(name: str, x: Array) -> None:
            kept = torch.float32 if name in SAMPLED else self.dtype
            seen[name] = torch.from_numpy(np.asarray(x)).to(kept).double().numpy()

        places = first + np.arange(n)
        keep(
            "logits",
            oracle.logits(self.tokens(n), self.exact, config=self.config, positions=places, tap=keep),
        )
        return seen

    def given(self, n: int, first: int, exactly: bool) -> OddGiven:
        """As of `Tried`."""
        return OddGiven(self, n, first, exactly)

    def recorded(self, name: str, rows: slice) -> None:
        """Nothing: the oracle alone has run it."""

    def tokens(self, n: int) -> NDArray[np.int64]:
        """n token ids, the same for the same n's beginning."""
        return np.arange(n, dtype=np.int64) * 97 % VOCAB


@cache
def odd_model(shape: str, dtype: torch.dtype, device: str, grouped: bool = True) -> OddModel:
    """A model of one of `SHAPES`, the same each time.

    Args:
        grouped: whether it may have fewer key heads than query heads: a layer that is written for a model
            with as many need not know of groups.
    """
    sizes = dict(SHAPES[shape])
    config = LlamaConfig(
        **(sizes if grouped else sizes | {"n_kv_heads": sizes["n_heads"]}),
        n_layers=N_LAYERS,
        vocab_size=VOCAB,
        context_length=1 << 16,
        rms_norm_eps=1e-5,
        rope_theta=1e4,
    )
    generator = np.random.default_rng(sorted(SHAPES).index(shape))

    def matrix(rows: int, columns: int, gain: float = 1.0) -> Array:
        drawn = generator.standard_normal((rows, columns)) * gain / columns**0.5
        return torch.from_numpy(drawn).to(dtype).double().numpy()

    def norm() -> Array:
        return (1 + 0.2 * generator.standard_normal(config.width)).astype(np.float32).astype(np.float64)

    def block() -> OracleBlockWeights:
        width, ffn = config.width, config.ffn
        return OracleBlockWeights(
            attn_norm=norm(),
            wq=matrix(config.q_width, width, 1.4),
            wk=matrix(config.kv_width, width, 1.4),
            wv=matrix(config.kv_width, width),
            wo=matrix(width, config.q_width),
            ffn_norm=norm(),
            w_gate=matrix(ffn, width, 1.5),
            w_up=matrix(ffn, width),
            w_down=matrix(width, ffn),
        )

    blocks = tuple(block() for _ in range(N_LAYERS))
    table = matrix(VOCAB, config.width, config.width**0.5)
    exact = OddWeights(table, blocks, norm(), matrix(VOCAB, config.width))
    return OddModel(config, exact, dtype, device)


@dataclass(frozen=True, eq=False)
class OddGiven:
    """What a checkpoint's `cases` are given of it: as much of a `points.Given` as layers with tensors need.

    Attributes:
        odd: the model. n, first: of the run.
        exactly: float64 arrays for the oracle, or torch tensors for layers.
    """

    odd: OddModel
    n: int
    first: int
    exactly: bool

    def __getitem__(self, point: str) -> Any:
        array = self.odd.run(self.n, self.first)[point]
        if self.exactly:
            return array
        dtype = torch.float32 if point in SAMPLED else self.odd.dtype
        return torch.from_numpy(array).to(self.odd.device, dtype)

    @property
    def config(self) -> LlamaConfig:
        """The model's sizes."""
        return self.odd.config

    @property
    def weights(self) -> Any:
        """The oracle's or the layers'."""
        return self.odd.exact if self.exactly else self.odd.weights

    @property
    def blocks(self) -> tuple[int, ...]:
        """The first block alone: the others have the same sizes."""
        return (0,)

    @property
    def positions(self) -> Any:
        """`[n]`"""
        return self.whole(self.first + np.arange(self.n, dtype=np.int64))

    @property
    def token_ids(self) -> Any:
        """`[n]`"""
        return self.whole(self.odd.tokens(self.n))

    @property
    def rope_frequencies(self) -> Any:
        """`[head_dim / 2]`"""
        return self.whole(oracle.rope_frequencies(self.config))

    @property
    def dtype_option(self) -> Mapping[str, Any]:
        """The layer's dtype, where it has no input to take it from."""
        return {} if self.exactly else {"dtype": self.odd.dtype}

    def whole(self, array: NDArray[Any]) -> Any:
        """An array as it is, or as a tensor."""
        return array if self.exactly else torch.from_numpy(array).to(self.odd.device)
