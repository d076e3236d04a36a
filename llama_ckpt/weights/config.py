"""The hyper-parameters of a Llama, read from GGUF metadata.

A key that a file leaves out takes llama.cpp's own default (its `load_hparams`), and is listed in
`LlamaConfig.defaulted`. A key that is there is held against what it may be, so that no layer ever
divides by zero heads; what llama.cpp ignores in a Llama is ignored here too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from gguf import GGMLQuantizationType

from llama_ckpt.errors import LlamaCkptError, ModelFileError, UnsupportedModelError
from llama_ckpt.gguf.cursor import shown
from llama_ckpt.gguf.foreign import OTHER_FILES
from llama_ckpt.weights.tensor_names import ROPE_FACTORS

if TYPE_CHECKING:
    from llama_ckpt.gguf.file import GGUFFile

__all__ = ["LlamaConfig"]

_LAYERS: Final = 512  # llama.cpp's LLAMA_MAX_LAYERS
_HEADS: Final = 1 << 16
_SIZE: Final = 1 << 24  # a width or a vocabulary; the largest Llama has 16,384 and 128,256
_POSITIONS: Final = (1 << 31) - 1  # llama.cpp's positions are int32
_ROPE_THETA: Final = 10000.0
_TOKENIZER_KEYS: Final = ("tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_space_prefix")


@dataclass(frozen=True)
class LlamaConfig:
    """The hyper-parameters of a Llama.

    Attributes:
        n_layers: number of blocks.
        n_heads: query heads.
        n_kv_heads: key and value heads; divides `n_heads`.
        head_dim: elements of a head; even.
        width: elements of the residual stream.
        ffn: inner elements of the feed-forward network.
        vocab_size: tokens.
        context_length: positions the model was trained for.
        rms_norm_eps: added to the mean square inside the root; the file's float32 value.
        rope_theta: base of RoPE's frequencies; the file's float32 value.
        rope_scale: linear RoPE scaling: angle = position * frequency / rope_scale.
        rope_factors: a divisor of each of the `head_dim / 2` frequencies, as Llama 3.1 has them (the file's
            `rope_freqs.weight`); empty where there are none.
        tied_output: the output matrix is the token embedding.
        name: `general.name`, or nothing.
        defaulted: GGUF keys that the file left out and that took llama.cpp's default.
    """

    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    width: int
    ffn: int
    vocab_size: int
    context_length: int
    rms_norm_eps: float
    rope_theta: float = _ROPE_THETA
    rope_scale: float = 1.0
    rope_factors: tuple[float, ...] = ()
    tied_output: bool = False
    name: str = ""
    defaulted: tuple[str, ...] = ()

    @property
    def hyperparameters(self) -> dict[str, float]:
        """What decides the numbers and cannot be read off the weights: two files with the same weights
        and other values here are other models."""
        names = ("n_heads", "n_kv_heads", "head_dim", "rms_norm_eps", "rope_theta", "rope_scale")
        return {name: float(getattr(self, name)) for name in names}

    @property
    def q_width(self) -> int:
        """Elements of all query heads together; `width` unless the head size is explicit."""
        return self.n_heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Elements of all key heads together."""
        return self.n_kv_heads * self.head_dim

    @classmethod
    def from_gguf(cls, file: GGUFFile) -> LlamaConfig:
        """Read the configuration; the file need not have tensors.

        Raises:
            ModelFileError: not a Llama, or a key missing, of another kind, or out of its range.
            UnsupportedModelError: a Llama of a kind that no checkpoint computes.
        """
        keys = _Keys(file)
        keys.refuse_other_architectures()
        keys.refuse_variants()
        width = keys.integer("llama.embedding_length", _SIZE)
        n_heads = keys.integer("llama.attention.head_count", _HEADS, per_block=True)
        n_kv_heads = keys.integer("llama.attention.head_count_kv", _HEADS, default=n_heads, per_block=True)
        if n_heads % n_kv_heads:
            raise keys.wrong("llama.attention.head_count_kv", n_kv_heads, f"a divisor of {n_heads} heads")
        head_dim = keys.head_dim(width, n_heads)
        return cls(
            n_layers=keys.integer("llama.block_count", _LAYERS),
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            head_dim=head_dim,
            width=width,
            ffn=keys.integer("llama.feed_forward_length", _SIZE, per_block=True),
            vocab_size=keys.vocab_size(),
            context_length=keys.integer("llama.context_length", _POSITIONS),
            rms_norm_eps=keys.positive("llama.attention.layer_norm_rms_epsilon"),
            rope_theta=keys.positive("llama.rope.freq_base", default=_ROPE_THETA),
            rope_scale=keys.rope_scale(),
            rope_factors=keys.rope_factors(head_dim),
            tied_output=bool(file.tensors) and "output.weight" not in file.tensors,
            name=keys.text("general.name", default=""),
            defaulted=keys.all_defaulted(),
        )


