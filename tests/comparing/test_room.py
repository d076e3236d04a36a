"""Dumps that declare more than there is: refused before anything is computed for it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import reference_dumps
from llama_ckpt.comparing.compare_dump import compare_dump
from llama_ckpt.errors import LlamaCkptError

MODEL = Path(reference_dumps.__file__).parent / "llama-3" / "model.gguf"
ROWS = np.zeros((3, 16), np.float32)

HOSTILE: dict[str, tuple[Mapping[str, Any], str, str]] = {
    "a million tokens": ({"token_ids": "1," * 10**6}, "1000000 tokens", "131072 at most"),
    "a token beyond": ({"token_ids": "1,2,70000"}, "got 70000", "ids from 0 to"),
    "70 bits": ({"token_ids": f"1,2,{1 << 70}"}, "whole numbers with commas", ""),
    "5,000 digits": ({"positions": "9" * 5000}, "whole numbers with commas", ""),
    "Arabic digits": ({"token_ids": "1,\u0662,3"}, "whole numbers with commas", ""),
    "a superscript": ({"token_ids": "1,\u00b2,3"}, "whole numbers with commas", ""),
    "positions below 0": ({"token_ids": "1,2,3", "positions": "-3,-2,-1"}, "got -3", "below 2^31"),
    "positions of 60 bits": ({"token_ids": "1,2,3", "positions": f"0,1,{1 << 59}"}, f"got {1 << 59}", ""),
    "calls without end": (
        {"calls": ",".join(map(str, range(9000))), "token_ids": "1," * 9000},
        "9000 rows",
        "as the tensors have",
    ),
    "an arithmetic without end": ({"token_ids": "1,2,3", "arithmetic": '{"a":' * 200_000}, "without end", ""),
    "other weights' sum": ({"token_ids": "1,2,3", "arithmetic": '{"like": 1e999}'}, "the number 1e999", ""),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_declared_is_held_against_what_is_there(name: str, tmp_path: Path) -> None:
    said, got, wanted = HOSTILE[name]
    path = tmp_path / "a.safetensors"
    save_file({"embd": ROWS}, path, dict(said))
    began = time.process_time()
    with pytest.raises(LlamaCkptError) as caught:
        compare_dump(path, model=MODEL)
    message = str(caught.value)
    assert got in message and wanted in message
    assert len(message) < 500 and message.isprintable() and time.process_time() - began < 5


@pytest.mark.parametrize("shape", [(1,) * 40, (0, 1 << 50), (1 << 62, 0)])
def test_an_empty_tensor_of_many_axes_is_no_tensor(shape: tuple[int, ...], tmp_path: Path) -> None:
    import json
    import struct

    n = 4 * int(0 not in shape)
    header = {"embd": {"dtype": "F32", "shape": shape, "data_offsets": [0, n]}}
    text = json.dumps({**header, "__metadata__": {"token_ids": "1,2,3"}}).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(n))
    with pytest.raises(LlamaCkptError):
        compare_dump(path, model=MODEL)


def test_values_beyond_float32_are_wrong_and_no_error(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"blk.0.attn_norm": np.full((3, 16), 1e300)}, path, {"token_ids": "1,2,3"})
    assert compare_dump(path, model=MODEL, partial=True).verdict == "fail"
