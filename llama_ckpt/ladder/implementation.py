"""Somebody's own layer on trial in the place of ours: loaded by name, called as they expect, never trusted.

    implementation = load_implementation("mine.norms:rms_norm", checkpoint)
    implementation.call(case, taps=True)             # its tensors by full point name, or Rejected

The function has the checkpoint's signature, by name or by position; `tap` may be left out, and then its
inner points are not shown. It gets torch tensors, or numpy arrays where it is written for those, with
weights dense and in the dtype on trial. What it raises, returns wrongly or changes in place is `Rejected`
with a sentence, which fails the point, not the program.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from llama_ckpt.arithmetic.record import Arithmetic
from llama_ckpt.errors import OptionError
from llama_ckpt.ladder.array_cache import ArrayCache
from llama_ckpt.points import Case, Checkpoint
from llama_ckpt.tokens.text_stream import TextStream
from llama_ckpt.weights.kv_cache import KVCache, LayerCache
from llama_ckpt.weights.quants import PackedWeight
from llama_ckpt.weights.records import BlockWeights, ModelWeights

__all__ = ["ARRAYS", "Implementation", "Rejected", "load_implementation"]

Arrays = Literal["torch", "numpy"]

ARRAYS = ("auto", "torch", "numpy")
"""What a function may be called with; "auto" looks at what its module imports."""

WEIGHTS = frozenset({"weight", "weights", "wq", "wk", "wv", "wo", "w_gate", "w_up", "w_down"})
"""The arguments that are weights: handed over dense, in the dtype on trial."""


class Rejected(Exception):
    """What an implementation did wrong before its tensors could be judged: one sentence."""


@dataclass(frozen=True)
class Implementation:
    """Somebody's function in the place of a checkpoint's.

    Attributes:
        name: how it was given, for reports.
        function: the function itself.
        checkpoint: whose layer function it stands for.
        arrays: what it is called with.
        takes_tap: whether it can show inner points.
        arithmetic: what it rounds on purpose; None: it declares nothing.
    """

    name: str
    function: Callable[..., Any]
    checkpoint: Checkpoint
    arrays: Arrays
    takes_tap: bool
    arithmetic: Arithmetic | None = None

    def replaces(self, function: str) -> bool:
        """Whether a case of this function is for it."""
        return function == self.checkpoint.function.__name__

    def takes(self, name: str) -> bool:
        """Whether its function has an argument of that name."""
        return _takes(self.function, name)

    def notes(self, *, inner_points: bool) -> list[str]:
        """Sentences on how it is called, for the report.

        Args:
            inner_points: whether the checkpoint has points that its function shows and does not return.
        """
        ours = self.checkpoint.function.__name__
        lines = [f"{self.name} stands in the place of {ours}, and gets {self.arrays} arrays"]
        if inner_points and not self.takes_tap:
            lines.append("it takes no tap, so only what it returns is compared")
        return lines

    def call(self, case: Case, dtype: torch.dtype, *, taps: bool) -> dict[str, Any]:
        """Call it; its returned and, with `taps`, its inner points by full name.

        Raises:
            Rejected: a wrong signature, an exception inside, something that is no tensor, an input
                that was changed in place.
        """

        def called(**arguments: Any) -> tuple[Any, ...]:
            returned = self(**arguments, dtype_on_trial=dtype)
            results = returned if isinstance(returned, tuple) else (returned,)
            if len(results) != len(case.returns):
                wanted = ", ".join(name.rpartition(".")[2] for name in case.returns)
                raise Rejected(f"returned {len(results)} values, wanted {len(case.returns)}: {wanted}")
            return results

        return case.run(called, taps=taps and self.takes_tap, keep=self._checked)

    def __call__(self, *args: Any, dtype_on_trial: torch.dtype | None = None, **arguments: Any) -> Any:
        """Call the function as a layer would be called: arguments by the checkpoint's names."""
        names = list(inspect.signature(self.checkpoint.function).parameters)
        arguments = dict(zip(names, args, strict=False)) | arguments
        dtype = dtype_on_trial or _dtype_of(arguments)
        given = {key: self._handed(key, value, dtype) for key, value in arguments.items()}
        bound = self._bind({key: value for key, value in given.items() if not self._can_go(key, value)})
        before = _versions(given)
        try:
            with torch.inference_mode():
                returned = self.function(*bound.args, **bound.kwargs)
        except Rejected:
            raise
        except Exception as error:
            raise Rejected(
                f"raised {type(error).__name__}: {_first_line(error)}{self._where(error)}"
            ) from error
        if changed := [key for key, version in _versions(given).items() if version != before[key]]:
            raise Rejected(f"changed its input {', '.join(changed)} in place: later layers read that")
        return tuple(returned) if isinstance(returned, list) else returned

    def _can_go(self, key: str, value: Any) -> bool:
        """Whether an option of ours may be left out: it is at its default, or changes no value.

        Not every implementation has a cache, sequences or taps; dense weights have the dtype asked for.
        """
        if key in ("cache", "sequence_ids", "tap") and value is None:
            return True
        if key == "first_position" and not value:
            return True
        return key in ("tap", "dtype") and not _takes(self.function, key)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """While it lasts, every checkpoint that calls the layer calls this instead."""
        ours, name = self.checkpoint.function, self.checkpoint.function.__name__
        modules = [m for key, m in sys.modules.items() if key.partition(".")[0] == "checkpoints"]
        holders = [module for module in modules if getattr(module, name, None) is ours]

        def stand_in(*args: Any, **arguments: Any) -> Any:
            returned = self(*args, **arguments)
            if name == "generate":
                return _generated(returned, args[0] if args else arguments["model"])
            parts = returned if isinstance(returned, tuple) else (returned,)
            given = (*args, *arguments.values())
            tensors = tuple(_like(self._checked(part, "return value"), given) for part in parts)
            return tensors if isinstance(returned, tuple) else tensors[0]

        try:
            for module in holders:
                setattr(module, name, stand_in)
            yield
        finally:
            for module in holders:
                setattr(module, name, ours)

    def _bind(self, arguments: Mapping[str, Any]) -> inspect.BoundArguments:
        """By the checkpoint's names, or else by position in the checkpoint's order."""
        try:
            signature = inspect.signature(self.function)
        except (TypeError, ValueError):  # built-in functions show none
            signature = inspect.signature(lambda *args, **kwargs: None)
        try:
            return signature.bind(**arguments)
        except TypeError as error:
            order = [
                name for name in inspect.signature(self.checkpoint.function).parameters if name in arguments
            ]
            by_name = {"tap": arguments["tap"]} if "tap" in arguments else {}
            try:
                return signature.bind(*(arguments[name] for name in order if name != "tap"), **by_name)
            except TypeError:
                wanted = ", ".join(order)
                raise Rejected(f"wrong signature: got {signature}, wanted ({wanted}): {error}") from None

    def _handed(self, key: str, value: Any, dtype: torch.dtype | None) -> Any:
        if key == "tap" or value is None:
            return value
        if isinstance(value, KVCache):
            return value
        if isinstance(value, LayerCache):
            return ArrayCache(value) if self.arrays == "numpy" else value
        if key in WEIGHTS and dtype is not None:
            value = _dense(value, dtype)
        return _as_numpy(value) if self.arrays == "numpy" else value

    def _checked(self, value: Any, what: str) -> Any:
        """A tensor or an array; what can be turned into one (jax, mlx) is."""
        if isinstance(value, Tensor | np.ndarray):
            return value
        if hasattr(value, "__array__") or isinstance(value, np.generic):
            return np.asarray(value)
        raise Rejected(f"{what} is of type {type(value).__name__}, wanted a tensor or an array")

    def _where(self, error: Exception) -> str:
        """The innermost line of their own file that the exception passed."""
        own = getattr(inspect.unwrap(self.function), "__code__", None)
        frames = traceback.extract_tb(error.__traceback__)
        theirs = [frame for frame in frames if own is not None and frame.filename == own.co_filename]
        found = theirs or frames
        return f" ({Path(found[-1].filename).name}:{found[-1].lineno})" if found else ""


