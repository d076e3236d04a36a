"""A tensor-parallel Llama in a page: torch.distributed, two processes on gloo, each of which writes a dump.

    llama-ckpt export --out weights.safetensors
    python examples/two_ranks.py weights.safetensors dumps [--broken reduction|twice|residual|fused|rank]
    llama-ckpt compare --rank 0=dumps/rank0.safetensors --rank 1=dumps/rank1.safetensors

Attention's and the feed-forward's first matrices are cut by their outputs, the second by their inputs, as
Megatron-LM does; so each block needs two sums over the ranks. `--broken` does one thing as people have.
"""

import argparse
import json
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors import safe_open
from safetensors.torch import save_file

RANKS = 2
TOKENS = [1, 15043]  # "Hello"


def reduced(part, residual, broken):
    """The sum over ranks, and the residual that each rank adds afterwards, once."""
    if broken == "reduction":
        return residual + part
    total = part + residual if broken == "residual" else part.clone()
    dist.all_reduce(total)
    if broken == "twice":
        dist.all_reduce(total)
    return total if broken == "residual" else residual + total


def rope(x, positions, theta):
    """Turns neighbours (2i, 2i+1), as GGUF files have them; x is [n, heads, head_dim]."""
    d = x.shape[-1]
    angles = positions[:, None] * theta ** (-torch.arange(0, d, 2, dtype=torch.float64) / d)
    turn = torch.polar(torch.ones_like(angles), angles)[:, None]
    pairs = torch.view_as_complex(x.double().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * turn).flatten(-2).float()


def norm(x, weight, eps):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def own(matrix, rank, axis=0):
    """A rank's rows of a matrix [out, in], or with axis 1 its columns."""
    return matrix.chunk(RANKS, axis)[rank]


def heads_of(w, at, rank, broken):
    """A rank's queries', keys' and values' matrices."""
    whole = [w[f"{at}attn_{name}.weight"] for name in "qkv"]
    if broken == "fused":  # cut as if it were one matrix: rank 0 has queries alone
        return torch.cat(whole).chunk(RANKS)[rank].split([len(one) // RANKS for one in whole])
    if broken == "rank":
        rank = 0
    return [own(one, rank) for one in whole]


def run(rank, weights, config, out, broken):
    """One rank: the whole residual stream, half of the heads and features."""
    seen, n, d = {}, len(TOKENS), config["head_dim"]
    eps, positions = config["rms_norm_eps"], torch.arange(n)
    x = seen["embd"] = weights["token_embd.weight"][TOKENS]
    for block in range(config["n_layers"]):
        at = f"blk.{block}."
        h = seen[at + "attn_norm"] = norm(x, weights[at + "attn_norm.weight"], eps)
        q, k, v = ((h @ w.T).view(n, -1, d) for w in heads_of(weights, at, rank, broken))
        seen |= {at + "q": q, at + "k": k, at + "v": v}
        q, k = (rope(y, positions, config["rope_theta"]) for y in (q, k))
        seen |= {at + "q_rope": q, at + "k_rope": k}
        group = q.shape[1] // k.shape[1]
        k, v = (y.repeat_interleave(group, 1) for y in (k, v))
        scores = seen[at + "attn_scores"] = torch.einsum("nhd,mhd->nhm", q, k)
        hidden = torch.triu(torch.ones(n, n, dtype=torch.bool), 1)[:, None]
        probs = seen[at + "attn_probs"] = (scores * d**-0.5).masked_fill(hidden, -torch.inf).softmax(-1)
        context = seen[at + "attn_context"] = torch.einsum("nhm,mhd->nhd", probs, v).flatten(1)
        part = seen[at + "attn_out"] = context @ own(weights[at + "attn_output.weight"], rank, 1).T
        x = seen[at + "ffn_inp"] = reduced(part, x, broken)
        h = seen[at + "ffn_norm"] = norm(x, weights[at + "ffn_norm.weight"], eps)
        gate, up = (h @ own(weights[f"{at}ffn_{name}.weight"], rank).T for name in ("gate", "up"))
        gated = torch.nn.functional.silu(gate) * up
        seen |= {at + "ffn_gate": gate, at + "ffn_up": up, at + "ffn_swiglu": gated}
        part = seen[at + "ffn_out"] = gated @ own(weights[at + "ffn_down.weight"], rank, 1).T
        x = seen[at + "out"] = reduced(part, x, broken)
    h = seen["output_norm"] = norm(x, weights["output_norm.weight"], eps)
    seen["logits"] = h @ own(weights.get("output.weight", weights["token_embd.weight"]), rank).T
    facts = {"token_ids": ",".join(map(str, TOKENS)), "positions": ",".join(map(str, range(n)))}
    tensors = {name: tensor.contiguous() for name, tensor in seen.items()}
    save_file(tensors, Path(out) / f"rank{rank}.safetensors", facts)


def process(rank, path, out, broken):
    """What each process does: join the group, read the weights, run."""
    torch.set_num_threads(1)
    meeting = f"file://{Path(out).resolve()}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=RANKS)
    with safe_open(path, "pt") as file, torch.inference_mode():
        config = json.loads(file.metadata()["config"])
        run(rank, {name: file.get_tensor(name).float() for name in file.keys()}, config, out, broken)
    dist.destroy_process_group()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Run two ranks; each writes a dump.")
    parser.add_argument("weights")
    parser.add_argument("out")
    parser.add_argument("--broken", choices=("reduction", "twice", "residual", "fused", "rank"))
    given = parser.parse_args()
    Path(given.out).mkdir(exist_ok=True)
    (Path(given.out) / "meeting").unlink(missing_ok=True)
    mp.spawn(process, (given.weights, given.out, given.broken), RANKS)
