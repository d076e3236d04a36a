"""The parts of an arithmetic that a program may have by themselves, and what each may be.

Products with weights, attention with its cache, and the steps between, in which only half precision rounds.
A program that does not say what it rounds is tried with each candidate of each part (`candidates`), and what
is found is put together again (`composed`): as a profile where one has all of it, else under a name of words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, TypeAlias

from llama_ckpt.arithmetic.either import choices
from llama_ckpt.arithmetic.formats import UNROUNDED
from llama_ckpt.arithmetic.profiles import PROFILES
from llama_ckpt.arithmetic.record import Arithmetic
from llama_ckpt.arithmetic.turns import FAST_TURNS

__all__ = [
    "OTHERS",
    "PARTS",
    "Lines",
    "alike_steps",
    "candidates",
    "as_right",
    "in_halves",
    "composed",
    "in_words",
    "lines_of",
    "plain",
]

Lines: TypeAlias = Mapping[str, Any]
"""Some lines of an arithmetic, as they hold for a number of rows and the types of a file."""

BY_TYPE: Final = ("weights", "activations", "product_sums")

PARTS: Final[Mapping[str, tuple[str, ...]]] = {
    "products": (*BY_TYPE, "products", "stream_products"),
    "attention": (
        *("queries", "keys", "values", "mixing", "keys_at_a_time", "mixed_sums"),
        *("scaling", "scores", "scaled", "probabilities", "context"),
    ),
    "norms": ("norm_weights", "norm_scaled", "norms"),
    "rope": ("turns", "rotation", "turned"),
    "gate": ("silu", "gated"),
    "residual": ("residual",),
    "embeddings": ("embeddings",),
}
"""A part and its lines. RoPE's angles are in none: what float32 makes of them is within every limit."""

STEPS: Final = ("norms", "rope", "gate", "residual", "embeddings")
"""The parts between products, in which only programs in half precision round; each fuses some of them."""

_BOTH: Final = ("tf32", "tf32-away", "tf32-cut", "float16", "bfloat16", "int8 per row", "int8 per tensor")
_FP8: Final = tuple(
    f"{form} per {all_of}" for form in ("fp8_e4m3", "fp8_e5m2") for all_of in ("tensor", "row")
)
_ROWS: Final = ("q8_0", "q8_0-plain", "q8_K", "int8 per 32", "int8 per 64")
_HALVES: Final = ("float16", "bfloat16")
_CACHES: Final = ("float16", "bfloat16", "tf32", "q8_0", "q8_0-plain", "fp8_e4m3", "fp8_e5m2")


ENGINES: Final = ("fast", "high", "high-packed")

OTHERS: Final = tuple(
    sorted((one for name, one in PROFILES.items() if name not in ENGINES), key=lambda one: one.or_float32)
)
"""The profiles of programs that somebody may have written; the others are of the engine here. Last those that
leave open what is rounded: of two that fit, the one that says more is told."""


def lines_of(arithmetic: Arithmetic, part: str, rows: int, types: Sequence[str]) -> Lines:
    """A part's lines as they hold for so many rows and weights of such types."""
    held = arithmetic.for_rows(rows)
    found = {name: getattr(held, name) for name in PARTS[part]}
    for name in BY_TYPE:
        if name in found:
            by_type = found[name]
            found[name] = {kind: _plain(by_type.get(kind, by_type.get("*", "float32"))) for kind in types}
    return found


def _plain(name: str) -> str:
    return "float32" if name in UNROUNDED else name


def plain(part: str, types: Sequence[str]) -> Lines:
    """The lines that round nothing."""
    return lines_of(Arithmetic(), part, 1, types)


def candidates(part: str, rows: int, types: Sequence[str]) -> list[Lines]:
    """What a part may be, each once: first what the profiles have, then plainer ones."""
    found: list[Lines] = []
    as_chosen = (other for one in OTHERS for other in choices(one, (part,)))
    for one in (*OTHERS, *as_chosen, *_plainer(part)):
        lines = lines_of(one, part, rows, types)
        if lines not in found:
            found.append(lines)
    return found


