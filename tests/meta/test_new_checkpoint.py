"""CONTRIBUTING's recipe holds: a checkpoint is a module, its oracle another; nothing else is edited.

A throwaway checkpoint is written into a folder that is put on the path of `checkpoints`, and its float64
mathematics into one on that of `llama_ckpt.oracle`, as if they stood in those packages. A process of its
own, since what is found is found once, then does what people do with a checkpoint.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from llama_ckpt.comparing.dataflow import STEPS, FlowStep, steps_of
from llama_ckpt.points import BLOCK_INPUT, BLOCK_POINTS, Point

ROOT = Path(__file__).parents[2]

CHECKPOINT = '''"""Checkpoint 5, unit keys: every key divided by its length, as QK normalization begins.

    y = k / sqrt(sum(k^2) + eps)             k [n, n_kv_heads, head_dim] -> y, the same

Source: Henry et al. 2020 (arXiv 2010.04245), section 2.

What goes wrong here: see `CHECKPOINT.mistakes`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor

from llama_ckpt.points import Case, Checkpoint, Given, block_point

__all__ = ["CHECKPOINT", "unit_keys"]


def unit_keys(k: Tensor, *, eps: float, tap: Callable[[str, Tensor], object] | None = None) -> Tensor:
    """Scale every head of `k` to length one.

    Args:
        k: `[n, n_kv_heads, head_dim]`.
        eps: added to the sum of squares, inside the root.
        tap: gets "k_length" `[n, n_kv_heads, 1]`.
    """
    length = (k.square().sum(-1, keepdim=True) + eps).sqrt()
    if tap is not None:
        tap("k_length", length)
    return k / length


def cases(given: Given) -> Iterator[Case]:
    """The turned keys of each block."""
    for number in given.blocks:
        arguments = {"k": given[block_point(number, "k_rope")], "eps": given.config.rms_norm_eps}
        taps = {"k_length": block_point(number, "k_length")}
        yield Case("unit_keys", arguments, (block_point(number, "k_unit"),), taps)


CHECKPOINT = Checkpoint(
    id="5",
    title="unit keys",
    function=unit_keys,
    stands_on=("1B",),
    points=("k_length", "k_unit"),
    max_abs=1e-5,
    cases=cases,
    torch_function="torch.square, sum and sqrt: nothing fused is there",
    mistakes=("The sum runs over all heads instead of one.",),
    error_from={"k_unit": "a sum of squares over the head, a root and a quotient"},
)
'''

ORACLE = '''"""Unit keys in float64, from the definition of a length."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["unit_keys"]


def unit_keys(
    k: ArrayLike, *, eps: float, tap: Callable[[str, NDArray[np.float64]], object] | None = None
) -> Any:
    """`k` `[n, n_kv_heads, head_dim]`, every head of length one; shows "k_length" `[n, n_kv_heads, 1]`."""
    k = np.asarray(k, np.float64)
    with_eps = np.concatenate([k, np.full((*k.shape[:2], 1), eps**0.5)], axis=-1)
    length = np.linalg.norm(with_eps, axis=-1)[..., None]
    if tap is not None:
        tap("k_length", length)
    return k / length
'''

USE = """
import json, sys
from pathlib import Path
import checkpoints, llama_ckpt.oracle
checkpoints.__path__.append(sys.argv[1])
llama_ckpt.oracle.__path__.append(sys.argv[2])

import llama_ckpt as lc
from llama_ckpt.judging.measured import LAYERS, read_measured
from llama_ckpt.ladder.discovery import discover
from llama_ckpt.ladder.engine_trial import EngineTrial
from llama_ckpt.mutants.models import seeded_given
from llama_ckpt.mutants.right_programs.catalogue import VARIANTS
from llama_ckpt.mutants.trial import Bench
from llama_ckpt.report.html import page as html
from llama_ckpt.report.junit import junit
from llama_ckpt.report.pages import ladder_table
from llama_ckpt.report.terminal import checkpoint_row
from llama_ckpt.report.topics import explanation
from reference_dumps import dump_folder
from tools.measure_limits import Maxima, data, measure_shape
from tools.measured_models import SHAPES

found = {"ids": [one.id for one in discover()]}
words = ("5", "Unit Keys", "unit_keys", "c05_unit_keys", "k_unit", "blk.3.k_unit")
before = {word: explanation(word) for word in words}
found["not measured"], found["ladder"] = before, ladder_table()


def told(report):
    points = [one.verdict for result in report.checkpoints for one in result.points]
    return {
        "exit_code": report.exit_code,
        "compared": report.checkpoints[0].compared,
        "notes": report.notes,
        "points": sorted({one.name.rpartition(".")[2] for one in points}),
        "verdicts": sorted({one.verdict for one in points}),
        "blames": sorted({one.blame for one in points}),
        "reasons": sorted({one.reason for one in points}),
        "row": checkpoint_row(report.checkpoints[0]),
        "html": html(report.to_json()).count("k_unit"),
        "junit": junit(report.to_json()).count("k_unit"),
        "diagnoses": [one.sentence() for one in report.checkpoints[0].diagnoses],
    }


def wrong(k, *, eps):
    return k / (k.square().sum((-2, -1), keepdim=True) + eps).sqrt()


dumps = dump_folder("f32")
found["unmeasured"] = told(lc.validate("5", device="cpu", dumps=dumps, maps=True))

maxima = Maxima()  # what the tool does, on one shape with one seed
measure_shape(maxima, SHAPES[0], 0, ["float32", "float16"])
path = Path(sys.argv[1], "measured.json")
path.write_text(data(maxima.table, "one seed", maxima.worst))
for dtype, kinds in read_measured(path).errors.items():
    for point in ("k_length", "k_unit"):
        LAYERS.errors[dtype]["own"][point] = kinds["own"][point]

