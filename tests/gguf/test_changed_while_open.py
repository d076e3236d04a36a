"""A model's file that is cut or written to while it is in use: one sentence, and nothing computed on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gguf_files import write_llama

GROWS_OLD = """
import os, sys
import llama_ckpt as lc
path, how = sys.argv[1], sys.argv[2]
model = lc.load(path, device="cpu", dtype="float32")
model.logits([1, 2])
if how == "cut":
    os.truncate(path, 4096)
else:
    with open(path, "r+b") as file:
        file.seek(-64, 2)
        file.write(bytes(64))
model.logits([1, 2])
print("computed on")
"""


@pytest.mark.parametrize(("how", "said"), [("cut", "became shorter"), ("overwrite", "has changed since")])
def test_a_model_that_changes_while_it_is_in_use_is_told_of(how: str, said: str, tmp_path: Path) -> None:
    """Cut, a mapped file would end the process by a bus error; overwritten, it would compute on."""
    path = write_llama(tmp_path / "m.gguf", vocab=4000)
    command = [sys.executable, "-c", GROWS_OLD, str(path), how]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert said in done.stderr and "m.gguf" in done.stderr and not done.stdout
    assert done.returncode == (2 if how == "cut" else 1)  # the library's error is the caller's to catch
    if how == "cut":
        assert done.stderr.count("\n") == 1
