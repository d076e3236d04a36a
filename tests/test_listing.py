"""Which numbers are meant, in words: read back, they are exactly those, or their count is said."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_ckpt.listing import some, which


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ([7], "token 7"),
        ([0, 599], "tokens 0 and 599"),
        (range(512, 535), "tokens 512 to 534"),
        ([3, 7, 8, 9, *range(40, 63)], "tokens 3, 7 to 9 and 40 to 62"),
        (range(3, 600, 4), "every 4th token from 3 to 599"),
        (range(3, 64, 21), "tokens 3, 24 and 45"),
        (range(1, 90, 22), "every 22nd token from 1 to 89"),
        (range(600), "all 600 tokens"),
        ([i * i for i in range(24)], "24 of 600 tokens (first 0, 1, 4, last 529)"),
    ],
)
def test_words(numbers: list[int], words: str) -> None:
    assert which("token", numbers, 600) == words


def read_back(words: str, n: int) -> set[int] | None:
    """The numbers that the words say; None where they say how many only."""
    if words.startswith("all "):
        return set(range(n))
    if stride := re.fullmatch(r"every (\d+)(?:st|nd|rd|th) head from (\d+) to (\d+)", words):
        step, first, last = map(int, stride.groups())
        return set(range(first, last + 1, step))
    listed = re.fullmatch(r"heads? (.*)", words)
    if listed is None:
        return None
    found: set[int] = set()
    for part in re.split(r", | and ", listed[1]):
        first, _, last = part.partition(" to ")
        found |= set(range(int(first), int(last or first) + 1))
    return found


RUNS = st.lists(st.tuples(st.integers(0, 90), st.integers(1, 9), st.integers(1, 5)), min_size=1, max_size=6)


@given(runs=RUNS, n=st.integers(140, 200))
@settings(max_examples=300)
def test_what_is_said_is_what_is_meant(runs: list[tuple[int, int, int]], n: int) -> None:
    meant = {first + i * step for first, count, step in runs for i in range(count)}
    words = which("head", meant, n)
    said = read_back(words, n)
    if said is not None:
        assert said == meant, words
        return
    counted = re.fullmatch(r"(\d+) of (\d+) heads \(first (\d+), (\d+), (\d+), last (\d+)\)", words)
    assert counted is not None, words
    ordered = sorted(meant)
    assert [int(one) for one in counted.groups()] == [len(meant), n, *ordered[:3], ordered[-1]]


def test_some_says_how_many_it_leaves_out() -> None:
    assert [some("abcd"[:i], 2) for i in range(5)] == ["", "a", "a, b", "a, b and 1 more", "a, b and 2 more"]
