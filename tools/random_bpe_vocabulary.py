"""Small random byte-level BPE vocabularies, whose merges join what any pre-tokenizer should have cut.

The merges are learned from texts that nobody has cut into words, so that nearly every cut decides a token.
Some tokens that merges need are left out, some words are tokens that no merge reaches, some merges stand
twice.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from llama_ckpt.tokens.bpe import BYTE_CHARACTERS, lenient_utf8
from tools.random_vocabulary import KEY, NAMED

__all__ = ["mixture", "random_bpe_vocabulary"]

UNITS = (
    *(
        "a",
        "b",
        "s",
        "t",
        "A",
        "S",
        "ll",
        "'s",
        "'T",
        "'re",
        "é",
        "É",
        "ж",
        "Ж",
        "中",
        "あ",
        "가",
        "ก",
        "\u0301",
    ),
    *("1", "23", "456", "٣", "½", " ", " ", "  ", "    ", "\t", "\n", "\r\n", "\u00a0", "\u3000", "\u0085"),
    *(".", ",", "!", "(", "]", "$", "+", "`", "_", "/", "。", "！", "€", "🦙", "\u200b", "\u0378"),
)
"""What pre-tokenizers tell apart."""

SPECIAL = ("<|begin_of_text|>", "<|end_of_text|>", "<s>", "</s>", "<unk>")


def mixture(rng: random.Random) -> bytes:
    """A text of what pre-tokenizers tell apart, in any order."""
    units = rng.sample(UNITS, rng.choice((4, 8, 16)))
    return "".join(rng.choices(units, k=rng.randint(4, 24))).encode()


def random_bpe_vocabulary(rng: random.Random, texts: Sequence[bytes], pre: str | None) -> dict[str, Any]:
    """The tokenizer's metadata of a GGUF file, by key; tokens and merges are `bytes`.

    Args:
        texts: what the merges are learned from.
        pre: the pre-tokenizer's name; None leaves it out.
    """
    written = ["".join(BYTE_CHARACTERS[byte] for byte in _sound(text)) for text in texts]
    merges = _learned(written, rng.randrange(60, 200))
    tokens = {character: 1 for character in BYTE_CHARACTERS.values() if rng.random() < 0.98}
    tokens |= {left + right: 1 for left, right in merges if rng.random() < 0.95}
    words = [word for text in texts for word in _sound(text).decode().split(" ") if 1 < len(word) < 12]
    for word in rng.sample(words, min(len(words), 12)):
        tokens.setdefault("".join(BYTE_CHARACTERS[byte] for byte in (" " + word).encode()), 1)
    for name in rng.sample((*SPECIAL, *NAMED), rng.choice((2, 4, 8))):
        tokens.setdefault(name, rng.choice((1, 3, 3, 4, 5)))
    pairs = [f"{left} {right}" for left, right in merges]
    pairs += rng.sample(pairs, 3)
    return _metadata(rng, tokens, pairs, pre)


def _metadata(
    rng: random.Random, tokens: dict[str, int], pairs: list[str], pre: str | None
) -> dict[str, Any]:
    n = len(tokens)
    metadata: dict[str, Any] = {
        KEY + "model": "gpt2",
        KEY + "tokens": [token.encode() for token in tokens],
        KEY + "merges": [pair.encode() for pair in pairs],
    }
    if pre is not None:
        metadata[KEY + "pre"] = pre
    if rng.random() < 0.9:
        metadata[KEY + "token_type"] = list(tokens.values())
    for key in ("add_bos_token", "add_eos_token", "add_space_prefix"):
        if rng.random() < 0.4:
            metadata[KEY + key] = rng.random() < 0.5
    for key in ("bos", "eos", "eot", "fim_pad"):
        # Where BOS or EOS is to be added and there is none, llama.cpp ends its process.
        if key in ("bos", "eos") or rng.random() < 0.3:
            metadata[f"{KEY}{key}_token_id"] = rng.randrange(n)
    return metadata


def _sound(text: bytes) -> bytes:
    return lenient_utf8(text).encode("utf-8", "surrogatepass").decode(errors="replace").encode()


def _learned(texts: Sequence[str], n: int) -> list[tuple[str, str]]:
    """The n merges of the commonest neighbours, one after the other."""
    symbols = [list(text) for text in texts]
    merges = []
    for _ in range(n):
        counts = Counter(pair for text in symbols for pair in pairwise(text))
        if not counts:
            break
        left, right = max(counts, key=lambda pair: (counts[pair], pair))
        merges.append((left, right))
        symbols = [_merged(text, left, right) for text in symbols]
    return merges


def _merged(text: list[str], left: str, right: str) -> list[str]:
    out: list[str] = []
    at = 0
    while at < len(text):
        if text[at : at + 2] == [left, right]:
            out.append(left + right)
            at += 2
        else:
            out.append(text[at])
            at += 1
    return out