def load_implementation(
    given: str | Callable[..., Any], checkpoint: Checkpoint, *, arrays: str = "auto"
) -> Implementation:
    """Somebody's function for a checkpoint.

    Args:
        given: the function, or where it is: "module:function" or "path/to/file.py:function". A module is
            also looked for in the current folder.
        checkpoint: whose layer function it stands for.
        arrays: "torch", "numpy", or "auto": numpy where its annotations or its module's imports say so.

    Raises:
        OptionError: there is no such module or function, or importing it fails.
    """
    if arrays not in ARRAYS:
        raise OptionError("arrays", got=arrays, wanted=" or ".join(ARRAYS))
    if isinstance(given, str):
        function, name = _find(given), given
    else:
        function = given
        name = f"{getattr(given, '__module__', '?')}:{getattr(given, '__qualname__', repr(given))}"
    if not callable(function):
        raise OptionError(f"--impl {name}", got=type(function).__name__, wanted="a function")
    picked: Arrays = _written_for(function) if arrays == "auto" else "numpy" if arrays == "numpy" else "torch"
    return Implementation(name, function, checkpoint, picked, _takes(function, "tap"))


def _find(given: str) -> Any:
    where, _, attribute = given.rpartition(":")
    if not where or not attribute:
        raise OptionError("--impl", got=given, wanted="module:function or file.py:function")
    try:
        module = _import_file(Path(where)) if where.endswith(".py") else _import_module(where)
    except Exception as error:
        got = f"{type(error).__name__}: {_first_line(error)}"
        raise OptionError(
            f"--impl {given}: importing {where}", got=got, wanted="a module that loads"
        ) from error
    found: Any = module
    for name in attribute.split("."):
        if not hasattr(found, name):
            raise OptionError(f"--impl {given}", got=f"no {name} in {where}", wanted="a function there")
        found = getattr(found, name)
    return found


