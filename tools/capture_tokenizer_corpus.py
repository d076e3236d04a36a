"""Record what the real llama.cpp's tokenizer does, for tests that run without it.

    python tools/capture_tokenizer_corpus.py --model VOCABULARY.gguf

writes three files to tests/data/tokenizer. Bytes stand in them as strings of code points 0 to 255, tokens
are lists of ids, "parsed" means with `parse_special`, and is null where it changes nothing:

    corpus.json.bz2         2,000 random strings with the model's vocabulary: `strings` [[bytes, tokens,
                           parsed], …] without BOS; `pieces` [bytes, …] of all its tokens; `hidden`, the
                           ids whose piece is empty unless special tokens are asked for
    vocabularies.json.bz2   80 small random vocabularies: `metadata`, `strings` as above but with what the
                           file adds (BOS, EOS), `pieces`, `hidden`, `ends` (ids that end generation)
    bpe.json.bz2            as that, a small random byte-level BPE vocabulary for each kind of
                           pre-tokenizer, and one that names none

The strings come from a fixed seed and the files have no time stamp: the same llama.cpp gives the same bytes.
Needs the extra `reference`.
"""

from __future__ import annotations

import argparse
import bz2
import ctypes
import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import llama_cpp

from llama_ckpt.tokens.pre_tokenizers import PRE_TOKENIZERS
from tools.random_bpe_vocabulary import random_bpe_vocabulary
from tools.random_vocabulary import KEY, random_text, random_vocabulary, write_vocabulary

SEED = 20240717
STRINGS = 2000
VOCABULARIES, STRINGS_EACH = 80, 25
LEARNED_FROM, BPE_STRINGS = 24, 30
OUT = Path(__file__).resolve().parents[1] / "tests" / "data" / "tokenizer"

ALPHABETS = (
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ",
    "etaoin shrdlu, etaoin shrdlu. ",
    "0123456789.,-+eE ",
    "(){}[]<>=+-*/%&|^~!?:;.,'\"`\\@#$_ \n\t",
    "абвгдежзийклмнопрстуфхцчшщъыьэюяёєії АБВГД",
    "αβγδεζηθικλμνξοπρστυφχψω άέήίόύώ",
    "אבגדהוזחטיךכלםמןנסעףפץצקרשת ",
    "ابتثجحخدذرزسشصضطظعغفقكلمنهوي ًٌٍَ",
    "अआइईउऊकखगघचछजझटठडढणतथदधन ािीुूेैोौं्",
    "กขฃคฅฆงจฉชซฌญ ะาำิีึืุูเแโใไ็่้",
    "កខគឃងចឆជឈញដឋឌឍណត ាិីឹឺុូួើ",
    "的一是不了人我在有他这中大来上个国和说地到你 ",
    "あいうえおかきくけこアイウエオカキクケコー、。",
    "가나다라마바사아자차카타파하한국어 ",
    "ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÐÑÒÓÔÕÖØÙÚÛÜÝÞßàáâãäåæçèéêëìíîïðñòóôõöøùúûüýþÿ",
    "ÀÉñ\u0300\u0301\u0302\u0308\u0327e a o",
    "😀😁😂🤣🦙🚀👍🏽👩\u200d👩\u200d👧\u200d👦🇩🇪🏳\ufe0f\u200d🌈✅❤\ufe0f",
    "\u200b\u200c\u200d\u200e\u200f\u2028\u2029\ufeff\u00a0\u3000\u2003\u202e",
    "▁▂▃▄▅▆▇█ ▁a b",
    "𝐀𝐁𝐂𝒜ℬ𝕬𝔸①②③½¼¾™©®ﬁﬂ",
    "aaaaaaaabbbb=-_* ",
)
BYTES_KEYS = (KEY + "tokens", KEY + "merges")
BEYOND_UNICODE = re.compile(rb"(?:\xf4[\x90-\xbf]|[\xf5-\xf7][\x80-\xbf])[\x80-\xbf]{2}")
SPECIAL_TEXTS = "<s> </s> <unk> <0x0A> <0x41> <s s> </ [INST] <|im_end|> <<SYS>>".split(" ")
BLANKS = (" ", "\n", "\t", "\r\n", "  \n", "\u00a0", "\u2581")
BROKEN = (b"\xc3", b"\xe2\x96", b"\xe2", b"\xf0\x9f", b"\xf0\x9f\xa6", b"\xff", b"\x80", b"\xc0\x80")
WORDS = (
    "the of and to in that is was he for it with as his on be at by had not are but from or have an they"
    " which one you were her all she there would their we him been has when who will more no if out so said"
    " import return def class self None True False while print int float static const void"
    " und der die das nicht mit ich le la les des est pour que los una por ция что это как для"
).split(" ")


