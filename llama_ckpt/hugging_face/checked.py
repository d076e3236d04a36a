"""What a folder's JSON says, each field of the kind and in the range that is read of it, or refused.

pydantic is loaded here and when a folder is read, not before: nothing else of the light commands needs it.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from llama_ckpt.errors import ModelFileError
from llama_ckpt.hugging_face.tensors import json_of
from llama_ckpt.outside import quoted

__all__ = ["checked_config", "checked_tokenizer"]

LONGEST_LIST = 1 << 22
"""Of tokens and merges."""


def checked_config(path: Path) -> dict[str, Any]:
    """A `config.json`, as it stands there.

    Raises:
        ModelFileError: no JSON object, or a field that is of another kind or out of its range.
    """
    return _checked(path, 0)


def checked_tokenizer(path: Path) -> dict[str, Any]:
    """A `tokenizer.json`; raises as `checked_config`."""
    return _checked(path, 1)


def _checked(path: Path, which: int) -> dict[str, Any]:
    from pydantic import ValidationError

    document = json_of(path)
    try:
        _models()[which].model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(one) for one in first["loc"])
        wanted = first["msg"].removeprefix("Input should be ")
        raise ModelFileError(f"{path}: {where}", got=quoted(first["input"]), wanted=wanted) from None
    return document


@cache
def _models() -> tuple[Any, Any]:
    from typing import Annotated

    from pydantic import BaseModel, ConfigDict, Field

    positive = Annotated[float, Field(gt=0, le=1e12)]
    count = Annotated[int, Field(ge=1, lt=1 << 31)]
    token = Annotated[int, Field(ge=0, lt=1 << 31)]
    divisors = Annotated[list[positive], Field(max_length=1 << 16)]

    class Body(BaseModel):
        model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="allow")

    class Rope(Body):
        rope_type: str = "default"
        type: str = "default"
        rope_theta: Annotated[float, Field(gt=1, le=1e12)] = 1e4
        factor: positive | None = None
        original_max_position_embeddings: Annotated[int, Field(ge=2, lt=1 << 31)] | None = None
        low_freq_factor: positive | None = None
        high_freq_factor: positive | None = None
        attention_factor: positive | None = None
        mscale: positive | None = None
        mscale_all_dim: positive | None = None
        beta_fast: positive | None = None
        beta_slow: positive | None = None
        short_factor: divisors | None = None
        long_factor: divisors | None = None
        truncate: bool | None = None

    class Config(Body):
        rope_theta: Annotated[float, Field(gt=1, le=1e12)] = 1e4
        rope_scaling: Rope | None = None
        rope_parameters: Rope | None = None
        max_position_embeddings: Annotated[int, Field(ge=2, lt=1 << 31)]
        original_max_position_embeddings: Annotated[int, Field(ge=2, lt=1 << 31)] | None = None
        hidden_size: count
        num_attention_heads: count
        num_hidden_layers: Annotated[int, Field(ge=1, le=512)]
        intermediate_size: count
        num_key_value_heads: count | None = None
        head_dim: count | None = None
        bos_token_id: token | list[token] | None = None
        eos_token_id: token | list[token] | None = None
        tie_word_embeddings: bool | None = None

    class Added(Body):
        id: token
        content: str
        special: bool = False

    class Step(Body):
        type: str
        pattern: dict[str, str] = {}
        individual_digits: bool = False
        add_prefix_space: bool | None = False
        use_regex: bool | None = True

    class Steps(Body):
        type: str
        pretokenizers: Annotated[list[Step], Field(min_length=1, max_length=64)] | None = None
        pattern: dict[str, str] = {}

    class Vocabulary(Body):
        type: str | None = None
        unk_token: str | None = None
        byte_fallback: bool | None = False
        vocab: dict[str, token] | list[Any] = {}
        merges: Annotated[
            list[str] | list[Annotated[list[str], Field(min_length=2, max_length=2)]],
            Field(max_length=LONGEST_LIST),
        ] = []

    class Tokenizer(Body):
        model: Vocabulary = Vocabulary()
        added_tokens: Annotated[list[Added], Field(max_length=LONGEST_LIST)] = []
        pre_tokenizer: Steps | None = None

    return Config, Tokenizer
