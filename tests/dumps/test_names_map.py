"""Maps: their names, axes and layouts to the neutral ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llama_ckpt.dumps.names_map import DumpMap, Rule, interleave_halves, pair_kind, read_map
from llama_ckpt.errors import OptionError

SIZES = {"token": 5, "key": 5, "head": 2, "kv_head": 1, "head_dim": 4, "width": 8, "q_width": 8}
EXAMPLE = Path(__file__).parents[2] / "examples" / "hugging_face.toml"


def written(folder: Path, text: str) -> Path:
    path = folder / "map.toml"
    path.write_text(text, encoding="utf-8")
    return path


def rule(folder: Path, **facts: str) -> Rule:
    lines = "\n".join(f"{key} = {value!r}" for key, value in facts.items())
    return read_map(written(folder, f"[[tensor]]\n{lines}\n")).rules[0]


def test_neutral_names_need_no_map() -> None:
    assert [found[0] for name in ("embd", "blk.3.q", "logits") if (found := DumpMap().find(name))] == [
        "embd",
        "blk.3.q",
        "logits",
    ]
    for stranger in ("blk.3.logits", "q", "blk.q", "blk.-1.q", "last_logits"):
        assert DumpMap().find(stranger) is None


def test_names_with_a_number(tmp_path: Path) -> None:
    path = written(tmp_path, 'first_block = 1\n[[tensor]]\nname = "h.{N}.attn.c_q"\npoint = "blk.{N}.q"\n')
    names = read_map(path)
    assert [names.find(name) and names.find(name)[0] for name in ("h.1.attn.c_q", "h.12.attn.c_q")] == [  # type: ignore[index]
        "blk.0.q",
        "blk.11.q",
    ]
    assert names.find("h.0.attn.c_q") is None and names.find("h.x.attn.c_q") is None
    assert names.find("blk.1.k") is not None and names.find("blk.1.k")[0] == "blk.0.k"  # type: ignore[index]
    assert names.find("blk.0.k") is None


def test_axes_in_another_order(tmp_path: Path) -> None:
    right = np.arange(5 * 2 * 4).reshape(5, 2, 4)
    for axes, theirs in (
        ("token head head_dim", right),
        ("1 head token head_dim", right.transpose(1, 0, 2)[None]),
        ("token (head head_dim)", right.reshape(5, 8)),
        ("head_dim head token", right.transpose(2, 1, 0)),
        ("(head_dim token) head", right.transpose(2, 0, 1).reshape(20, 2)),
    ):
        made = rule(tmp_path, name="x.{N}", point="blk.{N}.q", axes=axes).apply(
            np.ascontiguousarray(theirs), SIZES
        )
        assert np.array_equal(made, right), axes
    other = np.ones((3, 8))
    made = rule(tmp_path, name="x", point="blk.0.q", axes="token (head head_dim)").apply(other, SIZES)
    assert made is other, "what does not fit is left for the one who compares shapes"


def test_layouts(tmp_path: Path) -> None:
    right = np.arange(5 * 2 * 4, dtype=np.float64).reshape(5, 2, 4)
    halves = np.concatenate((right[..., 0::2], right[..., 1::2]), axis=-1)
    assert np.array_equal(interleave_halves(halves), right)
    assert np.array_equal(
        rule(tmp_path, name="x", point="blk.0.q", layout="half-split").apply(halves, SIZES), right
    )
    backwards = right.reshape(4, 2, 5)
    assert np.array_equal(
        rule(tmp_path, name="x", point="blk.0.q", layout="ne").apply(backwards, SIZES), right
    )
    scores = np.ones((5, 2, 5))
    scaled = rule(tmp_path, name="x", point="blk.0.attn_scores", layout="scaled").apply(scores / 2.0, SIZES)
    assert np.array_equal(scaled, scores)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("first_block = -1", "first_block: got -1, wanted a whole number"),
        ("first = 1", "got .first., wanted first_block and"),
        ("[tensor]\nname = 'a'", r"wanted \[\[tensor\]\], with two brackets"),
        ("[[tensor]]\nname = 'a'", "no name or no point"),
        ("[[tensor]]\nname = 'a'\npoint = 'blk.0.kew'", "got blk.0.kew, wanted a point"),
        ("[[tensor]]\nname = 'a'\npoint = 'blk.0.logits'", "got blk.0.logits, wanted a point"),
        ("[[tensor]]\nname = 'a.{N}'\npoint = 'embd'", "{N} once in both, or in neither"),
        ("[[tensor]]\nname = 'a'\npoint = 'embd'\naxes = 'token'", "token width, each once"),
        ("[[tensor]]\nname = 'a'\npoint = 'embd'\naxes = 'token (width'", "words as in"),
        ("[[tensor]]\nname = 'a'\npoint = 'embd'\nlayout = 'odd'", "got 'odd', wanted one of half-split"),
        ("[[tensor]]\nname = 'a'\npoint = 'embd'\nshape = 'odd'", "got 'shape', wanted name, point"),
        ("this is no toml", "cannot be read as a map"),
    ],
)
def test_a_wrong_map_is_one_sentence(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=message):
        read_map(written(tmp_path, text))


def test_a_map_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="no such file"):
        read_map(tmp_path / "none.toml")


def test_the_example_is_read() -> None:
    names = read_map(EXAMPLE)
    found = names.find("model.layers.7.self_attn.q_proj")
    assert found is not None and found[0] == "blk.7.q" and found[1].layout == ("half-split",)


@pytest.mark.parametrize("kind", ["neighbours", "half-split"])
def test_which_pairs_were_turned_shows(kind: str) -> None:
    """From what RoPE did alone: a rotation keeps the length of each pair."""
    rng = np.random.default_rng(0)
    q, positions = rng.normal(size=(5, 2, 8)), np.arange(5)
    angle = positions[:, None, None] * 10000.0 ** (-np.arange(4) / 4)
    turned = np.empty_like(q)
    a, b = (q[..., 0::2], q[..., 1::2]) if kind == "neighbours" else (q[..., :4], q[..., 4:])
    first, second = a * np.cos(angle) - b * np.sin(angle), a * np.sin(angle) + b * np.cos(angle)
    if kind == "neighbours":
        turned[..., 0::2], turned[..., 1::2] = first, second
    else:
        turned[..., :4], turned[..., 4:] = first, second
    assert pair_kind(q, turned, positions) == kind
    assert pair_kind(q, rng.normal(size=q.shape), positions) is None, "no rotation at all"
    assert pair_kind(q[:1], q[:1], [0]) is None, "nothing is turned at position 0"
