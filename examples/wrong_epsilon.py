"""What a failure looks like: give RMSNorm the wrong epsilon and climb the ladder.

    python examples/wrong_epsilon.py            # as `llama-ckpt validate`, and takes its options
    python examples/wrong_epsilon.py 1 2 --stop-on-failure

An epsilon of 1e-6 for 1e-5 is a common slip, and hard to see: the text still reads well.
"""

from __future__ import annotations

import functools
import sys

import checkpoints
from llama_ckpt.cli import main

WRONG = 1e-6


def break_rms_norm() -> None:
    """Replace `rms_norm` in every checkpoint module by one that ignores the model's epsilon."""
    right = checkpoints.rms_norm

    @functools.wraps(right)
    def wrong(x, weight, *, eps, tap=None):  # type: ignore[no-untyped-def]
        return right(x, weight, eps=WRONG, tap=tap)

    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "checkpoints" and hasattr(module, "rms_norm"):
            module.rms_norm = wrong  # type: ignore[attr-defined]


if __name__ == "__main__":
    break_rms_norm()
    sys.argv.insert(1, "validate")
    main()
