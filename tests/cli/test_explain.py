"""`llama-ckpt explain`: the same text as the pages under docs/, by every name, and without torch."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llama_ckpt.cli import app
from llama_ckpt.diagnose.bugs import catalogue
from llama_ckpt.errors import OptionError
from llama_ckpt.ladder.discovery import discover
from llama_ckpt.points import POINTS, Checkpoint
from llama_ckpt.report.checkpoint_sources import checkpoint_sources, read_source
from llama_ckpt.report.topics import explanation

DOCS = Path(__file__).parents[2] / "docs" / "checkpoints"

LOADED = """
import sys
from llama_ckpt.cli import app
try:
    app(sys.argv[1:])
finally:
    print(*sorted({"torch", "checkpoints", "transformers"} & set(sys.modules)), "loaded", file=sys.stderr)
"""


def ending(path: Path) -> str:
    """A page under docs/ without the line that says what wrote it."""
    return path.read_text(encoding="utf-8").partition("-->\n\n")[2]


@pytest.mark.parametrize(
    "words", [[], ["1b"], ["RoPE"], ["attn_probs"], ["norm-eps-other"], ["arithmetic"], ["atn_probs"]]
)
def test_no_answer_loads_torch(words: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", LOADED, "explain", *words], capture_output=True, text=True)
    assert done.returncode == (2 if words == ["atn_probs"] else 0), done.stderr
    assert done.stderr.splitlines()[-1].split() == ["loaded"]


@pytest.mark.parametrize("word", ["1B", "1b", "RoPE", "rope", "ROPE", "c01b_rope", "rope_frequencies"])
def test_a_checkpoint_answers_to_all_its_names(word: str) -> None:
    done = CliRunner().invoke(app, ["explain", word])
    assert done.exit_code == 0 and done.stdout == ending(DOCS / "c01b_rope.md")


@pytest.mark.parametrize("checkpoint", discover(), ids=lambda checkpoint: checkpoint.id)
def test_every_checkpoint_is_found(checkpoint: Checkpoint) -> None:
    module = checkpoint.function.__module__.rpartition(".")[2]
    wanted = ending(DOCS / f"{module}.md")
    for word in (checkpoint.id, checkpoint.title.upper(), checkpoint.function.__name__, module):
        assert explanation(word) == wanted, word


@pytest.mark.parametrize("checkpoint", discover(), ids=lambda checkpoint: checkpoint.id)
def test_the_source_says_what_the_record_says(checkpoint: Checkpoint) -> None:
    """What is parsed is what an import gives: record, docstrings and signature."""
    function = checkpoint.function
    source = next(one for one in checkpoint_sources() if one.id == checkpoint.id)
    for field in ("title", "stands_on", "points", "max_abs", "torch_function", "mistakes", "error_from"):
        assert getattr(source, field) == getattr(checkpoint, field)
    assert source.function == function.__name__ and source.function_doc == inspect.getdoc(function)
    assert source.doc == inspect.cleandoc(sys.modules[function.__module__].__doc__ or "")
    parameters = inspect.signature(function).parameters.values()
    plain = inspect.Signature([one.replace(annotation=one.empty) for one in parameters])
    assert source.signature == str(plain)


def test_the_source_lists_the_ladder_in_its_order() -> None:
    assert [one.id for one in checkpoint_sources()] == [one.id for one in discover()]


@pytest.mark.parametrize("point", [name for name in POINTS if name != "logits"])
def test_every_point_is_found_with_and_without_its_block(point: str) -> None:
    text = explanation(point)
    assert text == explanation(f"blk.3.{point}") == explanation(point.upper())
    assert text.startswith(f"# Point `{point}`\n") and f"| `{POINTS[point].llama_cpp}` |" in text
    for one in discover():
        judged = f"Judged by checkpoint {one.id}, {one.title} (`{one.function.__name__}`).\n"
        assert (judged in text) == (point in one.points)


def test_a_point_that_is_a_checkpoint_too_gives_the_checkpoint() -> None:
    assert explanation("logits") == ending(DOCS / "c08_logits.md")
    assert "| `logits` |" in explanation("logits")


def test_points_that_are_no_tensors_are_found() -> None:
    assert "Judged by checkpoint 0," in explanation("token_ids")
    assert explanation("sampling.2") == explanation("sampling")


@pytest.mark.parametrize("bug", catalogue(), ids=lambda bug: bug.name)
def test_every_bug_is_found(bug) -> None:  # type: ignore[no-untyped-def]
    text = explanation(bug.name)
    assert text.startswith(f"# Bug `{bug.name}`\n") and bug.sentence[1:] in text
    assert f"The first checkpoint that fails is {bug.checkpoint}," in text


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("atn_probs", "attn_probs"),
        ("rop", "rope"),
        ("norm-eps", "norm-eps-"),
        ("blk.3.atn_norm", "attn_norm"),
    ],
)
def test_an_unknown_name_is_one_sentence_with_the_nearest(word: str, near: str) -> None:
    done = CliRunner().invoke(app, ["explain", word])
    assert done.exit_code == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"llama-ckpt: error: explain: got {word}, wanted one of 0, 1, 1B")
    assert near in done.stderr.partition("the nearest names are ")[2]


def test_a_name_like_no_other_is_told_where_the_list_is() -> None:
    with pytest.raises(OptionError, match="`llama-ckpt explain` lists the checkpoints"):
        explanation("zzzzzz")


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("x = 1", "has no CHECKPOINT"),
        ("CHECKPOINT = Checkpoint(id='1')", "lacks function, title"),
        ("CHECKPOINT = Checkpoint({fields})", "names f, wanted a function that this module defines"),
        (
            "def f(): ...\nN = ()\nCHECKPOINT = Checkpoint({fields}, mistakes=N)",
            "mistakes is N, wanted plain",
        ),
    ],
)
def test_a_module_that_cannot_be_read_is_named(source: str, sentence: str, tmp_path: Path) -> None:
    fields = "function=f, id='1', title='t', stands_on=(), points=(), max_abs=0.0, torch_function=''"
    fields += "" if "mistakes=" in source else ", mistakes=()"
    path = tmp_path / "c99_new.py"
    path.write_text(source.replace("{fields}", fields))
    with pytest.raises(ValueError, match=rf"c99_new\.py.*{sentence}"):
        read_source(path)
