"""Programs that are known by their submodules' names are recorded without a word, and judged right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from llama_ckpt.comparing.compare_dump import compare_dump
from llama_ckpt.comparing.comparison import Comparison
from llama_ckpt.dumps.program import known_programs
from llama_ckpt.dumps.record import Recorded, record
from llama_ckpt.errors import ShapeError
from llama_ckpt.making.export_layouts import halves_from_pairs
from llama_ckpt.points import split_name
from tests.dumps import torch_programs as programs
from tests.dumps.torch_programs import GptFastLike, HfLike, LitgptLike, Llama2cLike, MetaLike, loaded

IDS = [1, 40, 41, 300, 7]
ALL = 3 + 17 * 2
FUSED = ALL - 2 * 2
"""Points that are seen where scores and probabilities stay inside one call."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return programs.seeded(tmp_path_factory.mktemp("seeded"))


def judged(recorded: Recorded, model: Path, folder: Path) -> Comparison:
    recorded.save(folder / "theirs.safetensors")
    return compare_dump(folder / "theirs.safetensors", model=model)


RIGHT = {
    "meta": (lambda: MetaLike(), "Meta's Llama", ALL),
    "meta, fused": (lambda: MetaLike(programs.by_one_call), "Meta's Llama", FUSED),
    "gpt-fast": (lambda: GptFastLike(), "gpt-fast's Transformer", FUSED),
    "litgpt": (lambda: LitgptLike(), "litgpt's GPT", FUSED),
    "litgpt, by group": (lambda: LitgptLike(by_group=True), "litgpt's GPT", FUSED),
    "transformers": (lambda: HfLike(), "transformers' Llama", ALL),
    "transformers, fused": (lambda: HfLike("sdpa"), "transformers' Llama", FUSED),
}


@pytest.mark.parametrize("case", RIGHT)
@pytest.mark.parametrize("ids", [[1, 40], IDS], ids=["two", "five"])
def test_a_right_program_passes(case: str, ids: list[int], model: Path, tmp_path: Path) -> None:
    make, name, seen = RIGHT[case]
    recorded = record(loaded(make(), model), ids)
    assert any(f"recognized as {name}" in note for note in recorded.notes)
    assert recorded.token_ids == tuple(ids) and recorded.positions == tuple(range(len(ids)))
    report = judged(recorded, model, tmp_path)
    assert report.verdict == "pass" and not report.findings, report.reason
    assert (report.compared, report.of) == (seen, seen), "what was not seen is declared, not missing"
    assert recorded.tensors["blk.1.k_rope"].shape == (len(ids), 2, 16), "copies folded, empty slots cut off"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", RIGHT)
def test_half_precision_is_known_by_the_tensors(
    case: str, dtype: torch.dtype, model: Path, tmp_path: Path
) -> None:
    recorded = record(loaded(RIGHT[case][0](), model).to(dtype), IDS)
    assert recorded.dtype == str(dtype).removeprefix("torch.")
    assert judged(recorded, model, tmp_path).verdict == "pass"


@pytest.mark.parametrize("case", ["meta", "transformers, fused"])
def test_autocast_is_known_by_the_tensors_though_the_parameters_are_float32(
    case: str, model: Path, tmp_path: Path
) -> None:
    class Autocast(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, ids: Any) -> Any:
            with torch.autocast("cpu", torch.bfloat16):
                return self.inner(ids, 0) if case == "meta" else self.inner(ids)

    recorded = record(Autocast(loaded(RIGHT[case][0](), model)), IDS)
    assert recorded.dtype == "bfloat16"
    assert judged(recorded, model, tmp_path).verdict == "pass"


def test_ids_and_positions_go_by_the_names_that_programs_give_them(model: Path, tmp_path: Path) -> None:
    ids = torch.tensor([IDS])
    meta = record(loaded(MetaLike(), model), {"tokens": ids, "start_pos": 0})
    fast = record(loaded(GptFastLike(), model), {"idx": ids, "input_pos": torch.arange(5)})
    for recorded in (meta, fast):
        assert recorded.token_ids == tuple(IDS) and recorded.positions == tuple(range(5))
        assert judged(recorded, model, tmp_path).verdict == "pass"


