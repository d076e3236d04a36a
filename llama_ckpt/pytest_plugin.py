"""The pytest plugin: the ladder in other people's suites; pytest loads it where llama_ckpt is installed.

    pytest --llama-ckpt-impl mine.norms:rms_norm --llama-ckpt-impl 1B=mine.rotary:apply

adds a test for each layer; in a test of one's own the fixture does the same:

    def test_norm(llama_ckpt_validate):
        llama_ckpt_validate(mine.norms.rms_norm)            # the checkpoint of that name; or "1", f

A failure shows what `llama-ckpt validate --impl` shows. Options stand for all of them, and in the ini file
`llama_ckpt_impl` lists layers that are always tried. Importing this loads no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from llama_ckpt.errors import LlamaCkptError
from llama_ckpt.report.repeat import repeat_command
from llama_ckpt.report.terminal import checkpoint_row, failure_lines, header

if TYPE_CHECKING:
    from llama_ckpt.ladder.report import LadderReport

__all__ = [
    "LayerFailure",
    "LayerItem",
    "llama_ckpt_validate",
    "pytest_addoption",
    "pytest_collection_modifyitems",
]

OPTIONS = ("model", "dumps", "device", "dtype", "arrays")


class LayerFailure(Exception):
    """A layer that does not pass; its text is the report of it."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options of the plugin, in a group of their own."""
    group = parser.getgroup("llama_ckpt", "layers of a Llama against llama.cpp and a float64 oracle")
    group.addoption(
        "--llama-ckpt-impl",
        action="append",
        default=[],
        metavar="[ID=]MODULE:FUNCTION",
        help="try this layer; ID is its checkpoint, needed where the function has another name",
    )
    group.addoption("--llama-ckpt-model", metavar="M.gguf", help="a GGUF file; the embedded model without it")
    group.addoption("--llama-ckpt-dumps", metavar="DIR", help="llama.cpp's dumps of that model")
    group.addoption("--llama-ckpt-device", default="auto", help="auto, cpu, cuda or mps")
    group.addoption("--llama-ckpt-dtype", default="float32", help="float32, float16 or bfloat16")
    group.addoption(
        "--llama-ckpt-arrays", default="auto", help="auto, torch or numpy: what layers are called with"
    )
    parser.addini("llama_ckpt_impl", "layers that are always tried, one a line", type="linelist", default=[])


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(
    session: pytest.Session, config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Add a test for each layer that was asked for."""
    for given in [*config.getini("llama_ckpt_impl"), *config.getoption("--llama-ckpt-impl")]:
        items.append(LayerItem.from_parent(session, name=f"llama_ckpt[{given}]", given=given))


class LayerItem(pytest.Item):
    """One layer on trial."""

    def __init__(self, *, given: str, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.given = given

    def runtest(self) -> None:
        """Validate it."""
        checkpoint, _, spec = self.given.rpartition("=")
        check(spec, checkpoint or None, options(self.config))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """What is wrong with the layer, or with the input, instead of a traceback through this plugin."""
        if isinstance(excinfo.value, LayerFailure | LlamaCkptError):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, None, str]:
        """What stands above the failure."""
        return self.path, None, self.name


@pytest.fixture(scope="session")
def llama_ckpt_validate(request: pytest.FixtureRequest) -> Callable[..., None]:
    """A function that validates a layer and fails the test where the layer is wrong.

    Called as `llama_ckpt_validate(function)`, where the function has a layer's name, or
    `llama_ckpt_validate("1B", function)`, in either order; the function may be given as "module:function".
    Keyword arguments (`model`, `dumps`, `device`, `dtype`, `arrays`) stand above the command line's options.
    """

    def validate(*given: Any, **chosen: Any) -> None:
        __tracebackhide__ = True
        checkpoint, layer = in_order(given)
        failure = None
        try:
            check(layer, checkpoint, options(request.config) | chosen)
        except LayerFailure as found:
            failure = str(found)
        if failure is not None:  # not while handling the other, which pytest would show as well
            pytest.fail(failure, pytrace=False)

    return validate


def in_order(given: tuple[Any, ...]) -> tuple[str | None, Any]:
    """The checkpoint, None without one, and the layer, in whichever order they were given."""
    checkpoint, layer = given if len(given) == 2 else (None, *given)
    if not isinstance(checkpoint, str | None) or (isinstance(layer, str) and ":" not in layer):
        return layer, checkpoint  # a checkpoint is a short word, a layer a function or "module:function"
    return checkpoint, layer


def options(config: pytest.Config) -> dict[str, Any]:
    """What the command line says, as `validate` takes it."""
    return {name: config.getoption(f"--llama-ckpt-{name}") for name in OPTIONS}


def check(layer: Any, checkpoint: str | None, chosen: dict[str, Any]) -> None:
    """Validate a layer.

    Raises:
        LayerFailure: it is wrong.
        LlamaCkptError: bad input.
    """
    from llama_ckpt.ladder.climb import validate

    report = validate(checkpoint, implementation=layer, **chosen)
    if report.exit_code:
        raise LayerFailure("\n".join(_lines(report, chosen)))


def _lines(report: LadderReport, chosen: dict[str, Any]) -> Iterator[str]:
    """The report of one layer, as the command line prints it."""
    yield from header()
    for result in report.checkpoints:
        yield checkpoint_row(result)
        repeat = repeat_command(
            (*result.stands_on_failed, result.id),
            model=chosen.get("model"),
            dumps=chosen.get("dumps"),
            device=report.device,
            dtype=report.dtype,
            oracle_only=False,
            implementation=report.implementation,
            arrays=chosen.get("arrays", "auto"),
        )
        yield from failure_lines(result, device=report.device, dtype=report.dtype, repeat=repeat)
    yield from report.notes
