"""Whether a pipeline stage has what is another's: layers, or an input that is not its own."""

from __future__ import annotations

from collections.abc import Iterator

from llama_ckpt.oracle import llama as oracle
from llama_ckpt.points import block_point, split_name
from llama_ckpt.ranks.pieces import Array, axis_of, distance
from llama_ckpt.ranks.record import RankFault
from llama_ckpt.ranks.scene import Scene

__all__ = ["faults_of_layers", "own_part"]


def own_part(scene: Scene, name: str, place: int, whole: Array) -> Array:
    """What of a whole point a rank should have."""
    cut = scene.pieces.plan.cuts[split_name(name)[1]]
    owned = scene.pieces.owned(name) if cut.is_shard else None
    if owned is None:
        return whole
    one, axis = owned[place], axis_of(split_name(name)[1], cut.how)
    index = [slice(None)] * whole.ndim
    index[axis] = slice(one.start, one.stop)
    return whole[tuple(index)]


def faults_of_layers(scene: Scene, name: str, place: int) -> Iterator[RankFault]:
    """The point with every other block's weights, and on every other block's end."""
    block, point = split_name(name)
    rank = scene.pieces.holders(name)[place]
    x = scene.piece(rank, name)
    if x is None or block is None:
        return
    stage = f" of stage {rank.stage}" if rank.stage or _has_stages(scene) else ""
    for other in range(scene.config.n_layers):
        made = None if other == block else scene.with_weights_of(name, other)
        if made is not None:
            does = f"has layer {other}'s weights in the place of layer {block}'s{stage}"
            yield RankFault("layers", does, rank.rank, distance(x, own_part(scene, name, place, made)))
    if point == "attn_norm":
        yield from _on_another_end(scene, block, x, rank.rank, place)


def _has_stages(scene: Scene) -> bool:
    return any(rank.stage for rank in scene.pieces.ranks)


def _on_another_end(scene: Scene, block: int, x: Array, rank: int, place: int) -> Iterator[RankFault]:
    """A stage that begins with what is not the end of the stage before."""
    own = scene.piece(scene.pieces.holders("embd")[place], "embd") if block == 0 else None
    if own is not None:
        does = "reads its own part of the embedding alone: the reduction over ranks is missing"
        yield RankFault("reduction", does, rank, distance(x, _normed(scene, block, own)))
    ends = ["embd", *(block_point(other, "out") for other in range(scene.config.n_layers))]
    for end in ends:
        given = None if end == block_point(block - 1, "out") else scene.recorded(end)
        if given is None or (block == 0 and end == "embd"):
            continue
        wanted = block_point(block - 1, "out") if block else "embd"
        does = f"reads {end} where {wanted} is wanted"
        yield RankFault("hand-over", does, rank, distance(x, _normed(scene, block, given)))


def _normed(scene: Scene, block: int, given: Array) -> Array:
    """A block's first norm of something else."""
    return oracle.rms_norm(given, scene.weights.blocks[block].attn_norm, eps=scene.config.rms_norm_eps)
