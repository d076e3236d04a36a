"""The hyper-parameters of a Llama, read from GGUF metadata.

A key that a file leaves out takes llama.cpp's own default (its `load_hparams`), and is listed in
`LlamaConfig.defaulted`. A key that is there is held against what it may be, so that no layer ever
divides by zero heads; what llama.cpp ignores in a Llama is ignored here too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from llama_ckpt.errors import UnsupportedModelError
from llama_ckpt.gguf.cursor import shown
from llama_ckpt.gguf.foreign import OTHER_FILES
from llama_ckpt.weights.metadata_keys import MetadataKeys
from llama_ckpt.weights.rope_scaling import Yarn, read_scaling
from llama_ckpt.weights.tensor_names import ATTENTION_BIASES, BIAS_TENSORS, block_tensor, fused_tensor

if TYPE_CHECKING:
    from llama_ckpt.gguf.file import GGUFFile

__all__ = ["LlamaConfig"]

_LAYERS: Final = 512  # llama.cpp's LLAMA_MAX_LAYERS
_HEADS: Final = 1 << 16
_EXPERTS: Final = 512  # llama.cpp's LLAMA_MAX_EXPERTS
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
            `rope_freqs.weight`); empty where there are none. Of LongRoPE those that hold for the run.
        rope_long_factors: LongRoPE's divisors for a run whose context is longer than `original_context`.
        rope_yarn: YaRN's numbers, or None.
        rope_attention_factor: what is turned is multiplied by it, beside what YaRN does by itself.
        original_context: positions before any scaling; 0 where the file does not say, for `context_length`.
        biases: fields of the biases that blocks have, such as "bq"; a Llama-2 has none.
        unbiased: blocks that lack one which others have, and its field.
        fused_qkv: one tensor in the file holds Q, K and V of a block.
        tied_output: the output matrix is the token embedding.
        n_experts, n_experts_used: of a mixture of experts how many each block has, and how many compute a
            token; 0 of a dense model.
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
    rope_long_factors: tuple[float, ...] = ()
    rope_yarn: Yarn | None = None
    rope_attention_factor: float = 1.0
    original_context: int = 0
    biases: tuple[str, ...] = ()
    unbiased: tuple[tuple[int, str], ...] = ()
    fused_qkv: bool = False
    tied_output: bool = False
    n_experts: int = 0
    n_experts_used: int = 0
    name: str = ""
    defaulted: tuple[str, ...] = ()

    @property
    def hyperparameters(self) -> dict[str, float]:
        """What decides the numbers and cannot be read off the weights: two files with the same weights
        and other values here are other models."""
        names = ("n_heads", "n_kv_heads", "head_dim", "rms_norm_eps", "rope_theta", "rope_scale")
        plain = {name: float(getattr(self, name)) for name in names}
        return plain | self._rare_hyperparameters()

    def _rare_hyperparameters(self) -> dict[str, float]:
        """Those that most Llamas lack, and their recordings' manifests too."""
        rare: dict[str, float] = {}
        if self.n_experts:
            rare["n_experts_used"] = float(self.n_experts_used)
        if self.rope_attention_factor != 1.0:
            rare["rope_attention_factor"] = self.rope_attention_factor
        if self.rope_yarn is not None:
            rare |= {f"yarn_{name}": float(value) for name, value in vars(self.rope_yarn).items()}
        if self.rope_long_factors:
            rare["original_context"] = float(self.original_context)
        return rare

    def for_context(self, context: int) -> LlamaConfig:
        """The configuration of a run with a context of so many positions: LongRoPE's divisors hang on it."""
        if context > (self.original_context or self.context_length) and self.rope_long_factors:
            return replace(self, rope_factors=self.rope_long_factors)
        return self

    def biases_of(self, block: int) -> tuple[str, ...]:
        """The fields of the biases that a block has."""
        return tuple(name for name in self.biases if (block, name) not in self.unbiased)

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
        context_length = keys.integer("llama.context_length", _POSITIONS)
        scaling = read_scaling(keys, head_dim, context_length)
        n_experts, n_experts_used = keys.experts()
        n_layers = keys.integer("llama.block_count", _LAYERS)
        biases, unbiased = _biases(file, n_layers, dense=not n_experts)
        return cls(
            n_layers=n_layers,
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            head_dim=head_dim,
            width=width,
            ffn=keys.integer("llama.feed_forward_length", _SIZE, per_block=True),
            vocab_size=keys.vocab_size(),
            context_length=context_length,
            rms_norm_eps=keys.positive("llama.attention.layer_norm_rms_epsilon"),
            rope_theta=keys.positive("llama.rope.freq_base", default=_ROPE_THETA),
            rope_scale=scaling.scale,
            rope_factors=scaling.factors,
            rope_long_factors=scaling.long_factors,
            rope_yarn=scaling.yarn,
            rope_attention_factor=scaling.attention_factor,
            original_context=scaling.original_context,
            biases=biases,
            unbiased=unbiased,
            fused_qkv=fused_tensor(0) in file.tensors,
            tied_output=bool(file.tensors) and "output.weight" not in file.tensors,
            n_experts=n_experts,
            n_experts_used=n_experts_used,
            name=keys.text("general.name", default=""),
            defaulted=keys.all_defaulted(),
        )


