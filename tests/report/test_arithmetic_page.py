"""`explain arithmetic` has every line, rounding and profile, each with words of its own."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from llama_ckpt.arithmetic.formats import FORMATS, described
from llama_ckpt.arithmetic.profiles import PROFILES, arithmetic_of
from llama_ckpt.arithmetic.record import Arithmetic
from llama_ckpt.report.arithmetic_page import RIGHT_PROGRAMS
from llama_ckpt.report.topics import explanation

TESTS = Path(__file__).parents[1]


def test_the_page_has_all_of_the_language() -> None:
    page = explanation("Arithmetic")
    for name in vars(Arithmetic()):
        assert f"\n| `{name}` | " in page, name
    for name in FORMATS:
        assert f"\n| `{name}` | {described(name)} |" in page, name
    for profile in PROFILES.values():
        assert f"\n| `{profile.name}` | {profile.about} | {profile.source} |" in page


def test_the_programs_of_each_profile_are_held_where_it_says() -> None:
    assert list(RIGHT_PROGRAMS) and set(RIGHT_PROGRAMS) == set(PROFILES)
    for name, programs in RIGHT_PROGRAMS.items():
        held = [TESTS / file for program in programs for file in re.findall(r"`(\S+\.py)`", program)]
        assert held and all(file.is_file() for file in held), name
        text = "".join(file.read_text("utf-8") for file in held)
        named = name in text or name.removesuffix("-sdpa").partition("-")[0] in text
        assert named and f"| `{name}` | " in explanation("Arithmetic"), name


def test_no_two_roundings_read_alike() -> None:
    said = [described(name) for name in FORMATS if name not in ("float32", "float64")]
    assert len(set(said)) == len(said)
    assert "32 numbers to a scale largest / 127 in float16; x · (127 / largest), ties to even" in described(
        "q8_0"
    )


@pytest.mark.parametrize("name", PROFILES)
def test_a_profiles_page_has_the_lines_that_a_file_may_begin_with(name: str) -> None:
    page = explanation(name.upper())
    lines = json.loads(page.split("```")[1])
    words = {"about": PROFILES[name].about, "source": PROFILES[name].source}
    assert arithmetic_of(lines | words) == PROFILES[name]
    assert PROFILES[name].source in page
