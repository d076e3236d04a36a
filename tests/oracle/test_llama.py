"""The oracle: worked by hand, held against plain loops, and against what llama.cpp recorded."""

from __future__ import annotations

import ast
import inspect
import math
import sys
import warnings
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_ckpt.dumps.reference import open_dumps
from llama_ckpt.gguf.file import open_gguf
from llama_ckpt.judging.metrics import measure
from llama_ckpt.oracle import llama as oracle
from llama_ckpt.oracle.functions import oracle_modules
from llama_ckpt.oracle.weights import OracleWeights
from llama_ckpt.points import BLOCK_POINTS, MODEL_POINTS
from llama_ckpt.weights.config import LlamaConfig
from reference_dumps import dump_folder, embedded_model

CONFIG = SimpleNamespace(
    n_layers=2, n_heads=4, n_kv_heads=2, head_dim=4, rms_norm_eps=1e-5, rope_theta=100.0, rope_scale=2.0
)
WIDTH, FFN, VOCAB = 6, 10, 11


def made_weights(seed: int = 0) -> Any:
    """Random weights of CONFIG's shape."""
    g = np.random.default_rng(seed)
    shapes = {
        **{"attn_norm": (WIDTH,), "wq": (16, WIDTH), "wk": (8, WIDTH), "wv": (8, WIDTH), "wo": (WIDTH, 16)},
        **{"ffn_norm": (WIDTH,), "w_gate": (FFN, WIDTH), "w_up": (FFN, WIDTH), "w_down": (WIDTH, FFN)},
    }
    blocks = [
        SimpleNamespace(**{name: g.standard_normal(shape) for name, shape in shapes.items()})
        for _ in range(CONFIG.n_layers)
    ]
    return SimpleNamespace(
        token_embd=g.standard_normal((VOCAB, WIDTH)),
        blocks=blocks,
        output_norm=g.standard_normal(WIDTH),
        output=g.standard_normal((VOCAB, WIDTH)),
    )


def seen_points(token_ids: list[int], positions: list[int], **options: Any) -> dict[str, Any]:
    """Every point of a run of the made model."""
    seen: dict[str, Any] = {}
    seen["logits"] = oracle.logits(
        token_ids, made_weights(), config=CONFIG, positions=positions, tap=seen.__setitem__, **options
    )
    return seen


def test_it_imports_numpy_and_nothing_of_ours_but_its_own_modules() -> None:
    others = {"numpy", "numpy.typing", "__future__", "collections.abc", "typing"}
    own = {module.__name__ for module in oracle_modules()}
    for module in oracle_modules():
        assert imported(module) <= {*others, *own}, module.__name__
    assert sys.modules[oracle.rope_frequencies.__module__].__name__ in imported(oracle)


def imported(module: ModuleType) -> set[str]:
    """The modules that one module names in its imports."""
    tree = ast.parse(inspect.getsource(module))
    names = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    return names | {str(n.module) for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}


def test_embed_picks_rows_and_widens_them() -> None:
    table = np.arange(6, dtype=np.float32).reshape(3, 2) / 3
    x = oracle.embed([2, 0, 2], table)
    assert x.dtype == np.float64
    assert np.array_equal(x, table[[2, 0, 2]].astype(np.float64))


def test_rms_norm_by_hand() -> None:
    # The mean square of (3, 4) is 12.5; with eps 3.5 inside the root that makes 16, whose root is 4.
    y = oracle.rms_norm([[3.0, 4.0]], [2.0, 1.0], eps=3.5)
    assert y.tolist() == [[1.5, 1.0]]


def test_rope_by_hand() -> None:
    # A quarter turn of pair 0 and half a turn of pair 1: (1, 2) -> (-2, 1), (3, 4) -> (-3, -4).
    x = np.array([[[1.0, 2.0, 3.0, 4.0]]])
    q, k = oracle.rope(x, 2 * x, [2], [math.pi / 4, math.pi / 2])
    assert np.allclose(q, [[[-2, 1, -3, -4]]], atol=1e-15)
    assert np.allclose(k, 2 * q, atol=1e-15)


