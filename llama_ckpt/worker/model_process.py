"""The process that holds the model: JSON lines in on standard input, JSON lines out on standard output.

    in    {"do":"load", model, device, dtype, max_context}          once, first
          {"do":"encode", id, parts:[{text, bos, eos}]}             answered at once, also during a generation
          {"do":"generate", id, token_ids, max_tokens, sampling, stop}      one after the other
          {"do":"cancel", id}                                       takes effect at the next token
    out   {"is":"loaded", …}   or {"is":"refused", message, code}
          {"is":"encoded", id, count, token_ids}   or {"is":"unencodable", id, message}
          {"is":"token", id, text}   {"is":"metrics", id, vram_bytes}
          {"is":"alive","works":…}                                  twice a second
          {"is":"done", id, reason, stop_string, tokens}   or {"is":"failed", id, code, message}

Four threads: one reads, one tokenizes, one says that the process runs, the main one computes. When
standard input ends, the worker has gone, and so has this process, whatever it is doing.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import replace
from typing import IO, TYPE_CHECKING, Any

from llama_ckpt.cores import usable_cpus
from llama_ckpt.errors import LlamaCkptError, OptionError
from llama_ckpt.gguf.file import open_gguf
from llama_ckpt.shadowing import check_checkpoints
from llama_ckpt.weights.config import LlamaConfig
from llama_ckpt.weights.llama_tensors import check_llama

if TYPE_CHECKING:
    import torch

    from llama_ckpt.generation import ComputedBy
    from llama_ckpt.model import Model

__all__ = ["ServedModel", "Outbox", "serve"]

METRICS_EVERY = 1.0  # seconds
BEAT_EVERY = 0.5  # seconds
IDLE = 0.01  # seconds of the processor's time between two beats that are nobody's work
Message = Mapping[str, Any]


class Outbox:
    """Writes messages, whole, from any thread."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream, self._lock = stream, threading.Lock()

    def send(self, what: str, **fields: object) -> None:
        """Write one message; nobody to read it means that the worker has gone."""
        line = json.dumps({"is": what, **fields})
        try:
            with self._lock:
                self._stream.write(line + "\n")
                self._stream.flush()
        except BrokenPipeError:
            os._exit(0)


