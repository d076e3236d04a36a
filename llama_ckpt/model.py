"""A loaded Llama for library users: `load` and `Model`; `generation.py` continues a prompt with it.

    import llama_ckpt as lc

    model = lc.load("model.gguf", device="auto", dtype="float32")
    model.logits([1, 15043])                                   # [2, vocab]

The mathematics is in `checkpoints`; this module only puts a file, a device and a dtype together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from checkpoints.c08_logits import logits as logits_layer
from llama_ckpt.errors import ContextLengthError, DeviceError, OptionError, ShapeError
from llama_ckpt.gguf.file import GGUFFile, open_gguf
from llama_ckpt.hugging_face.folder import model_file
from llama_ckpt.points import split_name
from llama_ckpt.precisions import DTYPES
from llama_ckpt.tokens.tokenizer import Tokenizer
from llama_ckpt.tokens.whole_numbers import whole_numbers
from llama_ckpt.weights.config import LlamaConfig
from llama_ckpt.weights.kv_cache import KVCache
from llama_ckpt.weights.loading import Progress
from llama_ckpt.weights.not_finite import bad_weight
from llama_ckpt.weights.quants import exact_matmul
from llama_ckpt.weights.records import ModelWeights, load_weights

__all__ = ["Model", "load", "pick_device", "pick_dtype"]


@dataclass(frozen=True)
class Model:
    """A Llama on a device.

    Attributes:
        file: the open GGUF file.
        config: its shape.
        tokenizer: its vocabulary; of one that is not supported, token ids alone (`tokenizer.unsupported`).
        weights: on `device`, in the file's types.
        device: where it computes.
        dtype: what it computes in.
    """

    file: GGUFFile
    config: LlamaConfig
    tokenizer: Tokenizer
    weights: ModelWeights
    device: torch.device
    dtype: torch.dtype

    @property
    def path(self) -> Path:
        """The GGUF file's path."""
        return self.file.path

    def tensor(self, token_ids: Sequence[int]) -> Tensor:
        """Token ids or positions as an int64 tensor on the model's device."""
        return torch.tensor(list(token_ids), dtype=torch.int64, device=self.device)

    def for_context(self, context: int) -> Model:
        """The model as it is in a run with a context of so many positions: see `LlamaConfig.for_context`."""
        return replace(self, config=self.config.for_context(context))

    def new_cache(self, capacity: int) -> KVCache:
        """An empty KV cache for `capacity` tokens, in the model's dtype."""
        return KVCache.allocate(self.config, capacity, device=self.device, dtype=self.dtype)

    def forward(
        self,
        token_ids: Tensor,
        positions: Tensor,
        cache: KVCache | None = None,
        tap: Callable[[str, Tensor], object] | None = None,
    ) -> Tensor:
        """Checkpoint 8 on this model's weights: int64 tensors `[n]` to logits `[n, vocab]` of `dtype`.

        Raises:
            ModelFileError: the file, which the weights on a CPU lie in, was written to meanwhile.
        """
        with exact_matmul():
            logits = logits_layer(
                token_ids,
                self.weights,
                config=self.config,
                positions=positions,
                cache=cache,
                dtype=self.dtype,
                tap=tap,
            )
        if self.device.type == "cpu":
            self.file.check_unchanged()
        return logits

    @torch.inference_mode()
    def logits(
        self,
        token_ids: Sequence[int],
        positions: Sequence[int] | None = None,
        tap: Callable[[str, Tensor], object] | None = None,
    ) -> Tensor:
        """The logits of every token of a sequence, without a cache.

        Args:
            token_ids: `n` ids, 1 to the model's context length.
            positions: `n` positions; None counts from 0.
            tap: gets every point of the network, as `logits` of checkpoint 8 calls it.

        Returns:
            `[n, vocab]`, on the model's device, in its dtype.

        Raises:
            OptionError: an id or a position that is no integer; positions that do not rise.
            ShapeError: no tokens, an id outside the vocabulary, as many positions as tokens not given.
            ContextLengthError: more tokens, or a later position, than the context holds.
        """
        token_ids = whole_numbers(token_ids, "a token id")
        n, vocab = len(token_ids), self.config.vocab_size
        if n == 0 or min(token_ids) < 0 or max(token_ids) >= vocab:
            raise ShapeError(
                "token ids", got=list(token_ids)[:8], wanted=f"at least one, each 0 to {vocab - 1}"
            )
        if n > self.config.context_length:
            raise ContextLengthError("tokens", got=n, wanted=f"at most {self.config.context_length}")
        if positions is not None and len(positions) != n:
            raise ShapeError("positions", got=len(positions), wanted=f"{n}, one for each token")
        at = range(n) if positions is None else self._positions(positions)
        return self.forward(self.tensor(token_ids), self.tensor(at), tap=tap)

    def _positions(self, positions: Sequence[int]) -> list[int]:
        """Where the tokens of one sequence stand: each behind the one before, all within the context."""
        at = whole_numbers(positions, "a position")
        falls = next((i for i, (a, b) in enumerate(pairwise(at)) if b <= a), None)
        if falls is not None:
            got = f"{at[falls + 1]} after {at[falls]}"
            raise OptionError("positions of one sequence", got=got, wanted="each larger than the one before")
        if at[0] < 0 or at[-1] >= self.config.context_length:
            raise ContextLengthError(
                "positions", got=f"{at[0]} to {at[-1]}", wanted=f"0 to {self.config.context_length - 1}"
            )
        return at

    def first_not_finite(self, token_ids: Sequence[int], first_position: int = 0) -> str:
        """Where a run of these tokens first is NaN or infinite, and which weight there is; a clause."""
        broken: list[tuple[str, int]] = []

        def see(point: str, x: Tensor) -> None:
            wrong = ~torch.isfinite(x.reshape(len(x), -1)).all(dim=1)
            if not broken and wrong.any():
                broken.append((point, int(wrong.int().argmax())))

        see("logits", self.logits(token_ids, range(first_position, first_position + len(token_ids)), tap=see))
        if not broken:
            return "a pass over all of its tokens at once is finite: the cache has something else"
        point, row = broken[0]
        bad = bad_weight(self.file, split_name(point)[0])
        return f"first not finite is {point}, at row {row}" + (f"; in the file {bad} is not" if bad else "")


