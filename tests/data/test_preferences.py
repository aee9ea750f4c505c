"""Preferences in every form that people have; what is refused, counted and held out; and that `sft` does not learn them."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from chatgpt_hf.data.conversation_rows import ConversationReader
from chatgpt_hf.data.conversations import read_conversations
from chatgpt_hf.data.preference_shapes import PreferenceColumns
from chatgpt_hf.data.preferences import (
    Judged,
    Preference,
    PreferenceReader,
    kind_of_preferences,
    load_preferences,
    read_preferences,
)
from chatgpt_hf.data.shapes import PairColumns
from chatgpt_hf.data.sources import parse_sources
from chatgpt_hf.errors import ConfigError, DataError

USER = {"role": "user", "content": "Q"}
GOOD = {"role": "assistant", "content": "A"}
BAD = {"role": "assistant", "content": "B"}
SYSTEM = {"role": "system", "content": "S"}
TOOL = {"role": "tool", "content": "2"}
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}],
}
PAIR = Preference([USER], [GOOD], [BAD])


def says(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def read(*rows: dict[str, Any], kind: str = "pairs", named: PreferenceColumns | None = None) -> list[Any]:
    return [found for _, found in PreferenceReader("rows", kind, named).read(rows)]


def refusal(row: dict[str, Any], kind: str = "pairs", named: PreferenceColumns | None = None) -> str:
    (error,) = read(row, kind=kind, named=named)
    assert isinstance(error, DataError), error
    return str(error)


def write(file: Path, rows: list[Any]) -> Path:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return file


HH = "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Q\n\nAssistant:"
HH_PROMPT = [says("user", "Hi"), says("assistant", "Yes?"), USER]
PAIRS: dict[str, tuple[dict[str, Any], Preference]] = {
    # TRL: explicit and implicit prompts.
    "texts": ({"prompt": "Q", "chosen": "A", "rejected": "B"}, PAIR),
    "messages": ({"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}, PAIR),
    "mixed": ({"prompt": [USER], "chosen": GOOD, "rejected": "B"}, PAIR),
    "implicit": ({"chosen": [SYSTEM, USER, GOOD], "rejected": [SYSTEM, USER, BAD]}, Preference([SYSTEM, USER], [GOOD], [BAD])),
    "answers that begin alike": (
        {"prompt": [USER], "chosen": [CALL, TOOL, GOOD], "rejected": [CALL, TOOL, BAD]},
        Preference([USER], [CALL, TOOL, GOOD], [CALL, TOOL, BAD]),
    ),
    "several turns": (
        {"chosen": [USER, GOOD, USER, GOOD], "rejected": [USER, GOOD, USER, BAD]},
        Preference([USER, GOOD, USER], [GOOD], [BAD]),
    ),
    "sides of several turns": (
        {"chosen": [USER, GOOD, USER, GOOD], "rejected": [USER, BAD]},
        Preference([USER], [GOOD, USER, GOOD], [BAD]),
    ),
    # UltraFeedback.
    "scores": (
        {
            "prompt": "Q",
            "prompt_id": "1",
            "messages": [USER, GOOD],
            "chosen": [USER, GOOD],
            "rejected": [USER, BAD],
            "score_chosen": 8.5,
            "score_rejected": "6",
        },
        Preference([USER], [GOOD], [BAD], 2.5),
    ),
    "margin": ({"prompt": "Q", "chosen": "A", "rejected": "B", "margin": 3}, Preference([USER], [GOOD], [BAD], 3.0)),
    "part of the prompt": (
        {"prompt": "Q", "chosen": [*HH_PROMPT, GOOD], "rejected": [*HH_PROMPT, BAD]},
        Preference(HH_PROMPT, [GOOD], [BAD]),
    ),
    "history": (
        {"prompt": "Q", "history": [["Hi", "Yes?"]], "chosen": "A", "rejected": [USER, BAD]},
        Preference(HH_PROMPT, [GOOD], [BAD]),
    ),
    # LLaMA-Factory.
    "sharegpt": (
        {
            "conversations": [{"from": "human", "value": "Q"}],
            "chosen": {"from": "gpt", "value": "A"},
            "rejected": {"from": "gpt", "value": "B"},
            "system": "S",
            "tools": '[{"name": "f"}]',
        },
        Preference([SYSTEM, USER], [GOOD], [BAD], tools=[{"name": "f"}]),
    ),
    "alpaca": (
        {"instruction": "Q", "input": "N", "output": "B", "chosen": "A", "rejected": "B"},
        Preference([says("user", "Q\n\nN")], [GOOD], [BAD]),
    ),
    "two outputs": ({"instruction": "Q", "input": "", "output": ["A", "B"]}, PAIR),
    # ms-swift.
    "swift": ({"messages": [*HH_PROMPT, GOOD], "rejected_response": "B"}, Preference(HH_PROMPT, [GOOD], [BAD])),
    "swift messages": ({"messages": [USER, GOOD], "rejected_messages": [USER, BAD]}, PAIR),
    # The form of Anthropic's HH.
    "hh": ({"chosen": f"{HH} A", "rejected": f"{HH} B"}, Preference(HH_PROMPT, [GOOD], [BAD])),
    "hh prompt": ({"prompt": HH, "chosen": " A", "rejected": " B"}, Preference(HH_PROMPT, [GOOD], [BAD])),
    # OpenAI.
    "openai": (
        {
            "input": {"messages": [USER], "tools": [{"type": "function", "function": {"name": "f"}}]},
            "preferred_output": [GOOD],
            "non_preferred_output": [BAD],
        },
        Preference([USER], [GOOD], [BAD], tools=[{"type": "function", "function": {"name": "f"}}]),
    ),
    # `chosen` names the better answer.
    "number": ({"prompt": "Q", "response_0": "B", "response_1": "A", "chosen": 1.0}, PAIR),
    "letter": ({"messages": [USER], "response_a": "A", "response_b": "B", "model_b": "m", "chosen": "a"}, PAIR),
    "names": ({"prompt": "Q", "answer_1": "B", "answer_2": "A", "chosen": "answer_2", "rejected": "answer_1"}, PAIR),
    # Messages in a cell of a table.
    "json": ({"chosen": json.dumps([USER, GOOD]), "rejected": repr([USER, BAD])}, PAIR),
    # Answers, although they look like numbers of answers or scores.
    "numbers": ({"prompt": "2+2", "chosen": 4, "rejected": "5"}, Preference([says("user", "2+2")], [says("assistant", "4")], [says("assistant", "5")])),
    "numbers beside an output": (
        {"instruction": "2+2", "output": "5", "chosen": "4", "rejected": "5"},
        Preference([says("user", "2+2")], [says("assistant", "4")], [says("assistant", "5")]),
    ),
    "letters": ({"prompt": "a or b?", "chosen": "a", "rejected": "b"}, Preference([says("user", "a or b?")], [says("assistant", "a")], [says("assistant", "b")])),
}  # fmt: skip


@pytest.mark.parametrize("form", PAIRS)
def test_pairs(form: str) -> None:
    row, expected = PAIRS[form]
    assert read(row) == [expected]


JUDGED = [
    {"prompt": "Q", "completion": "A", "label": True},
    {"prompt": [USER], "completion": [GOOD], "label": "True"},
    {"prompt": "Q", "completion": "A", "label": 1},
    {"messages": [USER, GOOD], "label": "desirable"},
    {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}], "kto_tag": True},
    {"instruction": "Q", "input": "", "output": "A", "kto_tag": "1"},
]


@pytest.mark.parametrize("row", JUDGED)
def test_judged_answers(row: dict[str, Any]) -> None:
    assert read(row, kind="judged") == [Judged([USER], [GOOD], True)]
    mark = "label" if "label" in row else "kto_tag"
    assert read({**row, mark: "false"}, kind="judged") == [Judged([USER], [GOOD], False)]
    assert f"its {mark} is 'maybe': write true for a good answer" in refusal({**row, mark: "maybe"}, "judged")
    assert f"its {mark} is empty" in refusal({**row, mark: None}, "judged")


def test_an_answer_with_tools_is_all_that_follows_the_question() -> None:
    messages = [USER, GOOD, USER, CALL, TOOL, GOOD]
    assert read({"messages": messages, "label": True}, kind="judged") == [Judged(messages[:3], messages[3:], True)]


def test_the_best_of_several_answers_is_better_than_each_other() -> None:
    row = {"prompt": "Q", "response_1": "A", "response_2": "B", "response_3": "C", "response_id": "x", "chosen": 1}
    assert read(row) == [PAIR, Preference([USER], [GOOD], [says("assistant", "C")])]


def test_named_columns() -> None:
    row = {"question": "Q", "input": "no context", "response_j": "A", "response_k": "B", "date": "1"}
    named = PreferenceColumns("question", "response_j", "response_k")
    reader = PreferenceReader("rows", "pairs", named)
    assert [found for _, found in reader.read([row])] == [PAIR]
    assert set(reader.used) == {"question", "response_j", "response_k"}
    assert set(reader.unused) == {"input", "date"}
    # The number of the better answer, as PKU-SafeRLHF has it.
    number = {"prompt": "Q", "response_0": "B", "response_1": "A", "better_response_id": 1}
    assert read(number, named=PreferenceColumns(chosen_column="better_response_id")) == [PAIR]
    assert "it has no column 'response_j'; it has question" in refusal({"question": "Q"}, named=named)
    judged = PreferenceColumns("question", completion_column="response_j", label_column="ok")
    assert read({**row, "ok": 0}, kind="judged", named=judged) == [Judged([USER], [GOOD], False)]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"chosen": [USER, GOOD], "rejected": [says("user", "R"), BAD]},
            "its chosen and rejected have different prompts: they part at message 1",
        ),
        ({"chosen": [USER, GOOD], "rejected": [USER, GOOD, USER, BAD]}, "they part at message 3"),
        ({"prompt": "R", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, "its chosen is a conversation with another"),
        ({"prompt": "Q", "chosen": "A", "rejected": [says("user", "R"), BAD]}, "its rejected is a conversation with a"),
        ({"prompt": "Q", "chosen": "A", "rejected": ""}, "its rejected is empty"),
        ({"prompt": "Q", "chosen": None, "rejected": "B"}, "its chosen is empty"),
        ({"prompt": "Q", "chosen": "A", "rejected": [says("assistant", " ")]}, "with its rejected, message 2, the assi"),
        ({"chosen": f"{HH} A", "rejected": HH}, "its rejected ends with a message of the user's: it must end with the"),
        ({"chosen": [USER, GOOD], "rejected": [USER, BAD, USER]}, "its rejected ends with a message of the user's"),
        ({"chosen": "A", "rejected": "B"}, "it has no prompt"),
        ({"chosen": [GOOD], "rejected": [BAD]}, "it has no prompt"),
        ({"prompt": "Q", "chosen": {"x": 1}, "rejected": "B"}, "its chosen is neither a text nor a list of messages"),
        ({"prompt": "Q", "chosen": "A", "rejected": "B", "margin": "big"}, "its margin is no number, but 'big'"),
        ({"prompt": "Q", "chosen": "A", "rejected": "B", "margin": "nan"}, "its margin is 'nan': give a finite number"),
        ({"messages": [USER, GOOD], "chosen": "A", "rejected": "B"}, "with its chosen, message 3 is the assistant's"),
        ({"input": "Q", "preferred_output": [GOOD], "non_preferred_output": [BAD]}, "its input has no list of messages"),
        ({"input": {"messages": [USER]}, "preferred_output": [GOOD]}, "it has no non_preferred_output answer"),
        (
            {"chosen": "[{'role': 'user'}\n {'role': 'assistant'}]", "rejected": "B"},
            "its chosen is a list as numpy prints it, without commas: write it as JSON",
        ),
        ({"prompt": "Q", "chosen": "A", "rejected": "B", "images": ["a.png"]}, "it has images"),
        ({"prompt": "Q", "completion": "A", "label": True}, "it is one answer with a label, among pairs"),
        ({"prompt": "Q", "completion": "A"}, "without a rejected answer and without a label: chatgpt-hf sft trains"),
        ({"x": 1}, "it has the columns x, which are no preference. Known: pairs: chosen and rejected"),
    ],
)  # fmt: skip
def test_rows_that_are_refused(row: dict[str, Any], message: str) -> None:
    assert message in refusal(row)


def test_pairs_with_equal_sides_are_counted() -> None:
    reader = PreferenceReader("rows", "pairs")
    rows = [
        PAIRS["texts"][0],
        {"prompt": "Q", "chosen": "A", "rejected": " A\n"},
        {"chosen": [USER, GOOD], "rejected": [USER, GOOD]},
    ]
    assert [number for number, _ in reader.read(rows)] == [1]
    assert reader.notes == {"pairs with equal sides were left out": 2}
    # Thoughts are part of what the assistant says.
    thinks = [{**GOOD, "reasoning_content": thought} for thought in "xy"]
    assert len(read({"prompt": "Q", "chosen": thinks[:1], "rejected": thinks[1:]})) == 1


def test_scores_that_contradict_the_sides_are_counted() -> None:
    reader = PreferenceReader("rows", "pairs")
    row = {"prompt": "Q", "chosen": "A", "rejected": "B", "chosen_rating": 1, "rejected_rating": 4}
    assert [found.margin for _, found in reader.read([row])] == [-3]
    assert reader.notes == {"pairs whose scores prefer the rejected side": 1}


def test_pairs_as_judged_answers() -> None:
    reader = PreferenceReader("rows", "judged")
    found = [each for _, each in reader.read([PAIRS["texts"][0], {**JUDGED[0], "label": False}])]
    assert found == [Judged([USER], [GOOD], True), Judged([USER], [BAD], False), Judged([USER], [GOOD], False)]
    assert reader.notes == {"pairs were read as two answers with a label": 1}


def test_a_flag_on_the_row_is_obeyed() -> None:
    assert read({**PAIRS["texts"][0], "train": False}) == []


def load(*files: Path, **options: Any) -> Any:
    return read_preferences(parse_sources([str(file) for file in files]), **options)


def test_files_of_pairs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = write(tmp_path / "a.jsonl", [row for row, _ in PAIRS.values()])
    (tmp_path / "b.csv").write_text("prompt,chosen,rejected\nQ,A,\nQ,A,B\n", encoding="utf-8")
    kind, splits, (summary,) = load(file)
    assert (kind, list(splits)) == ("pairs", ["train"])
    rows = list(splits["train"])
    for row, expected in zip(rows, (pair for _, pair in PAIRS.values()), strict=True):
        columns = ("prompt", "chosen", "rejected", "margin", "tools")
        assert Preference(*(row[name] for name in columns)) == expected
    assert rows[1]["place"] == f"row 2 of {file}"
    assert (summary.rows, summary.kept) == (len(PAIRS), len(PAIRS))
    assert "prompt_id" in summary.unused
    with pytest.raises(DataError, match=r"Row 1 of .*b.csv cannot be used: its rejected is empty \(--skip_invalid"):
        load(tmp_path / "b.csv")
    with caplog.at_level(logging.WARNING):
        assert len(load(tmp_path / "b.csv", skip_invalid=True).splits["train"]) == 1
    assert "1 rows of" in caplog.text


def test_files_of_judged_answers(tmp_path: Path) -> None:
    kind, splits, _ = load(write(tmp_path / "a.jsonl", JUDGED))
    assert kind == "judged"
    assert [(row["prompt"], row["completion"], row["label"]) for row in splits["train"]] == [
        ([USER], [GOOD], True)
    ] * 6
    mixed = write(tmp_path / "b.jsonl", [JUDGED[0], PAIRS["texts"][0]])
    assert len(load(mixed, kind="judged").splits["train"]) == 3
    with pytest.raises(DataError, match=r"Row 1 of .* among pairs of answers"):
        load(mixed, kind="pairs")
    with pytest.raises(ConfigError, match="the kind of preferences is 'kto': give one of pairs, judged"):
        load(mixed, kind="kto")


def test_all_answers_to_a_prompt_are_on_one_side(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "named").mkdir()
    rows = [{"prompt": f"Q{index // 3}", "chosen": f"A{index}", "rejected": "B"} for index in range(120)]
    file = write(tmp_path / "a.jsonl", rows)
    splits = load_preferences(parse_sources(str(file)), test_fraction=0.3)
    prompts = {name: {prompt[0]["content"] for prompt in part["prompt"]} for name, part in splits.items()}
    assert not prompts["train"] & prompts["test"]
    assert len(splits["train"]) + len(splits["test"]) == 120
    assert 20 < len(splits["test"]) < 60
    for name, part in (("train", rows[:6]), ("test", rows[4:8])):
        write(tmp_path / "named" / f"{name}.jsonl", part)
    with caplog.at_level(logging.WARNING):
        load(tmp_path / "named")
    assert "2 of 4 held-out prompts are also training prompts" in caplog.text
    with pytest.raises(DataError, match="its 3 prompts are all the same: give more prompts"):
        load(write(tmp_path / "b.jsonl", rows[:3]), test_fraction=0.3)


@pytest.mark.parametrize(
    ("name", "pairs", "equal"), [("rasbt_preference_1100.json", 1094, 6), ("lf_dpo_zh_demo.json", 300, 0)]
)
def test_real_files(name: str, pairs: int, equal: int, shared_data: Path) -> None:
    file = shared_data / "preference" / name
    kind, splits, (summary,) = load(file, test_fraction=0.1)
    assert kind == "pairs"
    assert sum(map(len, splits.values())) == pairs
    assert summary.notes.get("pairs with equal sides were left out", 0) == equal
    written = {json.dumps([row["chosen"], row["rejected"]]) for row in json.loads(file.read_text(encoding="utf-8"))}
    for row in splits["test"]:
        assert row["prompt"][-1]["role"] == "user"
        (chosen,), (rejected,) = row["chosen"], row["rejected"]
        texts = [chosen["content"], rejected["content"]]
        assert (
            json.dumps(texts) in written or json.dumps([{"from": "gpt", "value": text} for text in texts]) in written
        )
    with pytest.raises(DataError, match=r"Row 1 of .* has preferences .*: chatgpt-hf dpo trains on them"):
        read_conversations(parse_sources(str(file)), skip_invalid=True)


@pytest.mark.parametrize("row", [*(row for row, _ in PAIRS.values()), *JUDGED])
def test_conversations_for_sft_are_not_taken_from_preferences(row: dict[str, Any], tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", [{"messages": [USER, GOOD]}, row])
    with pytest.raises(DataError, match=r"(?i)row 2 of .*chatgpt-hf dpo trains on"):
        read_conversations(parse_sources(str(file)))
    kind = "judged" if row in JUDGED else "pairs"
    assert kind_of_preferences(parse_sources(str(write(tmp_path / "b.jsonl", [row])))) == kind


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, GOOD], "chosen": True},
        {"messages": [USER, GOOD], "chosen": 1, "rejected": 0},
        {"messages": [USER, GOOD], "chosen": "0.9", "rejected": "0.1"},
        {"prompt": "Q", "completion": "A", "chosen": 0.9, "rejected": 0.1},
        {"prompt": "Q", "completion": "A", "chosen": "", "rejected": ""},
        {"messages": [USER, GOOD], "chosen": None, "rejected": None},
        {"prompt": "Q", "chosen": "A"},
        {"messages": [USER], "chosen": "A"},
        {"messages": [USER, GOOD], "label": 1},
        {"messages": [USER, GOOD], "label": "sports"},
    ],
)
def test_other_columns_of_these_names_are_no_preferences(row: dict[str, Any], tmp_path: Path) -> None:
    ((_, found),) = ConversationReader("rows").read([row])
    assert found.messages == [USER, GOOD]
    assert kind_of_preferences(parse_sources(str(write(tmp_path / "a.jsonl", [row])))) is None


def test_sft_learns_the_answers_of_a_named_column() -> None:
    row = {"instruction": "Q", "chosen": "A", "rejected": "B"}
    reader = ConversationReader("rows", PairColumns("instruction", "chosen"))
    ((_, found),) = reader.read([row])
    assert found.messages == [USER, GOOD]
    assert reader.unused == {"rejected": 1}
