"""`llama-ckpt check-worker`: start a worker on a model, ask it for its health and for one job, stop it."""

from __future__ import annotations

import typer

from llama_ckpt.cli.options import Device, ModelFile, model_path
from llama_ckpt.cli.progress import waiting
from llama_ckpt.parts import PARTS, check_installed

__all__ = ["EXAMPLE", "NAME", "command"]

NAME = "check-worker"
EXAMPLE = "Example: llama-ckpt check-worker --model mine.gguf --device cuda"


def command(model: ModelFile = None, device: Device = "auto") -> None:
    """Start a worker, try it, and stop it.

    Over the loopback interface alone. Exit code 0 when every step does what it should, else 1.
    """
    check_installed("llama-ckpt check-worker", *(name for name, part in PARTS.items() if part == "worker"))
    from llama_ckpt.worker.probe import probe_worker

    path = model_path(model)
    with waiting("trying the worker"):
        steps = probe_worker(path, device=_there(device))
    for step in steps:
        print(f"{'pass' if step.passed else 'FAIL'}  {step.name}: {step.reason} ({step.seconds:.1f} s)")
    passed = sum(step.passed for step in steps)
    print(f"{passed} of {len(steps)} steps of the worker pass: {path.name}")
    raise typer.Exit(0 if passed == len(steps) else 1)


def _there(device: str) -> str:
    """The device, refused where there is none; what every machine has is left to the worker to find.

    So that torch is loaded once, and not here too.
    """
    if device in ("auto", "cpu"):
        return device
    from llama_ckpt.model import pick_device

    return str(pick_device(device))
