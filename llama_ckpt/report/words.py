"""The words of every report, said before they are used: one vocabulary for terminal, page, JSON and docs.

`docs/glossary.md` is this table, and a test holds the two together. Imports nothing of ours.
"""

from __future__ import annotations

__all__ = ["COMPARISON", "LADDER", "MEASURES", "WHO", "WORDS"]

WORDS = {
    "point": "one tensor of the model, by name: `blk.3.q` holds the queries of block 3",
    "checkpoint": "a step of the ladder: one layer, with the points that it answers for",
    "yours": "x: the tensor on trial, from your dump, your function, or the layers here if you gave none",
    "reference": "r: the tensor that llama.cpp computed at the same point",
    "exact": "o: the same mathematics in float64, by the oracle; what x and r are both measured against",
    "error": "‖x − o‖ / ‖o‖; the reference's error is ‖r − o‖ / ‖o‖",
    "own": "the error made here: this layer fed with recorded inputs",
    "total": "the error here when the model runs by itself from its tokens",
    "inherited": "a total error that is no own error: it came in with the inputs",
    "allowed": "the limit: the largest error that rounding explains, measured of right programs",
    "remaining error": "what is left of your error once the oracle has the named bug too; small: that is it",
    "recording": "one prompt's tensors from one run of the reference, such as f32/hello",
}
"""What each word means. x, o and r are tensors of one shape; an error has no unit."""

_ERROR = (
    "error = |x - o| / |o|. x: yours, {yours}; or the reference's,",
    "which is llama.cpp. o: exact, the same mathematics in float64.",
)
_ALLOWED = "allowed: the most that rounding explains."
_REMAINING = "remaining error: what is left when o is given the named bug; small: that is it."

LADDER = (
    _ERROR[0].format(yours="the layer on trial"),
    _ERROR[1],
    "own: made here, on inputs from a recording (llama.cpp's tensors for a prompt).",
    "total: of the whole run from its tokens. inherited: total, but not own.",
    f"{_ALLOWED} A row counts the points (tensors)",
    "compared, and shows the first that fails or the one nearest to what is allowed.",
    _REMAINING,
)
"""Said before a validation's table."""

COMPARISON = (
    _ERROR[0].format(yours="your dump's tensor"),
    _ERROR[1],
    "own: made since your nearest recorded inputs. inherited: came with them.",
    f"total: of your whole run. {_ALLOWED}",
    _REMAINING,
)
"""Said before a comparison's strip. Its own errors are made on what your dump recorded."""

MEASURES = {
    "err": "the error",
    "row_err": "the worst token's error",
    "element_err": "the worst element's error",
    "gain": "the gain",
    "bias": "the bias",
    "turn": "an angle",
}
"""The measures of `judging/metrics.py`, by the names that they have in the JSON."""

WHO = {
    "yours": "yours",
    "reference": "the reference, llama.cpp",
    "noise": "nobody: they differ by rounding",
    "tie": "nobody: two tokens within rounding of each other",
    "unknown": "cannot be told without the model, which gives what is exact",
    "": "nobody",
}
"""Who is off, by the `blame` of a verdict."""
