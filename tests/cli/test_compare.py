"""`llama-ckpt compare` as people call it: exit codes, files, and no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

import reference_dumps
from llama_ckpt.cli import app
from tests.comparing.their_programs import EIGHT, bug, right_run, run, write

ROOT = Path(__file__).parents[2]
MAP = ROOT / "examples" / "hugging_face.toml"


def compared(*words: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["compare", *map(str, words)])
    return done.exit_code, done.output


def test_a_right_dump(tmp_path: Path) -> None:
    code, shown = compared(write(tmp_path, right_run()))
    assert code == 0 and "pass  every point within its limits" in shown


def test_a_wrong_dump_and_every_file(tmp_path: Path) -> None:
    names = {kind: tmp_path / f"report.{kind}" for kind in ("json", "junit", "html")}
    options = [part for kind, path in names.items() for part in (f"--{kind}", path)]
    code, shown = compared(write(tmp_path, run(wrong=bug("rope-half-split"))), *options)
    assert code == 1 and "looks like     RoPE turns pairs (i, i+d/2)" in shown
    report = json.loads(names["json"].read_text())
    assert (report["schema"], report["kind"], report["first_wrong"]) == (2, "comparison", "blk.0.q_rope")
    assert names["junit"].read_text().startswith("<?xml") and "<!doctype html>" in names["html"].read_text()


def test_json_alone_on_standard_output(tmp_path: Path) -> None:
    path = write(tmp_path, right_run())
    command = [sys.executable, "-m", "llama_ckpt", "compare", str(path), "--json", "-"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert json.loads(done.stdout)["verdict"] == "pass" and "every point within its limits" in done.stderr


def test_bad_input_is_one_sentence_and_exit_code_2(tmp_path: Path) -> None:
    for words in (
        [tmp_path / "none.safetensors"],
        [write(tmp_path, right_run()), "--dump", "none"],
        [write(tmp_path, right_run()), "--map", tmp_path / "none.toml"],
        [write(tmp_path, right_run()), "--reference", tmp_path],
        [write(tmp_path, right_run()), "--model", tmp_path / "none.gguf"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "llama_ckpt", "compare", *map(str, words)],
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
        assert done.returncode == 2 and done.stdout == ""
        assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("llama-ckpt: error: "), (
            done.stderr
        )


@pytest.mark.parametrize("wrong", [False, True], ids=["right", "wrong"])
def test_a_dump_under_other_names_by_a_map(wrong: bool, tmp_path: Path) -> None:
    """As transformers would have it: a batch, heads before tokens, half-split pairs, scaled scores."""
    tensors = run(EIGHT, wrong=bug("attention-mask-missing")) if wrong else right_run(EIGHT)
    path = tmp_path / "theirs.safetensors"
    save_file(dict(_hugging_face(tensors)), path, {"token_ids": ",".join(map(str, EIGHT))})
    code, shown = compared(path, "--map", MAP, "--partial")
    assert code == int(wrong), shown
    assert ("blk.0.attn_probs  made here: its inputs are right" in shown) == wrong
    assert f"compared {3 + 12 * 32} of {3 + 12 * 32} points" in shown
    code, shown = compared(path)
    assert code == 2, "without the map nothing is known by its name"


def _hugging_face(tensors):  # type: ignore[no-untyped-def]
    inside = {
        "attn_norm": ("input_layernorm", lambda x: x),
        "q": ("self_attn.q_proj", lambda x: _halves(x).reshape(8, -1)),
        "k": ("self_attn.k_proj", lambda x: _halves(x).reshape(8, -1)),
        "v": ("self_attn.v_proj", lambda x: x.reshape(8, -1)),
        "q_rope": ("self_attn.query_states", lambda x: _halves(x).transpose(1, 0, 2)),
        "k_rope": ("self_attn.key_states", lambda x: _halves(x).transpose(1, 0, 2)),
        "attn_scores": ("self_attn.scores", lambda x: x.transpose(1, 0, 2) / 4.0),
        "attn_probs": ("self_attn.attn_weights", lambda x: x.transpose(1, 0, 2)),
        "attn_out": ("self_attn.o_proj", lambda x: x),
        "ffn_norm": ("post_attention_layernorm", lambda x: x),
        "ffn_out": ("mlp.down_proj", lambda x: x),
    }
    outside = {"embd": "model.embed_tokens", "output_norm": "model.norm", "logits": "lm_head"}
    for name, x in tensors.items():
        block, _, point = name.removeprefix("blk.").partition(".")
        if name in outside:
            yield outside[name], x[None].copy()
        elif point == "out":
            yield f"model.layers.{block}", x[None].copy()
        elif point in inside:
            path, change = inside[point]
            yield f"model.layers.{block}.{path}", np.ascontiguousarray(change(x)[None])


def _halves(x: np.ndarray) -> np.ndarray:
    return np.concatenate((x[..., 0::2], x[..., 1::2]), axis=-1)


def test_nothing_heavy_is_loaded(tmp_path: Path) -> None:
    """The command in a process where torch cannot be imported at all."""
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['transformers'] = None;"
        "from llama_ckpt.cli import main;"
        f"sys.argv = ['llama-ckpt', 'compare', {str(write(tmp_path, right_run()))!r}, '--html', "
        f"{str(tmp_path / 'r.html')!r}, '--junit', {str(tmp_path / 'r.xml')!r}]; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "pass  every point" in done.stdout and (tmp_path / "r.html").stat().st_size > 10_000


def test_the_embedded_models_own_files_are_found_without_options(tmp_path: Path) -> None:
    hello = reference_dumps.dump_folder("f32") / "hello.safetensors"
    assert compared(hello)[0] == 0


def test_several_dumps_side_by_side(tmp_path: Path) -> None:
    right = write(tmp_path, right_run()).rename(tmp_path / "right.safetensors")
    wrong = write(tmp_path, run(wrong=bug("rope-half-split"), blocks=[3])).rename(
        tmp_path / "wrong.safetensors"
    )
    page, record = tmp_path / "page.html", tmp_path / "report.json"
    code, shown = compared(right, wrong, right, "--html", page, "--json", record)
    figures = shown[shown.index("checkpoint ") : shown.index("the largest error of each")].splitlines()
    assert code == 1 and len(figures) == 9 and all(len(line) <= 80 for line in figures)
    assert "they part at blk.3.q_rope, where 2: wrong is off" in " ".join(shown.split())
    assert json.loads(record.read_text())["kind"] == "side_by_side"
    assert "Everything about C" in page.read_text()
    for words, said in (
        ((right, wrong, "--junit", tmp_path / "x.xml"), "--junit: got 2 dumps, wanted --html or --json"),
        (
            (right, wrong, right, "--rank", f"0={right}"),
            "--rank: got 3 dumps as well, wanted the dumps of one run",
        ),
    ):
        done = CliRunner().invoke(app, ["compare", *map(str, words)])
        assert done.exit_code == 2 and said in done.output, done.output


def test_two_dumps_alone_are_held_against_each_other_and_with_a_page_side_by_side(tmp_path: Path) -> None:
    right = write(tmp_path, right_run()).rename(tmp_path / "right.safetensors")
    code, shown = compared(right, right)
    assert code == 0 and "equal, bit for bit" in shown
    code, shown = compared(right, right, "--html", tmp_path / "page.html")
    assert code == 0 and "1: right and 2: right pass" in shown and (tmp_path / "page.html").is_file()
