r"""The pre-tokenizers that files name, as llama.cpp cuts by them.

The expressions are those of the models' own tokenizers, where llama.cpp keeps to them; where it reads one in
another way (it knows no cases beyond ASCII, for one), this is its way.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from llama_ckpt.tokens.pre_tokenizing import DIGITS, PreTokenizer

__all__ = ["PRE_TOKENIZERS"]

_CONTRACTIONS = r"'s|'t|'re|'ve|'m|'ll|'d"
_ANY_CASE = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_OTHERS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_OTHERS_AND_SLASHES = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_SPACES = r"\s+(?!\S)|\s+"
_LINES = r"\s*[\r\n]+|" + _SPACES


def _either(*expressions: str) -> str:
    return "|".join(expressions)


def _by_case(upper: str, lower: str, ending: str = "") -> str:
    """A word of capitals and then small letters, or of capitals alone, with what else may stand before it."""
    before = r"[^\r\n\p{L}\p{N}]?"
    return f"{before}{upper}*{lower}+{ending}|{before}{upper}+{lower}*{ending}"


_UPPER, _LOWER = r"(?:(?=[\p{L}])[^a-z])", r"(?:(?=[\p{L}])[^A-Z])"
_UPPER_OR_MARK, _LOWER_OR_MARK = r"(?:(?=[\p{L}\p{M}])[^a-z])", r"(?:(?=[\p{L}\p{M}])[^A-Z])"
_MARKED = _by_case(r"[\p{L}\p{M}]", r"[\p{L}\p{M}]", _ANY_CASE + "?")
_ASCII_PUNCTUATION = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"""
_DEEPSEEK_V3_WORD = _ASCII_PUNCTUATION + r"[A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
_CHINESE_JAPANESE = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_FROM_0800 = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"  # DeepSeek's own range: far more than Chinese
_BLOOM_WORD = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"
_DEEPSEEK_LETTERS = (
    "\\s?[A-Za-z"
    "\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373"
    "\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481"
    "\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf"
    "\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d"
    "\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4"
    "\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107"
    "\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f"
    "\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d"
    "\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17"
    "\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb"
    "\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
    "]+"
)
_DEEPSEEK_PUNCTUATION = "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"
_YOUTU_SCRIPTS = _either(
    "[\uac00-\ud7a3\u3131-\u318e]+",
    "[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c\u3001-\u303f\ufe30-\ufe4f]+",
    "[\u3105-\u312f]+",
    _CHINESE_JAPANESE,
)
_AFMOE_SCRIPTS = (
    "[\u4e00-\u9fff\u3400-\u4dbf\u8c48-\ufaff\u3040-\u309f\u30a0-\u30ff\uff65-\uff9f\u2f00-\u2fdf\u0e40-\u0e7f"
    "\u0e80-\u0eff\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff\uac00-\ud7af\u1100-\u11ff]+"
)

