"""Which dumps a model may be held against."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import pytest

from llama_ckpt.dumps.reference import DumpSet, open_dumps
from llama_ckpt.errors import DumpError
from llama_ckpt.gguf.file import open_gguf
from llama_ckpt.ladder.climb import validate
from llama_ckpt.ladder.subjects import check_room
from llama_ckpt.weights.config import LlamaConfig
from reference_dumps import dump_folder, embedded_model


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


@pytest.mark.parametrize(
    ("n", "context", "said"), [(100_000, 128, "128 at most"), (10**6, 1 << 30, "bytes for the scores")]
)
def test_a_continuation_that_nothing_holds_is_refused(n: int, context: int, said: str) -> None:
    """A manifest of 5 KB can name so many tokens; with their scores alone 298 GiB and more."""
    dumps = open_dumps(dump_folder("f32"))
    entry = dumps.entries[0]
    longer = replace(entry, continuation=replace(entry.continuation, token_ids=(1,) * n))
    config = LlamaConfig.from_gguf(open_gguf(embedded_model()))
    hostile = DumpSet(dumps.path, replace(dumps.manifest, dumps=(longer,)))
    with pytest.raises(DumpError, match=said):
        check_room(hostile, replace(config, context_length=context))
    check_room(dumps, config)
