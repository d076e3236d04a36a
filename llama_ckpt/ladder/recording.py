"""What a checkpoint is fed with and held against: one prompt's tensors, recorded or exact.

A `Recording` is a reference dump opened for judging, or, where llama.cpp is not at hand, the oracle's
own run rounded to float32. `GivenRecording` is how a checkpoint's `cases` see it: as torch tensors on the
device and in the dtype on trial, or as float64 arrays of those same, already rounded, values, so
that layer and oracle are asked the same question.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from llama_ckpt.arithmetic.record import Arithmetic
from llama_ckpt.dumps.manifest import Continuation
from llama_ckpt.dumps.reference import DumpSet
from llama_ckpt.ladder.reference_steps import arithmetic_of_recording
from llama_ckpt.model import Model
from llama_ckpt.oracle import llama as oracle
from llama_ckpt.oracle.weights import OracleWeights
from llama_ckpt.points import SAMPLED, block_point, split_name
from llama_ckpt.tokens.tokenizer import Tokenizer
from llama_ckpt.weights.config import LlamaConfig

__all__ = [
    "GivenRecording",
    "Recording",
    "from_dump",
    "from_last_row",
    "from_oracle",
    "oracle_given",
    "prompt_ids",
    "torch_given",
]

ORACLE_SAMPLING: tuple[Mapping[str, Any], ...] = (
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 40, "top_p": 0.9, "min_p": 0.05},
    {"temperature": 1.5, "top_p": 0.5},
    {"temperature": 0.0},
)
"""The settings that checkpoint 11 is judged with where no recorded ones are at hand."""


@dataclass(frozen=True)
class Recording:
    """One prompt, its tensors, and what llama.cpp made of it.

    Attributes:
        label: "f32/hello": which folder, which dump; "oracle/hello" where nothing was recorded.
        prompt: the text, or None where token ids were given.
        token_ids, positions: one of each for each row.
        blocks: the blocks recorded in full.
        tensors: full point name to float32.
        recorded: True where the tensors are llama.cpp's.
        tight: True where they come from float32 weights on the CPU, so that absolute limits hold.
        greedy_tokens: llama.cpp's choice after each row; None where nothing was recorded.
        continuation: llama.cpp's greedy continuation, or None.
        sampling: the settings of the sampler chain.
        probabilities: llama.cpp's `[vocab]` for setting K; None where nothing was recorded.
        last_row: llama.cpp's last row of some points, float32 [1, ...], where no more was kept; the tensors
            are the oracle's then.
        computed: points for which a recording of llama.cpp's has no answer on these inputs: the tensors that
            it lacks, which the oracle computed from those that it has, and what is taken from them.
        arithmetic: what llama.cpp rounds on purpose in this recording; None where that is not known.
    """

    label: str
    prompt: str | None
    token_ids: tuple[int, ...]
    positions: tuple[int, ...]
    blocks: tuple[int, ...]
    tensors: Mapping[str, NDArray[np.float32]]
    recorded: bool
    tight: bool
    greedy_tokens: tuple[int, ...] | None = None
    continuation: Continuation | None = None
    sampling: Sequence[Mapping[str, Any]] = ORACLE_SAMPLING
    probabilities: Callable[[int], NDArray[np.float32]] | None = None
    last_row: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    computed: frozenset[str] = frozenset()
    arithmetic: Arithmetic | None = None

    @property
    def n_choices(self) -> int:
        """How many tokens to generate: as many as llama.cpp chose, EOS included; 16 without it."""
        return 16 if self.continuation is None else len(self.continuation.margins)


def from_dump(dumps: DumpSet, name: str, model: Model, weights: OracleWeights, *, tight: bool) -> Recording:
    """Open one dump of a folder for judging; `tight` as in `Recording`.

    Where of the logits only the last row was kept, the others are the oracle's, of the recorded last block.

    Raises:
        DumpError: it is damaged or incomplete.
    """
    dump, entry = dumps.dump(name), dumps.entry(name)
    settings = [
        {"temperature": s.temperature, "top_k": s.top_k, "top_p": s.top_p, "min_p": s.min_p}
        for s in entry.sampling
    ]
    tensors: Mapping[str, NDArray[np.float32]] = dump
    last_row: dict[str, NDArray[np.float32]] = {}
    if entry.last_logits_only:
        x = dump[block_point(entry.n_layers - 1, "out")]
        logits = oracle.output_logits(x, weights, config=model.config).astype(np.float32)
        tensors, last_row = {**dump, "logits": logits}, {"logits": dump["last_logits"][None]}
    return Recording(
        label=f"{dumps.path.name}/{name}",
        prompt=entry.prompt,
        token_ids=entry.token_ids,
        positions=entry.positions,
        blocks=entry.blocks,
        tensors=tensors,
        recorded=True,
        tight=tight,
        greedy_tokens=entry.greedy_tokens,
        continuation=entry.continuation,
        sampling=settings,
        probabilities=dump.probabilities,
        last_row=last_row,
        computed=frozenset(("logits", "last_logits", "greedy_tokens")) if last_row else frozenset(),
        arithmetic=arithmetic_of_recording(dumps.manifest.producer),
    )


def from_oracle(
    model: Model,
    weights: OracleWeights,
    prompt: str,
    answers: dict[str, dict[str, NDArray[np.float64]]] | None = None,
) -> Recording:
    """The oracle's own run of a prompt, rounded to float32, for judging without llama.cpp.

    Args:
        answers: gets the run as it is, by the recording's label: it is the answer to these tokens as well.
    """
    token_ids, text = prompt_ids(model.tokenizer, prompt)
    positions = tuple(range(len(token_ids)))
    blocks = range(model.config.n_layers)
    label, exact = "oracle/" + prompt.split(" ")[0].lower(), dict[str, NDArray[np.float64]]()
    tensors = _exact_run(model, weights, token_ids, positions, blocks, exact)
    if answers is not None:
        answers[label] = exact
    return Recording(
        label=label,
        prompt=text,
        token_ids=token_ids,
        positions=positions,
        blocks=tuple(blocks),
        tensors=tensors,
        recorded=False,
        tight=False,
    )


def prompt_ids(tokenizer: Tokenizer, prompt: str) -> tuple[tuple[int, ...], str | None]:
    """A prompt's token ids and its text; of a vocabulary that is not supported, as many ids and no text."""
    if tokenizer.unsupported is None:
        return tuple(tokenizer.encode(prompt)), prompt
    first = [tokenizer.bos_id] if tokenizer.add_bos and tokenizer.bos_id is not None else []
    # A prime's multiples: ids all over the vocabulary, the same for the same prompt.
    return (*first, *(byte * 7919 % tokenizer.vocab_size for byte in prompt.encode())), None


