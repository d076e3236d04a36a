"""Train the embedded model: Llama-2's topology in small, on the King James Bible.

    bible -f Gen1:1-Rev22:21 > kjv.txt          # Debian's packages bible-kjv and bible-kjv-text
    python tools/train_embedded_model.py --text kjv.txt --vocabulary vocabulary.gguf --out model.gguf

The result is a real, trained model, so that every layer of the ladder does work that matters: the
script refuses to write one whose held-out loss is above `MAX_LOSS`, or in which any sublayer adds
less than `MIN_CONTRIBUTION` of the residual's norm (a bug could hide in a dead layer).
Two or three minutes on a data-centre GPU. The seed is fixed; the text is not kept in the repository.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import gguf
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llama_ckpt.gguf.file import GGUFFile, open_gguf
from llama_ckpt.tokens.tokenizer import Tokenizer

MAX_LOSS = 3.6  # nats a held-out token
MIN_CONTRIBUTION = 0.01  # of the residual's norm, for every attention and feed-forward
WINDOW = 256  # tokens a training example, BOS included
HELD_OUT_EVERY = 20  # one chapter in this many is never trained on


@dataclass(frozen=True)
class Shape:
    """The embedded model's shape; the names are those of LlamaConfig."""

    n_layers: int = 32
    n_heads: int = 4
    width: int = 64
    ffn: int = 192
    vocab_size: int = 32000
    context_length: int = 4096
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0


class Block(nn.Module):
    """One Llama block on a batch `[batch, token, width]`; reports what each sublayer adds."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width, ffn = shape.width, shape.ffn
        self.shape = shape
        self.attn_norm = nn.Parameter(torch.ones(width))
        self.ffn_norm = nn.Parameter(torch.ones(width))
        # Residual outputs start small, so that 64 sublayers don't add up to a huge residual.
        small = (2 * shape.n_layers) ** -0.5
        for name, (rows, columns, scale) in {
            "wq": (width, width, 1.0),
            "wk": (width, width, 1.0),
            "wv": (width, width, 1.0),
            "wo": (width, width, small),
            "w_gate": (ffn, width, 1.0),
            "w_up": (ffn, width, 1.0),
            "w_down": (width, ffn, small),
        }.items():
            self.register_parameter(name, nn.Parameter(torch.randn(rows, columns) * scale * columns**-0.5))

    def attention(self, x: Tensor, turn: Tensor) -> Tensor:
        batch, n, width = x.shape
        heads = self.shape.n_heads

        def split(w: Tensor) -> Tensor:  # [batch, head, token, head_dim]
            return F.linear(x, w).view(batch, n, heads, width // heads).transpose(1, 2)

        q, k, v = rotate(split(self.wq), turn), rotate(split(self.wk), turn), split(self.wv)
        context = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return F.linear(context.transpose(1, 2).reshape(batch, n, width), self.wo)

    def feed_forward(self, x: Tensor) -> Tensor:
        return F.linear(F.silu(F.linear(x, self.w_gate)) * F.linear(x, self.w_up), self.w_down)

    def forward(self, x: Tensor, turn: Tensor, shares: list[float] | None = None) -> Tensor:
        eps = self.shape.rms_norm_eps
        for weight, sublayer in (
            (self.attn_norm, lambda h: self.attention(h, turn)),
            (self.ffn_norm, self.feed_forward),
        ):
            added = sublayer(F.rms_norm(x, (x.shape[-1],), weight, eps))
            if shares is not None:
                shares.append(float(added.norm() / x.norm()))
            x = x + added
        return x


def rotate(x: Tensor, turn: Tensor) -> Tensor:
    """RoPE on interleaved pairs (2i, 2i+1), as GGUF stores them: `turn` is complex `[token, head_dim/2]`."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * turn).flatten(-2).to(x.dtype)


