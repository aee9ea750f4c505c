"""Rewards: what each one gives to which answer, and how a bad one is refused."""

import json
import math
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification
from trl.trainer.utils import get_callable_name, is_async_callable

from chatgpt_hf import load_model
from chatgpt_hf.chat_templates import encode_conversation
from chatgpt_hf.errors import ChatGPTError, ConfigError, DataError
from chatgpt_hf.rewards import NAMED, check_columns, load_rewards, total_rewards
from chatgpt_hf.rewards.answers import abstains, number_in
from chatgpt_hf.tokenization_chatgpt import load_tokenizer

END = 2


def given(item: Any, answers: list[str], **columns: Any) -> list[float | None]:
    """The rewards of answers to one prompt; columns with one cell are those of all answers."""
    (reward,) = load_rewards([item])
    cells = {name: [cell] * len(answers) for name, cell in columns.items()}
    as_messages = [[{"role": "assistant", "content": answer}] for answer in answers]
    prompts = ["?"] * len(answers)
    ids = [[9] * len(answer.split()) + [END] for answer in answers]
    values = reward(prompts, answers, ids, **cells)
    # TRL gives messages where the prompts are messages.
    assert reward([[{"role": "user", "content": "?"}]] * len(answers), as_messages, ids, **cells) == values
    return values


def test_exact() -> None:
    assert given("exact", [" 42\n", "42.", "the 42"], answer="42") == [1, 0, 0]
    assert given("exact", ["42", "Forty"], answer=42) == [1, 0]
    assert given("exact", ["b", "c"], answer=["a", "b"]) == [1, 0]
    assert given({"name": "exact", "squad": True}, ["The Moon!", "the sun"], answer="moon") == [1, 0]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("The answer is 1,234.50 dollars.", "1234.5"),
        ("3 + 4 = 7", "7"),
        ("from 5-3", "3"),
        ("minus −12", "-12"),
        ("it is -0.5", "-0.5"),
        (".25", "0.25"),
        ("12 of 30\n#### 42 apples in 7 baskets", "42"),
        (r"so \boxed{18}, not 19", "18"),
        ("a 1, b 2", "2"),
        ("none", None),
    ],
)
def test_the_number_of_an_answer(text: str, value: str | None) -> None:
    assert number_in(text) == (None if value is None else Decimal(value))


def test_number() -> None:
    solution = "He sells 16 - 3 - 4 = 9 eggs.\n#### 1,018"
    assert given("number", ["It is 1018.0", "1018 eggs, 9 a day", "no idea", "#### 1018"], answer=solution) == [
        1,
        0,
        0,
        1,
    ]


def test_regex() -> None:
    assert given({"name": "regex", "pattern": r"^\d+$"}, ["12", "a 12"]) == [1, 0]
    assert given("regex", ["yes", "no"], pattern="y.s") == [1, 0]
    assert given('{"name": "regex", "pattern": "no"}', ["yes", "no"]) == [0, 1]


def test_length_counts_tokens() -> None:
    # The end mark is a token.
    assert given({"name": "length", "most": 2}, ["a", "a b", "a b c", "a b c d"]) == [1, 0.5, 0, 0]
    assert given({"name": "length", "least": 4, "most": 5}, ["a", "a b c", "a b c d"]) == [0.5, 1, 1]


def test_honest() -> None:
    answers = ["42", "I don’t know that.", "41"]
    assert given("honest", answers, answer="42") == [1, 0, -1]
    # Nobody can know these: inventing is wrong, whatever it says.
    assert given("honest", answers, answer=None) == [-1, 0, -1]
    assert given("honest", [*answers, "I do not know f."], answer="I do not know f.") == [-1, 0, -1, 0]
    assert given({"name": "honest", "phrases": ["Pass"], "wrong": -2}, ["pass!", "I don't know"], answer="a") == [
        0,
        -2,
    ]
    assert abstains("  我不知道这个函数。")


SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "minLength": 1}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name"],
    "additionalProperties": False,
}


def test_json_schema() -> None:
    answers = [
        '{"name": "A", "age": 3}',
        '```json\n{"name": "A"}\n```',
        '{"age": 3}',
        '{"name": "A", "x": 1}',
        "{",
        "Sure!",
    ]
    assert given("json_schema", answers, schema=json.dumps(SCHEMA)) == [1, 1, 0, 0, 0, 0]
    assert given({"name": "json_schema", "schema": SCHEMA}, answers) == [1, 1, 0, 0, 0, 0]


