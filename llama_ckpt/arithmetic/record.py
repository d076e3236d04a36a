"""One record with a line for each place where a Llama rounds: what a program declares of its arithmetic.

Every line names a rounding (`formats`), or how something is computed. As JSON:

    {"like": "llama.cpp-cpu", "name": "mine", "keys": "float16", "values": "float16"}

`like` takes the lines that are not given from a profile (`profiles`), else from `float32`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from typing import Any, Final

from llama_ckpt.arithmetic.formats import check_format
from llama_ckpt.arithmetic.products import HALF_PRODUCTS, HALF_SCALES, TENSOR_CORES, parsed_sums
from llama_ckpt.arithmetic.tensor_cores import FP8_SUMS
from llama_ckpt.arithmetic.turns import FAST_TURNS
from llama_ckpt.errors import OptionError
from llama_ckpt.outside import quoted, whole_number

__all__ = ["ANGLES", "Arithmetic", "arithmetic_lines", "with_lines"]

ANGLES: Final[Mapping[str, str]] = {
    "float64": "position times frequency, in float64",
    "float32": "position times frequency, both and the product in float32",
    "float32-steps": "the position, then from pair to pair times the ratio of two frequencies, in float32",
    "float32-powers": "the position times a power of the ratio of two frequencies, in float32",
}
"""How RoPE's angles are made; then cos and sin are taken of them."""


