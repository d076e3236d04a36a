"""What is installed, and what a wheel carries."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import llama_ckpt
import reference_dumps
from llama_ckpt.errors import OptionError
from llama_ckpt.parts import PARTS
from llama_ckpt.shadowing import check_checkpoints

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """A wheel built from a copy of the tree: setuptools leaves its own folders where it builds."""
    copy, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    for name in ("llama_ckpt", "checkpoints", "reference_dumps"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "PACKAGE.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, copy / name)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "--disable-pip-version-check", "-w", str(out), str(copy)], check=True)
    (path,) = out.glob("*.whl")
    return zipfile.ZipFile(path)


def test_wheel_carries_the_model_the_dumps_and_every_module(wheel: zipfile.ZipFile) -> None:
    packed = set(wheel.namelist())
    for package in ("llama_ckpt", "checkpoints", "reference_dumps"):
        wanted = {
            str(path.relative_to(ROOT))
            for path in (ROOT / package).rglob("*")
            if path.suffix in (".py", ".gguf", ".json", ".safetensors", ".typed", ".css", ".hpp")
        }
        assert wanted and wanted <= packed, sorted(wanted - packed)
    assert any(name.endswith("licenses/LICENSE") for name in packed)
    assert any(name.endswith("licenses/NOTICE") for name in packed)


def test_wheel_carries_nothing_else(wheel: zipfile.ZipFile) -> None:
    roots = {name.partition("/")[0] for name in wheel.namelist()}
    info = f"llama_ckpt-{llama_ckpt.__version__}.dist-info"
    assert roots == {"llama_ckpt", "checkpoints", "reference_dumps", info}


def test_the_source_distribution_holds_what_the_repository_does(tmp_path: Path) -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, check=False, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout: an unpacked source distribution, say")
    names = {name for name in tracked.stdout.splitlines() if (ROOT / name).is_file()}
    for name in names:  # of the large ones the name is enough
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        large = (ROOT / name).stat().st_size > 1 << 18
        (tmp_path / "tree" / name).write_bytes(b"" if large else (ROOT / name).read_bytes())
    build = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", build, str(tmp_path)],
        cwd=tmp_path / "tree",
        check=True,
        capture_output=True,
    )
    (path,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert {name for name in names if not name.startswith((".ci/", ".github/"))} <= held


def test_every_public_name_of_the_package_can_be_had() -> None:
    for name in llama_ckpt.__all__:
        assert getattr(llama_ckpt, name) is not None
        assert name in dir(llama_ckpt)
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        llama_ckpt.lode  # noqa: B018 - the access is the test


def test_lazy_names_are_exactly_the_public_ones() -> None:
    eager = {"LlamaCkptError", "__version__"}
    assert set(llama_ckpt._HOMES) == set(llama_ckpt.__all__) - eager
    for name, home in llama_ckpt._HOMES.items():
        assert name in importlib.import_module(f"llama_ckpt.{home}").__all__


def test_torch_is_pinned_in_one_place() -> None:
    pins = [
        str(path.relative_to(ROOT))
        for path in [
            ROOT / "pyproject.toml",
            ROOT / "Makefile",
            ROOT / ".ci" / "run",
            *ROOT.glob("requirements/**/*.txt"),
        ]
        if path.is_file() and re.search(r"torch==\d", path.read_text(encoding="utf-8"))
    ]
    assert pins == ["requirements/torch.txt"]


def test_every_requirement_is_pinned_for_the_set_up() -> None:
    pinned = set(re.findall(r"^([\w.-]+)==", (ROOT / "requirements/constraints.txt").read_text(), re.M))
    extras = PYPROJECT["project"]["optional-dependencies"]
    wanted = [*PYPROJECT["project"]["dependencies"], *(one for extra in extras.values() for one in extra)]
    names = {re.match(r"[\w.-]+", requirement)[0] for requirement in wanted}  # type: ignore[index]
    assert names - {"torch", "llama_ckpt", "llama-cpp-python"} <= pinned
    assert extras["reference"] == ["llama-cpp-python==0.3.36"]


def test_what_may_be_missing_is_named_by_its_extra() -> None:
    extras = PYPROJECT["project"]["optional-dependencies"]
    for package, extra in PARTS.items():
        assert any(
            one.replace("-python", "").startswith(package.replace("_", "-")) or one.startswith(package)
            for one in extras[extra]
        ), package
    light = " ".join(PYPROJECT["project"]["dependencies"])
    assert not any(package in light for package in PARTS)


def test_embedded_files_are_found() -> None:
    assert reference_dumps.embedded_model().is_file()
    assert {"f32", "f16", "q8_0", "q4_0"} <= set(reference_dumps.dump_folders())
    assert reference_dumps.dump_folder("f32") == reference_dumps.dump_folders()["f32"]


@pytest.mark.parametrize("with_init", [True, False], ids=["a package", "a plain folder"])
def test_a_users_own_checkpoints_is_told_apart(
    with_init: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "checkpoints").mkdir()
    if with_init:
        (tmp_path / "checkpoints" / "__init__.py").touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path), *([] if not with_init else sys.path)])
    monkeypatch.delitem(sys.modules, "checkpoints", raising=False)
    importlib.invalidate_caches()
    with pytest.raises(OptionError, match="which hides it, wanted the one that is installed.*; rename"):
        check_checkpoints()


def test_the_layers_have_a_name_that_nothing_hides(tmp_path: Path) -> None:
    """Theirs keeps its name, before and after."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "__init__.py").write_text("mine = 1", encoding="utf-8")
    code = f"""
import sys
sys.path[:0] = [{str(tmp_path)!r}]
{{theirs}}
from llama_ckpt.checkpoints import rms_norm
from llama_ckpt.checkpoints.c07_block import block
import checkpoints
print(checkpoints.mine, rms_norm.__name__, block.__globals__["rms_norm"] is rms_norm)
"""
    for theirs in ("", "import checkpoints"):
        done = subprocess.run(
            [sys.executable, "-c", code.format(theirs=theirs)], cwd=ROOT, capture_output=True, text=True
        )
        assert done.stdout.split() == ["1", "rms_norm", "True"], done.stderr
    import checkpoints
    from llama_ckpt.checkpoints import rope

    assert rope is checkpoints.rope and sys.modules["llama_ckpt.checkpoints"] is checkpoints


def test_our_own_checkpoints_is_accepted() -> None:
    assert check_checkpoints() is None  # type: ignore[func-returns-value]


def test_whatever_lets_a_test_be_skipped_is_installed_by_the_set_up() -> None:
    """On a GPU machine without a network a module may be missing; where `make test` runs, none is."""
    installed = {re.split("[<>=]", line)[0] for line in PYPROJECT["project"]["optional-dependencies"]["test"]}
    for line in (ROOT / "requirements" / "triton.txt").read_text(encoding="utf-8").splitlines():
        installed.add(re.split("[<>=]", line)[0])
    asked = {
        name.split(".")[0]
        for path in (ROOT / "tests").rglob("*.py")
        for name in re.findall(r'(?:importorskip|find_spec)\(\s*"([\w.]+)"', path.read_text(encoding="utf-8"))
    }
    asked -= sys.stdlib_module_names  # some of Python's own are not on every system
    asked.remove("llama_cpp")  # the extra `reference`: tests with it are marked, and CI runs them
    assert asked and asked <= installed, sorted(asked - installed)
