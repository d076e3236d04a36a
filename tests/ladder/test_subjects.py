"""Which dumps a model may be held against."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from llama_ckpt.errors import DumpError
from llama_ckpt.ladder.climb import validate
from reference_dumps import dump_folder


def test_the_same_weights_with_another_epsilon_are_another_model(
    embedded_model: Path, tmp_path: Path
) -> None:
    """Layer and oracle would both take the file's epsilon, agree, and put the blame on llama.cpp."""
    data = embedded_model.read_bytes()
    key = b"llama.attention.layer_norm_rms_epsilon"
    place = data.index(key) + len(key) + 4  # behind the key stand the value's type and the value
    assert struct.unpack_from("<f", data, place)[0] == pytest.approx(1e-5)
    changed = tmp_path / "epsilon.gguf"
    changed.write_bytes(data[:place] + struct.pack("<f", 1e-6) + data[place + 4 :])
    with pytest.raises(DumpError, match=r"rms_norm_eps of .*: got 9.99\S+e-07, wanted 9.99\S+e-06"):
        validate(["1"], model=changed, dumps=dump_folder("f32"), device="cpu")