_GPT2 = _either(_CONTRACTIONS, r" ?\p{L}+", r" ?\p{N}+", r" ?[^\s\p{L}\p{N}]+", _SPACES)
_LLAMA3 = _either(_ANY_CASE, _WORD, r"\p{N}{1,3}", _OTHERS, _LINES)
_QWEN2 = _either(_ANY_CASE, _WORD, r"\p{N}", _OTHERS, _LINES)
_DEEPSEEK_V3 = _either(_DEEPSEEK_V3_WORD, r" ?[\p{P}\p{S}]+[\r\n]*", _LINES)
_EXPRESSIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"),
    "gpt-2": (_GPT2,),
    "llama-bpe": (_LLAMA3,),
    "qwen2": (_QWEN2,),
    "smollm": (r"\p{N}", _GPT2),
    "tekken": (_either(_by_case(_UPPER, _LOWER), r"\p{N}", _OTHERS_AND_SLASHES, _LINES),),
    "deepseek-llm": (
        "[\r\n]",
        _DEEPSEEK_LETTERS,
        _DEEPSEEK_PUNCTUATION,
        r"\s+\Z",
        _FROM_0800,
        r"\p{N}+",
    ),
    "deepseek-coder": ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _FROM_0800, r"\p{N}"),
    "deepseek-v3": (r"\p{N}{1,3}", _CHINESE_JAPANESE, _DEEPSEEK_V3),
    "falcon": (r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]"),
    "gpt-4o": (
        _either(_by_case(_UPPER, _LOWER, _ANY_CASE + "?"), r"\p{N}{1,3}", _OTHERS_AND_SLASHES, _LINES),
    ),
    "qwen35": (
        _either(
            _ANY_CASE,
            r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+",
            r"\p{N}",
            r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*",
            _LINES,
        ),
    ),
    "bloom": (_BLOOM_WORD,),
    "viking": (_BLOOM_WORD, r"\p{N}"),
    "youtu": (_YOUTU_SCRIPTS, _either(_MARKED, r"\p{N}", _OTHERS_AND_SLASHES, _LINES)),
    "tiny_aya": (DIGITS, _either(_MARKED, r"\p{N}{1,3}", _OTHERS_AND_SLASHES, _LINES)),
    "afmoe": (DIGITS, _AFMOE_SCRIPTS, _DEEPSEEK_V3),
    "spark2_5": (
        r"\p{N}{1,3}",
        _CHINESE_JAPANESE,
        _either(_DEEPSEEK_V3_WORD, r" ?[\p{P}\p{S}]+", r"[\r\n]", _SPACES),
        r"\p{N}",
    ),
    "granite-embed-multi-97m": (
        _either(
            _by_case(_UPPER_OR_MARK, _LOWER_OR_MARK, _ANY_CASE + "?"),
            r"\p{N}{1,3}",
            _OTHERS_AND_SLASHES,
            _LINES,
        ),
    ),
    "bailingmoe": (
        _either(
            r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])", _WORD, r"\p{N}", _OTHERS, r"\s*[\r\n]", _SPACES
        ),
    ),
    "seed-coder": (_either(_ANY_CASE, _WORD, r"\p{N}", r" ?[^\s\p{L}\p{N}\r\n]+", _LINES),),
    "ufakzeka": (_either(_WORD, r"\p{N}", _OTHERS, _LINES),),
    "exaone-moe": (
        _either(
            _ANY_CASE,
            r"[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+",
            r"\p{N}",
            r" ?[^\s\p{L}\p{N}]+[\r\n/]?",
            r"\s*[\r\n]",
            _SPACES,
        ),
    ),
    "minicpm5": (r"\p{N}{1,3}", _either(_ANY_CASE, _WORD, r"\p{N}+", _OTHERS, _LINES)),
    "jais-2": (
        _either(
            *(_ANY_CASE, _WORD, r"\p{N}{1,3}", _OTHERS, r"\s*[\r\n]+"),
            *(rf"\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4)),
            *(r"\s{1,2}(?!\S)", r"\s{1}"),
        ),
    ),
    "laguna": (r"[^\n]+|[\n]+", _QWEN2),
    "chameleon": (
        "<sentinel:[0-9]+>",
        "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
        r"([\t\n]|    |  )",
        r"\p{N}",
        r"[\p{P}!-/:-@\[-`{-~]",
        _GPT2,
    ),
    "superbpe": (r"\p{N}+", r"(?=(\d{3})+(?!\d))"),
}
"""By the name of one that cuts so."""

_SAME: Final[Mapping[str, tuple[str, ...]]] = {
    "gpt-2": (
        *("phi-2", "jina-es", "jina-de", "gigachat", "jina-v2-es", "jina-v2-de", "a.x-4.0", "mellum"),
        *("modern-bert", "jina-v1-en", "jina-v2-code", "roberta-bpe", "mpt", "olmo", "jais", "exaone4"),
        *("trillion", "granite-docling"),
    ),
    "llama-bpe": (
        *("llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"),
        *("dbrx", "smaug-bpe", "chatglm-bpe", "glm4", "glm5"),
    ),
    "qwen2": (
        *("deepseek-r1-qwen", "kormo", "f2llmv2", "stablelm2", "megrez", "hunyuan", "solar-open", "grok-2"),
    ),
    "smollm": ("starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"),
    "deepseek-v3": ("hunyuan-dense", "joyai-llm", "hy_v4"),
    "gpt-4o": ("llama4", "kanana2", "talkie", "minimax-m2"),
    "bloom": ("gpt3-finnish", "poro-chat"),
    "tiny_aya": ("cohere2moe",),
    "bailingmoe": ("bailingmoe2", "llada-moe"),
}
"""Names that stand for the same cuts."""

_LLAMA3_FAMILY = (
    *("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"),
    "jina-v5-nano",
)
_IGNORE_MERGES = frozenset(
    (*_LLAMA3_FAMILY, "tekken", "minicpm5", "youtu", "glm4", "glm5", "granite-embed-multi-97m")
)
_ADD_BOS = frozenset((*_LLAMA3_FAMILY, "tekken", "chameleon"))
_NO_BOS = frozenset(("chatglm-bpe", "glm4", "glm5"))


def _all() -> dict[str, PreTokenizer]:
    cuts = dict(_EXPRESSIONS)
    cuts |= {same: cuts[name] for name, names in _SAME.items() for same in names}
    return {
        name: PreTokenizer(stages, name in _IGNORE_MERGES, name in _ADD_BOS, name not in _NO_BOS)
        for name, stages in cuts.items()
    }


PRE_TOKENIZERS: Final[Mapping[str, PreTokenizer]] = MappingProxyType(_all())
"""By the name in `tokenizer.ggml.pre`; a file that names none has "default"."""
