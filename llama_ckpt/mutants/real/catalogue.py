"""Every family of the corpus, and what is in it."""

from __future__ import annotations

from llama_ckpt.mutants.real.attention import ATTENTION
from llama_ckpt.mutants.real.late import LATE
from llama_ckpt.mutants.real.norms import NORMS
from llama_ckpt.mutants.real.packed import PACKED
from llama_ckpt.mutants.real.port import Port
from llama_ckpt.mutants.real.positions import POSITIONS
from llama_ckpt.mutants.real.products import PRODUCTS
from llama_ckpt.mutants.real.record import Family, Prompt, RealBug, RightPort
from llama_ckpt.mutants.real.rope import ROPE
from llama_ckpt.mutants.real.several_calls import SEVERAL_CALLS
from llama_ckpt.mutants.real.steps import STEPS

__all__ = ["FAMILIES", "PLAIN", "real_bugs", "right_ports"]

FAMILIES: tuple[Family, ...] = (
    ROPE,
    POSITIONS,
    PRODUCTS,
    PACKED,
    ATTENTION,
    NORMS,
    STEPS,
    SEVERAL_CALLS,
    LATE,
)

PLAIN = RightPort(
    "plain",
    "the port itself",
    Port,
    ("embedded", "grouped", "linear", "llama3", "tied", "massive", "q8_0", "q4_0", "q4_1", "q5_0", "q4_k_m"),
    (Prompt(9), Prompt(37), Prompt(12, n_pad=3), Prompt(12, calls=(5, 4, 1, 1, 1))),
)


def real_bugs() -> tuple[RealBug, ...]:
    """All entries, family by family."""
    return tuple(bug for family in FAMILIES for bug in family.bugs)


def right_ports() -> tuple[RightPort, ...]:
    """The port itself, then the right programs of each family."""
    return (PLAIN, *(right for family in FAMILIES for right in family.right))