class ServedModel:
    """A loaded model that answers the messages of one worker.

    Args:
        model: from `load`.
        max_context: tokens of prompt and answer together.
        outbox: where its messages go.
        precision: what computes, as `generation.pick_session` takes it.

    Attributes:
        computed_by: what does, in words: see `generation.computed_by`.
    """

    def __init__(self, model: Model, max_context: int, outbox: Outbox, precision: ComputedBy) -> None:
        from llama_ckpt.generation import computed_by, pick_session, quick

        self._model, self._max_context, self._outbox = model, max_context, outbox
        # Made before the first job, so that a worker without memory for it is refused and not announced.
        self._writer = pick_session(model, precision) or quick(model, precision)
        self.computed_by = computed_by(model, precision)
        self._cancelled = -1  # only the running job is ever cancelled here; the worker keeps the queue
        self._weight_bytes = weight_bytes(model)

    def vram_bytes(self) -> int:
        """On CUDA what torch holds of the device's memory, on the CPU the bytes of the weights."""
        import torch

        if self._model.device.type == "cuda":
            return torch.cuda.memory_reserved(self._model.device)
        return self._weight_bytes

    def cancel(self, job: int) -> None:
        """Stop a generation before its next token."""
        self._cancelled = job

    def encode(self, order: Message) -> None:
        """Answer with the token ids of the parts, one after the other."""
        tokenizer, ids = self._model.tokenizer, []
        try:
            for part in order["parts"]:
                ids += tokenizer.encode(part["text"], add_bos=part["bos"], add_eos=part["eos"])
        except LlamaCkptError as error:
            self._outbox.send("unencodable", id=order["id"], message=str(error))
        else:
            # Too long to run is too long to send.
            sent = ids if len(ids) <= self._max_context else []
            self._outbox.send("encoded", id=order["id"], count=len(ids), token_ids=sent)

    def generate(self, order: Message) -> None:
        """Run one generation and tell of it; whatever goes wrong ends this job and not the process.

        Except for a CUDA device that has failed: nothing computes on it again, so the process ends.
        """
        job = order["id"]
        try:
            self._generate(job, order)
        except Exception as error:  # the boundary: what it was goes into the log, the next job runs
            code, message = failure(error)
            trace = "" if code == "VRAM_OOM" else traceback.format_exc()
            self._outbox.send("failed", id=job, code=code, message=message, trace=trace)
            if type(error).__name__ == "AcceleratorError":
                os._exit(1)
            if self._model.device.type == "cuda":
                import torch

                torch.cuda.empty_cache()  # pieces too small for the job that failed

    def _generate(self, job: int, order: Message) -> None:
        from checkpoints.c12_end_to_end import generate
        from llama_ckpt.tokens.sampling import SamplingOptions

        tokens, reason, stop_string = 0, "cancelled", None
        told = time.monotonic()
        for token in generate(
            self._writer,  # one job at a time, so no other text is in its cache
            order["token_ids"],
            max_tokens=order["max_tokens"],
            sampling=SamplingOptions(**order["sampling"]),
            stop=order["stop"],
            tap=self._check_before_choice,
        ):
            if job == self._cancelled:
                break
            tokens += 1
            if token.text or not token.stop_reason:
                self._outbox.send("token", id=job, text=token.text)
            reason, stop_string = token.stop_reason or "cancelled", token.stop_string
            if time.monotonic() - told >= METRICS_EVERY:
                told = time.monotonic()
                self._outbox.send("metrics", id=job, vram_bytes=self.vram_bytes())
        self._outbox.send("metrics", id=job, vram_bytes=self.vram_bytes())
        self._outbox.send("done", id=job, reason=reason, stop_string=stop_string, tokens=tokens)

    def _check_before_choice(self, _point: str, row: torch.Tensor) -> None:
        # The choice from NaN is no choice: argmax and the draw would return a token all the same.
        if not bool(row.isfinite().all()):
            raise FloatingPointError("the model's logits are not finite")


def failure(error: Exception) -> tuple[str, str]:
    """The protocol's code for an exception, and a sentence for the client."""
    name, text = type(error).__name__, str(error)
    # torch's allocator has a class for it; the driver, cuBLAS and Triton only have words.
    full = ("allocate memory", "out of memory", "ALLOC_FAILED")
    if isinstance(error, MemoryError) or name == "OutOfMemoryError" or any(word in text for word in full):
        return "VRAM_OOM", "there is not enough memory for this job; a shorter one needs less"
    if isinstance(error, LlamaCkptError):
        return "INVALID_REQUEST", text
    if isinstance(error, FloatingPointError):
        return "INFERENCE_FAILED", text
    return "INFERENCE_FAILED", f"the generation failed with {name}; the worker's log has the details"


def weight_bytes(model: Model) -> int:
    """Bytes of all weights as they lie on the device, tied ones once."""
    from llama_ckpt.weights.quants import PackedWeight

    weights = model.weights
    every = [weights.token_embd, weights.output_norm, weights.output]
    every += [weight for block in weights.blocks for weight in vars(block).values() if weight is not None]
    raw = {id(w): w.raw if isinstance(w, PackedWeight) else w for w in every}
    return sum(tensor.nbytes for tensor in raw.values())


