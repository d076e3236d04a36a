"""Folders of Hugging Face's: what `transformers` computes from them is what is computed here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import llama_ckpt
from llama_ckpt.cli import app
from llama_ckpt.errors import LlamaCkptError
from llama_ckpt.gguf.file import GGUFFile
from llama_ckpt.hugging_face.folder import gguf_of_folder
from llama_ckpt.making.export import export_weights
from llama_ckpt.tokens.tokenizer import Tokenizer
from tests.gguf_files import write_llama

TOKENS = [1, 300, 4, 77, 111, 9, 77]
SMALL: dict[str, Any] = {
    **{"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "vocab_size": 320, "max_position_embeddings": 512, "rms_norm_eps": 1e-5},
}
TEXT = [
    "Hello world, it's 1984!\n\n  And the answer is 42.",
    "naïve café ¿qué? déjà-vu 12345",
    "    x = f(y)\t# ok",
]
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "Llama 3": {
        "head_dim": 32,
        "tie_word_embeddings": True,
        "rope_parameters": {
            **{"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0},
            **{"high_freq_factor": 4.0, "original_max_position_embeddings": 64},
        },
    },
    "linear": {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
    "yarn": {"rope_parameters": {**YARN, "rope_theta": 1e4}},
    "yarn's own factor": {"rope_parameters": {**YARN, "attention_factor": 1.5, "rope_theta": 1e4}},
    "yarn's mscales": {"rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.0, "rope_theta": 1e4}},
    "yarn's betas": {
        "rope_parameters": {**YARN, "beta_fast": 8.0, "beta_slow": 2.0, "rope_theta": 1e4},
        "head_dim": 64,
    },
    "yarn's ramp as it is": {
        "rope_parameters": {**YARN, "truncate": False, "rope_theta": 1e4},
        "head_dim": 64,
    },
    "biases": {"attention_bias": True, "mlp_bias": True},
}


def folder_of(path: Path, dtype: torch.dtype = torch.float32, shard: str = "5GB", **options: Any) -> Any:
    """A folder that transformers wrote, and the model that it wrote."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(3)
    model = LlamaForCausalLM(LlamaConfig(**SMALL | options)).to(dtype)
    with torch.no_grad():
        for name, one in model.named_parameters():
            one.add_(0.3 * torch.randn_like(one) if name.endswith("bias") else 0.1 * torch.randn_like(one))
    model.save_pretrained(path, max_shard_size=shard)
    return model.float().eval()


def plain_folder(path: Path) -> None:
    """A folder of a model of 450 tokens, made without `transformers`."""
    model = write_llama(path / "source.gguf", vocab=450)
    export_weights(model, path / "model.safetensors", layout="hf")
    model.unlink()


@pytest.mark.parametrize("name", MODELS)
def test_the_same_logits_as_transformers(name: str, tmp_path: Path) -> None:
    theirs = folder_of(tmp_path / "hf", **MODELS[name])
    positions = list(range(100, 100 + len(TOKENS)))
    with torch.inference_mode():
        wanted = theirs(torch.tensor([TOKENS]), position_ids=torch.tensor([positions])).logits[0]
    model = llama_ckpt.load(gguf_of_folder(tmp_path / "hf", tmp_path / "m.gguf"), device="cpu")
    ours = model.logits(TOKENS, positions)
    assert float((wanted - ours).norm() / wanted.norm()) < 5e-6


def test_python_takes_a_folder_as_the_command_does(tmp_path: Path) -> None:
    theirs = folder_of(tmp_path / "hf")
    with torch.inference_mode():
        wanted = theirs(torch.tensor([TOKENS])).logits[0]
    ours = llama_ckpt.load(tmp_path / "hf", device="cpu").logits(TOKENS)
    assert float((wanted - ours).norm() / wanted.norm()) < 5e-6
    report = llama_ckpt.validate(["0", "7"], model=tmp_path / "hf", device="cpu", oracle_only=True)
    assert [one.verdict for one in report.checkpoints] == ["pass", "pass"]
    assert report.model == str(tmp_path / "hf")
    llama_ckpt.record(theirs.eval(), TOKENS).save(tmp_path / "theirs.safetensors")
    compared = llama_ckpt.compare_dump(tmp_path / "theirs.safetensors", model=tmp_path / "hf")
    assert compared.exit_code == 0
    llama_ckpt.export_weights(tmp_path / "hf", tmp_path / "again" / "model.safetensors", layout="hf")
    again = llama_ckpt.load(tmp_path / "again", device="cpu").logits(TOKENS)
    assert float((again - ours).norm() / ours.norm()) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_shards_keep_their_type_to_the_last_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    theirs = folder_of(tmp_path / "hf", dtype, shard="60KB")
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) > 1
    file = GGUFFile(gguf_of_folder(tmp_path / "hf", tmp_path / "m.gguf"))
    kinds = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
    assert file.info("blk.1.ffn_down.weight").type.name == kinds[dtype]
    for name, own in (
        ("ffn_down", "mlp.down_proj"),
        ("attn_v", "self_attn.v_proj"),
    ):
        wanted = theirs.get_parameter(f"model.layers.1.{own}.weight").detach().float().numpy()
        assert np.array_equal(file.float32(f"blk.1.{name}.weight"), wanted)


