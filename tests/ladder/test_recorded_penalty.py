"""The repetition penalty as llama.cpp's own sampler chain applied it, in every committed dump."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import reference_dumps
from checkpoints import softmax
from llama_ckpt.dumps.reference import open_dumps
from llama_ckpt.tokens.sampling import penalize

DUMPS = [
    (folder, name) for folder in reference_dumps.dump_folders().values() for name in open_dumps(folder).names
]


@pytest.mark.parametrize(("folder", "name"), DUMPS, ids=lambda value: getattr(value, "name", value))
def test_probabilities_after_the_penalty(folder, name) -> None:
    dump = open_dumps(folder).dump(name)
    row = torch.from_numpy(np.array(dump["last_logits"]))
    assert dump.entry.penalized
    for index, setting in enumerate(dump.entry.penalized):
        recent = torch.tensor(setting.penalty_tokens)
        options = {name: getattr(setting, name) for name in ("temperature", "top_k", "top_p", "min_p")}
        wanted = dump.probabilities(index, penalized=True)
        got = softmax(penalize(row, recent, setting.repeat_penalty), **options).numpy()
        assert np.abs(got - wanted).max() <= 1e-6
        # The penalty is seen: without it the probabilities are others.
        assert np.abs(softmax(row, **options).numpy() - wanted).max() > 1e-4
