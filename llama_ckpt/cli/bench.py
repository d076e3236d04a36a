"""`llama-ckpt bench`: how fast the engine is on a model, and llama.cpp beside it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from llama_ckpt.cli.console import Console
from llama_ckpt.cli.options import ModelFile, Precision, model_path
from llama_ckpt.cli.progress import ProgressBar, megabytes, waiting
from llama_ckpt.errors import DeviceError
from llama_ckpt.whole_files import write_whole

if TYPE_CHECKING:
    from llama_ckpt.engine.measure import Figure

__all__ = ["EXAMPLE", "NAME", "command"]

NAME = "bench"
EXAMPLE = "Example: llama-ckpt bench --model llama-2-7b.Q4_0.gguf --against llama.cpp/build/bin"


def command(
    model: ModelFile = None,
    precision: Precision = "fast",
    against: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A folder with llama.cpp's llama-bench, run on the same file."),
    ] = None,
    repeats: Annotated[int, typer.Option(help="Runs a figure; the median is shown.")] = 5,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write them all.")] = None,
) -> None:
    """Measure loading, prefill and decoding on the GPU."""
    import torch

    from llama_ckpt.engine.measure import llama_cpp_figures, measure

    path = model_path(model)
    if not torch.cuda.is_available():
        raise DeviceError("bench", got="no CUDA device", wanted="one: the engine runs nowhere else")
    with waiting("measuring llama.cpp"):
        theirs = list(llama_cpp_figures(against, path, repeats)) if against else []
    with ProgressBar() as bar:
        figures = measure(path, precision, repeats, megabytes(bar))
        ours = [next(figures)]
    with waiting("measuring"):
        ours += figures
    Console(highlight=False).print(_table(path.name, precision, ours, theirs))
    if json_file:
        report: dict[str, Any] = {
            "schema": 1,
            "model": path.name,
            "precision": precision,
            "figures": [asdict(figure) for figure in ours],
            "llama_cpp": [asdict(figure) for figure in theirs],
        }
        write_whole(json_file, json.dumps(report, indent=1) + "\n")


def _table(name: str, precision: str, ours: list[Figure], theirs: list[Figure]) -> Table:
    """One row a figure: median, spread, share of the ceiling, llama.cpp's median, ratio."""
    table = Table(title=f"{name}, precision {precision}")
    for heading in ("figure", "median", "spread", "unit", "of the ceiling", "llama.cpp", "ratio"):
        table.add_column(heading, justify="left" if heading in ("figure", "unit") else "right")
    rival = {figure.name: figure.median for figure in theirs if figure.unit == "tokens/s"}
    for figure in ours:
        share = "" if figure.share is None else f"{figure.share:.0%}"
        other = rival.get(figure.name) if figure.unit == "tokens/s" else None
        beside = ("", "") if other is None else (f"{other:,.1f}", f"{figure.median / other:.2f}")
        table.add_row(
            figure.name, f"{figure.median:,.1f}", f"{figure.spread:,.1f}", figure.unit, share, *beside
        )
    return table