def tokenizer_of(path: Path, kind: str) -> Any:
    """A small trained tokenizer of that kind, saved as `tokenizer.json`."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    from llama_ckpt.hugging_face.vocabulary import _EXPRESSIONS

    sentence_piece = kind == "llama"
    made = Tokenizer(models.BPE(byte_fallback=sentence_piece, unk_token="<unk>" if sentence_piece else None))
    specials = ["<unk>", "<s>", "</s>"]
    if sentence_piece:
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        specials += [f"<0x{byte:02X}>" for byte in range(256)]
        made.decoder = decoders.ByteFallback()
        alphabet: list[str] = []
    else:
        expression = next((one for one, name in _EXPRESSIONS.items() if name == kind), None)
        first: Any = pre_tokenizers.Digits(individual_digits=True)
        if expression is not None:
            first = pre_tokenizers.Split(Regex(expression), "isolated")
        bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=expression is None)
        made.pre_tokenizer = bytes_ if kind == "gpt-2" else pre_tokenizers.Sequence([first, bytes_])
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=450, special_tokens=specials, initial_alphabet=alphabet)
    made.train_from_iterator(TEXT * 3 + ["the cat sat on the mat and the answer"] * 9, trainer)
    if sentence_piece:  # trained as special, they are bytes of the vocabulary
        said = json.loads(made.to_str())
        said["added_tokens"] = said["added_tokens"][:3]
        made = Tokenizer.from_str(json.dumps(said))
    made.save(str(path / "tokenizer.json"))
    return made


@pytest.mark.parametrize("kind", ["llama", "llama-bpe", "qwen2", "smollm", "gpt-2"])
def test_the_same_tokens_as_tokenizers(kind: str, tmp_path: Path) -> None:
    plain_folder(tmp_path)
    theirs = tokenizer_of(tmp_path, kind)
    file = GGUFFile(gguf_of_folder(tmp_path, tmp_path / "m.gguf"))
    ours = Tokenizer.for_model(file, 450)
    assert ours.unsupported is None
    for text in (*TEXT, "the mat answers: 7 × 8", "日本語 and 🙂", "a  b   c"):
        assert ours.encode(text, add_bos=False) == theirs.encode(text, add_special_tokens=False).ids, text


def test_a_vocabulary_that_is_not_known_leaves_token_ids(tmp_path: Path) -> None:
    plain_folder(tmp_path)
    tokenizer_of(tmp_path, "llama-bpe")
    path = tmp_path / "tokenizer.json"
    path.write_text(path.read_text().replace("{1,3}", "{1,4}"))
    file = GGUFFile(gguf_of_folder(tmp_path, tmp_path / "m.gguf"))
    assert Tokenizer.for_model(file, 450).unsupported is not None


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"model_type": "qwen3_moe"}, "model_type: got qwen3_moe, wanted llama"),
        ({"hidden_act": "gelu"}, "hidden_act: got gelu, wanted silu"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor: got 0.5, wanted 1"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "rope_scaling: got dynamic, wanted"),
        ({"quantization_config": {"bits": 4}}, "quantization_config: got .*, wanted none"),
        (
            {
                "rope_scaling": {
                    **{"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 64},
                    **{"low_freq_factor": 4.0, "high_freq_factor": 4},
                }
            },
            "high_freq_factor of rope_scaling: got 4, wanted more than low_freq_factor, 4",
        ),
        ({"num_attention_heads": "4"}, "num_attention_heads: got .4., wanted a valid integer"),
    ],
)
def test_what_is_no_llama_here_is_refused(changed: dict[str, Any], words: str, tmp_path: Path) -> None:
    plain_folder(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    with pytest.raises(LlamaCkptError, match=words):
        gguf_of_folder(tmp_path, tmp_path / "m.gguf")


def test_damage_is_told(tmp_path: Path) -> None:
    with pytest.raises(LlamaCkptError, match=r"got a folder without config\.json, wanted a GGUF file, or"):
        gguf_of_folder(tmp_path, tmp_path / "m.gguf")
    plain_folder(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(LlamaCkptError, match="wanted those of"):
        gguf_of_folder(tmp_path, tmp_path / "m.gguf")


def test_the_commands_take_a_folder_and_say_what_they_read(tmp_path: Path) -> None:
    plain_folder(tmp_path)
    for words in (["inspect"], ["validate", "0", "1", "--oracle-only", "--device", "cpu", "--model"]):
        done = CliRunner().invoke(app, [*words, str(tmp_path)])
        assert done.exit_code == 0, done.output
        assert f"{tmp_path}: read as the GGUF file of the same model" in done.stderr
