"""Cells that look like numbers, letters or lists and are none, in every task that reads such cells."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chatgpt_hf.errors import DataError
from chatgpt_hf.tasks.labels import list_of_labels, number_of
from chatgpt_hf.tasks.multiple_choice.rows import load_choices
from chatgpt_hf.tasks.text_classification.rows import load_labelled
from chatgpt_hf.tasks.token_classification.rows import load_tagged

DIGITS = "9" * 5000
QUESTION = {"question": "2+2?", "choices": ["3", "4"], "answer": "B"}
LETTERED = {"question": "2+2?", "A": "3", "B": "4", "answer": "B"}


@pytest.mark.parametrize(
    ("load", "rows", "said"),
    [
        (load_choices, [QUESTION, {**QUESTION, "answer": DIGITS}], "row 2 of"),
        (load_choices, [QUESTION, {**QUESTION, "answer": "AB"}], "row 2 of"),
        (load_choices, [QUESTION, {**QUESTION, "answer": ""}], "row 2 of"),
        (load_choices, [{**LETTERED, "A": 3, "B": 4}] * 2, "row 1 of"),
        (load_choices, [{**QUESTION, "choices": {"label": 3, "text": 4}}] * 2, "row 1 of"),
        (load_tagged, [{"tokens": ["Ann"], "ner_tags": ["B-PER"]}, {"tokens": ["Bob"], "ner_tags": [DIGITS]}], "row 2 of"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_used_is_named(
    tmp_path: Path, load: Callable[[str], Any], rows: list[dict[str, Any]], said: str
) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError) as error:
        load(str(file))
    assert said in str(error.value).lower()


def test_labels_of_thousands_of_digits_are_names(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(
        "".join(json.dumps({"text": f"a {label[0]}", "label": label}) + "\n" for label in (DIGITS, "8" + DIGITS))
    )
    assert load_labelled(str(file)).label_names == ["8" + DIGITS, DIGITS]


@pytest.mark.parametrize(
    "cell", ["[{[]: 1}]", "[" * 5000 + "]", "[" + "-" * 5000 + "1]", "[{1: [2]}[0]]", '["\\ud800", 1j]']
)
def test_a_cell_that_is_no_list_of_labels(cell: str) -> None:
    assert list_of_labels(cell) is None


@pytest.mark.parametrize("value", [10**400, "1e400", "nan", "1_000", None, True, [1]])
def test_no_finite_number(value: Any) -> None:
    assert number_of(value) is None
