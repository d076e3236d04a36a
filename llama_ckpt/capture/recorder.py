"""The process that llama.cpp runs in: `python -m llama_ckpt.capture.recorder FOLDER`.

Reads `requests.json` in the folder, writes `0.safetensors`, `1.safetensors`, … and `results.json`
there. An error that has a class of ours goes into `results.json`; anything else ends the process,
and its last words are on stderr.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import save_file

from llama_ckpt.capture.library import Library, load_library
from llama_ckpt.capture.request import Request, read_requests
from llama_ckpt.capture.runs import record_run
from llama_ckpt.capture.sampler_chain import clear_settings, penalty_setting, run_chain
from llama_ckpt.capture.session import Context, ReferenceModel
from llama_ckpt.capture.tap import PointTap
from llama_ckpt.dumps.manifest import Continuation
from llama_ckpt.errors import LlamaCkptError, OptionError

__all__ = ["main", "record"]

Tensors = dict[str, NDArray[Any]]


def record(loaded: ReferenceModel, request: Request) -> tuple[dict[str, Any], Tensors]:
    """Run llama.cpp on a request.

    Returns:
        The fields of the manifest that only llama.cpp knows, and every tensor of the dump.
    """
    library = loaded.library
    token_ids = loaded.token_ids(request)
    if request.forced:
        token_ids += _greedy(loaded, replace(request, max_tokens=request.forced), token_ids).token_ids
    blocks = range(loaded.n_layers) if request.blocks is None else request.blocks
    tap = PointTap(library, loaded.n_layers, blocks, request)
    with Context(loaded, request, len(token_ids), tap) as context:
        tap.recording = True
        context.decode(token_ids, request.positions_from)
        tap.recording = False
        tensors: Tensors = dict(tap.points(len(token_ids)))
        tensors["last_logits"] = context.logits(-1)
        result: dict[str, Any] = {"token_ids": token_ids, "n_layers": loaded.n_layers}
        result["context"] = context.length
        result["greedy_tokens"] = [context.greedy(row) for row in range(len(token_ids))]
        result |= _sampling(library, token_ids, tensors)
        result["continuation"] = asdict(_continuation(context, request, token_ids))
    return result | _producer(library, loaded), tensors


def _greedy(loaded: ReferenceModel, request: Request, token_ids: tuple[int, ...]) -> Continuation:
    """llama.cpp's own continuation, without a recording."""
    tap = PointTap(loaded.library, loaded.n_layers, (), request)
    with Context(loaded, request, len(token_ids), tap) as context:
        context.decode(token_ids, request.positions_from)
        return _continuation(context, request, token_ids)


def _producer(library: Library, loaded: ReferenceModel) -> dict[str, str]:
    return {
        "version": library.version(),
        "llama_cpp_python": library.package_version,
        "system_info": library.system_info(),
        "backend": loaded.backend,
    }


def _sampling(library: Library, token_ids: tuple[int, ...], tensors: Tensors) -> dict[str, Any]:
    """Run the sampler chain on the last row; the probabilities go to `tensors`."""
    last, row = tensors["last_logits"], len(token_ids) - 1
    settings = {
        "sampling": clear_settings(last, row),
        "penalized": clear_settings(last, row, (penalty_setting(last, token_ids),)),
    }
    for kind, chosen in settings.items():
        for index, setting in enumerate(chosen):
            ids, probabilities = run_chain(library.api, last, setting)
            tensors[f"{kind}.{index}.ids"], tensors[f"{kind}.{index}.probabilities"] = ids, probabilities
    return {kind: [asdict(setting) for setting in chosen] for kind, chosen in settings.items()}


def _continuation(context: Context, request: Request, token_ids: tuple[int, ...]) -> Continuation:
    """Greedy tokens one by one through llama.cpp's cache."""
    loaded = context.loaded
    tokens: list[int] = []
    margins: list[float] = []
    position = request.positions_from + len(token_ids)
    ended_by = "max_tokens"
    while len(tokens) < request.max_tokens:
        token = context.greedy(-1)
        margins.append(_margin(context.logits(-1)))
        if loaded.ends(token):
            ended_by = "eos"
            break
        tokens.append(token)
        if len(tokens) < request.max_tokens:
            context.decode((token,), position)
            position += 1
    text = b"".join(loaded.piece(token) for token in tokens)
    encoded = base64.b64encode(text).decode()
    return Continuation(tuple(tokens), tuple(margins), ended_by, text.decode(errors="replace"), encoded)


def _margin(logits: NDArray[np.float32]) -> float:
    second, best = np.partition(logits, -2)[-2:]
    return float(best) - float(second)


def _write(path: Path, tensors: Mapping[str, NDArray[Any]]) -> None:
    try:
        save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, path)
    except (OSError, SafetensorError) as error:
        nbytes = sum(array.nbytes for array in tensors.values())
        raise OptionError(
            f"the recording of {nbytes:,} bytes cannot be kept in {path.parent}",
            got=error,
            hint="TMPDIR names a folder with room",
        ) from None


def main(folder: Path) -> None:
    """Record the requests in `folder`."""
    results: Any = []
    try:
        requests = read_requests(folder / "requests.json")
        with ReferenceModel(load_library(), requests[0]) as loaded:
            for number, request in enumerate(requests):
                result, tensors = (record_run if request.plan else record)(loaded, request)
                if request.plan:
                    result |= _producer(loaded.library, loaded)
                _write(folder / f"{number}.safetensors", tensors)
                results.append(result)
    except LlamaCkptError as error:
        results = {"error": [type(error).__name__, error.what, error.got, error.wanted, error.hint]}
    (folder / "results.json").write_text(json.dumps(results, default=str), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