class Llama(nn.Module):
    """The whole network on a batch of windows; logits in float32."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.token_embd = nn.Parameter(torch.randn(shape.vocab_size, shape.width) * 0.5)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.n_layers))
        self.output_norm = nn.Parameter(torch.ones(shape.width))
        self.output = nn.Parameter(torch.randn(shape.vocab_size, shape.width) * shape.width**-0.5 * 0.5)
        head_dim = shape.width // shape.n_heads
        frequencies = shape.rope_theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
        angles = torch.outer(torch.arange(WINDOW, dtype=torch.float64), frequencies)
        self.register_buffer("turn", torch.polar(torch.ones_like(angles), angles).to(torch.complex64), False)

    def forward(self, tokens: Tensor, shares: list[float] | None = None) -> Tensor:
        x = F.embedding(tokens, self.token_embd)
        for block in self.blocks:
            x = block(x, self.turn[: tokens.shape[1]], shares)
        x = F.rms_norm(x, (x.shape[-1],), self.output_norm, self.shape.rms_norm_eps)
        return F.linear(x, self.output)

    def loss(self, tokens: Tensor, shares: list[float] | None = None) -> Tensor:
        logits = self(tokens[:, :-1], shares)
        return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def chapters(text: str) -> Iterator[str]:
    """The text chapter by chapter; a line is `Ge1:1 In the beginning …`."""
    held: list[str] = []
    current = None
    for line in text.splitlines():
        chapter = line.split(":", 1)[0]
        if held and chapter != current:
            yield "\n".join(held)
            held = []
        current = chapter
        held.append(line)
    yield "\n".join(held)


def token_streams(text: str, tokenizer: Tokenizer) -> tuple[Tensor, Tensor]:
    """Token ids of the training and of the held-out chapters, each chapter led by BOS."""
    streams: list[list[int]] = [[], []]
    for number, chapter in enumerate(chapters(text)):
        streams[number % HELD_OUT_EVERY == HELD_OUT_EVERY // 2] += tokenizer.encode(chapter, add_bos=True)
    return torch.tensor(streams[0]), torch.tensor(streams[1])


def windows(stream: Tensor, starts: Tensor, bos_id: int) -> Tensor:
    """Windows `[n, WINDOW + 1]` of the stream; each begins with BOS, as every prompt does."""
    batch = stream[starts[:, None] + torch.arange(WINDOW + 1, device=stream.device)]
    batch[:, 0] = bos_id
    return batch


@torch.no_grad()
def held_out_loss(model: Llama, stream: Tensor, bos_id: int) -> tuple[float, list[float]]:
    """Mean loss over the held-out stream, nats a token, and each sublayer's mean share of the residual."""
    starts = torch.arange(0, len(stream) - WINDOW - 1, WINDOW, device=stream.device)
    losses, all_shares = [], []
    for part in starts.split(32):
        shares: list[float] = []
        losses.append(float(model.loss(windows(stream, part, bos_id), shares)) * len(part))
        all_shares.append(shares)
    return sum(losses) / len(starts), np.mean(all_shares, axis=0).tolist()


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over the first tenth, then a cosine down to a tenth of the peak."""
    warm_up = max(1, steps // 10)
    if step < warm_up:
        return peak * (step + 1) / warm_up
    return peak * (0.55 + 0.45 * math.cos(math.pi * (step - warm_up) / (steps - warm_up)))


def train(model: Llama, stream: Tensor, held_out: Tensor, bos_id: int, options: argparse.Namespace) -> int:
    """Train in place and leave the weights of the best held-out step in the model; returns that step."""
    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() == 1]
    groups = [
        {"params": decayed, "weight_decay": options.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=options.peak_rate, betas=(0.9, 0.95), fused=stream.is_cuda)
    draws = torch.Generator().manual_seed(options.seed)
    best, best_step, kept = math.inf, 0, None
    began = time.monotonic()
    for step in range(options.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, options.steps, options.peak_rate)
        starts = torch.randint(len(stream) - WINDOW - 1, (options.batch,), generator=draws)
        loss = model.loss(windows(stream, starts.to(stream.device), bos_id))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % options.evaluate_every == 0:
            value, _ = held_out_loss(model, held_out, bos_id)
            print(
                f"step {step + 1}: train {loss.item():.3f}, held out {value:.3f}, "
                f"{time.monotonic() - began:.0f} s"
            )
            if value < best:
                best, best_step = value, step + 1
                kept = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    assert kept is not None, "no step was evaluated"
    model.load_state_dict(kept)
    return best_step


def round_to_float16(model: Llama) -> None:
    """Round what the file stores in F16, so that the loss reported is the file's own."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(parameter.half().float())


