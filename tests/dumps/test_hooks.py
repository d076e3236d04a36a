"""Mappings: several points in one output, one module called several times, blocks that are shared."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from llama_ckpt.dumps.record import record
from llama_ckpt.errors import OptionError, ShapeError

X = torch.arange(12.0).reshape(3, 4)


class Fused(nn.Module):
    """A gated layer whose gate and up projection are one."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(4, 6) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            gate, up = block(x).chunk(2, -1)
            x = torch.cat((gate * up, x[..., :1]), -1)
        return x


def test_one_output_that_holds_several_points_is_cut_into_them() -> None:
    module = Fused()
    recorded = record(module, X, mapping={"blocks.{N}": "blk.{N}.ffn_gate blk.{N}.ffn_up"})
    with torch.no_grad():
        both = module.blocks[0](X).numpy()
    assert np.array_equal(recorded.tensors["blk.0.ffn_gate"], both[:, :3])
    assert np.array_equal(recorded.tensors["blk.0.ffn_up"], both[:, 3:])
    assert recorded.points == ("ffn_gate", "ffn_up")


def test_where_q_ends_cannot_be_told_without_attention() -> None:
    recorded = record(Fused(), X, mapping={"blocks.{N}": "blk.{N}.q blk.{N}.k blk.{N}.v"})
    assert not recorded.tensors
    assert any("one output holds q, k, v: where each ends" in note for note in recorded.notes)


class OneNorm(nn.Module):
    """One norm for both places, and one block for all depths."""

    def __init__(self) -> None:
        super().__init__()
        block = nn.ModuleDict({"norm": nn.LayerNorm(4), "mix": nn.Linear(4, 4)})
        self.blocks = nn.ModuleList([block, block])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block["mix"](block["norm"](x))  # type: ignore[index]
            x = x + block["norm"](x)  # type: ignore[index]
        return x


def test_a_module_that_is_called_several_times_has_a_point_for_each_call() -> None:
    mapping: dict[str, Any] = {
        "blocks.{N}.norm": ["blk.{N}.attn_norm", "blk.{N}.ffn_norm"],
        "blocks.{N}.norm:input": ["blk.{N}.ffn_out", "blk.{N}.ffn_inp"],
        "blocks.{N}.mix": "blk.{N}.attn_out",
    }
    recorded = record(OneNorm(), X, mapping=mapping)
    x = recorded.tensors
    assert len(x) == 10 and np.array_equal(x["blk.0.ffn_out"], X.numpy())
    for block in (0, 1):
        before = x[f"blk.{block}.ffn_out"] + x[f"blk.{block}.attn_out"]
        assert np.array_equal(x[f"blk.{block}.ffn_inp"], before), "the second call's input, of the same block"


def test_more_calls_than_points_are_refused() -> None:
    with pytest.raises(ShapeError, match="blk.1.attn_norm: got two tensors in one call"):
        record(OneNorm(), X, mapping={"blocks.{N}.norm": "blk.{N}.attn_norm"})
    with pytest.raises(ShapeError, match="blk.0.attn_norm: got two tensors in one call"):
        mapping = {"blocks.0.norm": "blk.0.attn_norm", "blocks.1.mix": "blk.0.attn_norm"}
        record(OneNorm(), X, mapping={"blocks.0.mix": "blk.0.attn_norm", **mapping})


def test_blocks_that_were_picked_are_declared() -> None:
    recorded = record(Fused(), X, mapping={"blocks.1": "blk.1.out"})
    assert (recorded.points, recorded.blocks) == (("out",), (1,))


def test_each_point_of_an_output_must_be_one() -> None:
    with pytest.raises(OptionError, match="wanted a point"):
        record(Fused(), X, mapping={"blocks.{N}": "blk.{N}.ffn_gate blk.{N}.up"})


def test_a_model_that_hands_on_a_record_of_its_own() -> None:
    class Output(dict[str, Tensor]):
        pass

    class Model(nn.Module):
        def forward(self, x: Tensor) -> Output:
            return Output(loss=x.sum(), logits=x)

    recorded = record(Model(), X, mapping={"": "logits"})
    assert np.array_equal(recorded.tensors["logits"], X.numpy())


@pytest.mark.parametrize("shape", [(1, 3, 4), (3, 1, 4), (3, 4)], ids=["batch first", "batch second", "none"])
def test_a_batch_of_one_is_left_out_wherever_it_stands(shape: tuple[int, ...]) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.query = nn.Embedding(8, 4), nn.Linear(4, 6)

        def forward(self, tokens: Tensor) -> Tensor:
            out: Tensor = self.query(self.embed(tokens).reshape(shape))
            return out

    mapping = {"query:input": "embd", "query": "blk.0.q"}
    recorded = record(Model(), {"tokens": torch.tensor([[1, 2, 3]])}, mapping=mapping)
    assert recorded.tensors["embd"].shape == (3, 4) and recorded.tensors["blk.0.q"].shape == (3, 6)
    assert recorded.token_ids == (1, 2, 3)
