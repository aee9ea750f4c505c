"""Everything in a request that can be read, so that moderation can check it."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatgpt_hf.errors import ContentFiltered
from chatgpt_hf.inference.texts import SEPARATOR, message_texts, request_texts, texts_of, together, unescaped
from chatgpt_hf.moderation import WordList
from chatgpt_hf.moderation.scanner import LONGEST_GAP

BAD = "twit"
ESCAPED = "\\u0074\\u0077\\u0069\\u0074"


def user(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "Hello!", **fields}]}


def function(**fields: Any) -> dict[str, Any]:
    return {**user(), "tools": [{"type": "function", "function": {"name": "add", **fields}}]}


def called(**fields: Any) -> dict[str, Any]:
    call = {"id": "c", "type": "function", "function": {"name": "add", "arguments": "{}", **fields}}
    return {"messages": [{"role": "assistant", "content": None, "tool_calls": [call]}]}


PARAMETERS = {"type": "object", "properties": {"n": {"type": "string", "enum": [BAD]}}}
PLACES = {
    "message": user(content=f"a {BAD}"),
    "part of a message": user(content=[{"type": "text", "text": BAD}]),
    "two parts": user(content=[{"type": "text", "text": "tw"}, {"type": "text", "text": "it"}]),
    "part with other fields": user(content=[{"type": "text", "text": "a", "title": BAD}]),
    "system prompt": {"messages": [{"role": "system", "content": BAD}]},
    "earlier answer": {"messages": [{"role": "assistant", "content": BAD}]},
    "tool's result": {"messages": [{"role": "tool", "tool_call_id": "c", "content": BAD}]},
    "tool's result in JSON": {"messages": [{"role": "tool", "content": [{"type": "json", "value": {"a": BAD}}]}]},
    "name": user(name=BAD),
    "role": {"messages": [{"role": BAD, "content": "a"}]},
    "tool_call_id": user(tool_call_id=BAD),
    "unknown field": user(mood=BAD),
    "unknown nested field": user(extra={"a": [{"b": BAD}]}),
    "unknown field's name": user(**{BAD: 1}),
    "reasoning": user(reasoning_content=BAD),
    "refusal": user(refusal=BAD),
    "called tool": called(name=BAD),
    "arguments": called(arguments=json.dumps({"a": BAD})),
    "arguments' name": called(arguments=json.dumps({BAD: 1})),
    "escaped arguments": called(arguments='{"a": "' + ESCAPED + '"}'),
    "arguments escaped twice": called(arguments=json.dumps({"a": '"' + ESCAPED + '"'})),
    "arguments with escaped separators": called(arguments=json.dumps({"a": "t\nw\ti\rt"})),
    "arguments as an object": called(arguments={"a": {"b": [BAD]}}),
    "broken arguments": called(arguments='{"a": "' + ESCAPED),
    "call's id": called(id=BAD),
    "tool's name": function(name=BAD),
    "tool's description": function(description=f"A {BAD}."),
    "tool's parameters": function(parameters=PARAMETERS),
    "tool's parameter's name": function(parameters={"properties": {BAD: {}}}),
    "tool's unknown field": {**user(), "tools": [{"type": "custom", "grammar": BAD}]},
    "prompt": {"prompt": f"a {BAD}"},
    "list of prompts": {"prompt": ["a", BAD]},
    "stop": {"prompt": "a", "stop": BAD},
    "stops": {"prompt": "a", "stop": ["a", BAD]},
    "user": {**user(), "user": BAD},
    "metadata": {**user(), "metadata": {"a": BAD}},
    "metadata's name": {**user(), "metadata": {BAD: "a"}},
    "response_format": {**user(), "response_format": {"type": "json_schema", "json_schema": {"name": BAD}}},
    "suffix": {"prompt": "a", "suffix": BAD},
    "safety_identifier": {**user(), "safety_identifier": BAD},
    "prompt_cache_key": {**user(), "prompt_cache_key": BAD},
    "prediction": {**user(), "prediction": {"type": "content", "content": BAD}},
    "field of tomorrow": {**user(), "hints": [{"a": BAD}]},
}


def check(request: dict[str, Any], *words: str) -> None:
    listed = WordList(words)
    for text in request_texts(request):
        listed.check(text)


@pytest.mark.parametrize("request_", PLACES.values(), ids=PLACES)
def test_everything_is_read(request_: dict[str, Any]) -> None:
    with pytest.raises(ContentFiltered):
        check(request_, BAD)


@pytest.mark.parametrize("request_", PLACES.values(), ids=PLACES)
def test_the_same_request_passes_another_list(request_: dict[str, Any]) -> None:
    check(request_, "shill")


def test_numbers_in_tools_and_messages_are_read() -> None:
    words = WordList(["1488"])
    for request in (called(arguments={"a": 1488}), function(parameters={"default": 1488})):
        with pytest.raises(ContentFiltered):
            [words.check(text) for text in request_texts(request)]
    for text in request_texts(
        {**user(), "seed": 1488, "max_tokens": 1488, "logit_bias": {"1488": 1}, "model": "1488"}
    ):
        words.check(text)


def test_neighbors_do_not_make_a_word() -> None:
    assert len(SEPARATOR) > LONGEST_GAP
    request = function(description="笨", parameters={"properties": {"蛋": {"enum": ["t", "w", "i", "t"]}}})
    check(request, "笨蛋", BAD)


def test_what_a_classifier_has_to_read() -> None:
    plain = {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]}
    assert list(request_texts({**plain, "temperature": 1.0, "n": 1, "stream": True})) == ["Be brief.", "Hi"]
    assert message_texts({"role": "assistant", "content": ""}) == []
    assert together([None, True, {}, ""]) == []


@given(st.text(st.characters(exclude_characters="\\", exclude_categories=["Cs"])))
def test_escapes_are_decoded_as_json_does(text: str) -> None:
    assert unescaped(json.dumps(text)) == f'"{text}"'


def test_deep_nesting_is_read() -> None:
    value: Any = BAD
    for _ in range(5000):
        value = [{"a": value}]
    assert BAD in list(texts_of(value))
