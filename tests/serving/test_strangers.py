"""Strangers send the server odd values in every field, odd bodies, foreign names, forms of other pages."""

import asyncio
import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from chatgpt_hf import load_model, load_tokenizer
from chatgpt_hf.serving.engine import Engine
from chatgpt_hf.serving.server import build_app

USER = {"role": "user", "content": [{"type": "text", "text": "Hi"}], "name": "u"}
CALL = {"id": "c", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
SCHEMA = {"type": "object", "properties": {"a": {"anyOf": [{"type": "integer"}]}}, "required": ["a"]}
SAMPLING = {
    "model": "tiny",
    "max_tokens": 1,
    "temperature": 0.0,
    "top_p": 1.0,
    "top_k": 1,
    "min_p": 0.1,
    "repetition_penalty": 1.0,
    "seed": 1,
    "stop": ["x"],
    "logit_bias": {"1": 1.0},
    "n": 1,
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
    "user": "u",
    "metadata": {"a": "b"},
    "store": False,
    "service_tier": "auto",
    "safety_identifier": "x",
    "prompt_cache_key": "k",
    "stream": False,
    "stream_options": {"include_usage": True, "include_obfuscation": False},
}
CHAT = SAMPLING | {
    "messages": [USER, {"role": "assistant", "content": "x", "tool_calls": [CALL]}, {"role": "tool", "content": "2"}],
    "max_completion_tokens": 1,
    "tools": [{"type": "function", "function": {"name": "add", "description": "d", "parameters": SCHEMA}}],
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "response_format": {"type": "text"},
    "logprobs": False,
}
COMPLETION = SAMPLING | {"prompt": "a", "echo": False, "logprobs": None, "best_of": 1, "suffix": None}


def nested(depth: int, opening: str, closing: str) -> str:
    return opening * depth + "1" + closing * depth


ODD = [
    *("null", "true", "false", "NaN", "Infinity", "-Infinity", "1e400", "-1e400", "-0", "-1", "1.5", "1e308"),
    *("9" * 30, "9" * 4000, "9" * 5000, "-" + "9" * 5000),
    *('""', '"x"', '"' + "x" * 10_000 + '"', '"\\ud800"', '"\\udfff\\ud800"', '"\\u0000"', '"\\u202e"', '"😀"'),
    *("[]", "{}", "[null]", "[[]]", "[{}]", '{"a":null}', '{"":""}', '["x",1,null]'),
    *('{"' + "9" * 5000 + '":1}', '{"-1":1}', '{"1e3":1}', '{"٣":1}', '{"1":1e400}'),
    *(nested(300, "[", "]"), nested(300, '{"a":', "}"), nested(100_000, "[", "]"), nested(20_000, '{"a":', "}")),
    '{"type":"function","function":null}',
    '[{"type":"function","function":null}]',
    '[{"type":"function","function":{"name":null}}]',
    '[{"type":"function","function":{"name":"f","arguments":null,"parameters":[]}}]',
    '[{"type":"function","function":{"name":"f","parameters":{"properties":{"a":{"anyOf":3}}}}}]',
    '[{"type":"function","function":{"name":"f","parameters":' + nested(300, '{"a":', "}") + "}}]",
    '[{"type":"image_url","image_url":{"url":"file:///etc/passwd"}}]',
    '{"__class__":"x","self":1,"items":2,"get":3}',
]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value within a value."""
    yield path
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[key], (*path, key))


def with_odd(body: Any, path: tuple[Any, ...], odd: str) -> bytes:
    """The JSON of a body with an odd value at a path."""
    if not path:
        return odd.encode()
    body = inner = copy.deepcopy(body)
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = "@odd@"
    return json.dumps(body).replace('"@odd@"', odd).encode()


@pytest.fixture(scope="module")
def app(base_folder: Any) -> Any:
    tokenizer = load_tokenizer(str(base_folder))
    model = load_model(base_folder)
    # Room for long prompts.
    model.config.max_position_embeddings = 2048
    return build_app(Engine("tiny", model, tokenizer, max_new_tokens=1), listens="127.0.0.1")


@pytest.fixture(scope="module")
def answers(app: Any) -> Callable[..., list[httpx.Response]]:
    """Sends bodies to the application without a network; an exception in it fails the test."""

    def send(path: str, bodies: list[bytes], **headers: str) -> list[httpx.Response]:
        async def run() -> list[httpx.Response]:
            transport = httpx.ASGITransport(app=app, raise_app_exceptions=True)
            options = {"content-type": "application/json"} | {key.replace("_", "-"): v for key, v in headers.items()}
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=900) as client:
                return [await client.post(path, content=body, headers=options) for body in bodies]

        return asyncio.run(run())

    return send


def message_of(response: httpx.Response) -> str:
    """The message of a refusal in OpenAI's format."""
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    return str(error["message"])


def test_the_bodies_are_valid(answers: Callable[..., Any]) -> None:
    for path, body in (("/v1/chat/completions", CHAT), ("/v1/completions", COMPLETION)):
        (response,) = answers(path, [json.dumps(body).encode()])
        assert response.status_code == 200, response.text


CHAT_PLACES = list(places(CHAT))


@pytest.mark.parametrize("part", range(4))
def test_every_field_with_every_odd_value(answers: Callable[..., Any], part: int) -> None:
    bodies = [with_odd(CHAT, place, odd) for place in CHAT_PLACES[part::4] for odd in ODD]
    check_refusals(answers("/v1/chat/completions", bodies))


def test_every_field_of_completions_with_every_odd_value(answers: Callable[..., Any]) -> None:
    fields = [(), *((name,) for name in COMPLETION if name not in SAMPLING)]
    check_refusals(answers("/v1/completions", [with_odd(COMPLETION, place, odd) for place in fields for odd in ODD]))


def check_refusals(responses: list[httpx.Response]) -> None:
    refused = [response for response in responses if response.status_code != 200]
    # Most values are wrong in most fields.
    assert len(refused) > len(responses) / 2
    for response in refused:
        assert response.status_code in (400, 404)
        # A message of one line, which does not repeat what was sent.
        assert len(message_of(response)) < 1000


@pytest.mark.parametrize(
    ("place", "odd", "says"),
    [
        (("logit_bias",), '{"' + "9" * 5000 + '":1}', "logit_bias: '99999999999999999999' is not a token id"),
        (("logit_bias",), '{"٣":1}', "logit_bias: '٣' is not a token id"),
        (("tools", 0, "function"), "null", "tools.0.function: "),
        (("tools", 0, "type"), "null", "tools.0.type: "),
        (("tools", 0, "function", "name"), "[]", "tools.0.function.name: "),
        (("tools", 0, "function", "parameters"), "3", "tools.0.function.parameters: "),
        (("tools", 0, "function", "parameters", "properties", "a", "anyOf"), "3", "anyOf must be a list of schemas"),
        (("tools", 0, "function", "parameters"), nested(300, '{"a":', "}"), "nested more than 100 levels"),
        (("messages", 0, "extra"), nested(300, "[", "]"), "nested more than 100 levels"),
        (("messages", 1, "tool_calls", 0, "function"), "null", "messages.1.tool_calls.0.function: "),
        (
            ("messages", 1, "tool_calls", 0, "function", "arguments"),
            "null",
            "messages.1.tool_calls.0.function.arguments",
        ),
        (("tools", 0, "function", "parameters", "required"), "NaN", "not finite"),
        (("temperature",), "1e400", "not finite"),
        (("max_tokens",), "9" * 4000, "max_tokens: "),
        (("n",), "true", "n: "),
        (("logprobs",), "0", "logprobs: "),
        ((), nested(100_000, "[", "]"), ""),
        ((), nested(20_000, '{"a":', "}"), ""),
    ],
)
def test_what_the_refusal_names(answers: Callable[..., Any], place: Any, odd: str, says: str) -> None:
    (response,) = answers("/v1/chat/completions", [with_odd(CHAT, place, odd)])
    assert response.status_code == 400
    assert says in message_of(response)


VALID = json.dumps(COMPLETION)


@pytest.mark.parametrize(
    ("content", "statuses"),
    [
        (b"", (400,)),
        (b" ", (400,)),
        (b"\x00", (400,)),
        (VALID.encode()[:-1], (400,)),
        (VALID.encode() * 2, (400,)),
        (VALID.encode() + b"\x00", (400,)),
        (VALID.replace('"a"', '"\xff"').encode("latin-1"), (400,)),
        (VALID.replace('"a"', '"\xed\xa0\x80"').encode("latin-1"), (400,)),
        (b"\x1f\x8b\x08\x00", (400,)),
        (b'{"prompt": "a", "prompt": 3}', (400,)),
        (b"prompt=a&max_tokens=1", (400,)),
        # Python reads these, as JSON of other encodings.
        (b"\xef\xbb\xbf" + VALID.encode(), (200, 400)),
        (VALID.encode("utf-16"), (200, 400)),
        (VALID.encode("utf-32-be"), (200, 400)),
    ],
)
def test_odd_bodies(answers: Callable[..., Any], content: bytes, statuses: tuple[int, ...]) -> None:
    (response,) = answers("/v1/completions", [content])
    assert response.status_code in statuses
    assert response.status_code == 200 or message_of(response)


def test_a_form_of_another_page_is_no_request(answers: Callable[..., Any]) -> None:
    # What a page can send without being asked: JSON as text, where the browser says so, and from another origin.
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        (response,) = answers("/v1/completions", [VALID.encode()], content_type=kind)
        assert response.status_code == 400
    (response,) = answers("/v1/completions", [VALID.encode()], origin="http://evil.example")
    assert response.status_code == 403
    assert "http://evil.example" in message_of(response)
    (response,) = answers("/v1/completions", [VALID.encode()], origin="http://localhost")
    assert response.status_code == 200


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/models", "/metrics", "/openapi.json"])
def test_a_foreign_name_gets_nothing(answers: Callable[..., Any], path: str) -> None:
    (response,) = answers(path, [VALID.encode()], host="evil.example:8000")
    assert response.status_code == 421
    assert "'evil.example:8000'" in message_of(response)
