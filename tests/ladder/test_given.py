"""What `cases` are given: the same names from a recording, for layer and oracle, and for the mutants."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import get_type_hints

import numpy as np
import pytest
import torch

from llama_ckpt.ladder.discovery import discover
from llama_ckpt.ladder.recording import oracle_given, torch_given
from llama_ckpt.mutants.models import seeded_given
from llama_ckpt.points import Checkpoint, Given, block_input
from tests.checkpoints.dump_trials import EIGHT_TOKENS

OFFERED = [name for name in vars(Given) if not name.startswith("_")]


@pytest.fixture(scope="module")
def all_given() -> Mapping[str, Given]:
    trial = EIGHT_TOKENS.trial()
    subject, recording = trial.subject, trial.recording
    return {
        "layer": torch_given(recording, subject.model),
        "oracle": oracle_given(recording, subject.model, subject.weights),
        "mutants": seeded_given("grouped", 0),
    }


@pytest.mark.parametrize("checkpoint", discover(), ids=lambda checkpoint: checkpoint.id)
def test_every_checkpoint_says_what_its_cases_are_given(checkpoint: Checkpoint) -> None:
    module = inspect.getmodule(checkpoint.function)
    assert get_type_hints(module.cases)["given"] is Given


def test_every_name_is_offered_and_explained(all_given: Mapping[str, Given]) -> None:
    assert len(OFFERED) >= 14
    for name in (*OFFERED, "__getitem__"):
        member = vars(Given)[name]
        text = inspect.getdoc(member.fget if isinstance(member, property) else member) or ""
        assert len(text) > 20, name
    for whose, given in all_given.items():
        assert isinstance(given, Given), whose
        for name in OFFERED:
            getattr(given, name)
    assert not isinstance(object(), Given)


@pytest.mark.parametrize("whose", ["layer", "oracle", "mutants"])
def test_shapes_and_dtypes_are_as_said(whose: str, all_given: Mapping[str, Given]) -> None:
    given = all_given[whose]
    config, n = given.config, len(given.token_id_list)
    number = given.blocks[-1]
    assert tuple(given[f"blk.{number}.q"].shape) == (n, config.n_heads, config.head_dim)
    assert tuple(given[block_input(number)].shape) == (n, config.width)
    assert tuple(given["last_logits"].shape) == (config.vocab_size,)
    assert tuple(given.positions.shape) == tuple(given.token_ids.shape) == (n,)
    assert tuple(given.rope_frequencies.shape) == (config.head_dim // 2,)
    assert given.rope_frequencies.dtype in (torch.float64, np.float64)
    assert given.positions.dtype in (torch.int64, np.int64)
    assert given["embd"].dtype == (torch.float32 if whose == "layer" else np.float64)
    assert given.first_position == int(given.positions[0])
    assert bool(given.dtype_option) == (whose == "layer")
    with pytest.raises(KeyError):
        given["nowhere"]


def test_the_input_of_a_block_is_the_output_of_the_one_before() -> None:
    assert (block_input(0), block_input(5)) == ("embd", "blk.4.out")