class _Keys:
    """Typed, bounded access to the metadata; remembers which keys took their default."""

    def __init__(self, file: GGUFFile) -> None:
        self._file, self._metadata = file, file.metadata
        self._defaulted: list[str] = []

    def wrong(
        self,
        key: str,
        got: object,
        wanted: str,
        kind: type[LlamaCkptError] = ModelFileError,
        hint: str | None = None,
    ) -> LlamaCkptError:
        return kind(f"{self._file.path}: {key}", got=got, wanted=wanted, hint=hint)

    def _absent(self, key: str, default: Any, wanted: str) -> Any:
        if default is None:
            raise self.wrong(key, "no such key", wanted)
        self._defaulted.append(key)
        return default

    def integer(self, key: str, high: int, *, default: int | None = None, per_block: bool = False) -> int:
        """An integer from 1 to `high`; where `per_block`, also an array with that value for every block."""
        wanted = f"an integer from 1 to {high}"
        if key not in self._metadata:
            return int(self._absent(key, default, wanted))
        value = self._metadata[key]
        if per_block and isinstance(value, np.ndarray) and value.size and value.dtype.kind in "iu":
            self._check_length(key, value)
            if (value != value[0]).any():
                raise self.wrong(
                    key, "different values for different blocks", "one value", UnsupportedModelError
                )
            value = int(value[0])
        if type(value) is not int or not 1 <= value <= high:
            raise self.wrong(key, shown(value), wanted)
        return value

    def _check_length(self, key: str, values: np.ndarray) -> None:
        """An array has one value a block, no fewer and no more: llama.cpp refuses any other."""
        blocks = self._metadata.get("llama.block_count")
        if len(values) != blocks:
            raise self.wrong(key, f"an array of {len(values)}", f"one value, or {blocks}, one for each block")

    def positive(self, key: str, *, default: float | None = None) -> float:
        """A positive, finite number: the float32 nearest to it."""
        wanted = "a positive, finite number"
        if key not in self._metadata:
            return float(self._absent(key, default, wanted))
        value = self._metadata[key]
        if not isinstance(value, float):
            raise self.wrong(key, shown(value), wanted)
        with np.errstate(all="ignore"):
            value = float(np.float32(value))
        if not (math.isfinite(value) and value > 0):
            raise self.wrong(key, shown(value), wanted)
        return value

    def text(self, key: str, *, default: str) -> str:
        value = self._metadata.get(key, default)
        if not isinstance(value, str):
            raise self.wrong(key, shown(value), "text")
        return value

    def refuse_other_architectures(self) -> None:
        for key in ("general.type", "general.architecture"):
            kind = self._metadata.get(key)
            kind = {"clip": "mmproj"}.get(kind, kind) if isinstance(kind, str) else None
            if kind is not None and kind in OTHER_FILES:
                what, hint = OTHER_FILES[kind]
                raise self.wrong(key, what, "a model's own file", UnsupportedModelError, hint)
        got = self._metadata.get("general.architecture", "no such key")
        if not isinstance(got, str) or got != "llama":
            raise self.wrong(
                "general.architecture", shown(got), "'llama'", hint="only Llama models are computed here"
            )

    def refuse_variants(self) -> None:
        """Refuse what llama.cpp computes for a Llama and the checkpoints do not."""
        for key, plain, wanted in _PLAIN:
            value = self._metadata.get(key, plain)
            if isinstance(value, np.ndarray) or value != plain:
                raise self.wrong(key, shown(value), wanted, UnsupportedModelError)

    def head_dim(self, width: int, n_heads: int) -> int:
        key = "llama.attention.key_length"
        if key not in self._metadata and width % n_heads:
            raise self.wrong(
                key, "no such key", f"one, since {n_heads} heads do not divide the width {width}"
            )
        head_dim = self.integer(key, _HEADS, default=width // n_heads)
        if head_dim % 2:
            raise self.wrong(key, head_dim, "an even head size, since RoPE turns pairs")
        defaults = {"llama.attention.value_length": width // n_heads, "llama.rope.dimension_count": head_dim}
        for other, default in defaults.items():
            value = self.integer(other, _HEADS, default=default)
            if value != head_dim:
                raise self.wrong(other, value, f"{head_dim}, the size of a head", UnsupportedModelError)
        return head_dim

    def vocab_size(self) -> int:
        """llama.cpp's order: the tokens themselves; without a vocabulary the key, then the embedding."""
        key, tokens = "llama.vocab_size", self._metadata.get("tokenizer.ggml.tokens")
        if isinstance(tokens, list) and tokens:
            if key not in self._metadata:
                self._defaulted.append(key)
            return len(tokens)
        embedding = self._file.tensors.get("token_embd.weight")
        return self.integer(key, _SIZE, default=embedding.shape[0] if embedding else None)

    def rope_scale(self) -> float:
        key, old = "llama.rope.scaling.type", "llama.rope.scale_linear"
        kind = self.text(key, default="linear")
        if kind not in ("none", "linear"):
            raise self.wrong(key, shown(kind), "'none' or 'linear'", UnsupportedModelError)
        factor = "llama.rope.scaling.factor"
        used = factor if factor in self._metadata or old not in self._metadata else old
        value = self._metadata.get(used)
        if isinstance(value, float) and value == 0:  # llama.cpp: zero means unscaled
            return 1.0
        scale = self.positive(used, default=1.0)
        return scale if kind == "linear" else 1.0

    def rope_factors(self, head_dim: int) -> tuple[float, ...]:
        info = self._file.tensors.get(ROPE_FACTORS)
        if info is None:
            return ()
        what = f"the tensor {ROPE_FACTORS}"
        if info.shape != (head_dim // 2,) or info.type != GGMLQuantizationType.F32:
            got = f"{info.type.name} {list(info.shape)}"
            raise self.wrong(what, got, f"F32 {[head_dim // 2]}, a divisor for each pair of a head")
        factors = self._file.float32(ROPE_FACTORS)
        bad = ~(np.isfinite(factors) & (factors > 0))
        if bad.any():
            raise self.wrong(what, factors[bad][0], "positive, finite numbers")
        return tuple(map(float, factors))

    def all_defaulted(self) -> tuple[str, ...]:
        absent = [key for key in _TOKENIZER_KEYS if key not in self._metadata]
        return (*self._defaulted, *absent)


_PLAIN: Final = (
    ("llama.expert_count", 0, "0, since mixtures of experts are not supported"),
    ("llama.attention.causal", True, "causal attention"),
    ("llama.nextn_predict_layers", 0, "0, since layers for multi-token prediction are not supported"),
    ("llama.rope.scaling.attn_factor", 1.0, "1.0"),
)