def as_right(profile: Arithmetic, part: str, rows: int, types: Sequence[str]) -> list[Lines]:
    """A part's lines as a profile has them, first as it is written."""
    held = profile.for_rows(rows)
    return [lines_of(one, part, rows, types) for one in (held, *choices(held, (part,)))]


def _plainer(part: str) -> Iterator[Arithmetic]:
    if part == "products":
        for name in (*_BOTH, *_FP8):
            yield Arithmetic(weights={"*": name}, activations={"*": name})
        for name in (*_BOTH, *_ROWS):
            yield Arithmetic(activations={"*": name})
        for name in (*_BOTH, *_FP8):
            yield Arithmetic(weights={"*": name})
    elif part == "attention":
        for name in _CACHES:
            yield Arithmetic(keys=name, values=name)
            yield Arithmetic(queries=name, keys=name, values=name, mixing=name)
        for name in _CACHES:
            yield Arithmetic(keys=name)
            yield Arithmetic(values=name)
        for name in _HALVES:
            yield from _attention_in(name)
    else:
        if part == "rope":
            yield Arithmetic(turns=FAST_TURNS)
        for name in _HALVES:
            yield from _steps_in(name)


def _attention_in(name: str) -> Iterator[Arithmetic]:
    """Attention of a program in a half precision: its steps one by one, or some of them fused."""
    kept: dict[str, Any] = dict.fromkeys(("queries", "keys", "values", "context"), name)
    for scores in ({}, {"scores": name}, {"scores": name, "scaled": name}, {"scaled": name}):
        for probs in ({}, {"mixing": name}, {"probabilities": name, "mixing": name}):
            yield Arithmetic(**{**kept, **scores, **probs})
    yield Arithmetic(**{**kept, "mixing": name, "keys_at_a_time": 512})  # torch's own on a CPU


def _steps_in(name: str) -> Iterator[Arithmetic]:
    """Steps whose result is rounded: what is before it too, as in eager programs, or not, as in kernels."""
    for between in ("float32", name):
        for weight in (name, "float32"):
            yield Arithmetic(norm_scaled=between, norms=name, norm_weights=weight)
        yield Arithmetic(turns=between, rotation=name, turned=name)
        yield Arithmetic(turns=between, turned=name)
        yield Arithmetic(silu=between, gated=name)
    yield Arithmetic(norm_scaled=name)
    yield Arithmetic(residual=name)
    yield Arithmetic(embeddings=name)


def alike_steps(known: Mapping[str, Lines]) -> dict[str, Lines]:
    """What the steps between products round that nobody sees, where those that are seen agree on it.

    A program in half precision rounds each of them; eager ones within a step too, as at a norm's weight.

    Args:
        known: lines of the parts that are seen.
    """
    steps = [lines for part, lines in known.items() if part in STEPS and part != "embeddings"]
    names = {name for lines in steps for name in lines.values()} - UNROUNDED - {FAST_TURNS}
    if len(names) != 1 or any(set(lines.values()) <= UNROUNDED for lines in steps):
        return {}
    (name,) = names
    seen = {line: value for lines in steps for line, value in lines.items() if value != FAST_TURNS}
    return _steps(name, {line: seen.get(line, _within(line, seen)) for line in WITHIN})


def _within(line: str, seen: Lines) -> str:
    """As the other steps that are rounded within."""
    return next((seen[other] for other in WITHIN if other in seen and other != line), "float32")


def _steps(name: str, within: Lines) -> dict[str, Lines]:
    of = dict.fromkeys((line for part in STEPS for line in PARTS[part]), name) | dict(within)
    return {part: {line: of[line] for line in PARTS[part]} for part in STEPS}


WITHIN: Final = ("norm_scaled", "turns", "rotation", "silu")
"""What eager programs round within a step, and fused ones do not."""


