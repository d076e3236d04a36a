"""Real vocabularies beside llama.cpp: its own test vectors, and 2,000 random strings each."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from llama_ckpt.gguf.file import open_gguf
from llama_ckpt.tokens.tokenizer import Tokenizer
from tests.tokens.tokenizer_data import vectors_of
from tools.fetch_vocabularies import FOLDER

NAMES = (
    *(
        "llama-spm",
        "llama-bpe",
        "deepseek-coder",
        "deepseek-llm",
        "gpt-2",
        "qwen2",
        "qwen35",
        "falcon",
        "mpt",
    ),
    *("phi-3", "command-r", "refact", "starcoder", "aquila", "baichuan", "gpt-neox"),
)
REAL = (*(f"ggml-vocab-{name}.gguf" for name in NAMES), "tekken.gguf", "smollm2.gguf")

SCRIPTS = {
    "Latin": "Der Straße naïve café, Łódź i İstanbul: 3½ Œuvres.",
    "Greek": "Ἐν ἀρχῇ ἐποίησεν ὁ Θεὸς τὸν οὐρανὸν καὶ τὴν γῆν.",
    "Cyrillic": "В начале сотворил Бог небо и землю; їжак, љубав.",
    "Armenian": "Սկզբում Աստված ստեղծեց երկինքն ու երկիրը։",
    "Georgian": "დასაბამად ღმერთმა ქმნა ცა და მიწა.",
    "Hebrew": "בְּרֵאשִׁית בָּרָא אֱלֹהִים אֵת הַשָּׁמַיִם וְאֵת הָאָרֶץ׃",
    "Arabic": "فِي الْبَدْءِ خَلَقَ اللهُ السَّمَاوَاتِ وَالأَرْضَ، ٣٤٥.",
    "Devanagari": "आदि में परमेश्वर ने आकाश और पृथ्वी की सृष्टि की। १२३",
    "Bengali": "আদিতে ঈশ্বর আকাশমণ্ডল ও পৃথিবী সৃষ্টি করলেন।",
    "Tamil": "ஆதியிலே தேவன் வானத்தையும் பூமியையும் சிருஷ்டித்தார்.",
    "Telugu": "ఆదియందు దేవుడు భూమ్యాకాశములను సృజించెను.",
    "Malayalam": "ആദിയിൽ ദൈവം ആകാശവും ഭൂമിയും സൃഷ്ടിച്ചു.",
    "Sinhala": "ආදියේදී දෙවියන් වහන්සේ අහසත් පොළොවත් මැවූ සේක.",
    "Thai": "ในปฐมกาลพระเจ้าทรงเนรมิตสร้างฟ้าและแผ่นดิน ๑๒๓",
    "Lao": "ໃນ​ຕົ້ນເດີມ​ພຣະເຈົ້າ​ໄດ້​ສ້າງ​ຟ້າ​ແລະ​ແຜ່ນດິນ",
    "Khmer": "កាល​ដើម​ដំបូង ព្រះ​បាន​បង្កើត​ផ្ទៃ​មេឃ និង​ផែនដី",
    "Myanmar": "အစအဦး၌ ဘုရားသခင်သည် ကောင်းကင်နှင့် မြေကြီးကို ဖန်ဆင်းတော်မူ၏။",
    "Tibetan": "ཐོག་མར་དཀོན་མཆོག་གིས་གནམ་ས་གཉིས་བཀོད་པ་མཛད།",
    "Ethiopic": "በመጀመሪያ እግዚአብሔር ሰማይንና ምድርን ፈጠረ።",
    "Han": "起初，神創造天地。１２３ 「地是空虛混沌」",
    "Kana": "はじめに神は天と地とを創造された。カタカナ、ｶﾞｷﾞ",
    "Hangul": "태초에 하나님이 천지를 창조하시니라. 한글",
    "Mongolian": "ᠡᠬᠢᠨ ᠳᠦ ᠪᠤᠷᠬᠠᠨ ᠲᠡᠩᠷᠢ ᠭᠠᠵᠠᠷ ᠢ ᠪᠦᠲᠦᠭᠡᠪᠡ᠃",
    "signs": "👩‍👩‍👧‍👦 🇩🇪 ∑∫√ ∀x∈ℝ: ⌈x⌉ ≥ x — “so” …\u200b\ufeff\u0301",
}
"""A sentence each in twenty scripts and more, with their digits, marks and joiners."""

WITHOUT_VECTORS = ("mpt", "aquila", "baichuan", "gpt-neox")


def vocabulary(name: str) -> Path:
    """A vocabulary that was fetched, or the test is skipped."""
    path = Path(os.environ.get("LLAMA_CKPT_VOCABULARIES", FOLDER)) / name
    if not path.exists():
        pytest.skip(f"{name} is not fetched: make vocabularies (90 MB)")
    return path


@pytest.mark.parametrize("name", [name for name in NAMES if name not in WITHOUT_VECTORS])
def test_llama_cpps_own_vectors(name: str) -> None:
    path = vocabulary(f"ggml-vocab-{name}.gguf")
    tokenizer, cases = Tokenizer.from_gguf(open_gguf(path)), vectors_of(path)
    assert len(cases) > 40
    assert [text for text, ids in cases if tokenizer.encode(text, add_bos=False) != ids] == []


@pytest.mark.llama_cpp
@pytest.mark.parametrize("name", REAL)
def test_scripts(name: str) -> None:
    from tools.capture_tokenizer_corpus import LlamaCppVocabulary

    path = vocabulary(name)
    tokenizer, wanted = Tokenizer.from_gguf(open_gguf(path)), LlamaCppVocabulary(path)
    marks = ("", "<s>", "<|begin_of_text|>", "</s>", "<|im_end|>")
    texts = [mark + text + mark for text in SCRIPTS.values() for mark in marks]
    texts += [text[at:] for text in SCRIPTS.values() for at in range(1, len(text), 3)]
    assert len(SCRIPTS) > 20
    for parse in (False, True):
        said = {text: wanted.tokenize(text.encode(), add_special=True, parse_special=parse) for text in texts}
        assert [t for t in texts if tokenizer.encode(t, parse_special=parse) != said[t]] == []
    wanted.close()


@pytest.mark.llama_cpp
@pytest.mark.parametrize("name", REAL)
def test_random_strings(name: str) -> None:
    from tools.capture_tokenizer_corpus import LlamaCppVocabulary, is_readable, random_strings
    from tools.random_bpe_vocabulary import mixture

    path, rng = vocabulary(name), random.Random()
    tokenizer, wanted = Tokenizer.from_gguf(open_gguf(path)), LlamaCppVocabulary(path)
    pieces = [wanted.piece(token, special=True) for token in range(wanted.size)]
    assert [tokenizer.piece(token) for token in range(tokenizer.vocab_size)] == pieces
    assert tokenizer.eog_ids == {token for token in range(wanted.size) if wanted.ends(token)}
    texts = [*filter(is_readable, random_strings(rng, 1500, pieces)), *(mixture(rng) for _ in range(500))]
    for parse in (False, True):
        said = {text: wanted.tokenize(text, add_special=True, parse_special=parse) for text in texts}
        assert [t for t in texts if tokenizer.encode(t, parse_special=parse) != said[t]] == []
    wanted.close()