class _Keys(MetadataKeys):
    """A Llama's keys."""

    def refuse_other_architectures(self) -> None:
        for key in ("general.type", "general.architecture"):
            kind = self.metadata.get(key)
            kind = {"clip": "mmproj"}.get(kind, kind) if isinstance(kind, str) else None
            if kind is not None and kind in OTHER_FILES:
                what, hint = OTHER_FILES[kind]
                raise self.wrong(key, what, "a model's own file", UnsupportedModelError, hint)
        got = self.metadata.get("general.architecture", "no such key")
        if not isinstance(got, str) or got != "llama":
            raise self.wrong(
                "general.architecture", shown(got), "'llama'", hint="only Llama models are computed here"
            )

    def refuse_variants(self) -> None:
        """Refuse what llama.cpp computes for a Llama and the checkpoints do not."""
        for key, plain, wanted in _PLAIN:
            value = self.metadata.get(key, plain)
            if isinstance(value, np.ndarray) or value != plain:
                raise self.wrong(key, shown(value), wanted, UnsupportedModelError)

    def head_dim(self, width: int, n_heads: int) -> int:
        key = "llama.attention.key_length"
        if key not in self.metadata and width % n_heads:
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

    def experts(self) -> tuple[int, int]:
        """How many experts a block has and how many compute a token, as llama.cpp asks for both; 0 and 0."""
        count, used = "llama.expert_count", "llama.expert_used_count"
        if not self.metadata.get(count, 0):
            if np.any(self.metadata.get(used, 0)):
                raise self.wrong(used, shown(self.metadata[used]), "none, since there are no experts")
            return 0, 0
        n, groups = self.integer(count, _EXPERTS), "llama.expert_group_count"
        if (said := self.metadata.get(groups, 0)) not in (0, 1):  # llama.cpp: one group is as good as none
            raise self.wrong(groups, shown(said), "1 at most", UnsupportedModelError)
        return n, self.integer(used, n, per_block=True)

    def vocab_size(self) -> int:
        """llama.cpp's order: the tokens themselves; without a vocabulary the key, then the embedding."""
        key, tokens = "llama.vocab_size", self.metadata.get("tokenizer.ggml.tokens")
        if isinstance(tokens, list) and tokens:
            if key not in self.metadata:
                self.defaulted.append(key)
            return len(tokens)
        embedding = self.file.tensors.get("token_embd.weight")
        return self.integer(key, _SIZE, default=embedding.shape[0] if embedding else None)

    def all_defaulted(self) -> tuple[str, ...]:
        absent = [key for key in _TOKENIZER_KEYS if key not in self.metadata]
        return (*self.defaulted, *absent)


def _biases(
    file: GGUFFile, n_layers: int, *, dense: bool
) -> tuple[tuple[str, ...], tuple[tuple[int, str], ...]]:
    """The biases that any block has, and the blocks that lack one of them."""
    names = [bias for bias in BIAS_TENSORS if dense or bias in ATTENTION_BIASES]  # experts have none

    def has(block: int, bias: str) -> bool:
        fused = bias in ("bq", "bk", "bv") and fused_tensor(block, "bias") in file.tensors
        return fused or block_tensor(block, bias) in file.tensors

    there = {(block, bias) for block in range(n_layers) for bias in names if has(block, bias)}
    found = tuple(bias for bias in names if any(one == bias for _, one in there))
    every = ((block, bias) for block in range(n_layers) for bias in found)
    return found, tuple(one for one in every if one not in there)


_PLAIN: Final = (
    ("llama.attention.causal", True, "causal attention"),
    ("llama.nextn_predict_layers", 0, "0, since layers for multi-token prediction are not supported"),
)