def load(order: Message, outbox: Outbox) -> ServedModel:
    """Load the model and say so; the header is checked before torch is imported, which takes seconds."""
    file = open_gguf(order["model"])
    config = LlamaConfig.from_gguf(file)
    check_llama(file, config)
    limit = context_limit(order["max_context"], config)

    check_checkpoints()
    from llama_ckpt.model import load as load_model
    from llama_ckpt.model import pick_device

    device = pick_device(order["device"])
    use_threads()
    if order["dtype"] == "auto":
        model = in_half_without_engine(load_model(order["model"], device=device))
        engine = ServedModel(model, limit, outbox, "auto")
    else:  # the engine has precisions of its own: a dtype that was asked for is the layers'
        model = load_model(order["model"], device=device, dtype=order["dtype"])
        engine = ServedModel(model, limit, outbox, "layers")
    outbox.send(
        "loaded",
        name=config.name or file.path.stem,
        vram_bytes=engine.vram_bytes(),
        memory_type="cuda" if device.type == "cuda" else "cpu",  # an Apple GPU's is the CPU's
        device=str(device),
        computed_by=engine.computed_by,
        max_context=limit,
        vocab_size=config.vocab_size,
    )
    return engine


def in_half_without_engine(model: Model) -> Model:
    """The model to serve where no dtype is asked for: on CUDA in float16 where the engine cannot run it."""
    import torch

    from llama_ckpt.engine.engine import unsupported

    layers = model.device.type == "cuda" and unsupported(model) is not None
    return replace(model, dtype=torch.float16) if layers else model


def context_limit(asked: int | None, config: LlamaConfig) -> int:
    """The tokens that prompt and answer may have. Raises OptionError for more than the model's."""
    if asked is not None and asked > config.context_length:
        wanted = f"at most the model's context of {config.context_length}"
        raise OptionError("--max-context", got=asked, wanted=wanted)
    return asked or config.context_length


def use_threads() -> None:
    """Leave a core to the worker's event loop: threads of torch that wait for each other burn theirs.

    `OMP_NUM_THREADS` overrides it.
    """
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, min(torch.get_num_threads(), usable_cpus() - 1)))


def serve(orders: IO[str], outbox: Outbox) -> int:
    """Load, then work through orders until they end; returns the exit code."""
    try:
        engine = load(json.loads(orders.readline()), outbox)
    except LlamaCkptError as error:
        outbox.send("refused", message=str(error), code=2)
        return 2
    except Exception as error:
        full = isinstance(error, MemoryError) or failure(error)[0] == "VRAM_OOM"
        told = "the memory is too small for this model" if full else f"{type(error).__name__}: {error}"
        outbox.send("refused", message=told, code=2 if full else 1, trace=traceback.format_exc())
        return 1
    generations: queue.SimpleQueue[Message] = queue.SimpleQueue()
    texts: queue.SimpleQueue[Message] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(orders, engine, generations, texts), daemon=True).start()
    threading.Thread(target=_encode, args=(engine, texts), daemon=True).start()
    threading.Thread(target=_beat, args=(outbox,), daemon=True).start()
    while True:
        engine.generate(generations.get())


def _read(
    orders: IO[str],
    engine: ServedModel,
    generations: queue.SimpleQueue[Message],
    texts: queue.SimpleQueue[Message],
) -> None:
    for line in orders:
        order = json.loads(line)
        if order["do"] == "cancel":
            engine.cancel(order["id"])
        else:
            (texts if order["do"] == "encode" else generations).put(order)
    os._exit(0)  # the worker has gone; the main thread may be in the middle of a long prompt


def _encode(engine: ServedModel, texts: queue.SimpleQueue[Message]) -> None:
    while True:
        engine.encode(texts.get())


def _beat(outbox: Outbox) -> None:
    """Say again and again that this process runs, and whether it computes.

    One that is stopped, or starved of memory, says nothing; one whose threads wait for each other for ever
    says that it computes nothing. A count of layers or tokens would not tell a stuck one from a long prompt,
    of which a single layer takes a minute.
    """
    spent = time.process_time()
    while True:
        time.sleep(BEAT_EVERY)
        before, spent = spent, time.process_time()
        outbox.send("alive", works=spent - before > IDLE)


def main() -> None:
    """Serve the process that started this one."""
    # A terminal and a service manager send their signals to every process; the worker decides.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    # Whatever else prints must not end up between the messages.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    orders = open(0, encoding="utf-8", closefd=False)
    sys.exit(serve(orders, Outbox(out)))


if __name__ == "__main__":
    main()
