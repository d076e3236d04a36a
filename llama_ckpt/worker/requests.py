"""The bodies of requests, as pydantic checks them and as the OpenAPI page describes them.

Numbers are numbers: `"5"` and `true` are no integer; `5.0` is one, as in JSON Schema. Fields that are
not named here are ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

__all__ = [
    "MAX_TOKENS",
    "PROMPT_CHARACTERS",
    "CancelRequest",
    "ChatMessage",
    "ChatRequest",
    "CompletionRequest",
    "ExecuteRequest",
    "OpenAIRequest",
    "TextPart",
]

PROMPT_CHARACTERS = 32_768
MAX_TOKENS = 2_048


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _boolean(value: Any) -> Any:
    # 0 equals False in Python, and would pass for it in a Literal.
    if not isinstance(value, bool):
        raise ValueError("Input should be a valid boolean")
    return value


def _parts(value: Any) -> Any:
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


WHOLE = BeforeValidator(_whole)
JobId = Annotated[str, Field(min_length=1, max_length=256, description="The caller's name for the job.")]
Text = Annotated[str, Field(min_length=1, max_length=PROMPT_CHARACTERS)]
StopString = Annotated[str, Field(min_length=1, max_length=100)]
StopStrings = Annotated[list[StopString], Field(max_length=4)]
MaxTokens = Annotated[int, Field(ge=1, le=MAX_TOKENS), WHOLE]
Temperature = Annotated[float, Field(ge=0, le=2)]
Share = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**64), WHOLE]
Zero = Annotated[float, Field(ge=0, le=0)]
One = Annotated[int, Field(ge=1, le=1), WHOLE]
No = Annotated[Literal[False], BeforeValidator(_boolean)]


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False, frozen=True)


class _Sampled(_Body):
    """What all requests for text have."""

    seed: Seed | None = Field(
        None, description="The same seed gives the same text; taken modulo 2^32. null draws one."
    )
    top_k: Annotated[int, Field(ge=0), WHOLE] = Field(
        0, description="Keep the k likeliest tokens; 0 keeps all."
    )
    min_p: Share = Field(
        0.0, description="Drop tokens less likely than this share of the likeliest one's probability."
    )
    repetition_penalty: Temperature = Field(
        1.0, description="Above 1 makes what was said lately less likely; 1 and 0 leave it alone."
    )

    def _sampling(
        self, temperature: float | None, top_p: float | None, drawn: int, vocab_size: int
    ) -> dict[str, float | int | None]:
        return {
            "temperature": 1.0 if temperature is None else temperature,
            "top_k": min(self.top_k, vocab_size),
            "top_p": 1.0 if top_p is None else top_p,
            "min_p": self.min_p,
            # 0 would divide by zero; as with top_k it turns the sampler off.
            "repetition_penalty": self.repetition_penalty or 1.0,
            "seed": (drawn if self.seed is None else self.seed) % 2**32,
        }


class ExecuteRequest(_Sampled):
    """The body of `POST /execute`."""

    job_id: JobId
    prompt: Text = Field(description="The text to continue.")
    max_tokens: MaxTokens = Field(description="Tokens to generate at most.")
    temperature: Temperature = Field(1.0, description="0 always takes the likeliest token.")
    top_p: Share = Field(1.0, description="Keep the likeliest tokens that reach this probability.")
    stop: StopStrings = Field([], description="Strings that end the text and are not part of it.")

    def sampling(self, drawn: int, vocab_size: int) -> dict[str, float | int | None]:
        """These fields as `llama_ckpt.tokens.sampling.SamplingOptions` takes them.

        Args:
            drawn: the seed, if the request has none.
            vocab_size: of the model; more than that many tokens can't be kept.
        """
        return self._sampling(self.temperature, self.top_p, drawn, vocab_size)


class CancelRequest(_Body):
    """The body of `POST /cancel`."""

    job_id: JobId


class OpenAIRequest(_Sampled):
    """What both of OpenAI's requests have; what would change the answer and is not done here is refused."""

    model: str | None = Field(
        None, description="Ignored: this worker has one model, and the answer names it."
    )
    max_tokens: MaxTokens | None = None
    temperature: Temperature | None = 1.0
    top_p: Share | None = 1.0
    stop: (
        Annotated[StopStrings, BeforeValidator(_listed, json_schema_input_type=StopString | StopStrings)]
        | None
    ) = None
    stream: bool | None = False
    stream_options: dict[str, Any] | None = None
    n: One | None = 1
    presence_penalty: Zero | None = 0.0
    frequency_penalty: Zero | None = 0.0
    logit_bias: Annotated[dict[str, Any], Field(max_length=0)] | None = None

    @property
    def wants_usage(self) -> bool:
        """Whether a stream is to end with the number of tokens."""
        return bool((self.stream_options or {}).get("include_usage"))

    def sampling(self, drawn: int, vocab_size: int) -> dict[str, float | int | None]:
        """As `ExecuteRequest.sampling`."""
        return self._sampling(self.temperature, self.top_p, drawn, vocab_size)


class CompletionRequest(OpenAIRequest):
    """The body of `POST /v1/completions`."""

    prompt: Annotated[
        list[Text],
        Field(min_length=1, max_length=1),
        BeforeValidator(
            _listed, json_schema_input_type=Text | Annotated[list[Text], Field(min_length=1, max_length=1)]
        ),
    ]
    max_tokens: MaxTokens | None = 16
    echo: No | None = False
    best_of: One | None = 1
    logprobs: None = None
    suffix: None = None


class TextPart(_Body):
    """A part of a chat message; only text is understood."""

    type: Literal["text"]
    text: str


class ChatMessage(_Body):
    """A message of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        list[TextPart],
        Field(max_length=256),
        BeforeValidator(_parts, json_schema_input_type=str | list[TextPart]),
    ]

    @property
    def text(self) -> str:
        """What it says."""
        return "".join(part.text for part in self.content)


class ChatRequest(OpenAIRequest):
    """The body of `POST /v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=1024)]
    max_tokens: MaxTokens | None = Field(None, description="As many as the context and the limit allow.")
    max_completion_tokens: MaxTokens | None = Field(None, description="The newer name of max_tokens.")
    logprobs: No | None = False
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    response_format: None = None
