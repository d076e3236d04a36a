"""Two layers of somebody's Llama: one is right, one is not."""

import torch


def rms_norm(x, weight, *, eps):
    """Right: eps inside the root, no mean subtracted."""
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def rope(q, k, positions, frequencies):
    """Wrong for weights from a GGUF file: pairs are (i, i + head_dim/2), as Hugging Face has them."""
    angles = (positions[:, None] * frequencies)[:, None, :]
    cos, sin = angles.cos().to(q.dtype), angles.sin().to(q.dtype)

    def turn(x):
        first, second = x.chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)

    return turn(q), turn(k)