@dataclass(frozen=True)
class Arithmetic:
    """What a program rounds, and where. Everything else it computes in float32, or as exactly.

    Attributes:
        name: of the profile, or of whoever declares it.
        about: whose arithmetic it is, in a sentence.
        source: the files of that program that it was read in.
        weights: what a matrix's values are rounded to when they are read, by its type in the file, "*" for
            the others; "float32": as the file means them; "float16 scales": scales of groups are rounded;
            "float16 products of scales": their products with the activations' scales and sums are.
        norm_weights: the same for the weights of norms.
        activations: what a row is rounded to before its product with a weight, by the weight's type in the
            file ("Q4_0"); "*" for the types that are not named.
        stream_activations: the same before the last products of attention and of the feed-forward network,
            where it is something else there; of types that are not named `activations` holds.
        product_sums: what a product is summed in, by the weight's type: "float32"; "float16 every 16", a
            running sum that is rounded after so many terms; "float16 every 16 in 4 parts" of the row, which
            are added one by one;
            "float16 in 512 strands", running sums side by side; "fp8 tensor cores" and "fp8 tensor cores,
            fast", as Hopper adds up products of fp8 (`tensor_cores`).
        products: what the result of a product with a weight is rounded to: queries, keys, values, gate, up.
        stream_products: the same for the outputs of attention and of the feed-forward network.
        embeddings: what a row of the table is rounded to.
        norm_scaled: what a row is rounded to after its division, before the weight.
        norms: what the result of a norm is rounded to.
        or_float32: whether each product that is rounded here may be in float32 as well, as the library
            that makes it chooses by its size.
        angles: a key of ANGLES.
        turns: what cos and sin are rounded to; "sin.approx": they are those of a GPU's fast instructions.
        rotation: what RoPE's products and their sums are rounded to, one by one.
        turned: what a query or key is rounded to once it is turned.
        scaling: what the scores' scale is multiplied with: "scores", or "queries and keys", each with its
            root, before they are rounded for their products.
        keys: what the cache keeps, or attention takes, of a key after RoPE.
        values: the same for a value.
        queries: what a query is rounded to before its products with keys.
        scores: what these products are rounded to, before anything is done with them.
        scaled: what a scaled score is rounded to.
        probabilities: what the result of the softmax is rounded to.
        mixing: what probabilities are rounded to before their products with values.
        keys_at_a_time: 0 where the softmax runs over all keys before values are mixed. N: a fused kernel
            takes N keys after one another; what it mixes are exp(score - the largest so far), and the sum
            of these divides at the end.
        mixed_sums: what a fused kernel keeps its running sum of values in, rounded after each N keys.
        context: what the mixed values are rounded to.
        silu: what silu of the gate is rounded to.
        gated: what its product with up is rounded to.
        residual: what residual sums are rounded to.
        head: the lines that hold for the product with the output head instead.
        fewer_rows: a number of rows to the lines that hold with fewer of them, where a program then takes
            other kernels; the smallest number that is above the rows counts.
    """

    name: str = "float32"
    about: str = ""
    source: str = ""
    weights: Mapping[str, str] = field(default_factory=lambda: {"*": "float32"})
    norm_weights: str = "float32"
    activations: Mapping[str, str] = field(default_factory=lambda: {"*": "float32"})
    stream_activations: Mapping[str, str] = field(default_factory=dict)
    product_sums: Mapping[str, str] = field(default_factory=lambda: {"*": "float32"})
    products: str = "float32"
    stream_products: str = "float32"
    or_float32: bool = False
    embeddings: str = "float32"
    norm_scaled: str = "float32"
    norms: str = "float32"
    angles: str = "float64"
    turns: str = "float32"
    rotation: str = "float32"
    turned: str = "float32"
    scaling: str = "scores"
    keys: str = "float32"
    values: str = "float32"
    queries: str = "float32"
    scores: str = "float32"
    scaled: str = "float32"
    probabilities: str = "float32"
    mixing: str = "float32"
    keys_at_a_time: int = 0
    mixed_sums: str = "float32"
    context: str = "float32"
    silu: str = "float32"
    gated: str = "float32"
    residual: str = "float32"
    head: Mapping[str, Any] = field(default_factory=dict)
    fewer_rows: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)

    def for_rows(self, n: int) -> Arithmetic:
        """The lines that hold for a product of n rows."""
        above = [rows for rows in self.fewer_rows if n < rows]
        return replace(self, fewer_rows={}, **self.fewer_rows[min(above)]) if above else self

    def for_head(self) -> Arithmetic:
        """The lines that hold for the output head."""
        return replace(self, head={}, **self.head) if self.head else self

    def activation(self, weight_type: str, *, stream: bool = False) -> str:
        """What a row is rounded to before its product with a weight of that type.

        Args:
            stream: before the last product of attention or of the feed-forward network.
        """
        whole = _of_type(self.activations, weight_type)
        return _of_type(self.stream_activations, weight_type, whole) if stream else whole

    def reading(self, weight_type: str) -> str:
        """What the values of a weight of that type are rounded to."""
        return _of_type(self.weights, weight_type)

    def sums(self, weight_type: str) -> str:
        """What a product with a weight of that type is summed in."""
        return _of_type(self.product_sums, weight_type)


def _of_type(by_type: Mapping[str, str], weight_type: str, other: str = "float32") -> str:
    return by_type.get(weight_type, by_type.get("*", other))


SCALINGS: Final = ("scores", "queries and keys")
"""What the scale of scores may be multiplied with."""

WORDS: Final = frozenset({"name", "about", "source"})
"""The fields that say whose arithmetic it is."""


def with_lines(base: Arithmetic, lines: Mapping[str, Any]) -> Arithmetic:
    """`base` with some of its lines replaced, each checked.

    Raises:
        OptionError: a line that is not known, or a value that it cannot have.
    """
    known = [one.name for one in fields(Arithmetic)]
    checked = {}
    for name, value in lines.items():
        if name not in known:
            near = get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}" if near else "`llama-ckpt explain arithmetic` lists them"
            raise OptionError(
                "a line of an arithmetic", got=quoted(name), wanted="one that there is", hint=hint
            )
        checked[name] = _checked(base, name, value)
    return replace(base, **checked)


