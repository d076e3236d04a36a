"""The models that mutants are tried on: small seeded ones in two shapes, and the embedded one's dumps.

What the small ones are made for: every sublayer matters, embeddings are as small as a trained model's,
so that epsilon is seen, and matrices are exact in Q8_0, so that packed and dequantized weights agree. One
shape has as many key heads as query heads, another half as many, another theta and epsilon, and a
prompt that begins at position 5; the third scales RoPE and begins far out. The recorded logits have two
copies of each column: ties.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from types import SimpleNamespace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.dumps.reference import open_dumps
from llama_ckpt.gguf.file import open_gguf
from llama_ckpt.judging.to_precision import to_bfloat16, to_float16
from llama_ckpt.oracle import llama as oracle
from llama_ckpt.oracle.weights import OracleBlockWeights, OracleWeights
from llama_ckpt.points import SAMPLED, block_point
from llama_ckpt.tokens.tokenizer import Tokenizer
from llama_ckpt.weights.config import LlamaConfig
from reference_dumps import dump_folder, embedded_model

__all__ = ["MIXTURES", "SHAPES", "GivenPrompt", "embedded_given", "seeded_given", "shapes_for"]

Array: TypeAlias = NDArray[Any]

SHAPES: Mapping[str, Mapping[str, Any]] = {
    "alike": {"n_kv_heads": 4, "rms_norm_eps": 1e-5, "rope_theta": 1e4},
    "grouped": {"n_kv_heads": 2, "rms_norm_eps": 1e-6, "rope_theta": 5e5},
    "scaled": {"n_kv_heads": 1, "rms_norm_eps": 1e-5, "rope_theta": 2e4, "rope_scale": 4.0, "n_layers": 3},
}
"""What the shapes differ in; all are 64 wide, with 4 query heads of 16, and have 11 blocks if not said."""

MIXTURES: Mapping[str, Mapping[str, Any]] = {
    "experts": {
        **{"n_kv_heads": 2, "rms_norm_eps": 1e-5, "rope_theta": 1e4, "n_layers": 3},
        **{"n_experts": 6, "n_experts_used": 2},
    },
}
"""A mixture of experts, for the bugs that it alone can have."""

FIRST = {"alike": 0, "grouped": 5, "scaled": 3001, "experts": 2}
"""Where their prompts begin: 3,001 and its neighbours are beyond what half precision counts to."""

SAMPLING: tuple[Mapping[str, Any], ...] = (
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 40, "top_p": 0.9, "min_p": 0.05},
    {"temperature": 1.5, "top_p": 0.5},
    {"temperature": 0.0},
    {"temperature": 2.0, "min_p": 0.1},
    {"temperature": 0.8, "top_k": 5},
)
WORDS = (
    "and the Lord said unto Noah make thee an ark of gopher wood for behold I bring a flood of waters".split()
)
ROUNDED = {"float32": lambda x: x, "float16": to_float16, "bfloat16": to_bfloat16}


@dataclass(frozen=True, eq=False)
class GivenPrompt:
    """One prompt on one model, as a checkpoint's `cases` see it: a `points.Given`.

    Attributes:
        label: shape or dump, and seed.
        config, weights: of the model, float64 arrays.
        tensors: the recorded points, float32.
        recorded: whether those are llama.cpp's.
        token_ids, positions: `[n]` each.
        blocks: the blocks that cases are made of.
        prompt, tokenizer: a text, and what tokenizes it; not the text of token_ids.
        model: what `generate` takes.
        n_choices: how many tokens it generates.
        sampling: settings of the sampler chain.
        dtype: what inputs are rounded to.
    """

    label: str
    config: LlamaConfig
    weights: Any
    tensors: Mapping[str, Array]
    recorded: bool
    token_ids: Array
    positions: Array
    blocks: tuple[int, ...]
    prompt: str
    tokenizer: Tokenizer
    model: Any
    n_choices: int
    sampling: Sequence[Mapping[str, Any]] = SAMPLING
    dtype: str = "float32"

    def __getitem__(self, point: str) -> Array:
        array = np.asarray(self.tensors[point], dtype=np.float32)
        rounded = array if point in SAMPLED else ROUNDED[self.dtype](array)
        return rounded.astype(np.float64)

    @cached_property
    def rope_frequencies(self) -> Array:
        """Radians a position for each pair."""
        return oracle.rope_frequencies(self.config)

    @property
    def token_id_list(self) -> list[int]:
        """The prompt's token ids as plain integers."""
        return [int(token) for token in self.token_ids]

    @property
    def first_position(self) -> int:
        """The position of the first token."""
        return int(self.positions[0])

    @property
    def dtype_option(self) -> Mapping[str, Any]:
        """The oracle takes no dtype."""
        return {}

    def rounded_to(self, dtype: str) -> GivenPrompt:
        """The same with its inputs in another precision."""
        return replace(self, dtype=dtype)


def shapes_for(experts: bool | None) -> Mapping[str, Mapping[str, Any]]:
    """The shapes for bugs of a checkpoint; `experts` as its record has it."""
    return MIXTURES if experts else SHAPES


