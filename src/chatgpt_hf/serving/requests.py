"""The fields of requests, after OpenAI's API reference; they are validated before the model gets anything."""

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal, Self

from ..extras import needed_by
from ..inference.parameters import MAX_PENALTY, MIN_PENALTY

with needed_by("The server"):
    from pydantic import (
        AfterValidator,
        BaseModel,
        BeforeValidator,
        ConfigDict,
        Field,
        GetPydanticSchema,
        PlainSerializer,
        StringConstraints,
        field_validator,
        model_validator,
    )

# Schemas of tools have a few levels; pydantic and templates recurse.
MAX_DEPTH = 100


def _of_type(kind: type) -> BeforeValidator:
    """Refuses what only equals a value of another type, as true equals 1."""

    def check(value: Any) -> Any:
        if value is not None and type(value) is not kind:
            raise ValueError(f"Input should be of type {kind.__name__}")
        return value

    return BeforeValidator(check)


NonEmpty = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Zero = Annotated[float, Field(ge=0, le=0)]
Positive = Annotated[int, Field(ge=1, le=2**31 - 1)]
One = Annotated[Literal[1], _of_type(int)]
Never = Annotated[Literal[False], _of_type(bool)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class _Open(BaseModel):
    """Unknown fields are passed to the chat template."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


class _Request(_Strict):
    @model_validator(mode="before")
    @classmethod
    def is_json(cls, data: Any) -> Any:
        level = [data]
        for _ in range(MAX_DEPTH):
            # Python's reader takes NaN, Infinity and numbers that are too large for a float.
            if any(isinstance(value, float) and not math.isfinite(value) for value in level):
                raise ValueError("it contains a number that is not finite, which JSON does not have")
            containers = [value for value in level if isinstance(value, dict | list)]
            if not containers:
                return data
            level = [inner for value in containers for inner in (value.values() if isinstance(value, dict) else value)]
        raise ValueError(f"it is nested more than {MAX_DEPTH} levels deep")

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


class Function(_Open):
    name: NonEmpty
    description: str | None = None
    parameters: dict[str, Any] | None = None

    @field_validator("parameters")
    @classmethod
    def have_choices_in_lists(cls, parameters: dict[str, Any] | None) -> dict[str, Any] | None:
        # transformers' parser of tool calls goes through these, once the model has called the function.
        properties = (parameters or {}).get("properties")
        schemas = list(properties.values()) if isinstance(properties, dict) else []
        while schemas:
            schema = schemas.pop()
            for name in ("anyOf", "oneOf") if isinstance(schema, dict) else ():
                choices = schema.get(name)
                if not isinstance(choices, list | None):
                    raise ValueError(f"{name} must be a list of schemas")
                schemas += choices or []
        return parameters


class Tool(_Open):
    type: Literal["function"]
    function: Function


class CalledFunction(_Open):
    name: NonEmpty
    arguments: str | dict[str, Any] = "{}"


class ToolCall(_Open):
    id: str | None = None
    type: Literal["function"] = "function"
    function: CalledFunction


def _checked_as(kind: type[BaseModel]) -> GetPydanticSchema:
    """Checks a dict as another model, and leaves it a dict with the fields that are given."""

    def given(found: BaseModel) -> dict[str, Any]:
        return found.model_dump(exclude_unset=True)

    def schema(_: Any, handler: Callable[[Any], Any]) -> Any:
        return handler(Annotated[kind, AfterValidator(given), PlainSerializer(lambda value: value)])

    return GetPydanticSchema(schema)


class Message(_Open):
    """A message; unknown fields are passed to the chat template."""

    role: NonEmpty
    content: str | list[TextPart] | None = None
    tool_calls: list[Annotated[dict[str, Any], _checked_as(ToolCall)]] | None = None
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
    n: One | None = None
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
    tools: list[Annotated[dict[str, Any], _checked_as(Tool)]] | None = Field(
        None, description="JSON schemas of functions the model may call."
    )
    tool_choice: Literal["auto", "none"] | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[Literal["type"], Literal["text"]] | None = None
    logprobs: Never | None = None


class CompletionRequest(Sampling):
    """`POST /v1/completions`."""

    prompt: str = Field("", description="The text to continue, without any chat template.")
    echo: Never | None = None
    logprobs: None = None
    best_of: One | None = None
    suffix: None = None