def _import_module(name: str) -> ModuleType:
    # A console script does not have the current folder on its path; behind ours, lest it hide anything.
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    return importlib.import_module(name)


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    name = f"llama_ckpt_implementation_{path.stem}"  # a name that hides no module of anybody's
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def _written_for(function: Callable[..., Any]) -> Arrays:
    """numpy where its annotations say so, or its module imports numpy (jax, mlx) and not torch."""
    plain = inspect.unwrap(function)
    notes = " ".join(str(note) for note in getattr(plain, "__annotations__", {}).values())
    if "ndarray" in notes or "NDArray" in notes or "ArrayLike" in notes:
        return "numpy"
    names = {
        name for name, value in getattr(plain, "__globals__", {}).items() if isinstance(value, ModuleType)
    }
    modules = {getattr(plain, "__globals__", {})[name].__name__.partition(".")[0] for name in names}
    return "numpy" if modules & {"numpy", "jax", "mlx"} and "torch" not in modules else "torch"


def _takes(function: Callable[..., Any], name: str) -> bool:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    return any(one.name == name or one.kind is one.VAR_KEYWORD for one in parameters)


def _dtype_of(arguments: Mapping[str, Any]) -> torch.dtype | None:
    for key, value in arguments.items():
        if key not in WEIGHTS and isinstance(value, Tensor) and value.is_floating_point():
            return value.dtype
    dtype = arguments.get("dtype")
    return dtype if isinstance(dtype, torch.dtype) else None


def _dense(value: Any, dtype: torch.dtype) -> Any:
    """A weight, or a record of weights, as tensors of `dtype`."""
    if isinstance(value, PackedWeight):
        return value.dequantize(dtype)
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, tuple):
        return tuple(_dense(one, dtype) for one in value)
    if isinstance(value, BlockWeights | ModelWeights):
        return replace(value, **{f.name: _dense(getattr(value, f.name), dtype) for f in fields(value)})
    return value


def _as_numpy(value: Any) -> Any:
    """Tensors, also those in records of weights, as arrays that cannot be written to."""
    if isinstance(value, Tensor):
        if value.dtype == torch.bfloat16:
            raise Rejected("numpy has no bfloat16; validate in float32 or float16, or take torch tensors")
        array = value.detach().cpu().numpy()
        array = array.view()
        array.flags.writeable = False
        return array
    if isinstance(value, tuple):
        return tuple(_as_numpy(one) for one in value)
    if isinstance(value, BlockWeights | ModelWeights):
        return replace(value, **{f.name: _as_numpy(getattr(value, f.name)) for f in fields(value)})
    return value


def _like(value: Any, arguments: tuple[Any, ...]) -> Any:
    """A returned array as a tensor where our layers go on with it."""
    device = next((one.device for one in arguments if isinstance(one, Tensor)), torch.device("cpu"))
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.array(value)).to(device)
    return value


def _generated(returned: Any, model: Any) -> Iterator[Any]:
    """Tokens as `checkpoints.generate` yields them; plain ids get the text that their pieces make."""
    from checkpoints.c12_end_to_end import GeneratedToken

    stream = TextStream()
    pending: Any = None
    try:
        for token in returned:
            if hasattr(token, "id") and hasattr(token, "text"):
                yield token
                continue
            if pending is not None:
                yield pending
            ended = int(token) in model.tokenizer.eog_ids
            piece = b"" if ended else model.tokenizer.piece(int(token), special=False)
            pending = GeneratedToken(int(token), stream.push(piece))
        if pending is not None:  # the last one brings what was held back
            yield replace(pending, text=pending.text + stream.finish())
    except Rejected:
        raise
    except Exception as error:
        raise Rejected(f"raised {type(error).__name__}: {_first_line(error)}") from error


def _versions(arguments: Mapping[str, Any]) -> dict[str, int]:
    """How often each tensor was written to; what was made in inference mode is not counted by torch."""
    tensors = {key: value for key, value in arguments.items() if isinstance(value, Tensor)}
    return {key: value._version for key, value in tensors.items() if not value.is_inference()}


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]