def test_a_schema_may_name_its_draft_and_refer_to_its_parts() -> None:
    tree = {"$defs": {"tree": {"type": "array", "items": {"$ref": "#/$defs/tree"}}}, "$ref": "#/$defs/tree"}
    assert given({"name": "json_schema", "schema": tree}, ["[[], [[]]]", "[[1]]"]) == [1, 0]
    old = {"$schema": "http://json-schema.org/draft-04/schema#", "minimum": 1, "exclusiveMinimum": True}
    assert given({"name": "json_schema", "schema": old}, ["1", "2"]) == [0, 1]
    assert given({"name": "json_schema", "schema": True}, ["1", "one", "NaN"]) == [1, 0, 0]
    # An answer may have a number that no float holds.
    assert given({"name": "json_schema", "schema": {"multipleOf": 0.5}}, ["1.5", "9" * 400]) == [1, 0]


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        (
            {"$ref": "https://example.org/schema.json"},
            "refers to 'https://example.org/schema.json', which is not in it",
        ),
        ({"$ref": "#/$defs/nothing"}, "refers to '/$defs/nothing'"),
        ({"$ref": "#"}, "refers to itself without end"),
        ({"$ref": "#/title", "title": "a"}, "refers to a part that is no schema"),
        ({"$ref": "#/allOf/x", "allOf": [{}]}, "refers to a part that is no schema"),
    ],
)
def test_a_schema_is_whole(schema: dict[str, Any], words: str) -> None:
    """Nothing is fetched."""
    with pytest.raises(DataError) as caught:
        given({"name": "json_schema", "schema": schema}, ["{}"])
    assert words in str(caught.value)


def test_python() -> None:
    answers = [
        "Here:\n```python\ndef double(x):\n    return 2 * x\n```\nDone.",
        "def double(x):\n    return x + x",
        "def double(x):\n    return x",
        "I cannot.",
    ]
    asserts = ["assert double(2) == 4", "assert double(-1) == -2"]
    assert given("python", answers, test=asserts, entry_point="double") == [1, 1, 0, 0]
    check = "def check(candidate):\n    assert candidate(3) == 6\n"
    assert given("python", answers[1:3], test=check, entry_point="double") == [1, 0]


def test_a_user_s_function(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "def shorter(completions, limit, **kwargs):\n"
        "    assert kwargs['prompts']\n"
        "    return [float(len(text) < most) for text, most in zip(completions, limit)]\n"
        "def strict(completions):\n"
        "    return [None for _ in completions]\n"
    )
    first, second = load_rewards([f"{file}:shorter", f"{file}:strict"], [2, 1])
    assert first.columns == ("limit",)
    assert first(["?", "?"], ["a", "aaa"], None, limit=[2, 2], trainer_state=None) == [1, 0]
    assert total_rewards([first, second], ["?", "?"], ["a", "aaa"], limit=[2, 2]) == [2, 0]
    assert total_rewards([second], ["?"], ["a"]) == [None]
    assert load_rewards("json:dumps")[0].name == "dumps"