def test_rope_frequencies_by_hand() -> None:
    config = SimpleNamespace(head_dim=8, rope_theta=10000.0, rope_scale=4.0)
    assert np.allclose(oracle.rope_frequencies(config), [0.25, 0.025, 0.0025, 0.00025], rtol=1e-15)


@given(st.integers(0, 100_000), st.integers(0, 100_000), st.integers(0, 1000))
def test_rope_keeps_norms_and_depends_on_the_distance_only(at: int, other: int, seed: int) -> None:
    q, k = np.random.default_rng(seed).standard_normal((2, 1, 1, 8))
    turns = 1000.0 ** -(np.arange(4) / 4)
    near, far = (oracle.rope(q, k, [p], turns)[0] for p in (at, at + other))
    _, key = oracle.rope(q, k, [at + other], turns)
    _, start = oracle.rope(q, k, [other], turns)
    zero, _ = oracle.rope(q, k, [0], turns)
    assert np.isclose(np.linalg.norm(far), np.linalg.norm(q), rtol=1e-14)
    assert np.isclose(np.vdot(near, key), np.vdot(zero, start), atol=1e-8)


def test_qkv_splits_contiguous_heads() -> None:
    wq = np.arange(12.0).reshape(6, 2)
    q, k, v = oracle.qkv([[1.0, 10.0]], wq, wq[:3], wq[3:], n_heads=2, n_kv_heads=1)
    assert q.tolist() == [[[10.0, 32.0, 54.0], [76.0, 98.0, 120.0]]]
    assert k.tolist() == [[[10.0, 32.0, 54.0]]]
    assert v.tolist() == [[[76.0, 98.0, 120.0]]]


def test_attention_by_hand() -> None:
    # head_dim 4 halves the scores: 2 log 3 and 0 give the second token 3/4 of itself.
    q = np.zeros((2, 1, 4))
    q[:, 0, 0] = 1.0
    k = np.zeros((2, 1, 4))
    k[1, 0, 0] = 2 * math.log(3)
    v = np.array([[[8.0, 0, 0, 0]], [[0.0, 8, 0, 0]]])
    seen: dict[str, Any] = {}
    out = oracle.attention(q, k, v, 2 * np.eye(4), positions=[0, 1], tap=seen.__setitem__)
    assert np.allclose(seen["attn_scores"][:, 0], [[0, 2 * math.log(3)], [0, 2 * math.log(3)]])
    assert np.allclose(seen["attn_probs"][:, 0], [[1, 0], [0.25, 0.75]])
    assert np.allclose(seen["attn_context"], [[8, 0, 0, 0], [2, 6, 0, 0]])
    assert np.allclose(out, 2 * seen["attn_context"])


def test_grouped_heads_share_neighbours() -> None:
    g = np.random.default_rng(0)
    q, (k, v) = g.standard_normal((3, 6, 4)), g.standard_normal((2, 3, 2, 4))
    grouped = oracle.attention(q, k, v, np.eye(24), positions=[0, 1, 2])
    repeated = [np.stack([x[:, 0]] * 3 + [x[:, 1]] * 3, axis=1) for x in (k, v)]
    assert np.array_equal(grouped, oracle.attention(q, *repeated, np.eye(24), positions=[0, 1, 2]))