def seeded_given(shape: str, seed: int) -> GivenPrompt:
    """A small model and a prompt of 8 tokens from a seed."""
    known = {**SHAPES, **MIXTURES}
    generator = np.random.default_rng([seed, [*sorted(SHAPES), *MIXTURES].index(shape)])
    config = LlamaConfig(
        **{"n_layers": 11, **known[shape]},
        n_heads=4,
        head_dim=16,
        width=64,
        ffn=96,
        vocab_size=320,
        context_length=4096,
    )
    weights = seeded_weights(config, generator)
    token_ids = generator.integers(3, config.vocab_size, 8)
    positions = FIRST[shape] + np.arange(len(token_ids))
    short = SimpleNamespace(**{**vars(weights), "blocks": weights.blocks[:2]})
    return GivenPrompt(
        label=f"{shape}/{seed}",
        config=config,
        weights=weights,
        tensors=exact_run(config, weights, token_ids, positions),
        recorded=False,
        token_ids=token_ids,
        positions=positions,
        blocks=(0, config.n_layers // 2, config.n_layers - 1),
        prompt=" ".join(generator.choice(WORDS, 6)),
        tokenizer=embedded_tokenizer(),
        model=SimpleNamespace(config=replace(config, n_layers=2), weights=short, eog_ids=frozenset()),
        n_choices=12,
    )


def seeded_weights(config: LlamaConfig, generator: np.random.Generator) -> Any:
    """Random weights, float64; matrices have the values of a Q8_0 file."""

    def matrix(rows: int, columns: int, gain: float) -> Array:
        blocks = generator.standard_normal((rows, columns // 32, 32)) * (gain / columns**0.5)
        scale = (np.abs(blocks).max(axis=-1, keepdims=True) / 127).astype(np.float16).astype(np.float64)
        return np.asarray((np.rint(blocks / scale) * scale).reshape(rows, columns))

    def norm() -> Array:
        return (1 + 0.2 * generator.standard_normal(config.width)).astype(np.float32).astype(np.float64)

    def block() -> OracleBlockWeights:
        width, ffn, each = config.width, config.ffn, max(1, config.n_experts)
        return OracleBlockWeights(
            attn_norm=norm(),
            wq=matrix(config.q_width, width, 1.4),
            wk=matrix(config.kv_width, width, 1.4),
            wv=matrix(config.kv_width, width, 1.0),
            wo=matrix(width, config.q_width, 0.1),
            ffn_norm=norm(),
            w_gate=matrix(each * ffn, width, 1.5),
            w_up=matrix(each * ffn, width, 1.0),
            w_down=matrix(each * width, ffn, 0.1),
            w_router=matrix(each, width, 1.0) if config.n_experts else None,
        )

    return SimpleNamespace(
        token_embd=matrix(config.vocab_size, config.width, 0.05 * config.width**0.5),
        blocks=[block() for _ in range(config.n_layers)],
        output_norm=norm(),
        output=matrix(config.vocab_size, config.width, 1.5),
    )


def exact_run(config: LlamaConfig, weights: Any, token_ids: Array, positions: Array) -> dict[str, Array]:
    """The oracle's own run, rounded to float32; of the logits the second half repeats the first."""
    tensors: dict[str, Array] = {}
    options: dict[str, Any] = {"config": config, "positions": positions, "tap": tensors.__setitem__}
    logits = oracle.logits(token_ids, weights, **options)
    half = config.vocab_size // 2
    tensors["logits"] = np.concatenate([logits[:, :half], logits[:, :half]], axis=1)
    tensors["last_logits"] = tensors["logits"][-1]
    return {name: array.astype(np.float32) for name, array in tensors.items()}


@cache
def embedded_tokenizer() -> Tokenizer:
    """The embedded model's, with its 32,000 tokens."""
    return Tokenizer.from_gguf(open_gguf(embedded_model()))


RECORDED = ("eight-tokens", "far-positions")
"""The dumps that bugs are tried on: several tokens, so that a mask shows."""


def embedded_given() -> Iterator[GivenPrompt]:
    """The embedded model and llama.cpp's float32 dumps of it: eight tokens, and four at far positions.

    Of the logits llama.cpp's last row was kept; the others are the oracle's, of the recorded last block.
    """
    file = open_gguf(embedded_model())
    config = LlamaConfig.from_gguf(file)
    weights, dumps = OracleWeights(file, config), open_dumps(dump_folder("f32"))
    for entry in dumps.manifest.dumps:
        if entry.name in RECORDED and entry.prompt is not None:
            dump = dumps.dump(entry.name)
            x = dump[block_point(config.n_layers - 1, "out")]
            logits = oracle.output_logits(x, weights, config=config).astype(np.float32)
            logits[-1] = dump["last_logits"]
            yield GivenPrompt(
                label=f"f32/{entry.name}",
                config=config,
                weights=weights,
                tensors={**dump, "logits": logits},
                recorded=True,
                token_ids=np.asarray(entry.token_ids),
                positions=np.asarray(entry.positions),
                blocks=entry.blocks,
                prompt=entry.prompt,
                tokenizer=embedded_tokenizer(),
                model=SimpleNamespace(config=config, weights=weights, eog_ids=embedded_tokenizer().eog_ids),
                n_choices=8,
            )