def _checked(base: Arithmetic, name: str, value: Any) -> Any:
    what = f"{name} of an arithmetic"
    if name in WORDS:
        if isinstance(value, str):
            return value
        raise OptionError(what, got=quoted(value), wanted="a text")
    if name == "angles":
        if isinstance(value, str) and value in ANGLES:
            return value
        raise OptionError(what, got=quoted(value), wanted=" or ".join(ANGLES))
    if name == "turns" and value == FAST_TURNS:
        return value
    if name in BY_TYPE:
        return _checked_by_type(what, value, BY_TYPE[name])
    if name == "or_float32":
        if isinstance(value, bool):
            return value
        raise OptionError(what, got=quoted(value), wanted="true or false")
    if name == "scaling":
        if value in SCALINGS:
            return value
        raise OptionError(what, got=quoted(value), wanted=" or ".join(SCALINGS))
    if name == "keys_at_a_time":
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return value
        raise OptionError(what, got=quoted(value), wanted="a number of keys, 0 for all at once")
    if name == "head":
        return _checked_part(base, what, value)
    if name == "fewer_rows":
        return _checked_rows(base, what, value)
    return check_format(value, what)


def _checked_sums(what: str, value: Any) -> str:
    try:
        if not isinstance(value, str):
            raise ValueError
        if value not in ("float32", TENSOR_CORES, *FP8_SUMS):
            check_format(parsed_sums(value)[0], what)
        return value
    except ValueError:
        wanted = '"float32", or such as "float16 every 16"'
        raise OptionError(what, got=quoted(value), wanted=wanted) from None


def _checked_reading(what: str, value: Any) -> str:
    return value if value in (HALF_SCALES, HALF_PRODUCTS) else check_format(value, what)


def _checked_by_type(what: str, value: Any, check: Callable[[str, Any], str]) -> Mapping[str, str]:
    by_type = {"*": value} if isinstance(value, str) else value
    if not isinstance(by_type, Mapping):
        raise OptionError(
            what, got=quoted(value), wanted='a rounding, or one by type such as {"Q4_0": "q8_0"}'
        )
    return {str(kind): check(f"{what} for {kind}", one) for kind, one in by_type.items()}


BY_TYPE: Final[Mapping[str, Callable[[str, Any], str]]] = {
    "weights": _checked_reading,
    **dict.fromkeys(("activations", "stream_activations"), lambda what, value: check_format(value, what)),
    "product_sums": _checked_sums,
}
"""The lines that may differ with a weight's type in the file, and how a value is checked."""


def _checked_rows(base: Arithmetic, what: str, value: Any) -> Mapping[int, Mapping[str, Any]]:
    if not isinstance(value, Mapping) or not all(whole_number(str(rows)) is not None for rows in value):
        raise OptionError(
            what, got=quoted(value), wanted='numbers of rows to lines, {"9": {"keys": "float16"}}'
        )
    return {int(rows): _checked_part(base, f"{what}, below {rows}", part) for rows, part in value.items()}


def _checked_part(base: Arithmetic, what: str, lines: Any) -> Mapping[str, Any]:
    """Lines that hold in some case only."""
    if not isinstance(lines, Mapping) or {"head", "fewer_rows", *WORDS} & set(lines):
        raise OptionError(what, got=quoted(lines), wanted="lines that name roundings")
    changed = with_lines(base, lines)
    return {str(name): getattr(changed, name) for name in lines}


def arithmetic_lines(arithmetic: Arithmetic) -> dict[str, Any]:
    """As JSON has it: the lines that differ from plain float32, which `with_lines` reads again."""
    plain = Arithmetic()
    made: dict[str, Any] = {"name": arithmetic.name}
    for one in fields(Arithmetic):
        value = getattr(arithmetic, one.name)
        if one.name != "name" and value != getattr(plain, one.name):
            made[one.name] = dict(value) if isinstance(value, Mapping) else value
    if "fewer_rows" in made:
        made["fewer_rows"] = {str(rows): dict(lines) for rows, lines in made["fewer_rows"].items()}
    return made