class LlamaCppVocabulary:
    """llama.cpp's own tokenizer on a GGUF file's vocabulary, called through its C interface."""

    def __init__(self, path: Path | str) -> None:
        _silence()
        params = llama_cpp.llama_model_default_params()
        params.vocab_only = True
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        if not self._model:
            raise SystemExit(f"llama.cpp cannot load {path}")
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        self.size: int = llama_cpp.llama_vocab_n_tokens(self._vocab)

    def close(self) -> None:
        llama_cpp.llama_model_free(self._model)

    def tokenize(self, text: bytes, *, add_special: bool, parse_special: bool) -> list[int]:
        room = 4 * len(text) + 16
        ids = (llama_cpp.llama_token * room)()
        n = llama_cpp.llama_tokenize(self._vocab, text, len(text), ids, room, add_special, parse_special)
        assert n >= 0, "a token for each byte, and then some, was not room enough"
        return ids[:n]

    def piece(self, token: int, *, special: bool) -> bytes:
        buffer = ctypes.create_string_buffer(512)
        n = llama_cpp.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, special)
        assert n >= 0, "no piece is as long as that"
        return buffer.raw[:n]

    def ends(self, token: int) -> bool:
        return bool(llama_cpp.llama_vocab_is_eog(self._vocab, token))


@llama_cpp.llama_log_callback
def _no_log(level: int, text: bytes, user_data: object) -> None:
    """llama.cpp warns of a doubled BOS, once for each of our strings that begins with one."""


def _silence() -> None:
    llama_cpp.llama_log_set(_no_log, ctypes.c_void_p(0))


def random_strings(rng: random.Random, n: int, pieces: list[bytes]) -> Iterator[bytes]:
    """n byte strings, each made of one to six parts of any kind, some twice or many times."""
    kinds: list[Callable[[], bytes]] = [
        lambda: "".join(rng.choices(rng.choice(ALPHABETS), k=rng.randint(1, 24))).encode(),
        lambda: " ".join(rng.choices(WORDS, k=rng.randint(1, 8))).encode(),
        lambda: b"".join(rng.choices(pieces, k=rng.randint(1, 8))),
        lambda: rng.choice(BLANKS).encode() * rng.randint(1, 20),
        lambda: rng.choice(SPECIAL_TEXTS).encode(),
        lambda: rng.randbytes(rng.randint(1, 8)),
        lambda: rng.choice(BROKEN),
        lambda: chr(rng.randint(0xD800, 0xDFFF)).encode("utf-8", "surrogatepass"),
        lambda: b"\0" * rng.randint(1, 3),
        lambda: _random_character(rng).encode() * rng.randint(1, 3),
        lambda: bytes([rng.randint(33, 126)]) * rng.randint(2, 40),
    ]
    weights = (6, 4, 4, 3, 3, 1, 1, 1, 1, 2, 1)
    for _ in range(n):
        parts = rng.choices(kinds, weights, k=rng.choice((1, 1, 2, 2, 3, 4, 5, 6)))
        yield b"".join(part() for part in parts)


def _random_character(rng: random.Random) -> str:
    codepoint = rng.choice((rng.randint(0, 0x7FF), rng.randint(0x800, 0xD7FF), rng.randint(0xE000, 0x10FFFF)))
    return chr(codepoint)


def capture(path: Path) -> dict[str, Any]:
    """The content of corpus.json.bz2."""
    vocabulary = LlamaCppVocabulary(path)
    pieces, hidden = _pieces(vocabulary)
    texts = random_strings(random.Random(SEED), STRINGS, pieces)
    strings = [_recorded(vocabulary, text, add_special=False) for text in texts]
    return {**_header(), "strings": strings, "pieces": [_text(piece) for piece in pieces], "hidden": hidden}


