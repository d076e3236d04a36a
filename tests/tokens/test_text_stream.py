"""Streamed text: characters whole, stop strings never shown, the same however the bytes are cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_ckpt.errors import OptionError
from llama_ckpt.tokens.text_stream import TextStream

STOPS = st.lists(st.text("abé", min_size=1, max_size=4), max_size=3)
# Few letters, so that stop strings come up; a character of each length; bytes that are none.
BYTES = st.lists(st.sampled_from([*map(str.encode, "abé€🦙"), b"\xff", b"\xe2\x96"]))


def stopped_at(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The text before the stop string that is complete first, and that stop string, letter by letter."""
    for end in range(len(text) + 1):
        met = [stop for stop in stops if text[:end].endswith(stop)]
        if met:
            stop = max(met, key=len)
            return text[: end - len(stop)], stop
    return text, None


@given(parts=BYTES, stops=STOPS, data=st.data())
def test_however_it_is_cut(parts: list[bytes], stops: list[str], data: st.DataObject) -> None:
    whole = b"".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    stream, shown = TextStream(stops), ""
    for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True):
        shown += stream.push(whole[start:end])
    text, stop = stopped_at(whole.decode("utf-8", "replace"), stops)
    shown_early = shown
    shown += stream.finish()
    assert (shown, stream.stopped) == (text, stop)
    assert text.startswith(shown_early)


@given(parts=BYTES, stops=STOPS)
def test_nothing_is_held_back_without_need(parts: list[bytes], stops: list[str]) -> None:
    stream, shown, received = TextStream(stops), "", b""
    for part in parts:
        shown += stream.push(part)
        received += part
        if stream.stopped is not None:
            return
        # Only bytes that may still become a character are missing from the text.
        whole = received.decode("utf-8", "replace").removesuffix("\ufffd")
        held = whole[len(shown) :]
        assert held == "" or any(stop.startswith(held) for stop in stops)


def test_a_character_is_held_until_it_is_whole() -> None:
    stream = TextStream()
    assert [stream.push(bytes([byte])) for byte in "a🦙b".encode()] == ["a", "", "", "", "🦙", "b"]
    assert stream.finish() == ""


def test_bytes_that_are_no_character() -> None:
    stream = TextStream()
    assert stream.push(b"\xffa\xf0\x9f") == "\ufffda"
    assert stream.push(b"b") == "\ufffdb"
    assert stream.push(b"\xe2\x96") == ""
    assert stream.finish() == "\ufffd"


def test_a_stop_string_over_several_pieces() -> None:
    stream = TextStream(["\n\nUser:"])
    assert [stream.push(piece) for piece in (b"Yes", b".\n", b"\nUs", b"er: and")] == ["Yes", ".", "", ""]
    assert stream.stopped == "\n\nUser:"
    assert stream.push(b"more") == stream.finish() == ""


def test_what_only_began_like_a_stop_string_is_shown() -> None:
    stream = TextStream(["END"])
    assert [stream.push(piece) for piece in (b"an E", b"N", b"EN")] == ["an ", "", "EN"]
    assert stream.finish() == "EN"
    assert stream.stopped is None


def test_the_first_stop_string_wins() -> None:
    stream = TextStream(["later", "now"])
    assert stream.push(b"not now, later") == "not "
    assert stream.stopped == "now"
    longer = TextStream(["c", "abc"])
    assert (longer.push(b"xabcx"), longer.stopped) == ("x", "abc")


def test_one_stop_string_alone() -> None:
    stream = TextStream("ab")
    assert (stream.push(b"b a ab"), stream.stopped) == ("b a ", "ab")


def test_an_empty_stop_string() -> None:
    with pytest.raises(OptionError, match="a stop string is empty"):
        TextStream(["x", ""])
