"""The embedded corpus has the expected content, leaks nothing held out into training, and never varies."""

import hashlib
import json
import os
import re
import subprocess
import sys
import sysconfig

import pytest
from datasets import Dataset, DatasetDict

from chatgpt_hf.data.builtin import load_builtin
from chatgpt_hf.data.builtin import python_docs as builtin
from chatgpt_hf.errors import DataError

BUILTIN_CORPORA = ("builtin:python-docs", "builtin:python-qa")


def normal(text: str) -> str:
    return " ".join(text.lower().split())


def digest() -> str:
    rows = [[name, split, list(load_builtin(name)[split])] for name in BUILTIN_CORPORA for split in ("train", "test")]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


@pytest.fixture(scope="module")
def docs() -> DatasetDict:
    return load_builtin("builtin:python-docs")


@pytest.fixture(scope="module")
def qa() -> DatasetDict:
    return load_builtin("builtin:python-qa")


def texts(corpus: DatasetDict, split: str) -> list[str]:
    if "text" in corpus[split].column_names:
        return list(corpus[split]["text"])
    return [message["content"] for messages in corpus[split]["messages"] for message in messages]


@pytest.mark.parametrize(
    ("name", "columns"), list(zip(BUILTIN_CORPORA, (["name", "text"], ["name", "messages"]), strict=True))
)
def test_splits_and_columns(name, columns):
    corpus = load_builtin(name)
    assert isinstance(corpus, DatasetDict)
    assert list(corpus) == ["train", "test"]
    for split in corpus.values():
        assert isinstance(split, Dataset)
        assert split.column_names == columns
    share = len(corpus["test"]) / (len(corpus["train"]) + len(corpus["test"]))
    assert 0.07 < share < 0.13


def test_sizes(docs, qa):
    assert 1_000_000 < sum(map(len, docs["train"]["text"])) < 4_000_000
    assert 2_500 < len(qa["train"]) + len(qa["test"]) < 6_000


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(
        DataError,
        match="builtin:python-docs, builtin:python-qa, builtin:python-honest, builtin:python-functions, builtin:relations",
    ):
        load_builtin("builtin:c-docs")


def test_missing_library_source_is_a_data_error(monkeypatch, tmp_path):
    monkeypatch.setattr(builtin.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(DataError, match="source of the standard library"):
        builtin._source_modules()


@pytest.mark.parametrize("name", BUILTIN_CORPORA)
def test_no_name_is_in_both_splits(name):
    corpus = load_builtin(name)
    assert not set(corpus["train"]["name"]) & set(corpus["test"]["name"])


def test_names_of_documents_are_unique(docs):
    names = [*docs["train"]["name"], *docs["test"]["name"]]
    assert len(set(names)) == len(names)


def test_no_held_out_text_is_in_training(docs):
    train = docs["train"]["text"]
    whole = set(map(normal, train))
    paragraphs = {normal(paragraph) for text in train for paragraph in text.split("\n\n")}
    for text in docs["test"]["text"]:
        assert normal(text) not in whole
        assert not {p for p in map(normal, text.split("\n\n")) if len(p) >= 60} & paragraphs


def test_no_held_out_question_or_answer_is_in_training(docs, qa):
    train = set(map(normal, texts(qa, "train")))
    told = {normal(paragraph) for text in docs["train"]["text"] for paragraph in text.split("\n\n")}
    for text in texts(qa, "test"):
        assert normal(text) not in train
        assert normal(text) not in told


def test_questions_follow_the_split_of_their_document(docs, qa):
    documents = {split: dict(zip(docs[split]["name"], docs[split]["text"], strict=True)) for split in docs}
    for split, other in (("train", "test"), ("test", "train")):
        for name in qa[split]["name"]:
            for dotted in (name, f"builtins.{name}"):
                assert dotted not in documents[other]
                # The part before the last dot owns the name if it is a class; a module has a separate document.
                owner = documents[other].get(dotted.rpartition(".")[0], "")
                assert not owner.startswith("class ") or name.startswith("random.")


@pytest.mark.parametrize("name", BUILTIN_CORPORA)
def test_nothing_depends_on_the_machine(name):
    corpus = load_builtin(name)
    everything = "\n".join([*texts(corpus, "train"), *texts(corpus, "test")])
    assert not re.search(r"\bat 0x[0-9a-fA-F]", everything)
    assert sysconfig.get_path("stdlib") not in everything
    home = os.path.expanduser("~")
    assert home == os.sep or home + os.sep not in everything  # a user without a home has `/`


def test_same_rows_in_another_process():
    here = os.path.dirname(__file__)
    found = subprocess.run(
        [sys.executable, "-c", "from test_python_docs import digest; print(digest())"],
        env={**os.environ, "PYTHONHASHSEED": "12345", "PYTHONPATH": os.pathsep.join([here, *filter(None, sys.path)])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.split()[-1] == digest()


def test_every_row_ends_in_an_answer(qa):
    for split in qa.values():
        for messages in split["messages"]:
            assert [message["role"] for message in messages] == ["user", "assistant"]
            assert all(message["content"].strip() == message["content"] != "" for message in messages)


def test_every_question_is_asked_once(qa):
    questions = [messages[0]["content"] for split in qa.values() for messages in split["messages"]]
    assert len(set(questions)) == len(questions)


@pytest.mark.parametrize(
    ("name", "documented"),
    [
        ("json.dumps", json.dumps),
        ("len", len),
        ("os.getcwd", os.getcwd),
        ("str.join", str.join),
        ("list.append", list.append),
    ],
)
def test_answers_hold_the_documented_fact(qa, name, documented):
    answers = [row["messages"][1]["content"] for split in qa.values() for row in split if row["name"] == name]
    words = re.findall(r"\w+", documented.__doc__)[:3]
    assert any(re.findall(r"\w+", answer)[:3] == words for answer in answers)


def test_documents_carry_signatures_and_methods(docs):
    text = {row["name"]: row["text"] for split in docs.values() for row in split}
    assert text["json.dumps"].startswith("json.dumps(obj, *, skipkeys=False")
    assert "builtins.str.join(iterable, /)\n\nConcatenate" in text["builtins.str"]
    assert text["json.JSONEncoder"].startswith("class json.JSONEncoder(*, skipkeys=False")
    assert "json.encoder.JSONEncoder" not in text
    assert "sys.excepthook" in text
    assert "topics.assignment" in text


def test_chat_rows_are_trained_on(qa):
    assert "chat.who" in qa["train"]["name"]
    assert not any(name.startswith("chat.") for name in qa["test"]["name"])
