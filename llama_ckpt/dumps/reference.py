"""Reading and writing reference dumps: llama.cpp's own tensors, with their names, in safetensors.

A folder holds `manifest.json` and one `NAME.safetensors` for each dump. Tensors are row-major,
first axis = token, float32, under the neutral names of `points.py`; beside them stand
`last_logits` `[vocab]`, the row that llama.cpp returned for the last token, and for setting K
of the sampler chain `sampling.K.ids` int32 and `sampling.K.probabilities` float32.

A dump of the last row alone (`DumpEntry.last_row`) holds that row of each tensor, of its `blocks` only.
One with the last logits alone (`DumpEntry.last_logits_only`) has no `logits` beside `last_logits`.

Nothing is believed: the file's checksum, that every tensor is there and none is left over, that
shapes agree with the tokens and with each other, and that values are finite.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from llama_ckpt.bus_errors import say_on_bus_errors
from llama_ckpt.dumps.manifest import DumpEntry, Manifest, ModelRecord, Producer, manifest_text
from llama_ckpt.dumps.manifest_reader import check_entry, read_manifest
from llama_ckpt.errors import DumpError, OptionError
from llama_ckpt.outside import check_file
from llama_ckpt.points import ALL_POINTS, MODEL_POINTS, block_point, split_name
from llama_ckpt.whole_files import appears_when_whole, locked, write_whole

__all__ = ["LARGE", "Dump", "DumpSet", "keep_last_row", "open_dumps", "point_names", "write_dump"]

Float32 = NDArray[np.float32]


def point_names(entry: DumpEntry) -> list[str]:
    """The full names of the points that a dump holds, in the order of the data's flow."""
    names = ["embd"]
    for block in entry.blocks if entry.last_row else range(entry.n_layers):
        points = entry.points if block in entry.blocks else ("out",)
        names += [block_point(block, point) for point in points]
    without = {"embd"} | ({"logits"} if entry.last_logits_only else set())
    return names + [point.name for point in MODEL_POINTS if point.name not in without]


LARGE = 1 << 30
"""Bytes of a file from which on its own checksum is enough: that of its values takes longer still."""


