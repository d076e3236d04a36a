"""What once broke a rule, and some mutants of each kind; more of them with `make fuzz`."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from llama_ckpt.errors import OptionError
from tests.draws import draws
from tools.fuzz.gguf_fields import fields_of
from tools.fuzz.hunt import Hunt
from tools.fuzz.mutate import changed_json
from tools.fuzz.pieces import added, pieces_of_goals
from tools.fuzz.replay import CORPUS
from tools.fuzz.rules import held
from tools.fuzz.targets import TARGETS

ROOT = Path(__file__).parents[1]


def test_hostile_files_are_read_or_refused_in_a_sentence() -> None:
    """In a process of its own, whose memory is bounded."""
    command = [sys.executable, "-m", "tools.fuzz.replay", str(draws(40, 200))]
    path = os.pathsep.join([str(ROOT), *sys.path])
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}
    )
    assert done.returncode == 0 and not done.stderr.strip(), done.stderr
    assert len(done.stdout.splitlines()) == len(TARGETS)


def test_the_corpus_is_small_and_of_known_kinds() -> None:
    files = list(CORPUS.iterdir())
    assert files and sum(path.stat().st_size for path in files) < 200_000
    assert {path.name.split("-")[0] for path in files} <= set(TARGETS)


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (lambda: 1 / 0, "ZeroDivisionError"),
        (lambda: bytearray(1 << 31), "MemoryError"),
        (lambda: (_ for _ in ()).throw(OptionError("")), "a message of 0 characters"),
    ],
)
def test_the_rule_is_not_passed_by_what_breaks_it(broken: object, said: str) -> None:
    outcome = held(broken, 100)  # type: ignore[arg-type]
    assert outcome.kind == "broken" and outcome.said.startswith(said)


def test_a_refusal_and_a_reading_pass_the_rule() -> None:
    def refuse() -> None:
        raise OptionError("a\nb", got="\x1b")

    assert held(refuse, 0).kind == "refused" and held(lambda: 1, 0).kind == "read"


def test_a_gguf_file_is_put_together_as_it_was() -> None:
    for data in TARGETS["gguf"].seeds():
        assert fields_of(data).bytes() == data


def test_mutants_differ_and_the_seed_decides_them() -> None:
    for name, target in TARGETS.items():
        seed = target.seeds()[0]
        made = [[target.change(seed, random.Random(n)) for n in range(30)] for _ in range(2)]
        assert made[0] == made[1] and len(set(made[0])) > 15 and seed not in made[0][:1], name
    document = {"a": [1, {"b": 2}]}
    changed_json(document, random.Random(1), 5)
    assert document == {"a": [1, {"b": 2}]}


def test_the_pieces_of_several_processes_reach_the_goals_with_seeds_apart_and_add_up() -> None:
    pieces = pieces_of_goals([*TARGETS], 10, 14, 5)
    for name, target in TARGETS.items():
        its = [piece for piece in pieces if piece.target == name]
        assert sum(piece.most for piece in its) >= target.goal
        assert len({piece.seed for piece in its}) == len(its)
    parts = [
        {"target": "map", "counts": {"read": 2, "refused": 1}, "seconds": 1.0, "found": {"a": "x"}},
        {
            "target": "map",
            "counts": {"read": 1, "broken": 1},
            "seconds": 2.0,
            "found": {"b": "y"},
            "died": "c",
        },
    ]
    whole = added(parts)
    assert whole["counts"] == {"read": 3, "refused": 1, "broken": 1} and whole["seconds"] == 3.0
    assert whole["found"] == {"a": "x", "b": "y"} and whole["died"] == "c"


def test_most_mutants_of_a_gguf_file_have_a_sound_header(tmp_path: Path) -> None:
    """What is refused at the first field tries nothing behind it."""
    hunt = Hunt(TARGETS["gguf"], tmp_path, seed=3)
    hunt.run(60, 300)
    hunt.lines.close()
    assert hunt.counts["header"] > 150
