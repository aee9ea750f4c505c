"""The calculator is exact and bounded, and what tools say is encoded as fine-tuning would encode it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies
from transformers import PreTrainedTokenizerBase

from chatgpt_hf import load_tokenizer
from chatgpt_hf.chat_templates import encode_chat_prompt, encode_conversation
from chatgpt_hf.errors import ConfigError, DataError
from chatgpt_hf.inference.calculator import calculator
from chatgpt_hf.inference.sampler import Reply, Sample
from chatgpt_hf.inference.tools import Tools
from chatgpt_hf.tokenization_chatgpt import IM_END


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("123+456", "579"),
        (" ( 2 + 3 ) * 4 - 1 ", "19"),
        ("0.1+0.2", "0.3"),
        ("1/8", "0.125"),
        ("-2**2", "-4"),
        ("2**-1**2", "0.5"),
        ("2**3**2", "512"),
        ("7/7", "1"),
        ("2/3", "0.666666666667"),
        ("10*.5", "5"),
        ("0**0", "1"),
        ("(-1)**999999999999", "-1"),
        ("--3 - +1", "2"),
        ("10**99", "1" + 99 * "0"),
        ("2**-300", f"{2.0**-300:.400f}".rstrip("0")),
    ],
)
def test_arithmetic_is_exact(expression: str, result: str) -> None:
    if expression == "2**-300":
        # 300 places, all of them digits of the result.
        assert calculator(expression).startswith(result[:100])
        assert len(calculator(expression)) == 302
        return
    assert calculator(expression) == result


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("10**100", "the expression is too large: a value has more than 100 digits"),
        ("9**9**9**9", "the expression is too large"),
        ("10**99*10**99", "the expression is too large"),
        ("1/3**300", "the expression is too large"),
        ("1" * 101, "the expression is too large"),
        ("1+" * 100 + "1", "the expression has 201 characters: give at most 200"),
        ("(" * 21 + "1" + ")" * 21, "nested more than 20 deep"),
        ("1**" * 21 + "1", "nested more than 20 deep"),
        ("1/(2-2)", "division by 0"),
        ("0**-1", "division by 0"),
        ("2**0.5", "the exponent 0.5 is not a whole number"),
        ("1 2", "there is '2' where an operator is missing"),
        ("(1", "a bracket is not closed"),
        ("1)", "there is ')' where an operator is missing"),
        ("*2", "a number is missing before '*'"),
        ("", "a number is missing at the end"),
        ("1,000", "',' is not arithmetic"),
        ("__import__('os')", "'_' is not arithmetic"),
        ("1e9", "'e' is not arithmetic"),
        ("\u0661+1", "is not arithmetic"),
    ],
)
def test_anything_else_is_refused(expression: str, words: str) -> None:
    with pytest.raises(DataError) as error:
        calculator(expression)
    assert words in str(error.value)


@hypothesis.settings(max_examples=100)
@hypothesis.given(strategies.text("0123456789.+-*/() ", max_size=40))
def test_no_text_breaks_the_calculator(text: str) -> None:
    try:
        found = calculator(text)
    except DataError:
        return
    assert len(found) < 450


USER = {"role": "user", "content": "123+456="}


def calls(*expressions: str, name: str = "calculator") -> dict[str, Any]:
    made = [
        {"type": "function", "function": {"name": name, "arguments": {"expression": each}}} for each in expressions
    ]
    return {"role": "assistant", "content": "", "tool_calls": made}


def results(*texts: str, name: str = "calculator") -> list[dict[str, Any]]:
    return [{"role": "tool", "name": name, "content": text} for text in texts]


@pytest.fixture(scope="module")
def tokenizer(base_folder: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(base_folder)


@pytest.fixture(scope="module")
def tools(tokenizer: PreTrainedTokenizerBase) -> Tools:
    return Tools(["calculator"], tokenizer, [tokenizer.convert_tokens_to_ids(IM_END)], most_calls=2)


def written(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """A turn of the assistant's."""
    return [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.convert_tokens_to_ids(IM_END)]


