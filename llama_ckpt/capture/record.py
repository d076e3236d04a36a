"""From a model file to a dump: checks what is asked, runs the recorder, writes what it found."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

from llama_ckpt.capture.launch import run_recorder
from llama_ckpt.capture.request import CACHE_TYPES, Request
from llama_ckpt.capture.tap import points_of
from llama_ckpt.dumps.manifest import Continuation, DumpEntry, ModelRecord, Producer, Sampling
from llama_ckpt.dumps.reference import open_dumps, write_dump
from llama_ckpt.errors import DumpError, OptionError
from llama_ckpt.gguf.file import GGUFFile, open_gguf, weights_sha256
from llama_ckpt.hugging_face.folder import model_file
from llama_ckpt.weights.config import LlamaConfig
from llama_ckpt.whole_files import temporary_folder

__all__ = ["Take", "capture", "capture_takes", "dump_name", "request_for"]

LAST_POSITION = 2**31 - 1  # llama.cpp counts positions in int32


@dataclass(frozen=True)
class Take:
    """One recording of several; the fields are arguments of `capture`."""

    prompt: str | None = None
    tokens: Sequence[int] | None = None
    positions_from: int = 0
    max_tokens: int = 16
    forced: int = 0
    name: str | None = None
    blocks: Sequence[int] | None = None
    last_logits_only: bool = False


def capture(
    model: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str],
    prompt: str | None = None,
    tokens: Sequence[int] | None = None,
    positions_from: int = 0,
    max_tokens: int = 16,
    forced: int = 0,
    name: str | None = None,
    blocks: Sequence[int] | None = None,
    last_logits_only: bool = False,
    n_threads: int = 1,
    n_gpu_layers: int = 0,
    cache: str = "f32",
    flash_attention: bool = False,
    repacked: bool = False,
    derived_from: Mapping[str, str] | None = None,
) -> DumpEntry:
    """Record llama.cpp on one prompt and add the dump to a folder.

    Two recordings of the same request by the same build of llama.cpp are the same bytes.

    Args:
        model: the GGUF file, or a folder of Hugging Face's.
        out: folder of the dumps; made if needed. A dump of the same name there is replaced.
        prompt: text, tokenized by llama.cpp; or
        tokens: token ids. One of the two.
        positions_from: position of the first token, in an empty cache.
        max_tokens: length of the greedy continuation, 0 for none.
        forced: llama.cpp first continues greedily by so many tokens, and one pass over the prompt and
            these is recorded.
        name: name of the dump; by default made from the prompt or the tokens.
        blocks: blocks to record in full; None for all. `blk.N.out` is recorded for every block.
        last_logits_only: keep of the logits the last token's row alone; 1,000 rows of 32,000 are 128 MB.
        n_threads: threads of llama.cpp; its bits do not depend on it.
        n_gpu_layers: blocks on the GPU; more than the model has puts everything there.
        cache: what keys and values are cached in: "f32", "f16" or "bf16". Float32 is the tight
            reference; llama.cpp's own choice is "f16".
        flash_attention: one fused attention kernel, llama.cpp's own choice; it shows neither scores nor
            probabilities.
        repacked: weights laid out anew for the machine, llama.cpp's own choice; then the bits of some
            types depend on the machine.
        derived_from: `{"sha256": …, "how": …}` of the file that this one was made from.

    Returns:
        The dump's entry in the manifest.

    Raises:
        OptionError: an option out of its range.
        ModelFileError: the file is no sound GGUF.
        TokenizerError: a token outside the vocabulary.
        DumpError: the folder holds dumps of another model.
        ReferenceMissingError, ReferenceCrashedError, ReferenceError: llama.cpp is not installed,
            crashed, or refuses the model.
    """
    take = Take(prompt, tokens, positions_from, max_tokens, forced, name, blocks, last_logits_only)
    (entry,) = capture_takes(
        model,
        (take,),
        out=out,
        n_threads=n_threads,
        n_gpu_layers=n_gpu_layers,
        cache=cache,
        flash_attention=flash_attention,
        repacked=repacked,
        derived_from=derived_from,
    )
    return entry


def capture_takes(
    model: str | os.PathLike[str],
    takes: Sequence[Take],
    *,
    out: str | os.PathLike[str],
    n_threads: int = 1,
    n_gpu_layers: int = 0,
    cache: str = "f32",
    flash_attention: bool = False,
    repacked: bool = False,
    derived_from: Mapping[str, str] | None = None,
) -> list[DumpEntry]:
    """Record llama.cpp several times, loading the model once; arguments and errors as of `capture`.

    The model's checksums are computed while llama.cpp runs: of 13 GB they take as long as it does.
    """
    file = open_gguf(model_file(Path(model)))
    config = LlamaConfig.from_gguf(file)
    if cache not in CACHE_TYPES:
        raise OptionError("cache", got=repr(cache), wanted=" or ".join(CACHE_TYPES))
    requests = [
        replace(
            _request(file, config, take, n_threads, n_gpu_layers),
            cache=cache,
            flash_attention=flash_attention,
            repacked=repacked,
        )
        for take in takes
    ]
    names = [_checked_name(take.name or dump_name(one)) for take, one in zip(takes, requests, strict=True)]
    with temporary_folder("capture") as scratch, ThreadPoolExecutor(1) as pool:
        if (Path(out) / "manifest.json").exists():  # fail before the recording, not after it
            _check_folder(Path(out), _model_record(file, derived_from))
        hashing = pool.submit(_model_record, file, derived_from)
        results = run_recorder(requests, scratch)
        record, entries = hashing.result(), []
        for number, (name, request, found) in enumerate(zip(names, requests, results, strict=True)):
            tensors = load_file(scratch / f"{number}.safetensors")
            entry, producer = _entry(name, request, found, config), _producer(request, found)
            if takes[number].last_logits_only:
                del tensors["logits"]
                entry = replace(entry, last_logits_only=True)
            entries.append(write_dump(out, model=record, producer=producer, entry=entry, tensors=tensors))
    return entries


def _request(file: GGUFFile, config: LlamaConfig, take: Take, n_threads: int, n_gpu_layers: int) -> Request:
    """What one take asks of the recorder's process, checked."""
    request = Request(
        model=str(Path(file.paths[0]).absolute()),  # resolved, a link would lose a part's name
        prompt=take.prompt,
        token_ids=tuple(int(token) for token in take.tokens or ()),
        positions_from=take.positions_from,
        max_tokens=take.max_tokens,
        forced=take.forced,
        blocks=None if take.blocks is None else tuple(sorted(set(take.blocks))),
        n_threads=n_threads,
        n_gpu_layers=n_gpu_layers,
        biases=config.biases,
        unbiased=config.unbiased,
        fused_qkv=config.fused_qkv,
        qkv_widths=(config.q_width, config.kv_width),
        experts=config.n_experts_used,
    )
    _check(request, take.tokens, _n_layers(file))
    return request


