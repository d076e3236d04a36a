"""Numbers that are none: found before a token is chosen, and told by the first tensor and row."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import llama_ckpt as lc
from llama_ckpt.cli import app
from llama_ckpt.errors import ContextLengthError, NotFiniteError, OptionError
from llama_ckpt.gguf.file import open_gguf
from llama_ckpt.making.seeded_model import make_seeded

SHAPE = {"width": 64, "n_heads": 4, "ffn": 96, "n_layers": 2, "vocab": 300, "type": "F32", "seed": 1}


def broken(folder: Path, name: str, row: int, value: float) -> Path:
    """A model one of whose weights is `value`."""
    path = folder / "broken.gguf"
    make_seeded(path, **SHAPE)
    info = open_gguf(path).info(name)
    at = open_gguf(path).raw(name)
    whole = bytearray(path.read_bytes())
    start = whole.find(np.asarray(at).tobytes())
    assert start > 0 and whole.count(np.asarray(at).tobytes()) == 1
    struct.pack_into("<f", whole, start + 4 * row * int(info.shape[-1]), value)
    path.write_bytes(whole)
    return path


@pytest.mark.parametrize(
    ("name", "row", "value", "told"),
    [
        (
            "output.weight",
            7,
            np.nan,
            r"after 2 tokens: got nan at token id 7, 1 of 300 .* row 7,",
        ),
        (
            "blk.1.ffn_up.weight",
            3,
            np.inf,
            r"first not finite is blk.1.ffn_up, at row 0; .*row 3,",
        ),
        ("blk.0.attn_norm.weight", 0, np.nan, r"first not finite is blk.0.attn_norm, at row 0"),
        ("output_norm.weight", 0, np.inf, r"first not finite is output_norm, at row 0"),
    ],
)
def test_no_token_is_chosen_of_logits_that_are_not_finite(
    name: str, row: int, value: float, told: str, tmp_path: Path
) -> None:
    path = broken(tmp_path, name, row, value)
    with pytest.raises(NotFiniteError, match=told):
        list(lc.generate(lc.load(path, device="cpu"), [1, 5], max_tokens=3))
    report = lc.validate(["12"], model=path, oracle_only=True, device="cpu")
    points = [one.verdict for one in report.checkpoints[0].points]
    assert points and all(one.verdict == "fail" and "not finite" in one.reason for one in points)


def test_the_command_says_so_and_ends_with_2(tmp_path: Path) -> None:
    path = broken(tmp_path, "output.weight", 7, float("nan"))
    arguments = ["generate", "--model", str(path), "--tokens", "1,5", "--max-tokens", "3"]
    found = CliRunner().invoke(app, arguments)
    assert found.exit_code == 2
    assert "in the file output.weight, row 7, is not" in " ".join(found.output.split())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return lc.load(make_seeded(tmp_path_factory.mktemp("m") / "m.gguf", **SHAPE).path, device="cpu")


@pytest.mark.parametrize("ids", [[1.5], [True], [1, 2.0], ["a"], [None], [np.float32(3)]])
def test_what_is_no_token_id_is_refused(ids: list[Any], model: Any) -> None:
    with pytest.raises(OptionError, match=r"token id.*wanted an integer"):
        list(lc.generate(model, ids, max_tokens=2))
    with pytest.raises(OptionError, match=r"token id.*wanted an integer"):
        model.logits(ids)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"max_tokens": 1.5}, "max_tokens: got 1.5, wanted an integer"),
        ({"max_tokens": 10**5000}, "max_tokens: got a number of too many digits"),
        ({"seed": 1.5}, "seed: got 1.5, wanted an integer"),
        ({"temperature": "hot"}, "temperature: got 'hot', wanted a number"),
        ({"stop": [5]}, "stop strings: got .5., wanted texts"),
        ({"stop": 5}, "stop strings: got 5, wanted texts"),
    ],
)
def test_options_of_another_kind_are_refused(asked: dict[str, Any], told: str, model: Any) -> None:
    with pytest.raises(OptionError, match=told):
        list(lc.generate(model, [1, 5], **{"max_tokens": 2, **asked}))


@pytest.mark.parametrize("prompt", [None, 5, np.array(3)])
def test_a_prompt_is_a_text_or_a_sequence(prompt: Any, model: Any) -> None:
    with pytest.raises(OptionError, match="no sequence of them"):
        list(lc.generate(model, prompt, max_tokens=2))


def test_integers_of_any_library_are_token_ids(model: Any) -> None:
    import torch

    assert model.logits(np.array([1, 5])).equal(model.logits([1, 5]))
    assert model.logits(torch.tensor([1, 5]), np.arange(2)).equal(model.logits([1, 5]))


@pytest.mark.parametrize(
    ("positions", "error", "told"),
    [
        ([0, 0], OptionError, "0 after 0"),
        ([3, 1], OptionError, "1 after 3"),
        ([0.5, 1], OptionError, "0.5, wanted an integer"),
        ([-1, 0], ContextLengthError, "-1 to 0"),
        ([0, 10**6], ContextLengthError, "0 to 1000000"),
    ],
)
def test_positions_of_a_sequence_rise_within_the_context(
    positions: list[Any], error: type[Exception], told: str, model: Any
) -> None:
    with pytest.raises(error, match=told):
        model.logits([1, 5], positions)
