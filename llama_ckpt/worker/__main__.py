"""`python -m llama_ckpt.worker`, and the command `llama-ckpt-worker`."""

from __future__ import annotations

import asyncio
import contextlib
import sys

from llama_ckpt.errors import LlamaCkptError
from llama_ckpt.parts import PARTS, check_installed
from llama_ckpt.worker.logs import log, start_logging
from llama_ckpt.worker.options import parse_options

__all__ = ["main"]

OPEN_FILES = 65_536


def main() -> None:
    """Run a worker; ends the process with its exit code."""
    logging = start_logging()
    try:
        options = parse_options()
        # Torch too, which the model's own process loads: it is said here, before anything starts.
        check_installed("llama-ckpt-worker", *(name for name, part in PARTS.items() if part != "reference"))
    except LlamaCkptError as error:
        log("error", str(error))
        logging.flush_within(1)
        sys.exit(2)
    logging.fields |= {"worker_id": options.worker_id, "model": options.model, "port": options.port}
    _raise_file_limit()
    # Later than the options, so that --help is there at once.
    from llama_ckpt.worker.lifecycle import Lifecycle

    async def live() -> int:
        return await Lifecycle(options, logging).run()

    code = asyncio.run(live())
    logging.flush_within(1)
    sys.exit(code)


def _raise_file_limit() -> None:
    """As many connections as the system allows, not the few that a shell begins with."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, OPEN_FILES), hard))


if __name__ == "__main__":
    main()