def test_a_reward_model(chat_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "reward"
    model = load_model(chat_folder, AutoModelForSequenceClassification, new_modules=("score",), num_labels=1).eval()
    tokenizer = load_tokenizer(chat_folder)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    question = [{"role": "user", "content": "What does len return?"}]
    values = load_rewards(str(folder))[0]([question] * 3, ["The number <|im_end|> of items.", "A list.", " "])
    assert values[2] is None
    for answer, value in zip(("The number <|im_end|> of items.", "A list."), values, strict=False):
        encoded = encode_conversation(tokenizer, [*question, {"role": "assistant", "content": answer}])
        # Up to the end mark, as in the training of reward models.
        length = max(index for index, mark in enumerate(encoded["assistant_masks"]) if mark) + 1
        score = model(torch.tensor([encoded["input_ids"][:length]])).logits.item()
        assert value == pytest.approx(score, abs=1e-5)
    with pytest.raises(ConfigError, match=r"is a model with 2 outputs, and a reward model has one"):
        load_rewards(str(chat_folder))


def test_an_answer_without_an_end_mark_gets_no_reward() -> None:
    whole, cut = [5, END], [5, 5]
    (reward,) = load_rewards("exact", ends=[END])
    assert reward(["?"] * 3, ["a"] * 3, [whole, cut, []], answer=["a"] * 3) == [1, 0, 0]
    (reward,) = load_rewards("honest", ends=[END])
    assert reward(["?"] * 3, ["a", "a", "I don't know"], [whole, cut, cut], answer=["a"] * 3) == [1, -1, -1]
    # Scores of a model: not more than the worst answer to the same prompt.
    reward = load_rewards("exact", ends=[END])[0]
    reward.function = lambda completions, **_: [-3, -1, -2, -5]
    prompts: list[Any] = [[{"role": "user", "content": text}] for text in "aabb"]
    assert reward(prompts, ["a"] * 4, [whole, cut, whole, whole]) == [-3, -3, -2, -5]


def failing(**_: Any) -> Any:
    raise KeyError("gold")


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (failing, "The reward mine failed with KeyError: KeyError 'gold'."),
        (lambda **_: [0.0, math.nan], "The reward mine returned nan: return a finite number for each answer"),
        (lambda **_: [0.0, -math.inf], "returned -inf"),
        (lambda **_: [0.0, "1"], "returned '1'"),
        (lambda **_: [0.0], "The reward mine returned 1 values for 2 answers"),
        (lambda **_: 1.0, "returned 1.0: return a list with a number for each answer"),
        (lambda **_: [10**400, 0], "return a finite number"),
    ],
)
def test_a_reward_that_fails_is_named(function: Callable[..., Any], words: str) -> None:
    (reward,) = load_rewards("json:dumps")
    reward.name, reward.function, reward._takes = "mine", function, None
    with pytest.raises(ConfigError) as caught:
        reward(["?", "?"], ["a", "b"])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("names", "weights", "words"),
    [
        ([], None, "There is no reward"),
        ("exakt", None, "The reward 'exakt' is unknown: name one of exact, number"),
        (["exact", "number"], [1], "There are 2 rewards and 1 weights"),
        ("exact", [math.nan], "give finite numbers"),
        ("exact", [0], "not all 0"),
        ({"name": "exact", "case": 1}, None, "The reward exact has the unknown option case: it takes squad."),
        ({"name": "number", "base": 2}, None, "it takes none"),
        ("{not json", None, "is not a JSON object"),
        ({"weight": 2}, None, "is neither a name nor a mapping with `name`"),
        ("length", None, "give the longest or the shortest wanted answer"),
        ({"name": "length", "most": "long"}, None, "The options {'most': 'long'} of the reward length cannot be used"),
        ({"name": "regex", "pattern": "("}, None, "is no regular expression"),
        ({"name": "json_schema", "schema": {"pattern": "("}}, None, "error at $.pattern"),
        ({"name": "json_schema", "schema": {"type": "text"}}, None, "error at $.type: 'text' is not valid"),
        ({"name": "honest", "wrong": 1}, None, "give a number below 0"),
        ({"name": "honest", "phrases": []}, None, "needs phrases"),
        ("nosuchmodule:f", None, "The reward nosuchmodule:f cannot be loaded: ModuleNotFoundError"),
        ("nosuch.py:f", None, "there is no file nosuch.py"),
        ("json:nosuch", None, "json has no function nosuch"),
        ("asyncio:sleep", None, "is asynchronous"),
        ({"name": "json:dumps", "a": 1}, None, "takes no options: leave out a"),
        ("runs/nosuch/reward", None, "There is no folder runs/nosuch/reward"),
    ],
)
def test_what_cannot_be_loaded_is_refused(names: Any, weights: list[float] | None, words: str) -> None:
    with pytest.raises(ChatGPTError) as caught:
        load_rewards(names, weights)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("item", "row", "words"),
    [
        (
            "exact",
            {"prompt": "?", "gold": 1},
            "The reward exact reads the column 'answer', which row 1 has not; its columns are prompt, gold.",
        ),
        ("exact", {"answer": None}, "Row 1 cannot be used by the reward exact: its answer is None"),
        ("number", {"answer": "many"}, "its answer 'many' has no number"),
        ("regex", {"pattern": "["}, "is no regular expression"),
        ("regex", {"pattern": f"a{{{'9' * 20}}}"}, "is no regular expression: the repetition number is too large"),
        ("json_schema", {"schema": "{"}, "is no JSON"),
        ("json_schema", {"schema": {"$schema": 7}}, "its schema has the $schema 7: give the address of a draft"),
        ("json_schema", {"schema": {"pattern": f"a{{{'9' * 20}}}"}}, "a regular expression that cannot be used"),
        ("python", {"test": "assert (", "entry_point": "f"}, "is no Python"),
        ("python", {"test": "assert f()", "entry_point": "f()"}, "give the name of the function"),
    ],
)
def test_columns_are_checked_before_the_training(item: str, row: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError) as caught:
        check_columns(load_rewards(item), [row])
    assert words in str(caught.value)


def test_rewards_are_functions_as_trl_takes_them() -> None:
    rewards = load_rewards(["exact", {"name": "regex", "pattern": "a"}, {"name": "regex", "pattern": "b"}])
    assert [get_callable_name(reward) for reward in rewards] == ["exact", "regex", "regex#2"]
    assert not any(map(is_async_callable, rewards))
    assert list(NAMED) == ["exact", "number", "regex", "json_schema", "python", "length", "honest"]
