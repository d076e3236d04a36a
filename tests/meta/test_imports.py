"""Imports point one way: worker, cli -> ladder, model -> checkpoints -> the formats and the mathematics.

The layers stand lowest first; a module may import what stands below its own layer, or beside it where
the layer says so. The sources are parsed, so that an import inside a function counts too.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("llama_ckpt", "checkpoints", "reference_dumps")

RUNS_THE_LADDER = (
    "ladder",
    "ladder_trials",
    "trial",
    "engine_trial",
    "oracle_on_device",
    "subjects",
    "recording",
    "continuation",
    "implementation",
    "observer",
)
ABOVE_CHECKPOINTS = (
    *RUNS_THE_LADDER,
    "model",
    "engine",
    "diagnose",
    "report",
    "worker",
    "cli",
    "pytest_plugin",
)
"""What in llama_ckpt may import `checkpoints`, and is imported by nothing below."""

COMPUTES = (
    *("block_formats", "quants", "weights", "loading", "kv_cache", "sampling", "kernels"),
    "report.pages",
)
RECORDS = ("module_recorder", "transformers_llama")
LOADS_TORCH = (*COMPUTES, *RECORDS, *RUNS_THE_LADDER, "model", "engine", "diagnose", "worker")
"""What in llama_ckpt may load torch; everything else, the command line above all, must not."""


def modules() -> dict[str, Path]:
    """Every module of the packages, by its dotted name."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path, *, deferred: bool = True) -> Iterator[str]:
    """The dotted names that a module imports; without `deferred`, those of loading it alone."""
    is_package = path.name == "__init__.py"
    for node in _statements(ast.parse(path.read_text(encoding="utf-8")), deferred):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = name.split(".")
            base = base[: len(base) + is_package - node.level] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            yield source
            yield from (f"{source}.{alias.name}" for alias in node.names)


def _statements(node: ast.AST, deferred: bool) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        yield child
        if not deferred and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            for other in child.orelse:
                yield from _statements(other, deferred)
            continue
        yield from _statements(child, deferred)


def is_within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def test_parser_sees_every_kind_of_import(tmp_path: Path) -> None:
    source = tmp_path / "module.py"
    source.write_text(
        "import a.b\nfrom c import d\nfrom . import e\nfrom .f import g\n"
        "def later():\n    from h import i\n"
        "if TYPE_CHECKING:\n    import j\n"
    )
    seen = set(imports("p.module", source))
    assert {"a.b", "c", "c.d", "p", "p.e", "p.f", "p.f.g", "h", "h.i"} == seen
    assert "h" not in set(imports("p.module", source, deferred=False))


@pytest.mark.parametrize("name", [n for n in modules() if n.startswith("llama_ckpt")])
def test_only_what_stands_above_imports_checkpoints(name: str) -> None:
    above = tuple(f"llama_ckpt.{module}" for module in ABOVE_CHECKPOINTS)
    if not is_within(name, *above):
        wrong = [i for i in imports(name, modules()[name]) if is_within(i, "checkpoints")]
        assert not wrong, f"{name} stands below the checkpoints and imports {wrong}"


@pytest.mark.parametrize("name", [n for n in modules() if n != "llama_ckpt"])
def test_nothing_below_imports_what_stands_above(name: str) -> None:
    """`ladder`, `model` and the rest are for the command line and users, not for layers and formats."""
    above = tuple(f"llama_ckpt.{module}" for module in ABOVE_CHECKPOINTS)
    if not is_within(name, *above, "llama_ckpt.__main__"):
        wrong = [i for i in imports(name, modules()[name]) if is_within(i, *above)]
        assert not wrong, f"{name} imports {wrong}, which stand above it"


@pytest.mark.parametrize("name", [n for n in modules() if n.startswith("llama_ckpt")])
def test_nothing_but_the_command_imports_the_command_line(name: str) -> None:
    if not is_within(name, "llama_ckpt.cli", "llama_ckpt.__main__"):
        assert not [i for i in imports(name, modules()[name]) if is_within(i, "llama_ckpt.cli")]


def test_oracle_imports_numpy_and_nothing_of_ours() -> None:
    path = modules()["llama_ckpt.oracle.llama"]
    ours = [i for i in imports("llama_ckpt.oracle.llama", path) if is_within(i, *PACKAGES)]
    assert not ours, f"the oracle imports {ours}; it must owe the layers nothing"
    roots = {i.partition(".")[0] for i in imports("llama_ckpt.oracle.llama", path)}
    assert roots <= {"numpy", *sys.stdlib_module_names}, f"the oracle imports {roots}"


@pytest.mark.parametrize("name", [n for n in modules() if n.startswith("checkpoints")])
def test_checkpoints_never_import_the_oracle_or_the_judges(name: str) -> None:
    judges = [f"llama_ckpt.{module}" for module in ("oracle", "compare", "limits", "dumps", "capture")]
    wrong = [i for i in imports(name, modules()[name]) if is_within(i, *judges, "reference_dumps")]
    assert not wrong, f"{name} imports {wrong}"


@pytest.mark.parametrize("name", modules())
def test_tests_and_tools_are_not_imported(name: str) -> None:
    assert not [i for i in imports(name, modules()[name]) if is_within(i, "tests", "tools")]


def light_modules() -> list[str]:
    heavy = tuple(f"llama_ckpt.{module}" for module in LOADS_TORCH)
    return [
        n for n in modules() if is_within(n, "llama_ckpt", "reference_dumps") and not is_within(n, *heavy)
    ]


def test_light_modules_load_neither_torch_nor_checkpoints() -> None:
    """One process imports them all; naming the culprit is the next test's business."""
    code = f"import {', '.join(light_modules())}, sys\n"
    code += "print(*[m for m in ('torch', 'checkpoints', 'llama_cpp') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("name", light_modules())
def test_light_module_does_not_import_torch_itself(name: str) -> None:
    assert not [i for i in imports(name, modules()[name], deferred=False) if is_within(i, "torch")]


def test_the_package_alone_loads_nothing_heavy() -> None:
    code = "import llama_ckpt, sys; print(*[m for m in ('torch', 'checkpoints', 'numpy', 'gguf', 'rich') "
    code += "if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("broken", [False, True], ids=["a folder", "half installed"])
def test_the_ladder_needs_no_triton(tmp_path: Path, broken: bool) -> None:
    (tmp_path / "triton").mkdir()
    if broken:
        (tmp_path / "triton" / "__init__.py").write_text("from .runtime import jit", encoding="utf-8")
    code = "import llama_ckpt.ladder.climb; from llama_ckpt.kernels import compiler; print(compiler.MISSING)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "No module named 'triton.runtime'" in done.stdout or not broken
