"""Which tokens of a vocabulary are special, and the cutting of a text at them, as llama.cpp does both.

llama.cpp does not take the file's token types as they are: by their text it makes some tokens control
tokens, ends generation at some, and un-controls a few. Without that, a `[PAD]` that a fine-tune added as a
user-defined token would be tokenized differently here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import IntEnum

from llama_ckpt.errors import ModelFileError

__all__ = ["Kind", "byte_value", "partition", "token_kinds"]


class Kind(IntEnum):
    """One bit for each kind; a token made a control token by its text keeps its other bit."""

    NONE = 0
    UNKNOWN = 1
    UNUSED = 2
    NORMAL = 4
    CONTROL = 8
    USER_DEFINED = 16
    BYTE = 32


# By tokenizer.ggml.token_type, 0 to 6.
_KIND_OF_TYPE = (
    *(Kind.NONE, Kind.NORMAL, Kind.UNKNOWN, Kind.CONTROL),
    *(Kind.USER_DEFINED, Kind.UNUSED, Kind.BYTE),
)

# Roles that llama.cpp gives to a token by its text when the file names no token for them.
_NAMES_OF_ROLE: Mapping[str, tuple[str, ...]] = {
    "fim_pre": (
        "<|fim_prefix|>",
        "<fim-prefix>",
        "<fim_prefix>",
        "<｜fim▁begin｜>",
        "<PRE>",
        "▁<PRE>",
        "<|code_prefix|>",
        "<|prefix|>",
    ),
    "fim_suf": (
        "<|fim_suffix|>",
        "<fim-suffix>",
        "<fim_suffix>",
        "<｜fim▁hole｜>",
        "<SUF>",
        "▁<SUF>",
        "<|code_suffix|>",
        "<|suffix|>",
    ),
    "fim_mid": (
        "<|fim_middle|>",
        "<fim-middle>",
        "<fim_middle>",
        "<｜fim▁end｜>",
        "<MID>",
        "▁<MID>",
        "<|code_middle|>",
        "<|middle|>",
    ),
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}

# Texts that end generation in whatever vocabulary they stand.
_END_NAMES = (
    "</s>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<eos>",
    "<end_of_utterance>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
)

_ALWAYS_SHOWN = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")

_MANY, _GRAM = 64, 6
"""From so many tokens on, only those are looked for whose first and last few bytes what is left has."""

_HEX = re.compile(rb"[0-9A-Fa-f]{1,2}")
_C_SPACE = re.compile(rb"[ \t\n\v\f\r]*")


def token_kinds(
    ids: Mapping[bytes, int], types: Iterable[int], roles: Mapping[str, int]
) -> tuple[list[int], frozenset[int]]:
    """Each token's `Kind` bits, by id, and the ids at which llama.cpp ends generation.

    Args:
        ids: token texts to token ids.
        types: the file's token types, by id; a number outside 0 to 6 means no kind.
        roles: the ids that the file names: "eos", "eot", "eom", "fim_pre", ….
    """
    kinds = [int(_KIND_OF_TYPE[type_]) if 0 <= type_ < len(_KIND_OF_TYPE) else 0 for type_ in types]
    roles = dict(roles)
    for role, names in _NAMES_OF_ROLE.items():
        # Of several such tokens llama.cpp takes the one its hash table yields first; here, the lowest id.
        found = _present(ids, names)
        if role not in roles and found:
            roles[role] = min(found)
            kinds[roles[role]] |= Kind.CONTROL
    ends = {roles[role] for role in ("fim_pad", "fim_rep", "fim_sep") if role in roles}
    for token in _present(ids, _END_NAMES):
        ends.add(token)
        kinds[token] |= Kind.CONTROL
    for token in _present(ids, _ALWAYS_SHOWN):
        kinds[token] = Kind.USER_DEFINED
    ends |= {roles[role] for role in ("eos", "eot", "eom") if role in roles}
    _undo_ends(ids, kinds, ends)
    return kinds, frozenset(ends)


def _undo_ends(ids: Mapping[bytes, int], kinds: list[int], ends: set[int]) -> None:
    """Two texts that are no end of generation where certain others are."""

    def ending(*names: str) -> bool:
        return any(token in ends for token in _present(ids, names))

    if ending("<|end|>") and (
        (ending("<|return|>") and ending("<|call|>", "<|calls|>"))
        or (ending("<|call|>", "<|calls|>") and ending("<|flush|>"))
    ):
        ends.discard(ids[b"<|end|>"])
        kinds[ids[b"<|end|>"]] = Kind.USER_DEFINED
    if ending("</s>") and ending("<|tool_response>", "<|plamo:eos|>"):
        ends.discard(ids[b"</s>"])
        kinds[ids[b"</s>"]] = Kind.NORMAL


def _present(ids: Mapping[bytes, int], names: Iterable[str]) -> list[int]:
    return [ids[text] for text in (name.encode() for name in names) if text in ids]


def partition(
    text: bytes, specials: Sequence[tuple[int, bytes]], strip_after: frozenset[int]
) -> list[bytes | int]:
    """The text cut at special tokens: text fragments, none empty, and token ids between them.

    Args:
        text: UTF-8, or any bytes.
        specials: ids and texts of the tokens to cut at; the first has the first choice, everywhere.
        strip_after: the ids that swallow the white space behind them.
    """
    # What is taken becomes NUL, which no token's text holds, so that one search in it all finds a token in
    # every fragment; a vocabulary may have 200,000 that are cut at.
    rest = bytearray(text)
    taken: list[tuple[int, int, int]] = []
    left = halved = len(text)
    windows: dict[int, set[bytes]] = {}
    for token, name in specials:
        if len(specials) > _MANY:
            n = min(len(name), _GRAM)
            if left < halved // 2:
                windows, halved = {}, left
            if n not in windows:
                windows[n] = {bytes(rest[i : i + n]) for i in range(len(rest) - n + 1)}
            if name[:n] not in windows[n] or name[-n:] not in windows[n]:
                continue
        at = rest.find(name)
        while at >= 0:
            end = at + len(name)
            if b"\0" in name and any(first < end and at < last for first, last, _ in taken):
                at = rest.find(name, at + 1)
                continue
            if token in strip_after and (space := _C_SPACE.match(rest, end)):
                end = space.end()
            rest[at:end] = bytes(end - at)
            taken.append((at, end, token))
            left -= end - at
            at = rest.find(name, end)
    return list(_between(text, sorted(taken)))


def _between(text: bytes, taken: Sequence[tuple[int, int, int]]) -> Iterator[bytes | int]:
    """The tokens that were cut out, and what is left of the text between them."""
    start = 0
    for at, end, token in taken:
        if at > start:
            yield text[start:at]
        yield token
        start = end
    if start < len(text):
        yield text[start:]


def byte_value(text: bytes) -> int:
    """The byte of a byte token's text: `<0x0A>` is 10.

    Raises:
        ModelFileError: the text has another form.
    """
    digits = text[3:5]
    if not _HEX.fullmatch(digits):  # Python's own reading takes signs and blanks, too
        raise ModelFileError(
            "a byte token of tokenizer.ggml.tokens is not written as one",
            got=repr(text[:40]),
            wanted="<0x00> to <0xFF>",
        )
    return int(digits, 16)
