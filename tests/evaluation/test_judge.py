"""A judge is asked in both orders: only what both agree on counts, and a preference for a place is seen."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from chatgpt_hf import load_tokenizer
from chatgpt_hf.chat_templates import encode_chat_prompt
from chatgpt_hf.checkpoints import load_model
from chatgpt_hf.data.preferences import read_preferences
from chatgpt_hf.data.sources import parse_sources
from chatgpt_hf.errors import DataError
from chatgpt_hf.evaluation import judge
from chatgpt_hf.evaluation.judge import evaluate_judge, evaluate_wins, log_odds, verdicts
from chatgpt_hf.evaluation.record import Evaluation

# The tests' models have a context of 128 tokens.
SHORT = "{conversation}\nA {first} B {second}"
QUESTION = [{"role": "user", "content": "Hello!"}]
ROWS = [
    {"prompt": "Hello!", "chosen": chosen, "rejected": rejected}
    for chosen, rejected in (("Hi!", "No."), ("Yes, hi.", "No"), ("Good day", "Bad."), ("Hi", "Nothing at all"))
]


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge, "REQUEST", SHORT)


@pytest.fixture
def pairs_file(tmp_path: Path) -> Path:
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return file


def pairs_of(file: Path) -> Dataset:
    return read_preferences(parse_sources(str(file))).splits["train"]


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_reply_is_asked_for_in_both_orders(batch_size: int, chat_folder: Path) -> None:
    model, tokenizer = load_model(chat_folder).eval(), load_tokenizer(chat_folder)
    prompts = [QUESTION, [{"role": "system", "content": "Be short."}, *QUESTION]]
    found = log_odds(
        model, tokenizer, prompts, ["Hi!", "No {you}."], ["Hm.", "Yes."], batch_size=batch_size, progress=False
    )
    letters = tokenizer.convert_tokens_to_ids(["A", "B"])
    for row, before, one, other in ((0, "", "Hi!", "Hm."), (1, "[System]\nBe short.\n\n", "No {you}.", "Yes.")):
        for order, (first, second) in enumerate(((one, other), (other, one))):
            text = f"{before}[User]\nHello!\nA {first} B {second}"
            ids = encode_chat_prompt(tokenizer, [{"role": "user", "content": text}])
            with torch.no_grad():
                a, b = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)[letters].tolist()
            assert found[row, order] == pytest.approx((a - b) * (1, -1)[order], abs=1e-4)


def test_only_what_both_orders_agree_on_counts(pairs_file: Path) -> None:
    found = np.array([[1.0, 2.0], [3.0, -1.0], [-1.0, -1.0], [-1.0, 2.0]])
    assert verdicts(found).tolist() == [1, 0, -1, 0]
    evaluation = evaluate_judge(found, pairs_of(pairs_file))
    assert {name: figure.value for name, figure in evaluation.figures().items()} == {
        "accuracy": 0.5,
        "agreement": 0.25,
        "disagreement": 0.25,
        "undecided": 0.5,
        # It prefers the first in 1 + 2 + 1 + 0 of 8 verdicts.
        "first_place": 0.5,
        "accuracy_of_both_orders": 0.75,
        "length_accuracy": 0.625,
        "accuracy_over_length": -0.125,
    }
    always_first = evaluate_judge(np.array([[1.0, -1.0]] * 4), pairs_of(pairs_file)).figures()
    assert always_first["first_place"].value == 1
    assert (always_first["accuracy"].value, always_first["undecided"].value) == (0.5, 1)


def test_wins_of_a_model() -> None:
    found = np.array([[1.0, 2.0], [3.0, -1.0], [np.nan, np.nan]])
    evaluation = evaluate_wins(found, [QUESTION] * 3, ["a", "bb", "c"], ["aa", "b", "c"], data="prompts")
    figures = {name: figure.value for name, figure in evaluation.figures().items()}
    assert figures == pytest.approx(
        {"win_rate": 2 / 3, "wins": 1 / 3, "losses": 0, "undecided": 2 / 3, "first_place": 0.75, "longer": 0.5}
    )
    assert evaluation.settings == {"request": judge.REQUEST, "too_long": 1}
    assert [row["verdict"] for row in evaluation.examples] == [1, 0, 0]
    # The scores of a reward model have no order.
    figures = evaluate_wins(found[:, :1], [QUESTION] * 3, ["a"] * 3, ["b"] * 3).measures
    assert figures["wins"].value == pytest.approx(2 / 3)
    assert "first_place" not in figures


def test_what_cannot_be_judged(chat_folder: Path, caplog: pytest.LogCaptureFixture, pairs_file: Path) -> None:
    model, tokenizer = load_model(chat_folder).eval(), load_tokenizer(chat_folder)
    with caplog.at_level(logging.WARNING):
        found = log_odds(model, tokenizer, [QUESTION], ["Hi! " * 50], ["No."], progress=False)
    assert "1 of 1 pairs of answers do not fit into the judge's context of 128" in caplog.text
    assert np.isnan(found).all()
    with pytest.raises(DataError, match="None of the 4 pairs of answers can be judged"):
        evaluate_judge(np.full((4, 2), np.nan), pairs_of(pairs_file))


@pytest.mark.usefixtures("short")
def test_the_command(
    chat_folder: Path, pairs_file: Path, tmp_path: Path, cli: Callable[..., Any], refused: Callable[..., str]
) -> None:
    result = cli("evaluate", chat_folder, "--preferences", pairs_file, "--as_judge", "--out", tmp_path / "out")
    assert result.code == 0, result.err
    assert "first_place" in result.out
    kept = Evaluation.load(tmp_path / "out" / "judge-pairs")
    assert len(kept.examples) == 4
    assert kept.examples[0]["rejected"] == [{"role": "assistant", "content": "No."}]

    def mistake(*arguments: object) -> str:
        return refused("evaluate", chat_folder, *arguments)

    assert "leave one out" in mistake("--preferences", pairs_file, "--as_judge", "--reference", chat_folder)
    assert "--as_judge is for --preferences" in mistake("--bias", "--as_judge")
