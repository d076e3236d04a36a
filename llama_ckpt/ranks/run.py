"""A run on ranks, opened: its pieces, the model, and what the ranks say of themselves."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llama_ckpt.comparing.comparison import Comparison, LintFinding
from llama_ckpt.comparing.fitting import axis_sizes, sizes_from_shapes
from llama_ckpt.comparing.room import check_positions, check_room
from llama_ckpt.dumps.reference import open_dumps
from llama_ckpt.dumps.writing import write_tensors
from llama_ckpt.errors import DumpError
from llama_ckpt.gguf.file import open_gguf
from llama_ckpt.judging.limits import limit_for
from llama_ckpt.listing import listed
from llama_ckpt.oracle.weights import OracleWeights
from llama_ckpt.points import block_point, split_name
from llama_ckpt.ranks.naming import Culprits, culprits
from llama_ckpt.ranks.pieces import Array, Pieces, distance
from llama_ckpt.ranks.place import RankDump
from llama_ckpt.ranks.plan import Plan
from llama_ckpt.ranks.scene import INPUT_OF, MATRIX_OF, Scene
from llama_ckpt.weights.config import LlamaConfig
from reference_dumps import dump_folder, embedded_model

__all__ = ["Run", "open_run"]

SAID = ("token_ids", "positions", "sequences", "padding", "calls", "slots", "copies")
"""What all ranks of a run have to agree on."""

UNITS = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
"""What one rounding is at most, relative to the number."""


@dataclass
class Run:
    """Everything that is known of it.

    Attributes:
        pieces: of all ranks.
        config, weights: the model; None without one.
        said: what the ranks declare of the run, as the metadata of one dump.
        dtype: whose limits hold.
        n_layers: of the model, or as many as were recorded.
    """

    pieces: Pieces
    config: LlamaConfig | None
    weights: OracleWeights | None
    metadata: dict[str, str]
    dtype: str
    n_layers: int
    disagreements: list[LintFinding] = field(default_factory=list)

    def views(self) -> Iterator[int]:
        """The ranks from which the whole is to be judged: the first, and each that sees another."""
        yield 0
        found = {0}
        for name in self.pieces.names:
            holders = [rank.rank for rank in self.pieces.holders(name) if name in rank.names]
            rest = [rank for rank in holders[1:] if rank not in found]
            if not rest:
                continue
            first = self.pieces.whole(name, holders[0])
            for rank in rest:
                other = self.pieces.whole(name, rank)
                if first is not None and other is not None and self._differ(name, other, first):
                    found.add(rank)
                    yield rank

    def write_whole(self, path: Path, seen_from: int) -> list[str]:
        """Write the dump of the whole model as one rank sees it, a tensor in memory at a time.

        Sums of parts stay in float64, so that putting them together rounds nothing.

        Returns:
            The names of the points that came together; where there are none, there is no file.
        """
        pieces = self.pieces
        return write_tensors(path, pieces.names, lambda name: pieces.whole(name, seen_from), self.metadata)

    def _differ(self, name: str, x: Array, y: Array) -> bool:
        """Whether two ranks hold more than what rounding makes of one tensor."""
        if x is y or np.array_equal(x, y, equal_nan=True):
            return False
        return not distance(x, y) <= limit_for(name, self.dtype, "total", n_layers=self.n_layers).err

    def findings(self, others: Sequence[LintFinding]) -> list[LintFinding]:
        """What does not fit together; what the comparison says of the same points goes."""
        return [*self.disagreements, *self.pieces.findings.values()]

    def culprits(self, result: Comparison, seen_from: int) -> Culprits | None:
        """Who is wrong at the first wrong point; None where nothing is, or there is no model."""
        first = result.first_wrong
        if (
            first is None
            or self.config is None
            or self.weights is None
            or first.name not in self.pieces.names
        ):
            return None
        scene = self.scene(seen_from, result.token_ids, result.positions)
        return culprits(scene, first.name, first.leading.limit)

    def scene(self, seen_from: int, token_ids: Sequence[int], positions: Sequence[int]) -> Scene:
        """The run as one rank sees it."""
        assert self.config is not None and self.weights is not None
        config = self.config.for_context(max(positions) + 1)
        return Scene(self.pieces, seen_from, config, self.weights, token_ids, positions, self.dtype)


def open_run(
    ranks: Sequence[RankDump],
    plan: Plan,
    *,
    reference: str | Path | None,
    model: str | Path | None,
    dump: str | None,
    dtype: str | None,
) -> Run:
    """Open the model, and see what the ranks say.

    Raises:
        LlamaCkptError: a file that cannot be read, or no two of a run.
    """
    if reference is None and model is None:
        reference, model = dump_folder("f32"), embedded_model()
    file = None if model is None else open_gguf(model)
    config = None if file is None else LlamaConfig.from_gguf(file)
    weights = None if file is None or config is None else OracleWeights(file, config)
    metadata, disagreements = _metadata(ranks)
    n = _tokens(ranks)
    _check_rows(ranks, n, config)
    if config is not None:
        sizes, n_layers = axis_sizes(config, n), config.n_layers
    else:
        assert reference is not None
        dumps = open_dumps(Path(reference))
        recorded = dumps.dump(dump or dumps.entries[0].name)
        sizes = {**sizes_from_shapes(recorded.shapes), "token": n, "key": n}
        n_layers = recorded.entry.n_layers
    kind = dtype or metadata.get("dtype") or _stored(ranks)
    pieces = Pieces(ranks, plan, sizes, unit=UNITS.get(kind, UNITS["float32"]))
    run = Run(pieces, config, weights, metadata, kind, n_layers, disagreements)
    metadata.setdefault("dtype", kind)
    if weights is not None:
        pieces.sum_of = _Sums(run)
    return run


@dataclass
class _Sums:
    """What parts should add up to: the product of what was recorded before with the whole matrix."""

    run: Run
    _kept: dict[str, Array | None] = field(default_factory=dict)

    def __call__(self, name: str) -> Array | None:
        if name not in self._kept:
            self._kept.clear()
            self._kept[name] = self._made(name)
        return self._kept[name]

    def _made(self, name: str) -> Array | None:
        block, point = split_name(name)
        weights, pieces = self.run.weights, self.run.pieces
        assert weights is not None
        if point == "embd":
            ids = self.run.metadata.get("token_ids")
            return (
                None if ids is None else np.asarray(weights.token_embd[[int(one) for one in ids.split(",")]])
            )
        source = INPUT_OF.get(point)
        if source is None or block is None or block_point(block, source) not in pieces.names:
            return None
        given = pieces.whole(block_point(block, source))
        if given is None:
            return None
        matrix, bias = (getattr(weights.blocks[block], one, None) for one in MATRIX_OF[point])
        made = np.asarray(given, np.float64).reshape(len(given), -1) @ np.asarray(matrix).T
        return np.asarray(made if bias is None else made + bias)


def _metadata(ranks: Sequence[RankDump]) -> tuple[dict[str, str], list[LintFinding]]:
    """What the run is, as the first rank that says so has it; and where another says otherwise."""
    said: dict[str, str] = {}
    findings = []
    for key in (*SAID, "dtype", "arithmetic", "producer", "notes"):
        found = [
            (rank.rank, value) for rank in ranks if (value := getattr(rank.dump.declared, key)) is not None
        ]
        if not found:
            continue
        said[key] = _written(found[0][1])
        other = next(((rank, value) for rank, value in found if value != found[0][1]), None)
        if other is not None and key in (*SAID, "dtype"):
            message = f"{key} of rank {other[0]} are others than those of rank {found[0][0]}"
            findings.append(LintFinding("other_tokens", "", message, "give every rank the same batch"))
    return said, findings


def _written(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return value if isinstance(value, str) else json.dumps(value)


def _check_rows(ranks: Sequence[RankDump], n: int, config: LlamaConfig | None) -> None:
    """Every rank's tokens are of the vocabulary, and no more than there are rows and memory for."""
    for rank in ranks:
        declared = rank.dump.declared
        check_positions(rank.dump.path, declared.positions)
        vocab = config.vocab_size if config is not None else 1 << 31
        outside = [token for token in declared.token_ids or () if not 0 <= token < vocab]
        if outside:
            raise DumpError(
                f"{rank.dump.path}: token_ids", got=outside[0], wanted=f"ids from 0 to {vocab - 1}"
            )
    check_room(max((rank.dump for rank in ranks), key=lambda dump: dump.most_rows), n, config)


