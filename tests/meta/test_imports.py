"""Imports point one way, as drawn in ARROWS, and no two modules import each other.

The sources are parsed, so that an import inside a function or for types alone counts too.
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

ARROWS: dict[str, str] = {
    # ground stones
    "plain_text": "",
    "bus_errors": "",
    "errors": "plain_text",
    "outside": "errors plain_text",
    "whole_files": "errors",
    "points": "",
    "precisions": "",
    "version": "",
    "spawning": "",
    "json_values": "",
    "listing": "",
    "spare_memory": "",
    "cores": "",
    "threads": "cores",
    "shadowing": "errors",
    "parts": "errors",
    "results": "errors outside whole_files",
    # bytes, weights, tokens
    "gguf": "bus_errors cores errors whole_files",
    "weights": "errors gguf outside precisions spare_memory whole_files",
    "tokens": "errors gguf",
    "hugging_face": "errors gguf outside weights whole_files",
    "kernels": "errors weights",
    # the mathematics, and what is held against it
    "oracle": "errors gguf points spare_memory weights",
    "arithmetic": "errors oracle outside points",
    "judging": "errors json_values oracle points precisions",
    "dumps": "bus_errors errors judging listing outside plain_text points precisions whole_files",
    "capture": "hugging_face dumps errors gguf points spawning weights whole_files",
    "making": "hugging_face capture errors gguf oracle reference_dumps spawning weights whole_files",
    "checkpoints": "errors points shadowing tokens weights",
    "model": "hugging_face checkpoints errors gguf points precisions tokens weights",
    "engine": "checkpoints errors kernels model precisions tokens weights",
    "generation": "checkpoints engine errors model precisions threads tokens weights",
    # which operator was applied, and what a wrong tensor looks like
    "identify": "arithmetic json_values judging listing oracle points",
    "diagnose": "errors identify json_values judging listing oracle points precisions",
    "comparing": (
        "arithmetic diagnose dumps errors gguf hugging_face identify json_values judging listing oracle "
        "points precisions reference_dumps results spare_memory threads weights"
    ),
    "ranks": (
        "comparing diagnose dumps errors gguf judging listing oracle outside points reference_dumps weights "
        "whole_files"
    ),
    # the ladder, and the catalogues on trial
    "ladder": (
        "arithmetic capture checkpoints comparing cores diagnose dumps engine errors gguf hugging_face "
        "identify judging kernels making model oracle points precisions reference_dumps results shadowing "
        "spare_memory threads tokens weights whole_files"
    ),
    "mutants": (
        "arithmetic checkpoints comparing diagnose dumps errors gguf judging ladder making model oracle "
        "points precisions ranks reference_dumps tokens weights"
    ),
    # what people run
    "report": (
        "arithmetic comparing diagnose errors gguf identify judging ladder listing mutants points precisions "
        "results shadowing tokens version weights"
    ),
    "worker": (
        "checkpoints cores engine errors generation gguf judging model plain_text precisions shadowing "
        "spawning parts tokens version weights"
    ),
    "pytest_plugin": "errors ladder report",
    "cli": (
        "arithmetic capture checkpoints comparing cores diagnose engine errors generation gguf judging "
        "ladder llama_ckpt making model mutants outside parts plain_text points precisions ranks "
        "reference_dumps report results shadowing whole_files tokens version weights worker hugging_face"
    ),
    "llama_ckpt": (
        "comparing dumps errors generation gguf ladder making model parts ranks results shadowing tokens "
        "version weights"
    ),
    "__main__": "cli",
    "reference_dumps": "",
    "example_files": "",
}
"""A room of the house, package or module, to the rooms that it may import; any deeper arrow is a mistake."""

LOADS_TORCH = (
    *(
        "checkpoints",
        "weights.block_formats",
        "weights.codebook_formats",
        "weights.small_formats",
        "weights.decoders",
        "weights.compiled_formats",
        "weights.decoding",
        "weights.double",
        "weights.quants",
        "weights.records",
        "weights.loading",
        "weights.packed_products",
        "weights.unpacking",
        "weights.kv_cache",
    ),
    *(
        "tokens.sampling",
        "kernels",
        "dumps.batches",
        "dumps.hooks",
        "dumps.inputs",
        "dumps.record",
        "dumps.recording",
        "dumps.same",
        "dumps.watching",
    ),
    *(
        "oracle.on_cpu",
        "oracle.on_device",
        "model",
        "generation",
        "engine",
        "ladder",
        "mutants",
        "threads",
        "worker",
    ),
)
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


def room(name: str) -> str:
    """The room that a module lives in: the package or module below `llama_ckpt`, or what stands beside it."""
    first, _, rest = name.partition(".")
    return rest.partition(".")[0] or first if first == "llama_ckpt" else first


def targets(name: str) -> set[str]:
    """The modules of ours that a module imports, late and for types alone too."""
    known = modules()
    found = set()
    for imported in imports(name, known[name]):
        if imported in known:
            found.add(imported)
    # `from package import module` names the package as well; that is no arrow to the package's face
    return {one for one in found if not any(other.startswith(one + ".") for other in found)} - {name}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The groups of nodes that reach each other, sorted (Tarjan's strongly connected components)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(node: str) -> None:
        order[node] = low[node] = len(order)
        stack.append(node)
        for other in graph.get(node, ()):
            if other not in order:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], order[other])
        if low[node] == order[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(group) > 1:
                found.append(sorted(group))

    for node in graph:
        if node not in order:
            visit(node)
    return found


def test_circles_are_seen() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()}) == [["b", "c"]]


def test_no_circle_between_modules() -> None:
    """Imports inside functions and under TYPE_CHECKING count: a reader follows those, too."""
    assert circles({name: targets(name) for name in modules()}) == []


@pytest.mark.parametrize("name", modules())
def test_arrows_between_packages_are_as_drawn(name: str) -> None:
    own = room(name)
    assert own in ARROWS, f"{own} is a new room: draw its arrows in ARROWS"
    drawn = {own, *ARROWS[own].split()}
    wrong = sorted(one for one in targets(name) if room(one) not in drawn)
    assert not wrong, f"{name} imports {wrong}; {own} may import: {ARROWS[own] or 'nothing'}"


def test_the_drawing_has_no_circle_and_no_room_that_is_gone() -> None:
    graph = {name: set(below.split()) for name, below in ARROWS.items()}
    assert circles(graph) == []
    assert set(ARROWS) == {room(name) for name in modules()}


WRITTEN_ONCE = {
    "relative_error": "judging.metrics",
    "finite": "json_values",
    "power_of_two": "kernels.launching",
    "bits_in_order": "weights.block_formats",
    "block_tap": "checkpoints.c08_logits",
    "python_module": "spawning",
    "causal_mask": "judging.metrics",
    "judge": "judging.verdict",
    "DTYPES": "precisions",
}
"""A helper that had several homes, to the one that it has."""


@pytest.mark.parametrize("helper", WRITTEN_ONCE)
def test_a_helper_is_written_once(helper: str) -> None:
    homes = []
    for name, path in modules().items():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                defined = [node.name]
            else:
                assigned = getattr(node, "targets", ())
                defined = [target.id for target in assigned if isinstance(target, ast.Name)]
            homes += [name for one in defined if one.lstrip("_") == helper]
    assert [home.removeprefix("llama_ckpt.") for home in homes] == [WRITTEN_ONCE[helper]]


def test_oracle_imports_numpy_and_nothing_of_ours() -> None:
    rooms = [
        name for name in modules() if name.startswith(("llama_ckpt.oracle.llama", "llama_ckpt.oracle.c"))
    ]
    assert {"llama_ckpt.oracle.llama", "llama_ckpt.oracle.c01b_rope"} <= set(rooms)
    for name in rooms:
        seen = [i for i in imports(name, modules()[name]) if not is_within(i, *rooms)]
        ours = [i for i in seen if is_within(i, *PACKAGES)]
        assert not ours, f"{name} imports {ours}; the oracle must owe the layers nothing"
        roots = {i.partition(".")[0] for i in seen}
        assert roots <= {"numpy", *sys.stdlib_module_names}, f"{name} imports {roots}"


@pytest.mark.parametrize("name", [n for n in modules() if n.startswith("checkpoints")])
def test_checkpoints_never_import_the_oracle_or_the_judges(name: str) -> None:
    judges = [f"llama_ckpt.{module}" for module in ("oracle", "judging", "dumps", "capture")]
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
