"""Small files as people bring them, whole and streaming: each gives what it should, and nothing is dropped in silence."""

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from chatgpt_hf.data.conversations import read_conversations, tokenize_conversations
from chatgpt_hf.data.corpus import load_corpus, stream_corpus
from chatgpt_hf.data.corpus_summary import summarize_corpus
from chatgpt_hf.data.packing import IGNORE_INDEX
from chatgpt_hf.data.preference_tokens import preference_parts, tokenize_preferences
from chatgpt_hf.data.preferences import load_preferences
from chatgpt_hf.data.sources import parse_sources
from chatgpt_hf.errors import DataError
from chatgpt_hf.tasks.arguments import TaskArguments
from chatgpt_hf.tasks.registry import make_task
from chatgpt_hf.tasks.token_classification.rows import load_tagged


@pytest.fixture
def cases(shared_data: Path) -> Path:
    folder = shared_data / "cases" / "train"
    if not folder.is_dir():
        pytest.skip("the small files of cases/train are absent")
    return folder


@pytest.fixture
def tokenizer(base_folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(base_folder)


def read(file: Path, tokenizer: PreTrainedTokenizerBase) -> tuple[list[str], list[str]]:
    """Returns the text of each conversation, and of what is learned in it."""
    splits, _ = read_conversations(parse_sources(str(file)))
    rows = tokenize_conversations(splits["train"], tokenizer)
    texts = [tokenizer.decode(ids) for ids in rows["input_ids"]]
    return texts, [tokenizer.decode([i for i in labels if i != IGNORE_INDEX]) for labels in rows["labels"]]


SYSTEM = "<|im_start|>system\nYou are a pirate SYSTEM.<|im_end|>\n<|im_start|>user\nHello?<|im_end|>"
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call><|im_end|>'


@pytest.mark.parametrize(
    ("name", "shown", "learned"),
    [
        ("consecutive", ["hello\n\nare you there?<|im_end|>"], ["Yes.<|im_end|>", "b<|im_end|>"]),
        ("openai_tools_endcall", ["Weather in Oslo?"], [CALL]),
        ("parts_ok", ["hi<|im_end|>"], ["Hello, I am Tom.<|im_end|>"]),
        ("weight", ["BERGEN_WRONG"], ["Oslo, sorry.<|im_end|>"]),
        ("train_flag", ["BERGEN_WRONG"], ["Oslo, sorry.<|im_end|>"]),
        ("loss_flag", ["OK_UNLEARNED"], ["ACTION: go<|im_end|>"]),
        ("alpaca_sysprompt", [SYSTEM], ["Ahoy!<|im_end|>"]),
        ("openorca", [SYSTEM], ["Ahoy!<|im_end|>"]),
        ("messages_system", [SYSTEM], ["Ahoy!<|im_end|>"]),
        ("pair_system", [SYSTEM], ["Ahoy!<|im_end|>"]),
        ("rag_context", ["Who won?\n\nCONTEXT Rosenborg won 2-1.<|im_end|>"], ["Rosenborg<|im_end|>"]),
        ("prompt_input_output", ["Translate to French\n\nINPUT cheese<|im_end|>"], ["fromage<|im_end|>"]),
        ("empty_instruction", ["<|im_start|>user\nSay hi<|im_end|>"], ["hi<|im_end|>"]),
        ("hermes", ["<tool_response>"], [f"{CALL}It is -3 C.<|im_end|>"]),
        ("gpt_then_call", ["<|im_start|>tool\n-3"], [f"Let me look.\n{CALL}-3.<|im_end|>"]),
        ("developer", ["<|im_start|>system\nBe brief.<|im_end|>"], ["b<|im_end|>"]),
        ("legacy_function", ["<tools>", "<|im_start|>tool\n-3"], [f"{CALL}It is -3.<|im_end|>"]),
        ("datechat", ["When?"], ["2020-01-01<|im_end|>", "2021-02-03<|im_end|>"]),
        ("d_args_time", ['"at": "2024-05-01T10:00:00Z"'], None),
        ("d_numstr", ["1+1"], ["2<|im_end|>", "4<|im_end|>"]),
        ("int_answer", ["1+1?"], ["2<|im_end|>", "4<|im_end|>"]),
        ("mixed_answer", ["1+1?"], ["2<|im_end|>", "4<|im_end|>", "y<|im_end|>"]),
        ("mixed_shapes", ["<|im_start|>user\na"], ["b<|im_end|>", "d<|im_end|>", "f<|im_end|>"]),
    ],
)
def test_conversations(
    name: str, shown: list[str], learned: list[str] | None, cases: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    texts, answers = read(cases / f"{name}.jsonl", tokenizer)
    assert all(words in texts[0] for words in shown)
    if learned is not None:
        # Some files repeat a row.
        assert list(dict.fromkeys(answers)) == learned


def test_calls_of_one_turn_stay_together(cases: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    texts, _ = read(cases / "two_calls.jsonl", tokenizer)
    assert texts[0].count("<|im_start|>assistant") == 2
    assert "</tool_call>\n<tool_call>" in texts[0]


def test_an_empty_tool_result(cases: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    texts, _ = read(cases / "empty_tool_result.jsonl", tokenizer)
    assert "<|im_start|>tool\n<|im_end|>" in texts[0]


def test_reasoning_is_reported(
    cases: Path, tokenizer: PreTrainedTokenizerBase, caplog: pytest.LogCaptureFixture
) -> None:
    _, answers = read(cases / "reasoning.jsonl", tokenizer)
    assert answers == ["4<|im_end|>", "6<|im_end|>"]
    assert "reasoning_content (2)" in caplog.text


def test_an_empty_answer_is_not_learned(cases: Path) -> None:
    with pytest.raises(
        DataError, match=r"Row 1 of .*parts_empty.jsonl cannot be used: message 2, the assistant's, is"
    ):
        read_conversations(parse_sources(str(cases / "parts_empty.jsonl")))


def test_a_lone_surrogate_is_named(cases: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"surr_chat\.jsonl.*line 2"):
        read_conversations(parse_sources(str(cases / "surr_chat.jsonl")))
    file = tmp_path / "texts.jsonl"
    file.write_text('{"text": "hi"}\n{"text": "hi \\ud83d"}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"texts\.jsonl.*line 2"):
        load_corpus(str(file))
    with pytest.raises(DataError, match=r"texts\.jsonl.*line 2"):
        list(stream_corpus(str(file))["train"])


def test_rows_of_a_table_with_a_lone_quotation_mark(cases: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    texts, answers = read(cases / "tsv_quote.tsv", tokenizer)
    assert answers == [f"{answer}<|im_end|>" for answer in ("Tom", "QUOTE1", "Nothing", "Later", "Ann", "Yes")]
    assert '<|im_start|>user\n"Never mind, he said.<|im_end|>' in texts[1]


@pytest.mark.parametrize(
    ("name", "documents"),
    [
        ("dates.jsonl", ["2020-01-01", "2020-01-02"]),
        (
            "tsv_quote_corpus.tsv",
            ["Tom was here.", '"Never mind, he said.', "Nothing happened.", '"Stop it, said Ann.', "The end."],
        ),
    ],
)
def test_documents_whole_and_streaming(name: str, documents: list[str], cases: Path) -> None:
    assert load_corpus(str(cases / name))["train"]["text"][:] == documents
    assert [row["text"] for row in stream_corpus(str(cases / name))["train"]] == documents


@pytest.mark.parametrize(
    ("name", "words", "entities"),
    [
        ("germeval.tsv", ["Muster", "sagte", "dem", "Beobachter"], {"PER", "ORG", "LOC"}),
        ("id_first.conll", ["Tom", "lives", "in", "Oslo"], {"PER", "LOC"}),
        ("nbsp.conll", ["He", "paid", "20\u00a0000", "in", "Oslo"], {"PER", "LOC"}),
        ("bioes.conll", ["Oslo", "is", "nice"], {"PER", "LOC"}),
        ("bmes.conll", ["Oslo", "is", "nice"], {"PER", "LOC"}),
    ],
)
def test_tagged_words(name: str, words: list[str], entities: set[str], cases: Path) -> None:
    splits = load_tagged(str(cases / name))
    assert splits.train[0]["tokens"] == words
    assert {label[2:] for label in splits.label_names if label != "O"} == entities
    named = [[splits.label_names[tag] for tag in row["tags"]] for row in splits.train]
    assert named[1][:3] in (["B-PER", "I-PER", "O"], ["B-PER", "I-PER", "I-PER"], ["B-PER", "O"], ["B-LOC", "O"])


MARKER = "MARKER"
BETTER = {"role": "assistant", "content": "B"}
ANSWERED = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
CALLING = {"id": "c", "type": "function", "function": {"name": "f", "arguments": {"x": "1"}}}
# Rows in every shape; a marker goes into each of their values, one at a time.
SHAPES: dict[str, dict[str, Any]] = {
    "messages": {
        "messages": [
            {"role": "system", "content": "S", "name": "n"},
            {"role": "user", "content": [{"type": "text", "text": "Q", "cache_control": "c"}], "id": "1"},
            {"role": "assistant", "content": "", "tool_calls": [CALLING], "reasoning_content": "r", "refusal": "x"},
            {"role": "tool", "content": "T", "tool_call_id": "c"},
            {"role": "assistant", "content": "A", "thinking": "t", "score": "3"},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "description": "d"}}],
        "id": "7",
        "meta": {"a": "b"},
    },
    "sharegpt": {
        "conversations": [{"from": "human", "value": "Q", "time": "t"}, {"from": "gpt", "value": "A", "model": "m"}],
        "system": "S",
        "tools": '[{"name": "f"}]',
        "source": "s",
    },
    "alpaca": {"instruction": "I", "input": "N", "output": "O", "system": "S", "history": [["a", "b"]], "text": "x"},
    "pair": {"question": "Q", "context": "C", "answer": "A", "id": "1", "response": "R", "prompt_id": "p"},
    "legacy": {
        "messages": [
            ANSWERED[0],
            {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": '{"x": "1"}'}},
            {"role": "function", "name": "f", "content": "T"},
            ANSWERED[1],
        ],
        "functions": [{"name": "f", "description": "d"}],
    },
    "dialogue": {"messages": [{"message": "Q", "attrs": "a"}, {"message": "A"}], "name": "n"},
    "self-instruct": {"instruction": "I", "instances": [{"input": "N", "output": "O", "note": "x"}], "id": "1"},
    "session": {"session_id": "1", "role": "user", "content": "Q", "time": "t"},
}


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Returns the paths of all texts in nested lists and dicts."""
    if isinstance(value, str):
        return [path]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, item in items for found in places(item, (*path, key))]


def marked(value: Any, path: tuple[Any, ...]) -> Any:
    if not path:
        return MARKER
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = marked(value[path[0]], path[1:])
    return copy


@pytest.mark.parametrize("shape", SHAPES)
def test_nothing_is_dropped_in_silence(
    shape: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase, caplog: pytest.LogCaptureFixture
) -> None:
    check_that_nothing_is_dropped(
        SHAPES[shape], lambda file: read(file, tokenizer)[0], tmp_path, caplog, with_answer=shape == "session"
    )


def check_that_nothing_is_dropped(
    full: dict[str, Any],
    read: Callable[[Path], list[str]],
    folder: Path,
    caplog: pytest.LogCaptureFixture,
    *,
    with_answer: bool = False,
) -> None:
    """Every value of a row is shown to the model, reported by its name, or refused."""
    file = folder / "rows.jsonl"
    refused: list[tuple[Any, str]] = []
    for path in places(full):
        row = marked(full, path)
        answer = [{"session_id": row["session_id"], "role": "assistant", "content": "A"}] if with_answer else []
        file.write_text("".join(json.dumps(each) + "\n" for each in (row, *answer)), encoding="utf-8")
        caplog.clear()
        with caplog.at_level(logging.INFO):
            try:
                texts = read(file)
            except DataError as error:
                refused.append((path, str(error)))
                continue
        names = [str(key) for key in path if isinstance(key, str)]
        reported = [line for line in caplog.text.splitlines() if "not used: " in line or "not learned: " in line]
        is_reported = any(name in line.partition("not ")[2] for line in reported for name in (names[-1], names[0]))
        # The number of a conversation and the type of a part are the file's own bookkeeping.
        is_read = path[-1] in ("session_id", "type")
        assert MARKER in "".join(texts) or is_reported or is_read, path
    assert all("row 1" in error.lower() for _, error in refused), refused


PREFERENCES: dict[str, dict[str, Any]] = {
    "kto": {"prompt": ANSWERED[:1], "completion": ANSWERED[1:], "label": True, "reason": "r"},
    "conversations": {"prompt": "Q", "chosen": ANSWERED, "rejected": [*ANSWERED[:1], BETTER], "score_chosen": "9"},
    "alpaca": {
        "instruction": "I",
        "input": "N",
        "output": "O",
        "chosen": "A",
        "rejected": "B",
        "system": "S",
        "id": "1",
    },
    "sharegpt": {
        "conversations": [{"from": "human", "value": "Q", "time": "t"}],
        "chosen": {"from": "gpt", "value": "A", "model": "m"},
        "rejected": {"from": "gpt", "value": "B"},
        "tools": '[{"name": "f"}]',
    },
    "openai": {
        "input": {"messages": ANSWERED[:1], "tools": [{"name": "f"}], "parallel": "p"},
        "preferred_output": ANSWERED[1:],
        "non_preferred_output": [BETTER],
        "note": "n",
    },
    "number": {"prompt": "Q", "context": "C", "response_0": "A", "response_1": "B", "chosen": 0, "model_0": "m"},
}


@pytest.mark.parametrize("form", PREFERENCES)
def test_nothing_of_preferences_is_dropped_in_silence(
    form: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase, caplog: pytest.LogCaptureFixture
) -> None:
    def read(file: Path) -> list[str]:
        splits = load_preferences(parse_sources(str(file)))
        rows, _ = tokenize_preferences(splits["train"], tokenizer)
        return ["".join(text for text, _ in preference_parts(row, tokenizer)) for row in rows]

    check_that_nothing_is_dropped(PREFERENCES[form], read, tmp_path, caplog)


SPAN = {"start": 0, "end": 3, "label": "PER", "token_start": "0"}
# Rows of every task, and how they are read.
TASKS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "labels": ({"text": "T", "label": "x", "id": "1", "meta": {"a": "b"}, "tags": ["c"]}, {}),
    "prodigy labels": ({"text": "T", "label": "x", "answer": "accept", "_view": "v"}, {}),
    "titles": ({"title": "T", "content": "C", "label": "x", "url": "u"}, {}),
    "words": (
        {"tokens": ["Tom"], "ner_tags": ["B-PER"], "pos_tags": ["N"], "id": "1"},
        {"task": "token-classification"},
    ),
    "entities": ({"text": "Tom", "spans": [SPAN], "answer": "accept", "meta": "m"}, {"task": "token-classification"}),
    "choices": (
        {"question": "Q", "choices": ["a", "b"], "answer": "A", "subject": "s", "explanation": "e"},
        {"task": "multiple-choice"},
    ),
    "contexts": (
        {"context_options": ["a", "b"], "continuation": "c", "gold": "a", "query": "q"},
        {"task": "multiple-choice"},
    ),
    "squad": (
        {
            "question": "Q",
            "context": "C",
            "id": "1",
            "answers": {"text": ["C"], "answer_start": [0], "kind": ["k"]},
            "url": "u",
        },
        {"task": "question-answering"},
    ),
    "squad, nested": (
        {
            "version": "2",
            "data": [
                {
                    "title": "t",
                    "paragraphs": [
                        {
                            "context": "C",
                            "note": "n",
                            "qas": [
                                {
                                    "id": "1",
                                    "question": "Q",
                                    "extra": "x",
                                    "answers": [{"text": "C", "answer_start": 0, "by": "b"}],
                                }
                            ],
                        }
                    ],
                }
            ],
        },
        {"task": "question-answering"},
    ),
    "completions": ({"prompt": "P", "completion": "C", "answer": "accept", "id": "1"}, {"task": "text-generation"}),
}
OTHERS = {
    "labels": {"text": "U", "label": "y"},
    "prodigy labels": {"text": "U", "label": "y", "answer": "accept"},
    "titles": {"title": "U", "content": "D", "label": "y"},
    "words": {"tokens": ["Ann"], "ner_tags": ["B-PER"]},
    "entities": {"text": "Ann", "spans": [SPAN], "answer": "accept"},
    "choices": {"question": "R", "choices": ["a", "b"], "answer": "B"},
    "contexts": {"context_options": ["a", "b"], "continuation": "d", "gold": "b"},
    "squad": {"question": "R", "context": "D", "id": "2", "answers": {"text": ["D"], "answer_start": [0]}},
    "squad, nested": {"question": "R", "context": "D", "id": "2", "answers": {"text": ["D"], "answer_start": [0]}},
    "completions": {"prompt": "R", "completion": "D", "answer": "accept"},
}


@pytest.mark.parametrize("name", TASKS)
def test_no_task_drops_anything_in_silence(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Every value of a labelled row is in the rows to learn, reported by its name, or refused."""
    row, options = TASKS[name]
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text(json.dumps(OTHERS[name]) + "\n", encoding="utf-8")
    refused = []
    for path in places(row):
        file = tmp_path / "rows.jsonl"
        lines = [marked(row, path), OTHERS[name]]
        file.write_text("".join(json.dumps(each) + "\n" for each in lines), encoding="utf-8")
        arguments = TaskArguments(
            **{"task": "text-classification", **options}, dataset=[str(file)], eval_dataset=str(held_out)
        )
        caplog.clear()
        with caplog.at_level(logging.INFO):
            try:
                task = make_task(arguments, 0)
            except DataError as error:
                refused.append(str(error))
                continue
        learned = [task.train[:], getattr(task, "label_names", None)]
        reported = [line.partition("not used: ")[2] for line in caplog.text.splitlines()]
        keys = [str(key) for key in path if isinstance(key, str)]
        is_reported = any(
            key in line.replace("[].", ", ").rstrip(".").split(", ") for line in reported for key in keys
        )
        is_counted = "do not stand at their answer_start were left out: 1" in caplog.text
        # Words are divided where an entity ends.
        assert MARKER in re.sub("[^A-Z]", "", str(learned)) or is_reported or is_counted, path
    assert all("row 1" in error.lower() or "question 1" in error.lower() for error in refused), refused


def test_rows_that_were_not_accepted_are_not_learned(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Prodigy writes what the person decided into the column `answer`."""
    rows = [("good", "accept"), ("wrong", "reject"), ("unsure", "ignore"), ("fine", "accept")]
    labels = [
        {"text": text, "label": f"l{number % 3}", "answer": answer} for number, (text, answer) in enumerate(rows)
    ]
    spans = [{"text": text, "spans": [{**SPAN, "end": 4}], "answer": answer} for text, answer in rows]
    pairs = [{"prompt": text, "completion": "C", "answer": answer} for text, answer in rows]
    for name, lines, options in (
        ("labels", labels, {"problem_type": "single_label_classification"}),
        ("spans", spans, {"task": "token-classification"}),
        ("pairs", pairs, {"task": "text-generation"}),
    ):
        file = tmp_path / f"{name}.jsonl"
        if name == "labels":
            lines = [*lines, {"text": "last", "label": "l1", "answer": "accept"}]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        arguments = TaskArguments(
            **{"task": "text-classification", **options}, dataset=[str(file)], eval_dataset=str(file)
        )
        caplog.clear()
        with caplog.at_level(logging.INFO):
            task = make_task(arguments, 0)
        learned = str(task.train[:])
        assert "good" in learned
        assert "fine" in learned
        assert "wrong" not in learned
        assert "unsure" not in learned
        assert 'rows that are not marked "accept" were left out: 2.' in caplog.text


def test_columns_of_a_corpus(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one", "id": 1}\n{"text": " ", "url": "u"}\n', encoding="utf-8")
    (tmp_path / "b.jsonl").write_text('{"text": "two", "id": 1, "url": "u"}\n', encoding="utf-8")
    (tmp_path / "c.csv").write_text("text,date\nthree,2020\n", encoding="utf-8")
    (tmp_path / "d.txt").write_text("four\n", encoding="utf-8")
    (source,) = parse_sources(str(tmp_path))
    found = [(s.where.removeprefix(str(tmp_path)), s.rows, s.kept, s.used, s.unused) for s in summarize_corpus(source)]
    assert found == [
        ("/d.txt", 1, 1, {"the text": 1}, {}),
        ("/a.jsonl and 1 more", 3, 2, {"text": 3}, {"id": 2, "url": 2}),
        ("/c.csv", 1, 1, {"text": 1}, {"date": 1}),
    ]


def test_both_parts_of_a_row_are_checked(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = Dataset.from_list([{"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": ""}]}])
    with pytest.raises(DataError, match="Row 1: the chat template makes an empty turn"):
        tokenize_conversations(rows, tokenizer)


def test_a_missing_value_of_pandas_is_not_learned(tmp_path: Path) -> None:
    """pandas and `json.dumps` write NaN, in parquet too, where a cell is empty."""
    file = tmp_path / "rows.jsonl"
    file.write_text('{"question": "Q", "answer": NaN}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"Row 1 of .* cannot be used"):
        read_conversations(parse_sources(str(file)))
    table = pa.table({"question": ["Q", "R"], "answer": pa.array([float("nan"), 2.5])})
    pq.write_table(table, tmp_path / "rows.parquet")
    splits, summaries = read_conversations(parse_sources(str(tmp_path / "rows.parquet")), skip_invalid=True)
    assert [row["messages"][1]["content"] for row in splits["train"]] == ["2.5"]
    assert len(summaries[0].invalid) == 1


def test_falsy_keys_of_messages_are_reported(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "rows.jsonl"
    row = {"messages": [ANSWERED[0], {**ANSWERED[1], "correct": False, "score": 0, "note": ""}]}
    file.write_text(json.dumps(row) + "\n", encoding="utf-8")
    splits, (summary,) = read_conversations(parse_sources(str(file)))
    assert summary.unused == {"messages[].correct": 1, "messages[].score": 1}
    tokenize_conversations(splits["train"], tokenizer)
    assert "not learned: correct (1), score (1)" in caplog.text


def test_numbers_in_calls_and_tools_are_not_rounded(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(
        '{"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "", "tool_calls": '
        '[{"function": {"name": "f", "arguments": {"n": 1.10, "e": 1.5e-12, "i": 12345678901234567890123}}}]}], '
        '"tools": [{"name": "f", "default": 2.5e-12}]}\n',
        encoding="utf-8",
    )
    splits, _ = read_conversations(parse_sources(str(file)))
    call = splits["train"][0]["messages"][1]["tool_calls"][0]["function"]
    assert call["arguments"] == '{"n": 1.10, "e": 1.5e-12, "i": 12345678901234567890123}'
    assert splits["train"][0]["tools"] == [{"name": "f", "default": 2.5e-12}]
    texts, _ = read(file, tokenizer)
    assert '"e": 1.5e-12, "i": 12345678901234567890123' in texts[0]


def test_numbers_that_a_data_set_cannot_store_become_text(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    extra = {"score": float("inf"), "meta": {"id": 2**70}}
    file.write_text(json.dumps({"messages": [ANSWERED[0], {**ANSWERED[1], **extra}]}) + "\n", encoding="utf-8")
    splits, _ = read_conversations(parse_sources(str(file)))
    assert splits["train"][0]["messages"][1] == {**ANSWERED[1], "score": "Infinity", "meta": f'{{"id": {2**70}}}'}
