"""Where a rank stands: its pipeline stage, its place among the ranks that share it, and its blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llama_ckpt.dumps.theirs import TheirDump
from llama_ckpt.errors import OptionError
from llama_ckpt.points import block_point, split_name
from llama_ckpt.ranks.plan import Plan

__all__ = ["RankDump", "placed"]


@dataclass(frozen=True)
class RankDump:
    """What one rank wrote.

    Attributes:
        rank: its number.
        dump: its file, open.
        stage: of the pipeline, from 0.
        place: its place among the ranks of the stage, from 0.
        first_block: what its block 0 is in the model: a stage may count its own.
    """

    rank: int
    dump: TheirDump
    stage: int = 0
    place: int = 0
    first_block: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        """The full names of its points, blocks numbered as in the model."""
        return tuple(self._moved(name, self.first_block) for name in self.dump.names)

    def own_name(self, name: str) -> str:
        """What its file calls a point of the model."""
        return self._moved(name, -self.first_block)

    @staticmethod
    def _moved(name: str, by: int) -> str:
        block, point = split_name(name)
        return name if block is None or not by else block_point(block + by, point)


def placed(dumps: Sequence[TheirDump], plan: Plan) -> list[RankDump]:
    """Every rank in its place; where the plan names no stages, ranks with the same blocks share one.

    Raises:
        OptionError: ranks that do not divide by the stages, or a rank with blocks of another stage.
    """
    n, stages = len(dumps), plan.stages
    if not stages:
        return _by_their_blocks(dumps)
    if n % len(stages):
        wanted = f"as many for each of the {len(stages)} stages"
        raise OptionError("ranks", got=n, wanted=wanted, hint="the plan's lines blocks: say the stages")
    each = n // len(stages)
    return [_on_stage(rank, dump, rank // each, rank % each, stages) for rank, dump in enumerate(dumps)]


def _blocks_of(dump: TheirDump) -> tuple[int, ...]:
    return tuple(sorted({block for block, _ in map(split_name, dump.names) if block is not None}))


def _on_stage(rank: int, dump: TheirDump, stage: int, place: int, stages: Sequence[range]) -> RankDump:
    wanted, has = stages[stage], _blocks_of(dump)
    if all(block in wanted for block in has):
        return RankDump(rank, dump, stage, place)
    if max(has) < len(wanted):  # it counts the blocks of its stage alone
        return RankDump(rank, dump, stage, place, wanted.start)
    raise OptionError(
        f"rank {rank}, {dump.path}",
        got=f"blocks {has[0]} to {has[-1]}",
        wanted=f"those of stage {stage}, {wanted.start} to {wanted.stop - 1}",
    )


def _by_their_blocks(dumps: Sequence[TheirDump]) -> list[RankDump]:
    """A new stage begins where a rank has a block beyond all that came before, and none of those."""
    found, last, place = list[RankDump](), -1, 0
    stage, of_stage = -1, frozenset[int]()
    for rank, dump in enumerate(dumps):
        blocks = frozenset(_blocks_of(dump))
        if stage < 0 or (blocks and min(blocks) > last and not blocks & of_stage):
            stage, place, of_stage = stage + 1, 0, blocks
        else:
            place, of_stage = place + 1, of_stage | blocks
        last = max(last, *blocks) if blocks else last
        found.append(RankDump(rank, dump, stage, place))
    return found
