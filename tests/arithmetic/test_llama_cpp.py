"""What llama.cpp recorded of itself, explained: its profile gives it, step by step, to float32's rounding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llama_ckpt.arithmetic.explained import explained
from llama_ckpt.arithmetic.profiles import PROFILES
from llama_ckpt.arithmetic.rounded_oracle import rounded_oracle
from llama_ckpt.dumps.reference import open_dumps
from llama_ckpt.gguf.file import open_gguf
from llama_ckpt.making.derive import derive
from llama_ckpt.oracle.weights import OracleWeights
from llama_ckpt.points import split_name
from llama_ckpt.weights.config import LlamaConfig
from reference_dumps import dump_folder, embedded_model

PRODUCTS = ("q", "k", "v", "attn_out", "ffn_gate", "ffn_up", "ffn_out", "logits")
ROUNDED = rounded_oracle(PROFILES["llama.cpp-cpu"])

ERRORS = {"F16": (1e-4, 1e-3), "Q8_0": (2e-3, 2e-2), "Q4_0": (2e-3, 2e-2)}
"""The type of the weights, and between what llama.cpp's own error lies at products."""


@pytest.fixture(scope="module", params=ERRORS)
def kind_and_file(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    kind: str = request.param
    path: Path = embedded_model()
    if kind != "F16":
        path = tmp_path_factory.mktemp("derived") / f"{kind}.gguf"
        derive(embedded_model(), kind, path)
    return kind, path


def test_every_step_is_explained(kind_and_file: tuple[str, Path]) -> None:
    kind, path = kind_and_file
    file = open_gguf(path)
    config = LlamaConfig.from_gguf(file)
    dump = open_dumps(dump_folder(kind.lower())).dump("hello")
    found = list(
        explained(
            dump,
            ROUNDED,
            weights=OracleWeights(file, config),
            config=config,
            positions=np.array(dump.entry.positions),
        )
    )
    assert len(found) == 17 * len(dump.entry.blocks) + 1
    least, most = ERRORS[kind]
    for one in found:
        assert one.left < 1e-6, one
        if split_name(one.name)[1] in PRODUCTS:
            assert least < one.error < most, one
            assert one.share > 0.9999, one


def test_rope_at_far_positions_is_explained() -> None:
    dump = open_dumps(dump_folder("f32")).dump("far-positions")
    file = open_gguf(embedded_model())
    config = LlamaConfig.from_gguf(file)
    positions = np.array(dump.entry.positions)
    assert positions.min() > 1000
    options = {"weights": OracleWeights(file, config), "config": config, "positions": positions}
    only = {name: dump[name] for name in dump if split_name(name)[1] in ("q", "k", "q_rope", "k_rope")}
    found = list(explained(only, ROUNDED, **options))
    assert len(found) == 2 * len(dump.entry.blocks)
    for one in found:
        assert one.left < 1e-7, one
        assert one.error > 1e-5, one


def test_one_altered_product_is_noticed(kind_and_file: tuple[str, Path]) -> None:
    """A change of 1e-4, which llama.cpp's own error hides ten times and more in quantized files."""
    kind, path = kind_and_file
    file = open_gguf(path)
    config = LlamaConfig.from_gguf(file)
    dump = open_dumps(dump_folder(kind.lower())).dump("hello")
    altered = {"blk.0.ffn_norm": dump["blk.0.ffn_norm"], "blk.0.ffn_up": dump["blk.0.ffn_up"] * (1 + 1e-4)}
    options = {"weights": OracleWeights(file, config), "config": config}
    (one,) = explained(altered, ROUNDED, positions=np.array(dump.entry.positions), **options)
    assert 0.9e-4 < one.left < 1.1e-4