@pytest.mark.parametrize(
    "ids", [tuple(IDS), [IDS], np.array(IDS), np.array([IDS], np.int32), torch.tensor(IDS)]
)
def test_ids_of_any_kind(ids: Any, model: Path) -> None:
    recorded = record(loaded(HfLike(), model), ids)
    assert recorded.token_ids == tuple(IDS) and recorded.tensors["logits"].shape == (5, 320)


def test_what_are_no_ids_is_refused_and_training_mode_is_told_of(model: Path) -> None:
    program = loaded(HfLike(), model)
    for wrong in ([0.5, 1.5], [[[1, 2]]], ["Hello"]):
        with pytest.raises(ShapeError, match="wanted token ids"):
            record(program, wrong)  # type: ignore[arg-type]
    assert any("eval()" in note for note in record(program.train(), IDS).notes)


def test_a_known_program_within_another_module(model: Path, tmp_path: Path) -> None:
    class Wrapped(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.net = nn.ModuleDict({"llama": inner})

        def forward(self, x: Any) -> Any:
            return self.net["llama"](x)

    recorded = record(Wrapped(loaded(HfLike(), model)), {"x": torch.tensor([IDS])})
    assert recorded.token_ids == tuple(IDS)
    assert judged(recorded, model, tmp_path).verdict == "pass"


def forgotten_scale(q: Any, k: Any, v: Any) -> Any:
    scores = q @ programs.expanded(k).mT + programs.hidden_keys(q.shape[2], k.shape[2])
    return scores.softmax(-1) @ programs.expanded(v)


def fused_without_scale(q: Any, k: Any, v: Any) -> Any:
    return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0, enable_gqa=True)