class Dump(Mapping[str, Float32]):
    """One dump: full point name to float32 array, each read from disk when it is asked for.

    Iterating gives the names of the points and `last_logits`. Reading an array that holds NaN or
    an infinity raises `DumpError`: a correct program shows neither at any recorded point.
    """

    def __init__(self, path: Path, entry: DumpEntry) -> None:
        self.path, self.entry = path, entry
        say_on_bus_errors(path, check_file(path, DumpError, "recorded tensors"))
        self._names = [*point_names(entry), *(() if entry.last_row else ("last_logits",))]
        try:
            self._file: Any = safe_open(path, framework="numpy")
        except (SafetensorError, OSError) as error:
            raise DumpError(
                f"{path} is not readable", got=error, wanted="recorded tensors", hint="record it again"
            ) from error
        self._check_names()
        self._check_shapes()
        self._check_tokens()

    def __getitem__(self, name: str) -> Float32:
        if name not in self.shapes:
            raise KeyError(name)
        array: Float32 = self._file.get_tensor(name)
        if not np.isfinite(array).all():
            index = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
            raise DumpError(f"{self.path}: {name}{list(index)}", got=array[index], wanted="a finite number")
        return array

    def __contains__(self, name: object) -> bool:
        return name in self.shapes  # a Mapping's own would read the array

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of every point, without reading its values."""
        return {name: tuple(self._file.get_slice(name).get_shape()) for name in self._names}

    @property
    def vocab_size(self) -> int:
        """Number of entries of a row of logits."""
        return self.shapes["last_logits" if self.entry.last_logits_only else "logits"][-1]

    def probabilities(self, index: int, *, penalized: bool = False) -> Float32:
        """`[vocab]`, float32: the probabilities after llama.cpp's own sampler chain.

        Args:
            index: which setting of `entry.sampling` (of `entry.penalized` if `penalized`).
            penalized: take the settings with a repetition penalty.
        """
        ids, values = self.survivors(index, penalized=penalized)
        dense = np.zeros(self.vocab_size, np.float32)
        dense[ids] = values
        return dense

    def survivors(self, index: int, *, penalized: bool = False) -> tuple[NDArray[np.int32], Float32]:
        """The tokens that setting `index` of the chain leaves, ascending, and their probabilities."""
        prefix = f"{'penalized' if penalized else 'sampling'}.{index}"
        ids = self._file.get_tensor(f"{prefix}.ids")
        values = self._file.get_tensor(f"{prefix}.probabilities")
        sound = ids.dtype == np.int32 and values.dtype == np.float32 and ids.shape == values.shape
        sound = sound and ids.ndim == 1 and ids.size > 0 and 0 <= ids.min() and ids.max() < self.vocab_size
        if not sound or not np.isfinite(values).all() or len(np.unique(ids)) != ids.size:
            raise DumpError(f"{self.path}: {prefix}", got="ids or values out of range")
        return ids, values

    def _check_names(self) -> None:
        wanted = {*self._names, *_sampling_names(self.entry)}
        got = set(self._file.keys())
        if missing := sorted(wanted - got):
            raise DumpError(f"{self.path}: missing tensors", got=_few(missing), wanted="a complete dump")
        if extra := sorted(got - wanted):
            raise DumpError(f"{self.path}: tensors the manifest does not name", got=_few(extra))

    def _check_shapes(self) -> None:
        n_tokens = len(self.entry.token_ids)
        sizes = {"token": 1 if self.entry.last_row else n_tokens, "key": n_tokens}
        for name, shape in self.shapes.items():
            dtype = self._file.get_slice(name).get_dtype()
            if dtype != "F32":
                raise DumpError(f"{self.path}: dtype of {name}", got=dtype, wanted="F32")
            axes = ("vocab",) if name == "last_logits" else ALL_POINTS[split_name(name)[1]].axes
            # The first tensor that has an axis fixes its size; all others must agree.
            wanted = tuple(sizes.setdefault(axis, size) for axis, size in zip(axes, shape, strict=False))
            if shape != wanted or len(axes) != len(shape):
                raise DumpError(f"{self.path}: shape of {name} {axes}", got=shape, wanted=wanted)

    def _check_tokens(self) -> None:
        """Every token that the manifest names is of the vocabulary that the logits have."""
        entry = self.entry
        counted = (token for one in entry.penalized for token in one.penalty_tokens)
        tokens = (*entry.token_ids, *entry.greedy_tokens, *entry.continuation.token_ids, *counted)
        outside = [token for token in tokens if token >= self.vocab_size]
        if outside:
            wanted = f"ids from 0 to {self.vocab_size - 1}"
            raise DumpError(f"{self.path}: tokens in the manifest", got=outside[0], wanted=wanted)


class DumpSet:
    """A folder of dumps. Made by `open_dumps`."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path, self.manifest = path, manifest
        self._open: dict[str, Dump] = {}

    @property
    def entries(self) -> tuple[DumpEntry, ...]:
        """The dumps' entries in the manifest, in its order."""
        return self.manifest.dumps

    @property
    def names(self) -> tuple[str, ...]:
        """The dumps' names."""
        return tuple(entry.name for entry in self.entries)

    def entry(self, name: str) -> DumpEntry:
        """The entry of a dump.

        Raises:
            DumpError: there is no dump of that name.
        """
        for entry in self.entries:
            if entry.name == name:
                return entry
        raise DumpError(f"{self.path}: dump", got=repr(name), wanted=" or ".join(self.names) or "any dump")

    def dump(self, name: str) -> Dump:
        """Open a dump, after comparing its checksum with the manifest's.

        Raises:
            DumpError: unknown name, file missing or changed, tensors missing, left over or of a
                wrong shape.
        """
        if name not in self._open:
            entry = self.entry(name)
            path = self.path / entry.file
            got = _file_sha256(path)
            if got != entry.sha256:
                raise DumpError(f"{path}: sha256", got=got, wanted=entry.sha256, hint="record it again")
            self._open[name] = Dump(path, entry)
        return self._open[name]

    def require_weights(self, weights_sha256: str, model: str) -> None:
        """Refuse dumps of other weights than those of `model`.

        Raises:
            DumpError: the checksums over the dequantized weights differ.
        """
        recorded = self.manifest.model
        if recorded.weights_sha256 != weights_sha256:
            raise DumpError(
                f"{self.path} was recorded from other weights ({recorded.name}) than {model}: weights_sha256",
                got=recorded.weights_sha256,
                wanted=weights_sha256,
                hint=f"record this model: llama-ckpt capture --model {model} --out DIR",
            )

    def require_model(
        self, file_sha256: str, weights_sha256: Callable[[], str], nbytes: int, model: str
    ) -> None:
        """Refuse dumps of other weights than a file's; of a large one, its own checksum tells.

        Args:
            file_sha256: of the file. weights_sha256: computes it over the values, which takes a while.
            nbytes: the file's size. model: what it is called.

        Raises:
            DumpError: the checksums differ.
        """
        if nbytes <= LARGE or self.manifest.model.sha256 != file_sha256:
            self.require_weights(weights_sha256(), model)

    def require_hyperparameters(self, hyperparameters: Mapping[str, float], model: str) -> None:
        """Refuse dumps of the same weights under another configuration than that of `model`.

        Layers and oracle compute with the model's own configuration and would agree with each other,
        so a wrong epsilon in the file would look like an error of llama.cpp.

        Raises:
            DumpError: one differs.
        """
        recorded = self.manifest.model.hyperparameters
        for name in dict.fromkeys((*recorded, *hyperparameters)):  # those that most models lack, either way
            if hyperparameters.get(name) != recorded.get(name):
                raise DumpError(
                    f"{name} of {model}",
                    got=hyperparameters.get(name),
                    wanted=f"{recorded.get(name)}, as {self.path} was recorded with",
                    hint="mend the file's metadata, or record it: llama-ckpt capture",
                )


