"""Ways to damage a value, a text or bytes, that keep enough of the structure to be read on."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

__all__ = ["INTEGERS", "changed_bytes", "changed_json", "changed_text", "json_bytes", "value"]

INTEGERS = (
    *(0, 1, -1, 2, 3, 7, 8, 31, 32, 33, 127, 128, 255, 256, 257, 511, 512, 513, 4095, 65_535, 65_536),
    *(2**31 - 1, 2**31, -(2**31), 2**32 - 1, 2**32, 2**53, 2**62, 2**63 - 1, 2**63, -(2**63), 2**64 - 1),
    *(2**64, 2**70, 10**6, 10**9, 10**18),
)
FLOATS = (0.0, -0.0, 0.5, 1.0, -1.0, 1e-300, 1e300, 3.5e38, 1e-45, 5e-324, 0.1)
TEXTS = (
    *(
        "",
        " ",
        "\0",
        "a\0b",
        "\x1b[2J",
        "a\nb",
        "\u0663",
        "\u00b2",
        "\u202ea",
        "\ud800",
        "..",
        "../../x",
        "/",
    ),
    *("-1", "0", "1", "999999999999", "٣", "1e9", "nan", "inf", "true", "null", "{N}", "{", "}", "(", ")"),
    *("blk.0.q", "blk.999999999.q", "blk.-1.q", "blk.٣.q", "call.0.embd", "call.99999999999.embd", "logits"),
    *("a" * 300, "(" * 200, "a " * 300, "1," * 1000, "9" * 5000, "F64", "I64", "BOOL", "float32", "eos"),
    *("token head", "1 token (head head_dim)", "https://a:b@c", "%s%n", "<script>", "&amp;", "x.safetensors"),
)


def value(rng: random.Random) -> Any:
    """Any JSON value, of a kind that breaks things."""
    kind = rng.randrange(9)
    if kind < 3:
        return rng.choice(INTEGERS)
    if kind == 3:
        return rng.choice(FLOATS)
    if kind < 6:
        return rng.choice(TEXTS)
    if kind == 6:
        return rng.choice((None, True, False, [], {}, [[]], [{}], {"": 0}))
    return [value(rng) for _ in range(rng.randrange(4))] if kind == 7 else {rng.choice(TEXTS): value(rng)}


def changed_json(document: Any, rng: random.Random, times: int = 1) -> Any:
    """A copy with some values replaced, keys renamed, entries taken out, repeated or added."""
    document = copy.deepcopy(document)
    for _ in range(times):
        places = list(_places(document))
        if not places:
            return value(rng)
        holder, key = rng.choice(places)
        _change(holder, key, rng)
    return document


def _places(node: Any) -> Any:
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, one in items:
        yield node, key
        if not (isinstance(one, list) and len(one) > 50):
            yield from _places(one)
        else:
            yield one, 0


def _change(holder: Any, key: Any, rng: random.Random) -> None:
    what = rng.randrange(8)
    if what < 4:
        holder[key] = value(rng)
    elif what == 4:
        del holder[key]
    elif isinstance(holder, dict):
        if what == 5:
            holder[rng.choice((*TEXTS, *holder))] = holder.pop(key)
        else:
            holder[rng.choice(TEXTS)] = value(rng)
    elif what == 5:
        holder.extend([holder[key]] * rng.choice((1, 3, 1000)))
    elif isinstance(holder[key], int) and not isinstance(holder[key], bool):
        holder[key] += rng.choice((-1, 1, 2, -2, 1000))


def json_bytes(document: Any, rng: random.Random) -> bytes:
    """The JSON text; now and then with what Python's own writer would not write."""
    text = json.dumps(document, ensure_ascii=rng.random() < 0.7)
    if rng.random() < 0.04:
        text = text.replace("0", rng.choice(("NaN", "1e999", "-0", "00", "9" * 5000, "1" * 400)), 1)
    if rng.random() < 0.01:
        text = text[:-1] + "[" * rng.choice((100, 1000, 200_000))
    return text.encode("utf-8", "surrogatepass")


def changed_text(text: str, rng: random.Random) -> str:
    """A text with words exchanged, lines repeated, pieces moved and hostile ones put in."""
    for _ in range(rng.randrange(1, 4)):
        at, what = rng.randrange(len(text) + 1), rng.randrange(6)
        end = min(len(text), at + rng.randrange(1, 40))
        if what == 0:
            text = text[:at] + rng.choice(TEXTS) + text[at:]
        elif what == 1:
            text = text[:at] + text[end:]
        elif what == 2:
            text = text[:at] + text[at:end] * rng.choice((2, 3, 50)) + text[end:]
        elif what == 3:
            text = text[:at] + rng.choice("[]{}()\"'=:,.#\\\n\t 0123456789-_") + text[at + 1 :]
        elif what == 4:
            text = text[:at] + str(rng.choice((*INTEGERS, *FLOATS))) + text[end:]
        else:
            lines = text.split("\n")
            rng.shuffle(lines)
            text = "\n".join(lines)
    return text


def changed_bytes(data: bytes, rng: random.Random) -> bytes:
    """Bytes with a few flipped, set, cut out, repeated, or cut off at the end."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at, what = rng.randrange(len(found) + 1), rng.randrange(6)
        if what < 2 and at < len(found):
            found[at] ^= 1 << rng.randrange(8)
        elif what == 2:
            found[at : at + 8] = (rng.choice(INTEGERS) % 2**64).to_bytes(8, "little")
        elif what == 3:
            del found[at : at + rng.randrange(1, 16)]
        elif what == 4:
            found[at:at] = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 9)))
        elif rng.random() < 0.3:
            del found[at:]
    return bytes(found)
