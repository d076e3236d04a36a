"""Both layers against llama.cpp and the oracle; the second one fails, and says why."""

import layers


def test_rms_norm(llama_ckpt_validate):
    llama_ckpt_validate(layers.rms_norm)


def test_rope(llama_ckpt_validate):
    llama_ckpt_validate("1B", layers.rope)