def from_last_row(dumps: DumpSet, name: str, model: Model, weights: OracleWeights) -> Recording:
    """A dump of which only the last row was kept: judged on the oracle's run, and on that row too."""
    dump, entry = dumps.dump(name), dumps.entry(name)
    return Recording(
        label=f"{dumps.path.name}/{name}",
        prompt=entry.prompt,
        token_ids=entry.token_ids,
        positions=entry.positions,
        blocks=entry.blocks,
        tensors=_exact_run(model, weights, entry.token_ids, entry.positions, entry.blocks),
        recorded=False,
        tight=False,
        greedy_tokens=entry.greedy_tokens,
        continuation=entry.continuation,
        last_row=dump,
    )


def _exact_run(
    model: Model,
    weights: OracleWeights,
    token_ids: Sequence[int],
    positions: Sequence[int],
    blocks: Sequence[int],
    exact: dict[str, NDArray[np.float64]] | None = None,
) -> dict[str, NDArray[np.float32]]:
    """The oracle's own run rounded to float32: of these blocks every point, of the others `out`.

    `exact` gets the same before it is rounded.
    """
    tensors: dict[str, NDArray[np.float32]] = {}

    def keep(point: str, array: NDArray[np.float64]) -> None:
        number, short = split_name(point)
        if number is None or number in blocks or short == "out":
            tensors[point] = array.astype(np.float32)
            if exact is not None:
                exact[point] = array

    keep("logits", oracle.logits(token_ids, weights, config=model.config, positions=positions, tap=keep))
    tensors["last_logits"] = tensors["logits"][-1]
    return tensors


@dataclass(frozen=True)
class GivenRecording:
    """A recording as a checkpoint's `cases` see it: a `points.Given`, which says what each attribute is."""

    recording: Recording
    config: LlamaConfig
    weights: Any
    convert: Callable[[str], Any]
    positions: Any
    token_ids: Any
    rope_frequencies: Any
    model: Model
    dtype_option: Mapping[str, Any]
    """`{"dtype": …}` for the layer that has no input to take its dtype from; the oracle takes none."""

    def __getitem__(self, point: str) -> Any:
        return self.convert(point)

    @property
    def blocks(self) -> tuple[int, ...]:
        """The blocks recorded in full."""
        return self.recording.blocks

    @property
    def sampling(self) -> Sequence[Mapping[str, Any]]:
        """Keyword arguments for `softmax`, one record a setting."""
        return self.recording.sampling

    @property
    def n_choices(self) -> int:
        """How many tokens to generate: as many as llama.cpp chose, EOS included; 16 without it."""
        return self.recording.n_choices

    @property
    def prompt(self) -> str | None:
        """The prompt's text, None where token ids were given."""
        return self.recording.prompt

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's own tokenizer."""
        return self.model.tokenizer

    @cached_property
    def token_id_list(self) -> list[int]:
        """The prompt's token ids as plain integers."""
        return list(self.recording.token_ids)

    @property
    def first_position(self) -> int:
        """The position of the prompt's first token."""
        return self.recording.positions[0]


def torch_given(recording: Recording, model: Model) -> GivenRecording:
    """The recording as torch tensors on the model's device, in its dtype."""
    from checkpoints.c01b_rope import rope_frequencies

    def convert(point: str) -> torch.Tensor:
        dtype = torch.float32 if point in SAMPLED else model.dtype
        return torch.from_numpy(np.array(recording.tensors[point])).to(model.device).to(dtype)

    return GivenRecording(
        recording,
        model.config,
        model.weights,
        convert,
        model.tensor(recording.positions),
        model.tensor(recording.token_ids),
        rope_frequencies(model.config, model.device),
        model,
        {"dtype": model.dtype},
    )


def oracle_given(recording: Recording, model: Model, weights: OracleWeights) -> GivenRecording:
    """The recording as float64 arrays, rounded to the model's dtype first as the layers' inputs are."""

    def convert(point: str) -> NDArray[np.float64]:
        dtype = torch.float32 if point in SAMPLED else model.dtype
        tensor = torch.from_numpy(np.array(recording.tensors[point])).to(dtype)
        return np.asarray(tensor.double().numpy())

    return GivenRecording(
        recording,
        model.config,
        weights,
        convert,
        np.asarray(recording.positions),
        np.asarray(recording.token_ids),
        oracle.rope_frequencies(model.config),
        model,
        {},
    )
