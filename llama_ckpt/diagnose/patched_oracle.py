"""The oracle with some of its functions replaced, as those who make bugs of it call it."""

from llama_ckpt.oracle.patched_oracle import RIGHT, DoesNotApply, Patch, PatchedOracle, answers, bound

__all__ = ["RIGHT", "DoesNotApply", "Patch", "PatchedOracle", "answers", "bound"]
