"""A model and a context of llama.cpp: tokens in, logits out.

One sequence a context, an empty KV cache, every row's logits kept; cache and attention as requested.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.capture.library import Library
from llama_ckpt.capture.request import CACHE_TYPES, Request
from llama_ckpt.capture.tap import PointTap
from llama_ckpt.errors import DeviceError, OptionError, ReferenceError, TokenizerError

__all__ = ["Context", "ReferenceModel"]

PIECE_BYTES = 4096  # no piece of a vocabulary is longer


class ReferenceModel:
    """A model that llama.cpp has loaded; use it in a `with` block.

    Raises:
        ReferenceError: llama.cpp refuses the file.
        DeviceError: blocks are wanted on a GPU and this build of llama.cpp has none.
    """

    def __init__(self, library: Library, request: Request) -> None:
        self.library = library
        api = library.api
        self.backend = self._backend(request.n_gpu_layers)
        params = api.llama_model_default_params()
        params.n_gpu_layers = request.n_gpu_layers
        # Repacked weights make some quantized types' bits depend on the machine.
        params.use_extra_bufts = request.repacked
        self.model: Any = api.llama_model_load_from_file(request.model.encode(), params)
        if not self.model:
            raise ReferenceError(f"llama.cpp refuses {request.model}", got=" ".join(library.complaints[-3:]))
        self.vocab: Any = api.llama_model_get_vocab(self.model)
        self.vocab_size: int = api.llama_vocab_n_tokens(self.vocab)
        self._has_texts: bool = api.llama_vocab_type(self.vocab) != api.LLAMA_VOCAB_TYPE_NONE
        self.n_layers: int = api.llama_model_n_layer(self.model)

    def __enter__(self) -> ReferenceModel:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.library.api.llama_model_free(self.model)

    def token_ids(self, request: Request) -> tuple[int, ...]:
        """A request's tokens, from its prompt or as given, checked against the vocabulary."""
        tokens = request.token_ids if request.prompt is None else self._tokenize(request.prompt)
        for index, token in enumerate(tokens):
            if not 0 <= token < self.vocab_size:
                raise TokenizerError(f"token {index}", got=token, wanted=f"0 to {self.vocab_size - 1}")
        if not tokens:
            raise OptionError("tokens to record", got="none", wanted="at least one")
        return tokens

    def ends(self, token: int) -> bool:
        """Whether llama.cpp ends a text at this token; a vocabulary may have several such."""
        return self._has_texts and bool(self.library.api.llama_vocab_is_eog(self.vocab, token))

    def piece(self, token: int) -> bytes:
        """The bytes of a token, as `llama_token_to_piece` gives them; control tokens have none."""
        if not self._has_texts:  # llama.cpp would end the process
            return b""
        buffer = ctypes.create_string_buffer(PIECE_BYTES)
        length = self.library.api.llama_token_to_piece(self.vocab, token, buffer, PIECE_BYTES, 0, False)
        return buffer.raw[:length]

    def _tokenize(self, prompt: str) -> tuple[int, ...]:
        text = prompt.encode("utf-8", "surrogateescape")
        room = 3 * len(text) + 5  # a token for each byte, three for a space, one before all; BOS and EOS
        buffer = (self.library.api.llama_token * room)()
        count = self.library.api.llama_tokenize(self.vocab, text, len(text), buffer, room, True, False)
        return tuple(buffer[:count])

    def _backend(self, n_gpu_layers: int) -> str:
        if n_gpu_layers == 0:
            return "cpu"
        if (name := self.library.gpu_name()) is None:
            raise DeviceError("blocks on a GPU", got="a llama.cpp built for none", wanted="n_gpu_layers 0")
        return name


class Context:
    """llama.cpp's context, for one sequence or several that share a cache; use it in a `with` block."""

    def __init__(
        self, loaded: ReferenceModel, request: Request, n_tokens: int, tap: PointTap, n_sequences: int = 1
    ) -> None:
        self.loaded, self.api = loaded, loaded.library.api
        self._keep = tap
        params = self._params(request, n_tokens, tap)
        if n_sequences > 1:
            # One cache for all: else each has scores of its own, in an axis that no point has.
            params.n_seq_max, params.kv_unified = n_sequences, True
        self.context: Any = self.api.llama_init_from_model(loaded.model, params)
        if not self.context:
            raise ReferenceError("llama.cpp makes no context", got=" ".join(loaded.library.complaints[-3:]))
        self._greedy: Any = self.api.llama_sampler_init_greedy()

    def __enter__(self) -> Context:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.api.llama_sampler_free(self._greedy)
        self.api.llama_free(self.context)

    def decode(self, token_ids: tuple[int, ...], first_position: int) -> None:
        """Run tokens through the model in one pass, after those that the cache holds."""
        rows = tuple((0, token) for token in token_ids)
        self.decode_rows(rows, range(first_position, first_position + len(token_ids)))

    def decode_rows(self, rows: Sequence[tuple[int, int]], positions: Sequence[int]) -> None:
        """Run rows of several sequences through the model in one pass: each one's sequence and token."""
        batch = self.api.llama_batch_init(len(rows), 0, 1)
        batch.n_tokens = len(rows)
        for row, ((sequence, token), position) in enumerate(zip(rows, positions, strict=True)):
            batch.token[row], batch.pos[row] = token, position
            batch.n_seq_id[row], batch.seq_id[row][0], batch.logits[row] = 1, sequence, 1
        status = self.api.llama_decode(self.context, batch)
        self.api.llama_batch_free(batch)
        if status != 0:
            complaints = " ".join(self.loaded.library.complaints[-3:])
            raise ReferenceError("llama_decode", got=f"status {status} {complaints}", wanted="status 0")

    def remove(self, sequence: int, first: int) -> None:
        """Take what a sequence has from a position on out of the cache."""
        if not self.api.llama_memory_seq_rm(self.api.llama_get_memory(self.context), sequence, first, -1):
            raise ReferenceError("llama_memory_seq_rm", got="refused", wanted="the last tokens removed")

    def copy(self, source: int, target: int, end: int) -> None:
        """Give a sequence another's keys and values up to before position `end`."""
        self.api.llama_memory_seq_cp(self.api.llama_get_memory(self.context), source, target, 0, end)

    @property
    def length(self) -> int:
        """How many positions llama.cpp made room for: it rounds up what it is asked for."""
        return int(self.api.llama_n_ctx(self.context))

    def logits(self, row: int) -> NDArray[np.float32]:
        """`[vocab]`: a copy of the logits that llama.cpp returns for a row of the last pass."""
        pointer = self.api.llama_get_logits_ith(self.context, row)
        return np.ctypeslib.as_array(pointer, (self.loaded.vocab_size,)).copy()

    def greedy(self, row: int) -> int:
        """llama.cpp's own greedy choice after a row of the last pass."""
        return int(self.api.llama_sampler_sample(self._greedy, self.context, row))

    def _params(self, request: Request, n_tokens: int, tap: PointTap) -> Any:
        params = self.api.llama_context_default_params()
        params.n_ctx = n_tokens + request.max_tokens
        # One batch and one micro-batch, so that a pass shows every point once, with all rows.
        params.n_batch = params.n_ubatch = n_tokens
        params.n_threads = params.n_threads_batch = request.n_threads
        params.type_k = params.type_v = CACHE_TYPES[request.cache]
        flash = "ENABLED" if request.flash_attention else "DISABLED"
        params.flash_attn_type = getattr(self.api, f"LLAMA_FLASH_ATTN_TYPE_{flash}")
        params.offload_kqv = params.op_offload = request.n_gpu_layers > 0
        params.cb_eval = tap.callback
        return params