def test_swiglu_by_hand_and_at_the_ends() -> None:
    one = np.eye(1)
    assert oracle.swiglu([[1.0]], one, 3 * one, 2 * one)[0, 0] == pytest.approx(6 / (1 + math.exp(-1)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert oracle.swiglu([[1000.0], [-1000.0]], one, one, one).tolist() == [[1e6], [0.0]]


def loops_block(x: Any, w: Any, positions: list[int]) -> Any:
    """A block in scalar loops, written a second time from the formulas."""
    c, n = CONFIG, len(x)

    def norm(row: Any, weight: Any) -> list[float]:
        root = math.sqrt(sum(a * a for a in row) / len(row) + c.rms_norm_eps)
        return [a / root * b for a, b in zip(row, weight, strict=True)]

    def times(row: Any, matrix: Any) -> list[float]:
        return [sum(a * b for a, b in zip(row, line, strict=True)) for line in matrix]

    def turned(row: list[float], position: int) -> list[float]:
        result = list(row)
        for start in range(0, len(row), c.head_dim):
            for i in range(0, c.head_dim, 2):
                a, b = row[start + i], row[start + i + 1]
                angle = position * c.rope_theta ** (-i / c.head_dim) / c.rope_scale
                result[start + i] = a * math.cos(angle) - b * math.sin(angle)
                result[start + i + 1] = a * math.sin(angle) + b * math.cos(angle)
        return result

    normed = [norm(row, w.attn_norm) for row in x]
    q = [turned(times(row, w.wq), p) for row, p in zip(normed, positions, strict=True)]
    k = [turned(times(row, w.wk), p) for row, p in zip(normed, positions, strict=True)]
    v = [times(row, w.wv) for row in normed]
    out = []
    for t in range(n):
        context: list[float] = []
        for head in range(c.n_heads):
            mine = slice(head * c.head_dim, (head + 1) * c.head_dim)
            first = head // (c.n_heads // c.n_kv_heads) * c.head_dim
            theirs = slice(first, first + c.head_dim)
            keys = [s for s in range(n) if positions[s] <= positions[t]]
            dots = [sum(a * b for a, b in zip(q[t][mine], k[s][theirs], strict=True)) for s in keys]
            e = [math.exp(dot / math.sqrt(c.head_dim)) for dot in dots]
            for i in range(c.head_dim):
                context.append(sum(p * v[s][first + i] for p, s in zip(e, keys, strict=True)) / sum(e))
        middle = [a + b for a, b in zip(x[t], times(context, w.wo), strict=True)]
        h = norm(middle, w.ffn_norm)
        up = [a / (1 + math.exp(-a)) * b for a, b in zip(times(h, w.w_gate), times(h, w.w_up), strict=True)]
        out.append([a + b for a, b in zip(middle, times(up, w.w_down), strict=True)])
    return out


def test_a_block_equals_plain_loops() -> None:
    weights, positions = made_weights().blocks[0], [3, 4, 5, 9]
    x = np.random.default_rng(1).standard_normal((4, WIDTH))
    block = oracle.block(x, weights, config=CONFIG, positions=positions)
    assert np.allclose(block, loops_block(x, weights, positions), rtol=1e-12, atol=1e-12)


def test_the_model_chains_embedding_blocks_norm_and_head() -> None:
    weights, token_ids, positions = made_weights(), [1, 5, 1], [0, 1, 2]
    x: Any = [weights.token_embd[token] for token in token_ids]
    for w in weights.blocks:
        x = loops_block(x, w, positions)
    rows = np.asarray(x)
    root = np.sqrt((rows**2).mean(axis=1, keepdims=True) + CONFIG.rms_norm_eps)
    wanted = (rows / root * weights.output_norm) @ weights.output.T
    assert np.allclose(seen_points(token_ids, positions)["logits"], wanted, rtol=1e-11, atol=1e-11)


def test_every_point_is_tapped_in_order() -> None:
    names = [point.name for point in BLOCK_POINTS]
    blocks = [f"blk.{n}.{name}" for n in range(CONFIG.n_layers) for name in names]
    embd, output_norm, logits = (point.name for point in MODEL_POINTS)
    assert list(seen_points([1, 2], [0, 1])) == [embd, *blocks, output_norm, logits]


def test_a_later_token_never_changes_an_earlier_one() -> None:
    whole, shorter = (seen_points([1, 2, 3, 4][:n], [0, 1, 2, 3][:n])["logits"] for n in (4, 2))
    assert np.allclose(whole[:2], shorter, rtol=1e-13)


def test_the_mask_follows_positions_not_places() -> None:
    order = [2, 0, 3, 1]
    token_ids, positions = [1, 2, 3, 4], [10, 11, 12, 13]
    straight = seen_points(token_ids, positions)["logits"]
    mixed = seen_points([token_ids[i] for i in order], [positions[i] for i in order])["logits"]
    assert np.allclose(mixed, straight[order], rtol=1e-12)


def test_sequences_do_not_see_each_other() -> None:
    both = seen_points([1, 2, 3, 4], [0, 0, 1, 1], sequence_ids=[7, 8, 7, 8])["logits"]
    assert np.allclose(both[[0, 2]], seen_points([1, 3], [0, 1])["logits"], rtol=1e-12)
    assert np.allclose(both[[1, 3]], seen_points([2, 4], [0, 1])["logits"], rtol=1e-12)


def test_last_logits_is_the_last_row() -> None:
    assert oracle.last_logits([[1.0, 2.0], [3.0, 4.0]]).tolist() == [3.0, 4.0]


@pytest.mark.parametrize(
    ("logits", "token"),
    [
        ([1.0, 3.0, 3.0, 2.0], 1),
        ([-np.inf, -np.inf], 0),
        ([1.0, np.nan, 2.0], 2),
        ([np.nan, 5.0], 0),
        ([0.0, np.inf, np.inf], 1),
    ],
)
def test_argmax(logits: list[float], token: int) -> None:
    assert oracle.argmax([logits, logits]).tolist() == [token, token]


LOG = np.log([0.1, 0.4, 0.2, 0.3])


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, [0.1, 0.4, 0.2, 0.3]),
        ({"top_k": 2}, [0, 4 / 7, 0, 3 / 7]),
        ({"top_k": 9}, [0.1, 0.4, 0.2, 0.3]),
        ({"top_p": 0.35}, [0, 1, 0, 0]),
        ({"top_p": 0.69}, [0, 4 / 7, 0, 3 / 7]),
        ({"top_p": 0.71}, [0, 4 / 9, 2 / 9, 3 / 9]),
        ({"top_p": 0.0}, [0, 1, 0, 0]),
        ({"min_p": 0.6}, [0, 4 / 7, 0, 3 / 7]),
        ({"min_p": 1.0}, [0, 1, 0, 0]),
        ({"temperature": 0.5}, [1 / 30, 16 / 30, 4 / 30, 9 / 30]),
        ({"temperature": 1e-7}, [0, 1, 0, 0]),
        # top-p sees the untempered probabilities of what top-k left, 4/7 and 3/7, and keeps both.
        ({"top_k": 2, "top_p": 0.6, "temperature": 0.5}, [0, 16 / 25, 0, 9 / 25]),
    ],
)
def test_softmax(options: dict[str, Any], wanted: list[float]) -> None:
    assert np.allclose(oracle.softmax(LOG + 700, **options), wanted, rtol=1e-12, atol=1e-15)


