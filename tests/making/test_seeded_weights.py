"""The numbers of seeded models against arithmetic on Python's integers, and what the weights are for."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_ckpt.gguf.file import open_gguf
from llama_ckpt.making.seeded_model import make_seeded
from llama_ckpt.making.seeded_numbers import LANE_SUM_SD, centred_sums, seeded_rows, sequence_key
from llama_ckpt.making.seeded_shapes import SHAPES, SeededShape
from llama_ckpt.making.seeded_weights import EMBEDDING_SHARE, NORM_SD, SeededWeights
from llama_ckpt.oracle import llama as oracle
from llama_ckpt.oracle.weights import OracleWeights

MASK = (1 << 64) - 1


def centred_sum(key: int, index: int) -> int:
    """One element, written from the definition of splitmix64 with integers of any size."""
    z = (key + index * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    z ^= z >> 31
    return sum((z >> shift) & 0xFFFF for shift in (0, 16, 32, 48)) - 2 * 65535


def sums(key: int, rows: list[int], width: int) -> np.ndarray:
    out = np.empty((len(rows), width), np.int32)
    centred_sums(key, np.array(rows, np.int64), out)
    return out


@given(st.integers(0, MASK), st.lists(st.integers(0, 1 << 40), min_size=1, max_size=5), st.integers(1, 70))
def test_numbers_equal_the_definition(key: int, rows: list[int], width: int) -> None:
    wanted = [[centred_sum(key, row * width + column) for column in range(width)] for row in rows]
    assert sums(key, rows, width).tolist() == wanted


def test_numbers_equal_the_definition_beyond_one_piece() -> None:
    """Many rows go through the scratch arrays in turns; a wide row fills them."""
    for n, width in ((300, 1000), (2, 65536)):
        found = sums(7, list(range(n)), width)
        for row in (0, n // 2, n - 1):
            assert [int(found[row, column]) for column in (0, width - 1)] == [
                centred_sum(7, row * width + column) for column in (0, width - 1)
            ]


def test_key_is_the_start_of_a_sha256() -> None:
    digest = hashlib.sha256(b"llama_ckpt seeded numbers 1\x003\x00output.weight").digest()
    assert sequence_key(3, "output.weight") == int.from_bytes(digest[:8], "little")


def test_values_are_normal_enough() -> None:
    values = seeded_rows(1, "x", np.arange(256), 4096, 1.0).astype(np.float64)
    n_samples = values.size
    assert abs(values.mean()) < 5 / n_samples**0.5
    assert abs(values.var() - 1) < 5 * (2 / n_samples) ** 0.5
    assert np.abs(values).max() <= 131070 / LANE_SUM_SD
    neighbours = np.corrcoef(values[:, :-1].ravel(), values[:, 1:].ravel())[0, 1]
    assert abs(neighbours) < 5 / n_samples**0.5


def test_value_is_one_rounded_product() -> None:
    value = seeded_rows(5, "x", np.array([3]), 10, 0.02)[0, 4]
    scale = np.float32(0.02 / LANE_SUM_SD)
    assert value == np.float32(centred_sum(sequence_key(5, "x"), 34)) * scale
    assert value.dtype == np.float32


@given(st.integers(0, 200), st.integers(1, 60))
def test_rows_do_not_depend_on_how_they_are_asked_for(first: int, n: int) -> None:
    weights = SeededWeights(SHAPES["gqa-256"].config(), 1)
    for name in ("token_embd.weight", "output.weight", "blk.1.ffn_down.weight"):
        together = weights.rows(name, first, n)
        apart = [weights.rows(name, first + row, 1) for row in range(n)]
        assert np.array_equal(together, np.concatenate(apart))


def test_blocks_and_seeds_have_weights_of_their_own() -> None:
    config = SHAPES["gqa-256"].config()
    names = ("blk.0.attn_q.weight", "blk.1.attn_q.weight", "blk.0.attn_k.weight", "blk.0.attn_norm.weight")
    rows = [SeededWeights(config, seed).rows(name, 0, 1)[0] for seed in (1, 2) for name in names]
    assert len({row.tobytes() for row in rows}) == 8


def test_norms_vary_around_one() -> None:
    weights = SeededWeights(SHAPES["llama-2-7b"].config(), 1)
    norms = np.stack([weights.rows(f"blk.{block}.ffn_norm.weight", 0, 1)[0] for block in range(32)])
    assert norms.min() > 0
    assert abs(norms.mean() - 1) < 0.01 and abs(norms.std() - NORM_SD) < 0.01


class Forward:
    """A seeded model in the oracle: every tapped array, and the logits."""

    def __init__(self, path: Path, shape: SeededShape, token_ids: np.ndarray) -> None:
        make_seeded(path, shape=shape)
        config = shape.config()
        self.points: dict[str, np.ndarray] = {}
        self.logits = oracle.logits(
            token_ids,
            OracleWeights(open_gguf(path), config),
            config=config,
            positions=np.arange(len(token_ids)),
            tap=self.points.__setitem__,
        )

    def rms(self, point: str) -> float:
        return float(np.sqrt(np.mean(self.points[point] ** 2)))

    def margins(self) -> np.ndarray:
        """Between the two best logits of each row, in standard deviations of the row."""
        ordered = np.sort(self.logits, axis=-1)
        return (ordered[:, -1] - ordered[:, -2]) / self.logits.std(axis=-1)


DEEP = SeededShape(width=256, n_heads=8, ffn=512, n_layers=32, vocab=1024)
TOKENS = np.array([1, *np.random.default_rng(0).integers(3, 512, 31)])


@pytest.fixture(scope="module", params=["deep", "gqa-256", "head-128", "tied-256"])
def forward(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Forward:
    shape = DEEP if request.param == "deep" else SHAPES[request.param]
    return Forward(tmp_path_factory.mktemp("seeded") / "model.gguf", shape, TOKENS)


def test_activations_stay_far_from_the_ends_of_float16(forward: Forward) -> None:
    for point, values in forward.points.items():
        assert np.abs(values).max() < 65504 / 100, point
        assert forward.rms(point) > 1e-2, point


def test_every_sublayer_adds_its_share(forward: Forward) -> None:
    """Not less than a third of what all add in the mean: no bug hides in a dead layer."""
    n_layers = sum(point.endswith(".out") for point in forward.points)
    mean_share = ((1 - 0.5**2) / (2 * n_layers)) ** 0.5
    last = forward.rms(f"blk.{n_layers - 1}.out")
    for block in range(n_layers):
        for added in ("attn_out", "ffn_out"):
            assert forward.rms(f"blk.{block}.{added}") > mean_share * last / 3, (block, added)
    assert EMBEDDING_SHARE / 2 < forward.rms("embd") / last < 0.75


def test_choices_are_clear(forward: Forward) -> None:
    """A margin of half a standard deviation is 600 times what float16 moves a logit by (7.4e-4 of
    the logits' norm, llama.cpp's F16 on gqa-256), and 20 times what 8-bit activations do (2.2e-2)."""
    margins = forward.margins()
    assert np.median(margins) > 1.5
    assert np.mean(margins > 0.5) > 0.9


def test_choices_depend_on_the_token(forward: Forward) -> None:
    assert len(set(forward.logits.argmax(axis=-1))) >= 0.9 * len(set(TOKENS))


def test_mistakes_are_seen(forward: Forward) -> None:
    """What a wrong epsilon or a forgotten norm weight does is far above float32's rounding of 1e-7."""
    x = forward.points["embd"]
    right = oracle.rms_norm(x, np.ones(x.shape[1]), eps=1e-5)
    wrong = oracle.rms_norm(x, np.ones(x.shape[1]), eps=1e-6)
    assert np.linalg.norm(wrong - right) / np.linalg.norm(right) > 5e-5
    normed = forward.points["blk.0.attn_norm"]
    bare = oracle.rms_norm(x, np.ones(x.shape[1]), eps=1e-5)
    assert np.linalg.norm(bare - normed) / np.linalg.norm(normed) > NORM_SD / 2


def test_attention_is_neither_flat_nor_a_choice(forward: Forward) -> None:
    for point, probabilities in forward.points.items():
        if point.endswith("attn_probs"):
            largest = probabilities[-1].max(axis=-1).mean()  # of 32 keys, the mean over heads
            assert 2 / len(TOKENS) < largest < 0.9, point


@settings(max_examples=5)
@given(st.integers(259, 700))
def test_greedy_successors_form_one_ring(vocab: int) -> None:
    """Without EOS in it, so that greedy text goes on: each row of the output holds one predecessor."""
    config = SeededShape(width=1024, n_heads=8, ffn=32, n_layers=1, vocab=vocab).config()
    weights = SeededWeights(config, 1)
    embedding = weights.rows("token_embd.weight", 0, vocab).astype(np.float64)
    output = weights.rows("output.weight", 0, vocab).astype(np.float64)
    successor = (output @ embedding.T).argmax(axis=0)
    token, seen = 1, []
    for _ in range(vocab - 2):
        token = int(successor[token])
        seen.append(token)
    assert token == 1
    assert sorted(seen) == [1, *range(3, vocab)]
