"""The engine as the language model that checkpoint 12's `generate` drives."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from llama_ckpt.engine.engine import Engine, Precision, unsupported
from llama_ckpt.errors import OptionError
from llama_ckpt.model import Model
from llama_ckpt.tokens.tokenizer import Tokenizer
from llama_ckpt.weights.config import LlamaConfig
from llama_ckpt.weights.kv_cache import KVCache

__all__ = ["Session", "session_for"]


class Session:
    """One sequence at a time on an engine; what `checkpoints.generate` asks of a language model.

    Args:
        model: its tokenizer and shape.
        engine: made for that model.
    """

    def __init__(self, model: Model, engine: Engine) -> None:
        self._model, self._tokenizer, self.engine = model, model.tokenizer, engine
        self._held = threading.Lock()
        self._newest: KVCache | None = None

    @contextmanager
    def sequence(self) -> Iterator[Session]:
        """The session for one sequence alone: the engine has one cache, and two texts would mix in it.

        Raises:
            OptionError: another sequence is not at its end yet, in this thread or in another.
        """
        if not self._held.acquire(blocking=False):
            raise OptionError(
                "sequences at a time on one engine",
                got=2,
                wanted=1,
                hint="end or close() the other generation first, or take precision layers for one of them",
            )
        try:
            yield self
        finally:
            self._held.release()

    @property
    def config(self) -> LlamaConfig:
        """The model's shape."""
        return self.engine.config

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's vocabulary."""
        return self._tokenizer

    def first_not_finite(self, token_ids: Sequence[int], first_position: int) -> str:
        """Where the layers' run of these tokens first is NaN or infinite; as `Model` says it."""
        return self._model.first_not_finite(token_ids, first_position)

    def new_cache(self, capacity: int) -> KVCache:
        """Begin a new sequence. The engine keeps its own cache; this one says whose turn it is."""
        self.engine.reset()
        self._newest = KVCache.allocate(_one_layer(self.config), 1)
        return self._newest

    def forward(self, token_ids: Tensor, positions: Tensor, cache: KVCache) -> Tensor:
        """Add tokens to the sequence; the last one's logits, float32 `[1, vocab]`.

        Raises:
            OptionError: the cache is not the newest: the engine holds another sequence's tokens by now.
        """
        if cache is not self._newest:
            raise OptionError(
                "the sequence's cache on the engine",
                got="one whose tokens a newer sequence took the place of",
                wanted="the newest",
                hint="begin it again; `sequence` keeps others out",
            )
        ids, at = token_ids.tolist(), positions.tolist()
        if len(ids) == 1 and at[0] == self.engine.next_position and self.engine.used:
            return self.engine.step(ids[0])[None]
        return self.engine.prompt(ids, at)[None]

    def tensor(self, token_ids: Sequence[int]) -> Tensor:
        """Ids or positions as an int64 tensor on the host, from where the engine places them itself."""
        return torch.tensor(list(token_ids), dtype=torch.int64)


def _one_layer(config: LlamaConfig) -> LlamaConfig:
    """A shape whose cache is a few bytes."""
    return replace(config, n_layers=1)


_SESSIONS: dict[tuple[int, Precision], Session] = {}
_MAKING = threading.Lock()  # two threads that begin together must get one session, or each makes an engine


def session_for(model: Model, precision: Precision = "fast") -> Session | None:
    """The session of a model, made once and dropped with it; None where the engine cannot run it."""
    if unsupported(model, precision) is not None:
        return None
    key = (id(model), precision)
    with _MAKING:
        if key not in _SESSIONS:
            _SESSIONS[key] = Session(model, Engine(model, precision))
            weakref.finalize(model, _SESSIONS.pop, key, None)
        return _SESSIONS[key]