def capture_vocabularies() -> dict[str, Any]:
    """The content of vocabularies.json.bz2."""
    rng = random.Random(SEED)
    with TemporaryDirectory() as folder:
        return {**_header(), "vocabularies": [_random_case(rng, Path(folder)) for _ in range(VOCABULARIES)]}


def capture_bpe() -> dict[str, Any]:
    """The content of bpe.json.bz2."""
    rng = random.Random(SEED)
    with TemporaryDirectory() as folder:
        kinds = {one: name for name, one in reversed(PRE_TOKENIZERS.items())}  # of each kind its first name
        cases = [bpe_case(rng, Path(folder), pre) for pre in (None, *reversed(kinds.values()))]
        return {**_header(), "vocabularies": cases}


def bpe_case(rng: random.Random, folder: Path, pre: str | None) -> dict[str, Any]:
    """One random byte-level BPE vocabulary, and what llama.cpp makes of texts with it."""
    texts = [
        text for text in random_strings(rng, 2 * LEARNED_FROM, [b"a ", b"the", b"\n"]) if is_readable(text)
    ]
    metadata = random_bpe_vocabulary(rng, texts[:LEARNED_FROM], pre)
    # What the merges were learned from, so that they meet, and what they never saw, run together.
    tried = [b"".join(rng.choices(texts, k=rng.choice((1, 2, 3)))) for _ in range(BPE_STRINGS)]
    return _case(folder, metadata, tried)


def is_readable(text: bytes) -> bool:
    """False for a text with a character beyond Unicode, at which llama.cpp's BPE ends its process."""
    return not BEYOND_UNICODE.search(text)


def _random_case(rng: random.Random, folder: Path) -> dict[str, Any]:
    metadata = random_vocabulary(rng)
    return _case(folder, metadata, [random_text(rng, metadata) for _ in range(STRINGS_EACH)])


def _case(folder: Path, metadata: dict[str, Any], texts: list[bytes]) -> dict[str, Any]:
    write_vocabulary(folder / "vocabulary.gguf", metadata)
    vocabulary = LlamaCppVocabulary(folder / "vocabulary.gguf")
    pieces, hidden = _pieces(vocabulary)
    lists = {key: [_text(text) for text in metadata[key]] for key in BYTES_KEYS if key in metadata}
    case = {
        "metadata": {**metadata, **lists},
        "strings": [_recorded(vocabulary, text, add_special=True) for text in texts],
        "pieces": [_text(piece) for piece in pieces],
        "hidden": hidden,
        "ends": [token for token in range(vocabulary.size) if vocabulary.ends(token)],
    }
    vocabulary.close()
    return case


def _header() -> dict[str, Any]:
    return {"llama_cpp_python": llama_cpp.__version__, "seed": SEED}


def _recorded(vocabulary: LlamaCppVocabulary, text: bytes, *, add_special: bool) -> list[Any]:
    plain, parsed = (
        vocabulary.tokenize(text, add_special=add_special, parse_special=parse) for parse in (False, True)
    )
    return [_text(text), plain, None if parsed == plain else parsed]


def _pieces(vocabulary: LlamaCppVocabulary) -> tuple[list[bytes], list[int]]:
    """Every token's piece, and the ids that have one only when special tokens are asked for."""
    pieces = [vocabulary.piece(token, special=True) for token in range(vocabulary.size)]
    shown = [vocabulary.piece(token, special=False) for token in range(vocabulary.size)]
    return pieces, [token for token, piece in enumerate(pieces) if piece != shown[token]]


def _text(data: bytes) -> str:
    return data.decode("latin-1")


def _write(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False)
    # bz2: a quarter smaller here than gzip, and it does not write down when it was made.
    path.write_bytes(bz2.compress(text.encode(), 9))
    print(f"{path}: {path.stat().st_size:,} bytes")


def main() -> None:
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("--model", type=Path, required=True, help="a GGUF file with the vocabulary")
    parser.add_argument("--out", type=Path, default=OUT, help="folder to write to")
    arguments = parser.parse_args()
    _write(arguments.out / "corpus.json.bz2", capture(arguments.model))
    _write(arguments.out / "vocabularies.json.bz2", capture_vocabularies())
    _write(arguments.out / "bpe.json.bz2", capture_bpe())


if __name__ == "__main__":
    main()
