"""`llama-ckpt bench`: its figures on a GPU, its table, and what llama.cpp's program may do wrong."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from llama_ckpt.cli.bench import _table
from llama_ckpt.engine.measure import DEPTHS, PROMPTS, Figure, llama_cpp_figures, measure
from llama_ckpt.errors import OptionError, ReferenceCrashedError
from llama_ckpt.model import load


def test_the_table_has_the_ratio_to_llama_cpp() -> None:
    ours = [Figure("decode at 0", "tokens/s", 300.0, 2.0, 0.96), Figure("loading", "s", 0.8, 0.0)]
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(_table("m.gguf", "fast", ours, [Figure("decode at 0", "tokens/s", 150.0, 1.0)]))
    decode, loading = (line for line in console.export_text().splitlines() if line.startswith("│ "))
    assert decode.replace("│", " ").split() == "decode at 0 300.0 2.0 tokens/s 96% 150.0 2.00".split()
    assert loading.replace("│", " ").split() == "loading 0.8 0.0 s".split()


def test_wrong_input_is_one_sentence(embedded_model: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="repeats: got 0, wanted 1 or more"):
        next(measure(embedded_model, repeats=0))
    with pytest.raises(OptionError, match="wanted a folder with llama.cpp's llama-bench"):
        next(llama_cpp_figures(tmp_path, embedded_model))


def test_a_llama_bench_that_fails_is_named(embedded_model: Path, tmp_path: Path) -> None:
    program = tmp_path / "llama-bench"
    program.write_text("#!/bin/sh\necho no kernel image >&2; exit 3\n", encoding="utf-8")
    program.chmod(0o755)
    with pytest.raises(ReferenceCrashedError, match="llama-bench: got exit code 3: no kernel image"):
        next(llama_cpp_figures(tmp_path, embedded_model))


@pytest.mark.cuda
def test_every_figure_of_the_embedded_model(embedded_model: Path) -> None:
    figures = list(measure(embedded_model, repeats=1))
    names = {figure.name for figure in figures}
    deep = {depth for depth in DEPTHS if depth < load(embedded_model, device="cpu").config.context_length}
    assert len(deep) >= 3
    assert {f"prefill {n}" for n in PROMPTS} | {f"decode at {depth}" for depth in deep} <= names
    assert "generate, as text" in names
    assert all(figure.median > 0 for figure in figures)