def load(
    path: str | Path,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "float32",
    progress: Progress | None = None,
) -> Model:
    """Open a GGUF file and put its weights on a device.

    Args:
        path: a Llama in GGUF, version 2 or 3, or a folder of Hugging Face's.
        device: "auto" takes CUDA where there is one, else the CPU.
        dtype: "float32", "float16" or "bfloat16": what is computed in. Weights stay in the file's types.
        progress: called as `progress(bytes read, bytes in all)` while weights go to another device than
            the CPU, where they are not read before they are used.

    Raises:
        ModelFileError, UnsupportedModelError: the file is not a Llama that can be computed here.
        DeviceError: the device is not there. OptionError: an unknown dtype.
    """
    picked, kind = pick_device(device), pick_dtype(dtype)
    file = open_gguf(model_file(Path(path)))
    config = LlamaConfig.from_gguf(file)
    tokenizer = Tokenizer.for_model(file, config.vocab_size)
    return Model(file, config, tokenizer, load_weights(file, config, picked, progress), picked, kind)


def pick_device(device: str | torch.device = "auto") -> torch.device:
    """A usable torch device: "auto" takes CUDA where there is one. Raises DeviceError otherwise."""
    if str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        picked = torch.device(device)
    except RuntimeError:
        picked = None
    if picked is None or picked.type not in ("cpu", "cuda", "mps"):
        raise DeviceError("device", got=device, wanted="auto, cpu, cuda or mps")
    if picked.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("device", got=device, wanted="a torch with Apple's GPU", hint="use --device cpu")
    if picked.type == "cuda" and (picked.index or 0) >= torch.cuda.device_count():
        raise DeviceError(
            "device",
            got=device,
            wanted=f"one of {torch.cuda.device_count()} CUDA devices",
            hint="use --device cpu",
        )
    return picked


def pick_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """A dtype by name. Raises OptionError for one that models don't compute in."""
    name = dtype if isinstance(dtype, str) else str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise OptionError("dtype", got=dtype, wanted="one of " + ", ".join(DTYPES))
    picked: torch.dtype = getattr(torch, name)
    return picked