def test_softmax_breaks_ties_by_id_and_takes_rows() -> None:
    rows = np.array([[1.0, 2.0, 2.0, 2.0], [5.0, 0.0, 0.0, 0.0]])
    assert oracle.softmax(rows, top_k=2, temperature=3.0)[0].tolist() == [0, 0.5, 0.5, 0]
    assert oracle.softmax(rows, temperature=0.0).tolist() == [[0, 1, 0, 0], [1, 0, 0, 0]]


@pytest.mark.parametrize("name", ["hello", "eight-tokens"])
def test_llama_cpp_computes_the_same_model(name: str) -> None:
    """float32 llama.cpp is within float32's noise of the oracle at every recorded point."""
    file = open_gguf(embedded_model())
    config = LlamaConfig.from_gguf(file)
    dumps = open_dumps(dump_folder("f32"))
    dump, entry = dumps.dump(name), dumps.entry(name)
    errors: dict[str, float] = {}

    def hold(point: str, array: Any) -> None:
        if point in dump and not point.endswith("attn_scores"):
            errors[point] = measure(dump[point], array).err

    weights = OracleWeights(file, config)
    logits = oracle.logits(entry.token_ids, weights, config=config, positions=entry.positions, tap=hold)
    hold("logits", logits)
    hold("last_logits", logits[-1])
    recorded = "last_logits" if entry.last_logits_only else "logits"
    assert {f"blk.{n}.out" for n in range(32)} | {"embd", recorded} <= errors.keys()
    assert max(errors.values()) < 5e-6, max(errors, key=errors.__getitem__)