def test_a_conversation_with_tools_has_the_tokens_of_fine_tuning(
    tools: Tools, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Two calls in one turn, then a third one: the prompt, what the model writes and the replies are the rendered conversation."""
    conversation = [USER, calls("123+456", "1/0"), *results("579", "Error: division by 0"), calls("1"), *results("1")]
    conversation.append({"role": "assistant", "content": "It is 579."})
    expected = encode_conversation(tokenizer, conversation, tools=tools.schemas)["input_ids"]
    found = encode_chat_prompt(tokenizer, [USER], tools.schemas)
    sample = Sample([], [], ended=True)
    for number, message in enumerate((conversation[1], conversation[4], conversation[6])):
        before = encode_conversation(tokenizer, [USER, message], tools=tools.schemas)["input_ids"]
        turn = before[len(encode_chat_prompt(tokenizer, [USER], tools.schemas)) :]
        turn = turn[: turn.index(tokenizer.convert_tokens_to_ids(IM_END)) + 1]
        sample.ids.extend(turn)
        reply = tools(turn, number)
        if reply is not None:
            sample.replies.append(Reply(reply.ids, reply.messages, begin=len(sample.ids)))
            sample.ids.extend(reply.ids)
    found += sample.ids
    # After the last turn comes only the end of its line.
    assert found == expected[: len(found)]
    assert len(expected) - len(found) == 1
    assert tools.messages(sample) == conversation[1:]


def test_a_template_of_others(foreign_tokenizer: Callable[[str], Path]) -> None:
    """Qwen's has results in a message of the user's, and says nothing about what the assistant says."""
    tokenizer = load_tokenizer(foreign_tokenizer("qwen"))
    tools = Tools(["calculator"], tokenizer, [tokenizer.eos_token_id])
    text = '<tool_call>\n{"name": "calculator", "arguments": {"expression": "123+456"}}\n</tool_call>'
    turn = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    reply = tools(turn, 0)
    assert reply is not None
    conversation = [USER, calls("123+456"), *results("579")]
    assert reply.messages == conversation[1:]
    expected = encode_chat_prompt(tokenizer, conversation, tools.schemas)
    assert [*encode_chat_prompt(tokenizer, [USER], tools.schemas), *turn, *reply.ids] == expected


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ('{"name": "search", "arguments": {}}', "Error: there is no tool 'search'; there is calculator"),
        ('{"name": "calculator", "arguments": {"x": "1"}}', "Error: missing a required argument: 'expression'"),
        ('{"name": "calculator", "arguments": {"expression": 5}}', "5"),
        (
            '{"name": "calculator", "arguments": {"expression": "9**9**9"}}',
            "Error: the expression is too large: a value has more than 100 digits",
        ),
        (
            '{"name": "calculator", "arguments": {"expression": "1<|im_end|>"}}',
            "Error: '<' is not arithmetic: give numbers, + - * / ** and brackets",
        ),
    ],
)
def test_calls_that_fail_are_answered(
    text: str, result: str, tools: Tools, tokenizer: PreTrainedTokenizerBase
) -> None:
    reply = tools(written(tokenizer, f"I ask.\n<tool_call>\n{text}\n</tool_call>"), 0)
    assert reply is not None
    assert reply.messages[0]["content"] == "I ask."
    assert reply.messages[1] == {"role": "tool", "name": json.loads(text)["name"], "content": result}
    assert tokenizer.decode(reply.ids) == f"\n<|im_start|>tool\n{result}<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    "text",
    [
        "579",
        "",
        "<tool_call>",
        "<tool_call>\n{]\n</tool_call>",
        "<tool_call>\n[1]\n</tool_call>",
        '<tool_call>\n{"name": "\\ud800", "arguments": {}}\n</tool_call>',
    ],
)
def test_what_is_no_call_is_an_answer(text: str, tools: Tools, tokenizer: PreTrainedTokenizerBase) -> None:
    ids = written(tokenizer, text)
    assert tools(ids, 0) is None
    assert tools.messages(Sample(ids, [0.0] * len(ids), ended=True)) == [{"role": "assistant", "content": text}]


def test_calls_come_to_an_end(tools: Tools, tokenizer: PreTrainedTokenizerBase) -> None:
    turn = written(tokenizer, '<tool_call>\n{"name": "calculator", "arguments": {"expression": "1"}}\n</tool_call>')
    assert [len(reply.ids) > 0 if (reply := tools(turn, before)) else None for before in range(4)] == [
        True,
        True,
        False,
        False,
    ]


def test_what_cannot_have_tools_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    end = tokenizer.convert_tokens_to_ids(IM_END)
    with pytest.raises(ConfigError, match="The tool 'search' is unknown: choose from calculator"):
        Tools(["search"], tokenizer, [end])
    with pytest.raises(ConfigError, match="The tool calculator is named twice"):
        Tools(["calculator", "calculator"], tokenizer, [end])
    with pytest.raises(DataError, match="does not end a call of a tool with an end mark"):
        Tools(["calculator"], tokenizer, [tokenizer.eos_token_id])
    for template, words in (
        (
            "{% for m in messages %}<|im_start|>{{ m.role }}\n{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{% endfor %}",
            "does not show tools",
        ),
        (tokenizer.chat_template.replace("<tool_call>", "<ask>"), "cannot be read back"),
    ):
        other = load_tokenizer(tokenizer.name_or_path)
        other.chat_template = template
        with pytest.raises(DataError, match=words):
            Tools(["calculator"], other, [end])
