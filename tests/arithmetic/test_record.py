"""What a program declares: read and written as JSON, and refused in a sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llama_ckpt.arithmetic.profiles import PROFILES, arithmetic_of, read_arithmetic
from llama_ckpt.arithmetic.record import Arithmetic, arithmetic_lines
from llama_ckpt.errors import OptionError


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_is_the_same_after_json(name: str) -> None:
    text = json.dumps(arithmetic_lines(PROFILES[name]))
    assert arithmetic_of(json.loads(text)) == PROFILES[name]


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_says_whose_it_is(name: str) -> None:
    profile = PROFILES[name]
    assert profile.name == name
    assert profile.about
    assert profile.source


def test_lines_are_laid_over_a_profile() -> None:
    mine = arithmetic_of({"like": "llama.cpp-cpu", "keys": "float16", "fewer_rows": {"9": {"keys": "q8_0"}}})
    assert (mine.name, mine.keys, mine.values) == ("like llama.cpp-cpu", "float16", "float32")
    assert mine.activation("Q4_K") == "q8_K"
    assert mine.for_rows(8).keys == "q8_0"
    assert mine.for_rows(9).keys == "float16"


def test_of_several_numbers_of_rows_the_nearest_above_counts() -> None:
    mine = arithmetic_of({"fewer_rows": {"64": {"keys": "bfloat16"}, "9": {"keys": "float16"}}})
    assert [mine.for_rows(n).keys for n in (1, 8, 9, 63, 64)] == [
        *("float16", "float16", "bfloat16", "bfloat16", "float32")
    ]


def test_activations_by_type_and_the_others() -> None:
    mine = arithmetic_of({"activations": {"Q8_0": "q8_0", "*": "float16"}})
    assert (mine.activation("Q8_0"), mine.activation("F32")) == ("q8_0", "float16")
    assert arithmetic_of({"activations": "bfloat16"}).activation("F32") == "bfloat16"
    assert Arithmetic(activations={}).activation("F32") == "float32"


def test_the_head_may_be_apart() -> None:
    mine = arithmetic_of({"like": "w8a8-per-token", "head": {"weights": "float32", "activations": "float32"}})
    assert mine.for_head().activation("F32") == "float32"
    assert mine.for_head().products == mine.products
    assert PROFILES["w8a8-per-token"].for_head() is PROFILES["w8a8-per-token"]


@pytest.mark.parametrize(
    ("declared", "sentence"),
    [
        (
            "llamacpp-cpu",
            "arithmetic: got 'llamacpp-cpu', wanted one of float32, .*; the nearest are llama.cpp-cpu",
        ),
        (7, "an arithmetic: got 7, wanted a profile's name, or an object of lines"),
        ({"key": "float16"}, "a line of an arithmetic: got 'key', .*; did you mean keys"),
        ({"keys": "flaot16"}, "keys of an arithmetic: got 'flaot16', wanted the name of a rounding.*float16"),
        ({"keys": 16}, "keys of an arithmetic: got 16"),
        ({"keys": ["float16"]}, "keys of an arithmetic: got "),
        ({"angles": "half"}, "angles of an arithmetic: got 'half', wanted float64 or float32"),
        ({"angles": {}}, "angles of an arithmetic: got {}"),
        (
            {"product_sums": "float16"},
            "product_sums of an arithmetic for [*]: got 'float16', wanted .*every 16",
        ),
        ({"product_sums": "float61 every 4"}, "product_sums of an arithmetic for [*]: got 'float61'"),
        ({"keys_at_a_time": -1}, "keys_at_a_time of an arithmetic: got -1, wanted a number of keys"),
        ({"keys_at_a_time": True}, "keys_at_a_time of an arithmetic: got True"),
        ({"activations": ["q8_0"]}, "activations of an arithmetic: got .*wanted a rounding"),
        ({"activations": {"Q4_0": "q9"}}, "activations of an arithmetic for Q4_0: got 'q9'"),
        ({"fewer_rows": {"few": {}}}, "fewer_rows of an arithmetic: got .*wanted numbers of rows"),
        ({"fewer_rows": {"9": {"keys": "x"}}}, "keys of an arithmetic: got 'x'"),
        ({"fewer_rows": {"9": {"fewer_rows": {}}}}, "fewer_rows of an arithmetic, below 9: got"),
        ({"head": {"name": "mine"}}, "head of an arithmetic: got .*wanted lines that name roundings"),
        ({"name": 3}, "name of an arithmetic: got 3, wanted a text"),
        ({"like": "nobody"}, "arithmetic: got 'nobody'"),
    ],
)
def test_what_is_wrong_is_said(declared: object, sentence: str) -> None:
    with pytest.raises(OptionError, match=sentence):
        arithmetic_of(declared)


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text('{"like": "tf32", "name": "mine", "values": "float16"}', encoding="utf-8")
    assert read_arithmetic(str(path)).values == "float16"
    assert read_arithmetic("tf32") == PROFILES["tf32"]
    path.write_text("{", encoding="utf-8")
    with pytest.raises(OptionError, match="mine.json is no such JSON: got Expecting"):
        read_arithmetic(str(path))
    with pytest.raises(OptionError, match="none.json cannot be opened: got no such file"):
        read_arithmetic(str(tmp_path / "none.json"))
    with pytest.raises(OptionError, match="arithmetic: got 'nothing'"):
        read_arithmetic("nothing")
