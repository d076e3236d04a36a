"""Checkpoint 9, the last logits: the row that the next token is chosen from.

    last = logits[n - 1]                     logits [n, vocab] -> last [vocab]

Compared, bit for bit, with the row that llama.cpp hands to its caller for the last token
(`llama_get_logits_ith(ctx, -1)`), which is how a wrong row, a stale buffer or one token too few shows.
Source: llama.cpp, `src/llama-context.cpp`.

Stands on indexing: a view, nothing is computed or copied.

What goes wrong here: see `CHECKPOINT.mistakes`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor

from llama_ckpt.points import Case, Checkpoint, Given

__all__ = ["CHECKPOINT", "last_logits"]


def last_logits(logits: Tensor, tap: Callable[[str, Tensor], object] | None = None) -> Tensor:
    """The last token's row of `logits [n, vocab]`: `[vocab]`, a view.

    Args:
        logits: `[n, vocab]`, at least one row.
        tap: unused; there are no inner points.
    """
    return logits[-1]


def cases(given: Given) -> Iterator[Case]:
    """The recorded logits' last row."""
    yield Case("last_logits", {"logits": given["logits"]}, ("last_logits",))


CHECKPOINT = Checkpoint(
    id="9",
    title="last logits",
    function=last_logits,
    stands_on=("8",),
    points=("last_logits",),
    max_abs=0.0,
    cases=cases,
    torch_function="indexing: a view of the last row",
    mistakes=(
        "The last row but one is taken, which predicts the prompt's own last token.",
        "With a padded batch, the padding's row is taken.",
        "The buffer still holds the logits of the call before.",
    ),
)