def _tokens(ranks: Sequence[RankDump]) -> int:
    """How many rows there are."""
    for rank in ranks:
        ids = rank.dump.declared.token_ids
        if ids is not None:
            return len(ids)
    rows: Counter[int] = Counter()
    for rank in ranks:
        for name in rank.dump.names:
            shape = rank.dump.shape(name)
            if split_name(name)[1] not in ("logits", "attn_scores", "attn_probs") and len(shape) > 1:
                rows[shape[1] if shape[0] == 1 and len(shape) > 2 else shape[0]] += 1
    if not rows:
        raise DumpError("the ranks' dumps", got="no token_ids", wanted="token_ids in __metadata__")
    return rows.most_common(1)[0][0]


def _stored(ranks: Sequence[RankDump]) -> str:
    """How the ranks' tensors are stored."""
    wide = ("attn_scores", "attn_probs", "logits")
    kinds = {
        rank.dump.dtype(name).replace("float64", "float32")
        for rank in ranks
        for name in rank.dump.names
        if split_name(name)[1] not in wide
    } or {"float32"}
    if len(kinds) > 1:
        got = f"tensors stored as {listed(sorted(kinds))}"
        raise DumpError("what was computed in", got=got, wanted="one precision", hint="say it with --dtype")
    return kinds.pop()
