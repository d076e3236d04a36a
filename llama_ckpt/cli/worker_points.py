"""The worker as part of checkpoint 0: started, asked for its health and for one job, and stopped."""

from __future__ import annotations

from pathlib import Path

from llama_ckpt.judging.verdict import PointVerdict

__all__ = ["worker_points"]


def worker_points(model: Path, device: str, dtype: str) -> list[PointVerdict]:
    """Judge the worker's steps on a model, one point each.

    Args:
        model: a Llama in GGUF.
        device, dtype: as `validate` takes them.
    """
    from llama_ckpt.worker.probe import probe_worker

    return [
        PointVerdict(
            step.name,
            "total",
            "pass" if step.passed else "fail",
            "" if step.passed else "yours",
            step.reason,
            err=0.0 if step.passed else float("nan"),
            limit=0.0,
            n_judged=1,
            n_differ=0 if step.passed else 1,
        )
        for step in probe_worker(model, device=device, dtype=dtype)
    ]
