"""A model in several files, NAME-00001-of-00003.gguf and so on, opened by any of them.

The first part has the metadata, each part has some of the tensors, and each says which part it is. Source:
llama.cpp, `llama_split_path` in `src/llama.cpp` and the loader in `src/llama-model-loader.cpp`; it opens such
a model by its first part alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from llama_ckpt.errors import ModelFileError
from llama_ckpt.gguf.cursor import shown
from llama_ckpt.gguf.header import MetadataValue, TensorInfo
from llama_ckpt.gguf.mapped import MappedFile

__all__ = ["SPLIT_KEYS", "all_parts", "joined_tensors"]

SPLIT_KEYS = ("split.no", "split.count", "split.tensors.count")
"""What a part says of itself; of no meaning once the parts are together."""

_NAME = re.compile(r"(.+)-([0-9]{5})-of-([0-9]{5})\.gguf", re.DOTALL)


def all_parts(opened: MappedFile) -> tuple[MappedFile, ...]:
    """The parts of the model that a file belongs to, in order; the file alone where it is a whole model.

    Raises:
        ModelFileError: a part is missing, damaged, or of another model, or the name is not a part's.
    """
    count = _number(opened, "split.count", default=0)
    if count <= 1:
        return (opened,)
    name = _NAME.fullmatch(opened.path.name)
    if name is None or int(name[3]) != count or not 1 <= int(name[2]) <= count:
        raise ModelFileError(
            f"{opened.path}: the name of a file that is one of {count} parts",
            got=shown(opened.path.name),
            wanted=f"NAME-00001-of-{count:05}.gguf for the first",
            hint="rename all parts so, or join them with llama-gguf-split --merge",
        )
    parts = [
        _part(opened, f"{name[1]}-{number:05}-of-{count:05}.gguf", number) for number in range(1, count + 1)
    ]
    for number, part in enumerate(parts):
        _check(part, number, count)
    return tuple(parts)


def _part(opened: MappedFile, name: str, number: int) -> MappedFile:
    path = opened.path.with_name(name)
    if path.name == opened.path.name:
        return opened
    if not path.exists():
        raise ModelFileError(
            f"{opened.path}: part {number} of the model is missing",
            wanted=str(path),
            hint="put all parts into one folder",
        )
    return MappedFile(path)


def _check(part: MappedFile, number: int, count: int) -> None:
    for key, wanted in (("split.no", number), ("split.count", count)):
        got = _number(part, key, default=-1)
        if got != wanted:
            raise ModelFileError(
                f"{part.path}: {key}", got=got, wanted=wanted, hint="the parts are not of one model"
            )


def joined_tensors(parts: Sequence[MappedFile]) -> dict[str, TensorInfo]:
    """The tensors of all parts, each with its part's number.

    Raises:
        ModelFileError: two parts have one tensor, or there are not as many as the first part says.
    """
    tensors: dict[str, TensorInfo] = {}
    for number, part in enumerate(parts):
        for name, info in part.header.tensors.items():
            if name in tensors:
                raise ModelFileError(f"{part.path}: tensor {shown(name)} is in another part, too")
            tensors[name] = replace(info, part=number)
    if len(parts) > 1:
        wanted = _number(parts[0], "split.tensors.count", default=len(tensors))
        if len(tensors) != wanted:
            raise ModelFileError(f"{parts[0].path}: tensors in all parts", got=len(tensors), wanted=wanted)
    return tensors


def _number(part: MappedFile, key: str, *, default: int) -> int:
    metadata: Mapping[str, MetadataValue] = part.header.metadata
    value = metadata.get(key, default)
    if type(value) is not int or value < -1:
        raise ModelFileError(f"{part.path}: {key}", got=shown(value), wanted="a number")
    return value