@pytest.mark.parametrize(
    ("attention", "first"), [(forgotten_scale, "attn_probs"), (fused_without_scale, "attn_context")]
)
def test_a_registered_attention_whose_scale_is_forgotten_is_named(
    attention: Any, first: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(programs.ATTENTIONS, "mine", attention)
    report = judged(record(loaded(HfLike("mine"), model), IDS), model, tmp_path)
    assert report.first_wrong is not None
    assert report.first_wrong.made == ("here" if attention is forgotten_scale else "between")
    assert split_name(report.first_wrong.name) == (0, first)
    assert "the scores are not divided by sqrt(head_dim)" in report.diagnoses[0].sentence()


def test_the_last_tokens_logits_alone(model: Path, tmp_path: Path) -> None:
    recorded = record(loaded(Llama2cLike(programs.by_one_call), model), IDS)
    assert recorded.tensors["logits"].shape == (1, 320)
    report = judged(recorded, model, tmp_path)
    assert report.verdict == "pass" and report.compared == report.of == FUSED


def halves(w: torch.Tensor, heads: int) -> torch.Tensor:
    return torch.from_numpy(halves_from_pairs(w.detach().numpy().copy(), heads))


def pairs(w: torch.Tensor, heads: int) -> torch.Tensor:
    return w.detach().reshape(heads, 2, -1, w.shape[1]).transpose(1, 2).reshape(w.shape).clone()


def test_weights_in_ggufs_order_in_a_program_that_turns_halves(model: Path, tmp_path: Path) -> None:
    """q and k are right as they stand, so it is RoPE that turns other pairs than they lie in."""
    program = loaded(HfLike(), model)
    for layer in program.model.layers:
        a = layer.self_attn
        a.q_proj.weight.data, a.k_proj.weight.data = pairs(a.q_proj.weight, 4), pairs(a.k_proj.weight, 2)
    report = judged(record(program, IDS), model, tmp_path)
    assert report.first_wrong is not None and report.first_wrong.name == "blk.0.q_rope"
    assert "RoPE turns pairs (i, i+d/2) instead of (2i, 2i+1)" in report.diagnoses[0].sentence()


@pytest.mark.parametrize("ids", [[1, 40], IDS], ids=["two", "five"])
def test_hugging_faces_weights_in_a_program_that_turns_neighbours(
    ids: list[int], model: Path, tmp_path: Path
) -> None:
    program = loaded(MetaLike(), model)
    for layer in program.layers:
        a = layer.attention
        a.wq.weight.data, a.wk.weight.data = halves(a.wq.weight, 4), halves(a.wk.weight, 2)
    report = judged(record(program, ids), model, tmp_path)
    (finding,) = report.findings
    assert finding.kind == "mixed_layout"
    assert (
        finding.message == "blk.0.q_rope: weights in half-split order, but RoPE turns neighbours (2i, 2i+1)"
    )


@pytest.mark.parametrize("wrong", [("q",), ("q", "k")], ids=["q", "q and k"])
def test_an_order_is_known_also_where_q_is_wrong(wrong: tuple[str, ...], model: Path, tmp_path: Path) -> None:
    """By k, or by what RoPE turned: a gain of q must not look like another order of its features."""
    program = loaded(HfLike(), model)
    for name in wrong:
        getattr(program.model.layers[0].self_attn, f"{name}_proj").weight.data *= 1.1
    report = judged(record(program, IDS), model, tmp_path)
    made = [split_name(point.name) for point in report.points if point.made == "here"]
    assert made == [(0, name) for name in wrong]
    assert any("half-split order" in note for note in report.notes)


@pytest.mark.parametrize("rotary", [4, 8, 12])
def test_a_partial_rotary_is_named(rotary: int, model: Path, tmp_path: Path) -> None:
    program = loaded(LitgptLike(by_group=rotary == 8, rotary=rotary), model)
    report = judged(record(program, IDS), model, tmp_path)
    assert report.first_wrong is not None and report.first_wrong.name == "blk.0.q_rope"
    assert f"only the first {rotary} of a head's 16 features" in report.diagnoses[0].sentence()
    assert not report.findings


def test_every_known_program_has_every_point_that_hooks_can_see() -> None:
    keys = [key for key, _ in known_programs()]
    assert keys == ["gpt_fast", "ibm_fms", "litgpt", "meta", "mixtral", "torchtune", "transformers"]
    for key, program in known_programs():
        whole = program.mapping_for(lambda path: True)
        assert whole is not None
        points = {split_name(p.replace("{N}", "0"))[1] for each in whole.values() for p in str(each).split()}
        assert len(points) == 16, f"{key}: {sorted(points)}"  # a mixture's 3 of experts for gate, up and both
        assert program.mapping_for(lambda path: "norm" not in path) is None


def test_a_program_that_goes_on_with_the_last_token_alone(model: Path, tmp_path: Path) -> None:
    """As many do past the last attention, whose keys are all that the other tokens are needed for."""

    class Last(nn.Module):
        def __init__(self, block: Any) -> None:
            super().__init__()
            self.block = block

        def forward(self, x: Any, *how: Any) -> Any:
            h = (x + self.block.attention(self.block.attention_norm(x), *how))[:, -1:]
            return h + self.block.feed_forward(self.block.ffn_norm(h))

    class Program(MetaLike):
        def forward(self, tokens: Any, start_pos: int) -> Any:
            h, at = self.tok_embeddings(tokens), programs.angles(torch.arange(tokens.shape[1]))
            for layer in (*self.layers[:-1], Last(self.layers[-1])):
                h = layer(h, start_pos, at)
            return self.output(self.norm(h))

    recorded = record(loaded(Program(), model), IDS)
    assert "blk.1.ffn_norm has 1 rows for 5 tokens: left out" in recorded.notes
    assert "blk.1.attn_out" in recorded.tensors and "blk.1.ffn_out" not in recorded.tensors
    report = judged(recorded, model, tmp_path)
    assert report.verdict == "pass" and not report.findings, report.reason


def test_float64_is_kept(model: Path, tmp_path: Path) -> None:
    recorded = record(loaded(HfLike(), model).double(), IDS)
    assert recorded.tensors["blk.1.ffn_up"].dtype == np.float64
    assert judged(recorded, model, tmp_path).verdict == "pass"