def request_for(
    model: str | os.PathLike[str], tokens: Sequence[int], *, blocks: Sequence[int] | None, n_threads: int
) -> tuple[GGUFFile, LlamaConfig, Request]:
    """The file, its configuration, and what is asked of the recorder's process for these tokens, checked."""
    file = open_gguf(model)
    config = LlamaConfig.from_gguf(file)
    return file, config, _request(file, config, Take(tokens=tokens, blocks=blocks), n_threads, 0)


def dump_name(request: Request) -> str:
    """A name for a dump: the prompt's letters and digits, or the first token ids, and the position."""
    if request.prompt is not None:
        name = "-".join(re.findall(r"[a-z0-9]+", request.prompt.lower()))[:40].strip("-") or "prompt"
    else:
        name = "tokens-" + "-".join(map(str, request.token_ids[:6]))
    return f"{name}-at-{request.positions_from}" if request.positions_from else name


def _check(request: Request, tokens: Sequence[int] | None, n_layers: int) -> None:
    """Refuse what makes no sense, before llama.cpp is started."""
    if (request.prompt is None) == (tokens is None):
        got = "neither" if tokens is None else "both"
        raise OptionError("what to record", got=got, wanted="a prompt or tokens")
    last = LAST_POSITION - len(request.token_ids) - request.max_tokens - request.forced
    ranges = (
        ("positions_from", request.positions_from, 0, last),
        ("max_tokens", request.max_tokens, 0, LAST_POSITION),
        ("forced", request.forced, 0, LAST_POSITION),
        ("n_threads", request.n_threads, 1, 1024),
        ("n_gpu_layers", request.n_gpu_layers, 0, LAST_POSITION),
        *(("blocks", block, 0, n_layers - 1) for block in request.blocks or ()),
    )
    for option, value, least, most in ranges:
        if not least <= value <= most:
            raise OptionError(option, got=value, wanted=f"{least} to {most}")


