"""Which points a dump should hold: all, those that it says it recorded, or those that its kind has.

A dump of what stands on the stream from block to block, ends and norms, or of logits alone, is complete of
its kind, whichever blocks it has: it is what people write first, and what is not there was not meant to be.
One that looks into the steps of a block and lacks some of them may have lost them.
"""

from __future__ import annotations

from dataclasses import replace

from llama_ckpt.comparing.lint import wanted_points
from llama_ckpt.dumps.theirs import TheirDump
from llama_ckpt.points import split_name

__all__ = ["is_complete_of_its_kind", "wanted_of"]

STREAM = frozenset({"embd", "attn_norm", "ffn_inp", "ffn_norm", "out", "output_norm", "logits"})
"""What the first dump of a port shows: what goes from layer to layer, and the norms of that."""


def is_complete_of_its_kind(theirs: TheirDump) -> bool:
    """Whether what is there says what was to be recorded, so that nobody has to declare it."""
    return theirs.declared.points is None and {split_name(name)[1] for name in theirs.names} <= STREAM


def wanted_of(theirs: TheirDump, n_layers: int) -> list[str]:
    """The full names of the points that a dump of a model of `n_layers` blocks should hold."""
    declared = theirs.declared
    if not is_complete_of_its_kind(theirs):
        return wanted_points(declared, n_layers)
    if declared.blocks is None:
        return list(theirs.names)
    points = dict.fromkeys(split_name(name)[1] for name in theirs.names)
    return wanted_points(replace(declared, points=tuple(points)), n_layers)
