"""What comes from outside is refused in one sentence: JSON, numbers, texts, files that are none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llama_ckpt.errors import DumpError, LlamaCkptError
from llama_ckpt.outside import check_file, json_value, quoted, read_json, read_text, whole_number
from llama_ckpt.plain_text import one_line, shortened, spoken

HOSTILE = {
    "70 bits": ('{"a": 1180591620717411303424}', "more than 64 bits"),
    "5,000 digits": ('{"a": ' + "9" * 5000 + "}", "more than 64 bits"),
    "no double": ('{"a": 1e999}', "the number 1e999"),
    "400 digits and a point": ('{"a": ' + "9" * 400 + ".0}", "the number 9999"),
    "NaN": ('{"a": NaN}', "NaN"),
    "infinity": ("[-Infinity]", "-Infinity"),
    "nested lists": ("[" * 200_000, "without end"),
    "nested objects": ('{"a":' * 200_000, "without end"),
    "a key twice": ('{"a": 1, "b\\u001b": 2, "b\\u001b": 3}', r"the key 'b\\x1b' twice"),
    "cut": ('{"a": ', "Expecting value"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_json_is_one_sentence(name: str) -> None:
    text, message = HOSTILE[name]
    with pytest.raises(DumpError, match=message) as caught:
        json_value(text, "a.json", DumpError, "a manifest")
    assert len(str(caught.value)) < 500 and str(caught.value).isprintable()


def test_sound_json_is_read() -> None:
    text = '{"a": [1, -9223372036854775808, 1.5e300, null, true], "\\u0663": "\\u001b"}'
    assert json_value(text, "", DumpError) == {
        "a": [1, -(1 << 63), 1.5e300, None, True],
        "\u0663": "\x1b",
    }


@pytest.mark.parametrize("text", ["\u0663", "\u00b2", "1_0", " 1", "-1", "", "1" * 10, "1e3"])
def test_digits_of_other_scripts_are_no_number(text: str) -> None:
    assert whole_number(text) is None


def test_ascii_digits_are_a_number() -> None:
    assert (whole_number("0"), whole_number("0012"), whole_number("9" * 9)) == (0, 12, 999_999_999)


def test_no_file_but_a_regular_one_is_opened(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)  # opening it would wait for a writer, for ever
    others = {
        pipe: "a pipe",
        Path("/dev/zero"): "a device",
        tmp_path: "a folder",
        tmp_path / "no": "no such file",
    }
    for path, message in others.items():
        with pytest.raises(DumpError, match=message):
            read_text(path, DumpError, "a text")
    for name in ("a\0b", "a\ud800b"):
        with pytest.raises(DumpError, match="cannot be opened"):
            check_file(name, DumpError, "a file")


def test_a_text_is_utf8_and_no_larger_than_it_may_be(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(DumpError, match="no UTF-8 at byte 7"):
        read_json(path, DumpError, "a manifest")
    with pytest.raises(DumpError, match="too large: got 10 bytes, wanted 9 at most"):
        read_text(path, DumpError, "a text", most=9)


def test_messages_are_short_and_obey_no_terminal() -> None:
    huge = 10**5000
    for got in ("\x1b[2J\nllama-ckpt: all is well\u202e", "x" * 10**6, huge, ["\x07"] * 300):
        said = str(LlamaCkptError("a\r\nfile" * 50, got=got, wanted="w" * 900, hint="h" * 900))
        assert len(said) < 500 and said.isprintable()
    short = LlamaCkptError("what", got=1, wanted=2, hint="do it")
    assert str(short) == "what: got 1, wanted 2; do it"


def test_values_are_quoted_short() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    assert quoted("a\nb") == r"'a\nb'" and len(quoted("x" * 10**6)) == 60
    assert "too many digits" in quoted(10**5000) and "without end" in quoted(deep)
    while deep:  # taken apart here: freeing it all at once is as deep as it is
        deep = deep[0]  # type: ignore[assignment]


def test_text_for_a_terminal() -> None:
    assert one_line("caf\u00e9 \U0001f642") == "caf\u00e9 \U0001f642"
    assert one_line("a\x1b[0m\n\u2028\x9b\u202e") == r"a\x1b[0m\n\u2028\x9b\u202e"
    assert spoken("a\n\tb\x1b\r") == "a\n\tb\\x1b\\r"
    assert (
        shortened("ab" * 10, 20) == "ab" * 10 and shortened("a" * 9 + "b" * 12, 20) == "aaaaaaaaabb...bbbbbb"
    )