found["measured"] = told(lc.validate("5", device="cpu", dumps=dumps, maps=True))
found["float16"] = told(lc.validate("5", device="cpu", dumps=dumps, dtype="float16"))
found["wrong"] = told(lc.validate(device="cpu", dumps=dumps, implementation=wrong, ids="5"))
found["measured page"] = explanation("k_unit")
found["hidden"] = EngineTrial.hidden_points(next(one for one in discover() if one.id == "5"))
bench = Bench(seeded_given("grouped", 0), discover())
found["cases"] = [case.function for case in bench.cases["5"]]
exact = next(one for one in VARIANTS if one.dtype == "float32")
judged = [one for case in bench.cases["5"] for one in bench.judged(exact.program, case)]
found["on the bench"] = sorted({one.evidence.name for one in judged})
found["alarms"] = [one.evidence.name for one in judged if one.saw]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    """What everybody makes of the throwaway checkpoint."""
    folders = []
    for package, text in (("checkpoints", CHECKPOINT), ("oracle", ORACLE)):
        folders.append(tmp_path_factory.mktemp(package))
        (folders[-1] / "c05_unit_keys.py").write_text(text, encoding="utf-8")
    command = [sys.executable, "-c", USE, *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    plain: Mapping[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return plain


def test_it_is_found_in_its_place(found: Mapping[str, Any]) -> None:
    assert found["ids"] == ["0", "1", "1B", "2", "3", "5", "6", "6B", "7", "8", "9", "10", "11", "12"]
    assert "| 5 | unit keys | `unit_keys` | `k_length`, `k_unit` | 1e-05 |" in found["ladder"]


def test_it_has_a_page_by_every_name_and_one_for_its_point(found: Mapping[str, Any]) -> None:
    pages = found["not measured"]
    assert len({pages[word] for word in ("5", "Unit Keys", "unit_keys", "c05_unit_keys")}) == 1
    assert "The sum runs over all heads instead of one." in pages["5"]
    assert pages["k_unit"] == pages["blk.3.k_unit"]
    assert "Judged by checkpoint 5, unit keys (`unit_keys`)." in pages["k_unit"]
    assert "| `k_unit` | not measured / not measured |" in pages["k_unit"]
    assert "no limit was measured for k_unit in float32: run `python -m tools.measure_limits`" in pages["5"]


def test_without_a_measured_limit_nothing_passes_and_that_is_said(found: Mapping[str, Any]) -> None:
    """It is nobody's fault, so nobody is blamed and nothing is diagnosed."""
    said = found["unmeasured"]
    assert said["exit_code"] == 1 and said["verdicts"] == ["fail"] and said["blames"] == [""]
    assert said["points"] == ["k_length", "k_unit"] and said["diagnoses"] == []
    wanted = "no limit was measured for k_unit in float32: run `python -m tools.measure_limits`"
    assert any(reason.startswith("error ") and reason.endswith(wanted) for reason in said["reasons"])


def test_the_tool_measures_it_and_then_it_is_judged(found: Mapping[str, Any]) -> None:
    for dtype in ("measured", "float16"):
        said = found[dtype]
        assert said["exit_code"] == 0 and said["verdicts"] == ["pass"], said
        assert said["points"] == ["k_length", "k_unit"] and said["compared"] > 100
    page = found["measured page"]
    assert "- `k_unit`: a sum of squares over the head, a root and a quotient; 4 x the largest of" in page
    assert "/ not measured |" in page  # a total error it has none: no whole run makes it


def test_a_wrong_function_in_its_place_fails(found: Mapping[str, Any]) -> None:
    said = found["wrong"]
    assert said["exit_code"] == 1 and said["verdicts"] == ["fail"] and said["blames"] == ["yours"]
    assert said["points"] == ["k_unit"]
    assert "it takes no tap, so only what it returns is compared" in said["notes"]


def test_the_reports_show_it(found: Mapping[str, Any]) -> None:
    for kind in ("unmeasured", "measured"):
        assert found[kind]["row"].startswith("5   unit keys")
        assert found[kind]["html"] > 0 and found[kind]["junit"] > 0


def test_the_engine_does_not_show_it_and_the_bench_tries_it(found: Mapping[str, Any]) -> None:
    assert found["hidden"] == ["k_length", "k_unit"]
    assert set(found["cases"]) == {"unit_keys"} and found["alarms"] == []
    assert found["on the bench"] == sorted(f"blk.{n}.{p}" for n in (0, 5, 10) for p in ("k_length", "k_unit"))


NEW = Point("ffn_extra", ("token", "width"), "ffn_extra", "MUL", "rms_norm", ("ffn_out",), "one sum")


def test_a_point_of_a_block_is_a_step_of_the_comparison_where_it_is_named() -> None:
    """`compare` walks what `points.py` names: the function of a point and what that reads are said there."""
    assert steps_of(BLOCK_POINTS) == STEPS
    assert [step.function for step in STEPS] == [
        *("rms_norm", "qkv", "rope", "attention", "add", "rms_norm", "swiglu", "add")
    ]
    assert STEPS[4] == FlowStep("add", (BLOCK_INPUT, "attn_out"), ("ffn_inp",))
    assert STEPS[3].taps == ("attn_scores", "attn_probs", "attn_context")
    more = steps_of((*BLOCK_POINTS[:-1], NEW, BLOCK_POINTS[-1]))
    assert more == (*STEPS[:-1], FlowStep("rms_norm", ("ffn_out",), ("ffn_extra",)), STEPS[-1])
