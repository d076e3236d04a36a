"""What the catalogue says of one bug."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from llama_ckpt.diagnose.patched_oracle import Patch, PatchedOracle

__all__ = ["Bug"]


@dataclass(frozen=True)
class Bug:
    """A mistake that people really make, as a patch of the oracle.

    Attributes:
        name: short, unique in the catalogue: "rope-half-split".
        sentence: what the wrong program does, a clause: "RoPE turns pairs (i, i+d/2) instead of …".
        checkpoint: the id of the checkpoint that must catch it, and no earlier one.
        function: the oracle's function that it replaces.
        patch: what stands there instead.
        sees_later: a token's row depends on later tokens, so that a few of them alone do not show it.
    """

    name: str
    sentence: str
    checkpoint: str
    function: str
    patch: Patch
    sees_later: bool = False

    @property
    def rounds(self) -> bool:
        """Whether what is wrong is a rounding, which may fall another way elsewhere: its name says so."""
        return any(word in self.name for word in ("float16", "tf32", "8-bit"))

    @cached_property
    def oracle(self) -> PatchedOracle:
        """The oracle with this bug."""
        return PatchedOracle({self.function: self.patch})

    def over(self, base: PatchedOracle | None) -> PatchedOracle:
        """Another oracle, such as one that rounds, with this bug; None: the exact one."""
        return self.oracle if base is None else PatchedOracle({self.function: self.patch}, base)