GGUF_SUFFIX = {
    "attn_norm": "attn_norm",
    "wq": "attn_q",
    "wk": "attn_k",
    "wv": "attn_v",
    "wo": "attn_output",
    "ffn_norm": "ffn_norm",
    "w_gate": "ffn_gate",
    "w_up": "ffn_up",
    "w_down": "ffn_down",
}


def named_weights(model: Llama) -> Iterator[tuple[str, Tensor]]:
    """Every weight under its GGUF name, in the order of a converted file."""
    yield "token_embd.weight", model.token_embd
    for number, block in enumerate(model.blocks):
        for field, suffix in GGUF_SUFFIX.items():
            yield f"blk.{number}.{suffix}.weight", getattr(block, field)
    yield "output_norm.weight", model.output_norm
    yield "output.weight", model.output


def write_model(path: Path, model: Llama, vocabulary: GGUFFile) -> None:
    """Write the GGUF file: matrices in F16, norms in F32, the keys that real Llama-2 files carry.

    What llama.cpp takes by default is written too: other loaders have no defaults, and stop at a file
    without `llama.rope.freq_base`.
    """
    shape = model.shape
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("llama_ckpt tiny-32l")
    writer.add_license("Apache-2.0")
    writer.add_context_length(shape.context_length)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.n_layers)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_vocab_size(shape.vocab_size)
    writer.add_rope_dimension_count(shape.width // shape.n_heads)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_head_count(shape.n_heads)
    writer.add_head_count_kv(shape.n_heads)
    writer.add_layer_norm_rms_eps(shape.rms_norm_eps)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    metadata = vocabulary.metadata
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(list(metadata["tokenizer.ggml.tokens"]))
    writer.add_token_scores([float(score) for score in metadata["tokenizer.ggml.scores"]])
    writer.add_token_types([int(kind) for kind in metadata["tokenizer.ggml.token_type"]])
    writer.add_bos_token_id(int(metadata["tokenizer.ggml.bos_token_id"]))
    writer.add_eos_token_id(int(metadata["tokenizer.ggml.eos_token_id"]))
    writer.add_unk_token_id(int(metadata["tokenizer.ggml.unknown_token_id"]))
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(True)
    for name, weight in named_weights(model):
        values = weight.detach().float().cpu().numpy()
        writer.add_tensor(name, values.astype(np.float16) if values.ndim > 1 else values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", type=Path, required=True, help="what `bible -f Gen1:1-Rev22:21` prints")
    parser.add_argument(
        "--vocabulary", type=Path, required=True, help="a GGUF file with Llama-2's vocabulary"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--peak-rate", type=float, default=3e-3)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--evaluate-every", type=int, default=25)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--layers", type=int, default=32, help="fewer, to try the script itself")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    torch.manual_seed(options.seed)
    torch.backends.cuda.matmul.allow_tf32 = True  # training may be approximate; validation never is
    vocabulary = open_gguf(options.vocabulary)
    tokenizer = Tokenizer.from_gguf(vocabulary)
    stream, held_out = (
        tokens.to(options.device) for tokens in token_streams(options.text.read_text(), tokenizer)
    )
    print(f"{len(stream)} tokens to train on, {len(held_out)} held out")
    model = Llama(Shape(n_layers=options.layers)).to(options.device)
    best_step = train(model, stream, held_out, tokenizer.bos_id, options)
    round_to_float16(model)
    loss, shares = held_out_loss(model, held_out, tokenizer.bos_id)
    print(
        json.dumps(
            {"step": best_step, "held_out_loss": loss, "smallest_share": min(shares), **asdict(model.shape)}
        )
    )
    if loss > MAX_LOSS or min(shares) < MIN_CONTRIBUTION:
        raise SystemExit(
            f"not written: held-out loss {loss:.3f} (at most {MAX_LOSS}), "
            f"smallest share {min(shares):.4f} (at least {MIN_CONTRIBUTION})"
        )
    write_model(options.out, model, vocabulary)


if __name__ == "__main__":
    main()
