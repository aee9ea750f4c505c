"""The fields of requests, after OpenAI's API reference; they are validated before the model gets anything."""

from typing import Annotated, Any, Literal, Self

from ..extras import needed_by
from ..inference.parameters import MAX_PENALTY, MIN_PENALTY

with needed_by("The server"):
    from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

NonEmpty = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Zero = Annotated[float, Field(ge=0, le=0)]
Positive = Annotated[int, Field(ge=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class _Request(_Strict):
    @model_validator(mode="after")
    def is_text(self) -> Self:
        # JSON can contain half of a surrogate pair, but no tokenizer can read it.
        try:
            self.model_dump_json(warnings=False)
        except ValueError as error:
            raise ValueError("it contains half a surrogate pair (\\ud800 to \\udfff), which is not text") from error
        return self


class TextPart(_Strict):
    type: Literal["text"]
    text: str


class Message(BaseModel):
    """A message; unknown fields are passed to the chat template."""

    model_config = ConfigDict(extra="allow", strict=True)

    role: NonEmpty
    content: str | list[TextPart] | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    name: str | None = None


class StreamOptions(_Strict):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Sampling(_Request):
    """Fields of both kinds of requests."""

    model: str | None = Field(None, description="The served model's name, as /v1/models lists it.")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Positive | None = Field(
        None, description="Maximum length of the answer in tokens; at most the model's context."
    )
    temperature: Annotated[float, Field(ge=0, le=100)] | None = Field(None, description="0 means greedy.")
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = Field(None, description="0 means no limit.")
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=MIN_PENALTY, le=MAX_PENALTY)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: NonEmpty | Annotated[list[NonEmpty], Field(max_length=16)] | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = Field(
        None, description="Maps token ids to values that are added to their logits."
    )
    n: Literal[1] | None = None
    frequency_penalty: Zero | None = Field(None, description="Not supported: use repetition_penalty.")
    presence_penalty: Zero | None = Field(None, description="Not supported: use repetition_penalty.")
    # These are accepted but do not change the answer.
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None


class ChatRequest(Sampling):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Positive | None = Field(None, description="The newer name of max_tokens.")
    tools: list[dict[str, Any]] | None = Field(None, description="JSON schemas of functions the model may call.")
    tool_choice: Literal["auto", "none"] | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[Literal["type"], Literal["text"]] | None = None
    logprobs: Literal[False] | None = None


class CompletionRequest(Sampling):
    """`POST /v1/completions`."""

    prompt: str = Field("", description="The text to continue, without any chat template.")
    echo: Literal[False] | None = None
    logprobs: None = None
    best_of: Literal[1] | None = None
    suffix: None = None
