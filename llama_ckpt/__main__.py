"""`python -m llama_ckpt …` is the command `llama-ckpt …`."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command; an interrupt while it is still being loaded is no traceback either."""
    try:
        from llama_ckpt.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.stderr.write("llama-ckpt: error: interrupted\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
