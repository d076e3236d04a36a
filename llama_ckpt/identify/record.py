"""What is asked of an identifier, what it guesses, and what is said of a guess that was tried.

An identifier is a function of what was asked that yields guesses, the simplest first:

    def my_guesses(asked: Asked) -> Iterator[Guess]:
        if asked.point != "ffn_gate":
            return
        yield Guess("product.tail", "columns 160 to 191 of the sum are missing", {asked.name: made},
                    free_numbers=1, place=Place(columns=((160, 191),)), code="a tile that rounds down")

A guess says what the tensors would be; whether it explains them is found by `weighing`, alike for all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.identify.places import NOWHERE, Place
from llama_ckpt.json_values import finite
from llama_ckpt.judging.evidence import Evidence
from llama_ckpt.points import split_name

__all__ = ["NOTHING_AROUND", "Around", "Asked", "Guess", "Identified", "Identifier", "within_but_not_so"]

Array: TypeAlias = NDArray[Any]


@dataclass(frozen=True)
class Around:
    """What else is known where the call was made; any of it may be missing.

    Attributes:
        config: the model's sizes and settings, as `LlamaConfig`.
        weights: the model's, as `OracleWeights`: token_embd, blocks (made when asked for, so of a large
            model ask for few), output_norm, output.
        theirs: other tensors of their dump that were recorded in this block, by neutral point name.
        token_ids, positions: of the prompt.
    """

    config: Any = None
    weights: Any = None
    theirs: Mapping[str, Array] = field(default_factory=dict)
    token_ids: Sequence[int] = ()
    positions: Sequence[int] = ()


NOTHING_AROUND = Around()
"""Where a call stands alone."""


@dataclass(frozen=True)
class Asked:
    """The tensors of one call, the first wrong one first, and what is around.

    Attributes:
        evidence: right and wrong ones of one call; all say something of what it cannot be.
        around: of the model and the dump.
    """

    evidence: Sequence[Evidence]
    around: Around = NOTHING_AROUND

    @property
    def first(self) -> Evidence:
        """The first wrong tensor."""
        return self.evidence[0]

    @property
    def name(self) -> str:
        """Its full name."""
        return self.first.name

    @property
    def point(self) -> str:
        """Its neutral name."""
        return split_name(self.first.name)[1]

    @property
    def block(self) -> int | None:
        """The number of its block; None outside the blocks."""
        return split_name(self.first.name)[0]

    @property
    def x(self) -> Array:
        """The tensor on trial, in float64."""
        return np.asarray(self.first.x, np.float64)

    @property
    def o(self) -> Array:
        """What it should be."""
        return np.asarray(self.first.o, np.float64)

    @property
    def given(self) -> Mapping[str, Any]:
        """The call's arguments, as the oracle takes them."""
        return self.first.case.arguments

    def of(self, point: str) -> Evidence | None:
        """What there is at another point of the same call, by neutral name."""
        return next((one for one in self.evidence if split_name(one.name)[1] == point), None)

    def theirs(self, point: str) -> Array | None:
        """Their tensor at any point of this block, in float64; None where it was not recorded."""
        one = self.of(point)
        found = self.around.theirs.get(point) if one is None else np.asarray(one.x)
        return None if found is None else np.asarray(found, np.float64)


@dataclass(frozen=True)
class Guess:
    """What may have been computed, and what the call's tensors would be then.

    Attributes:
        kind: family and what it is: "rope.positions", "product.columns".
        sentence: what was computed, complete in itself, without figures of how well it fits.
        predicted: tensors by full name; what is not named is as the oracle has it.
        free_numbers: numbers that were read from the tensor, discrete ones too; a permutation of n has n.
        place: what is wrong; the rest is right.
        parameters: plain values: numbers, strings, lists of them; for JSON and pictures.
        code: the code that usually does it, a clause; "" where nobody knows.
        would_tell: the prompt or point that tells it from others like it, a clause.
        part: whether it may be named as a part of the truth, too.
        exact: whether it was found by numbers that are equal to the last digit: however wide the limits are.
    """

    kind: str
    sentence: str
    predicted: Mapping[str, Array] = field(repr=False, compare=False)
    free_numbers: int = 0
    place: Place = NOWHERE
    parameters: Mapping[str, Any] = field(default_factory=dict, compare=False)
    code: str = ""
    would_tell: str = ""
    part: bool = True
    exact: bool = False


Identifier: TypeAlias = Callable[[Asked], Iterator[Guess]]
"""Yields guesses; it must not raise for what it cannot read: then it yields nothing."""


def within_but_not_so(left: float, allowed: float) -> str:
    """What is said of an explanation that leaves no more than rounding, but otherwise than rounding does."""
    return (
        f"{left:.1e} remains, of {allowed:.1e} that rounding leaves, but not as it leaves it:"
        " rounded another way, or something else as well"
    )


@dataclass(frozen=True)
class Identified:
    """A guess that was tried.

    Attributes:
        kind, sentence, free_numbers, place, code, parameters, would_tell, predicted: as in `Guess`.
        explained: whether every tensor of the call would pass.
        explains: the share of the error's square that it explains, where it explains least.
        left: the relative error that remains there; allowed: what rounding may leave there.
        equations: how many numbers of theirs it was held against: judged elements of wrong tensors.
        next_best: the best guess that explains less or needs more numbers, and what it leaves.
        alike: other guesses that the data cannot tell apart from it, each with what would tell.
    """

    kind: str
    sentence: str
    place: Place
    explained: bool
    explains: float
    left: float
    allowed: float
    free_numbers: int
    equations: int
    next_best: tuple[str, float] | None = None
    alike: tuple[str, ...] = ()
    code: str = ""
    would_tell: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    predicted: Mapping[str, Array] = field(default_factory=dict, repr=False, compare=False)

    def said(self) -> str:
        """With what it leaves, a sentence for a report."""
        also = f" (or, alike here: {'; or '.join(self.alike)})" if self.alike else ""
        if self.explained:
            return f"{self.sentence}{also}: remaining error {self.left:.1e}"
        if self.left <= self.allowed:
            return f"{self.sentence}{also}: {within_but_not_so(self.left, self.allowed)}"
        share = min(int(1000 * self.explains) / 10, 99.9)  # never all of it
        return (
            f"a part of it: {self.sentence}{also}; explains {share:.3g}% of the error's square;"
            f" {self.left:.1e} remains where rounding leaves {self.allowed:.1e}: something else as well"
        )

    def certainty(self) -> str:
        """How sure that is: what it explains, with how many numbers, and what the next best leaves."""
        few = f"{self.free_numbers} number{'s' * (self.free_numbers != 1)} read from {self.equations:,}"
        then = "" if self.next_best is None else f"; next best: {self.next_best[0]}, {self.next_best[1]:.1e}"
        return f"explains {100 * self.explains:.6g}% of the error's square by {few}{then}"

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dumps`, without the tensors."""
        left_out = {"predicted", "place"}
        plain = {name: value for name, value in vars(self).items() if name not in left_out}
        plain |= {"alike": list(self.alike), "next_best": self.next_best and list(self.next_best)}
        found: dict[str, Any] = finite(plain | {"place": self.place.to_json(), "certainty": self.certainty()})
        return found