def in_halves(rows: int, types: Sequence[str]) -> Iterator[dict[str, Lines]]:
    """All parts of a program in a half precision whose kernels round the result of a step alone."""
    for name in _HALVES:
        products = lines_of(PROFILES[f"{name}-torch"], "products", rows, types)
        for one in _attention_in(name):
            if not {one.scores, one.scaled} <= UNROUNDED:
                continue
            attention = lines_of(one, "attention", rows, types)
            for weight in (name, "float32"):
                steps = _steps(name, {**dict.fromkeys(WITHIN, "float32"), "norm_weights": weight})
                yield {"products": products, "attention": attention, **steps}


def composed(parts: Mapping[str, Lines], rows: int, types: Sequence[str], head: Lines | None) -> Arithmetic:
    """The arithmetic of these parts: a profile where one has all of them.

    Args:
        parts: lines by part.
        head: lines of products that hold for the output head instead; None: the same.
    """
    for profile in OTHERS:
        same = all(lines in as_right(profile, part, rows, types) for part, lines in parts.items())
        of_head = as_right(profile.for_rows(rows).for_head(), "products", rows, types)
        if same and (head or parts["products"]) in of_head:
            return profile
    lines = _shortened({name: value for part in parts.values() for name, value in part.items()})
    made = Arithmetic(about="found out by trying", **lines)
    if head is not None:
        other = {k: v for k, v in _shortened(head).items() if k != "stream_products" and v != lines[k]}
        made = replace(made, head=other)
    return replace(made, name=" and ".join(in_words(made, rows, types)) or "float32")


def _shortened(lines: Lines) -> dict[str, Any]:
    """One line for all types where they are alike."""
    return {
        name: {"*": next(iter(value.values()))}
        if isinstance(value, Mapping) and len(set(value.values())) == 1
        else value
        for name, value in lines.items()
    }


def in_words(arithmetic: Arithmetic, rows: int, types: Sequence[str]) -> list[str]:
    """What is rounded, a clause for each part; nothing where nothing is."""
    lines = {k: v for part in PARTS for k, v in lines_of(arithmetic, part, rows, types).items()}
    said = [*_products(lines), *_attention(lines)]
    others = {lines[name] for part in STEPS for name in PARTS[part]} - UNROUNDED - {FAST_TURNS}
    if lines["turns"] == FAST_TURNS:
        said.append("cosines and sines by a GPU's fast instructions")
    return [*said, *(f"steps between in {name}" for name in sorted(others))]


def _products(lines: Lines) -> Iterator[str]:
    rows, read, sums = (
        set(lines[name].values()) - UNROUNDED for name in ("activations", "weights", "product_sums")
    )
    if rows and rows == read:
        yield f"weights and activations of products in {_said(rows)}"
    else:
        if rows:
            yield f"activations in {_said(rows)}"
        if read:
            yield f"weights in {_said(read)}"
    if sums:
        yield f"products summed in {' and '.join(sorted(sums))}"


def _said(names: set[str]) -> str:
    """Formats in a few words; the block formats of 8 bits differ in how a block is rounded."""
    blocks = {name for name in names if name.startswith("q8_") or name in ("int8 per 32", "int8 per 64")}
    others = sorted(_upper(name) for name in names - blocks)
    return " and ".join([*others, *(["8-bit blocks"] if blocks else [])])


def _upper(name: str) -> str:
    """TF32 is written so."""
    return name.replace("tf32", "TF32").replace("-", ", ")


def _attention(lines: Lines) -> Iterator[str]:
    kept = {lines["keys"], lines["values"]}
    inside = {lines["queries"], lines["mixing"]} - UNROUNDED
    if inside and inside == kept - UNROUNDED:
        yield f"attention's products in {_said(inside)}"
    else:
        for names, words in (
            ((("keys", "values"), "keys and values"),)
            if len(kept) == 1
            else ((("keys",), "keys"), (("values",), "values"))
        ):
            if lines[names[0]] not in UNROUNDED:
                yield f"{words} in {_said({lines[names[0]]})}"
        if inside:
            yield f"queries or probabilities in {_said(inside)}"
    if lines["mixed_sums"] not in UNROUNDED:
        yield f"values summed in {lines['mixed_sums']}"