def open_dumps(path: str | os.PathLike[str]) -> DumpSet:
    """Open a folder of dumps; reads and checks its manifest, not yet the tensors.

    Raises:
        DumpError: no manifest there, or one that is damaged.
    """
    folder = Path(path)
    return DumpSet(folder, read_manifest(folder / "manifest.json"))


def write_dump(
    path: str | os.PathLike[str],
    *,
    model: ModelRecord,
    producer: Producer,
    entry: DumpEntry,
    tensors: Mapping[str, NDArray[Any]],
) -> DumpEntry:
    """Add a dump to a folder, or replace the one of the same name; the folder is made if needed.

    Args:
        path: the folder.
        model, producer: must equal those of the dumps that are already there.
        entry: its `sha256` is filled in here.
        tensors: every tensor of the dump: float32 points, int32 ids.

    Returns:
        The entry as it stands in the manifest.

    Raises:
        DumpError: the folder holds dumps of another model or producer, or the tensors are not
            what the entry says; nothing is changed then.
    """
    folder = Path(path)
    check_entry(entry, entry.name)
    _others(folder, model, producer, entry.name)  # before anything is made
    data = save({name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)})
    entry = replace(entry, sha256=hashlib.sha256(data).hexdigest())
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(f"cannot make {folder}", got=error.strerror, wanted="a folder") from None
    with locked(folder):  # of two that record into one folder, each finds what the other has written
        others = _others(folder, model, producer, entry.name)
        listed = folder / "manifest.json"
        with appears_when_whole(folder / entry.file) as part:
            part.write_bytes(data)
            for _ in Dump(part, entry).values():
                pass  # reading a tensor checks that it is finite
            if (folder / entry.file).exists() and listed.exists():
                # A kill between the two files must leave no manifest of a file that is another by then.
                write_whole(listed, manifest_text(Manifest(model, producer, tuple(others))))
        write_whole(listed, manifest_text(Manifest(model, producer, (*others, entry))))
    return entry


def keep_last_row(
    dumps: DumpSet, name: str, out: str | os.PathLike[str], *, blocks: Sequence[int], points: Sequence[str]
) -> DumpEntry:
    """Write the last token's row of a dump to another folder: a few blocks and points, without sampling.

    Args:
        dumps: where the dump is.
        name: of the dump, there and in `out`.
        blocks: some of those that it holds in full.
        points: of these blocks, "out" among them.

    Returns:
        The new dump's entry.
    """
    whole, dump = dumps.entry(name), dumps.dump(name)
    entry = replace(
        whole,
        blocks=tuple(blocks),
        points=tuple(points),
        sampling=(),
        penalized=(),
        last_row=True,
        last_logits_only=False,
    )
    last = {"logits": dump["last_logits"][None]}
    tensors = {point: last[point] if point in last else dump[point][-1:] for point in point_names(entry)}
    return write_dump(
        out, model=dumps.manifest.model, producer=dumps.manifest.producer, entry=entry, tensors=tensors
    )


def _others(folder: Path, model: ModelRecord, producer: Producer, name: str) -> list[DumpEntry]:
    """The dumps of a folder without `name`; all must come from the same model and producer."""
    if not (folder / "manifest.json").exists():
        return []
    manifest = read_manifest(folder / "manifest.json")
    if manifest.model != model:
        got, wanted = f"{manifest.model.name} {manifest.model.sha256}", f"{model.name} {model.sha256}"
        what = f"{folder} holds dumps of another model"
        raise DumpError(what, got=got, wanted=wanted, hint="use another folder")
    if manifest.producer != producer:
        what = f"{folder} holds dumps that were recorded in another way"
        raise DumpError(what, got=manifest.producer, wanted=producer, hint="use another folder")
    return [entry for entry in manifest.dumps if entry.name != name]


def _sampling_names(entry: DumpEntry) -> Iterator[str]:
    for kind, settings in (("sampling", entry.sampling), ("penalized", entry.penalized)):
        for index in range(len(settings)):
            yield from (f"{kind}.{index}.ids", f"{kind}.{index}.probabilities")


def _file_sha256(path: Path) -> str:
    check_file(path, DumpError, "recorded tensors")
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DumpError(
            f"{path} is not readable", got=error.strerror, wanted="recorded tensors", hint="record it again"
        ) from error


def _few(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