def _checked_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) or name == "manifest":
        raise OptionError("name of the dump", got=repr(name), wanted="letters, digits, '.', '_' and '-'")
    return name


def _check_folder(out: Path, model: ModelRecord) -> None:
    """Refuse a folder that belongs to another model."""
    if (found := open_dumps(out).manifest.model) != model:
        raise DumpError(
            f"{out} holds dumps of another model",
            got=f"{found.name} {found.sha256}",
            wanted=f"{model.name} {model.sha256}",
            hint="use another folder",
        )


def _n_layers(file: GGUFFile) -> int:
    count = file.metadata.get("llama.block_count")
    return count if isinstance(count, int) else 0


def _model_record(file: GGUFFile, derived_from: Mapping[str, str] | None) -> ModelRecord:
    return ModelRecord(
        name=str(file.metadata.get("general.name") or Path(file.path).stem),
        sha256=file.sha256(),
        weights_sha256=weights_sha256(file),
        tensor_types=tuple(sorted({info.type.name for info in file.tensors.values()})),
        hyperparameters=LlamaConfig.from_gguf(file).hyperparameters,
        derived_from=dict(derived_from) if derived_from else None,
    )


def _producer(request: Request, found: Mapping[str, Any]) -> Producer:
    return Producer(
        name="llama.cpp",
        version=found["version"],
        llama_cpp_python=found["llama_cpp_python"],
        system_info=found["system_info"],
        backend=found["backend"],
        flash_attention=request.flash_attention,
        type_k=request.cache,
        type_v=request.cache,
        threads=request.n_threads,
        extra_buffers=request.repacked,
    )


def _entry(name: str, request: Request, found: Mapping[str, Any], config: LlamaConfig) -> DumpEntry:
    n_layers, token_ids = int(found["n_layers"]), tuple(found["token_ids"])
    first = request.positions_from
    return DumpEntry(
        name=name,
        file=f"{name}.safetensors",
        sha256="",
        prompt=None if request.forced else request.prompt,  # the text does not make these tokens
        token_ids=token_ids,
        positions=tuple(range(first, first + len(token_ids))),
        n_layers=n_layers,
        blocks=tuple(range(n_layers)) if request.blocks is None else request.blocks,
        points=tuple(
            point.name for point in points_of(fused=request.flash_attention, experts=config.n_experts > 0)
        ),
        greedy_tokens=tuple(found["greedy_tokens"]),
        continuation=_continuation(found["continuation"]),
        sampling=tuple(_sampling(setting) for setting in found["sampling"]),
        penalized=tuple(_sampling(setting) for setting in found["penalized"]),
        context=int(found["context"]) if config.rope_long_factors else 0,
    )


def _continuation(fields: Mapping[str, Any]) -> Continuation:
    ids, margins = tuple(fields["token_ids"]), tuple(fields["margins"])
    return Continuation(ids, margins, fields["ended_by"], fields["text"], fields["text_base64"])


def _sampling(fields: Mapping[str, Any]) -> Sampling:
    return Sampling(**{**fields, "penalty_tokens": tuple(fields["penalty_tokens"])})
