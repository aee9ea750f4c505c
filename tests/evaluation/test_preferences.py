"""Accuracy on pairs: by likelihood and by reward, beside that of the answers' lengths."""

import json
import logging
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification

from chatgpt_hf import load_tokenizer
from chatgpt_hf.chat_templates import encode_conversation
from chatgpt_hf.checkpoints import load_model
from chatgpt_hf.data.preferences import read_preferences
from chatgpt_hf.data.sources import parse_sources
from chatgpt_hf.errors import DataError
from chatgpt_hf.evaluation.compare import compare
from chatgpt_hf.evaluation.preferences import (
    PairScores,
    evaluate_preferences,
    length_accuracy,
    likelihood_scores,
    pair_accuracy,
    reward_scores,
)
from chatgpt_hf.evaluation.record import Evaluation

# The model of `chat_folder` knows the first answers. Two of the four are the longer ones.
ROWS: list[dict[str, Any]] = [
    {"prompt": "What is 1 + 1?", "chosen": "2.", "rejected": "Two or so."},
    {"prompt": "Who are you?", "chosen": "I am a chat model.", "rejected": "Me."},
    {"prompt": "What is 1 + 1?", "chosen": "2.", "rejected": "3."},
    {"prompt": "Say more.", "chosen": "More and more words.", "rejected": "No."},
]


def write(folder: Path, rows: list[dict[str, Any]]) -> Path:
    file = folder / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def pairs_of(folder: Path, rows: list[dict[str, Any]] = ROWS) -> Dataset:
    return read_preferences(parse_sources(str(write(folder, rows)))).splits["train"]


@pytest.fixture(scope="module")
def reward_folder(chat_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model that has learned nothing."""
    folder = tmp_path_factory.mktemp("reward") / "model"
    torch.manual_seed(1)
    AutoModelForSequenceClassification.from_pretrained(chat_folder, num_labels=1).save_pretrained(folder)
    load_tokenizer(chat_folder).save_pretrained(folder)
    return folder


def test_ties_count_half() -> None:
    figure = pair_accuracy([2.0, -1.0, 0.0, 0.5])
    assert figure.value == 0.625
    assert figure.low < figure.value < figure.high


def test_the_rule_of_lengths_is_chosen_by_the_training_pairs() -> None:
    held_out = [5, 3, -1, 2]
    assert length_accuracy([4, 1, -2], held_out).value == 0.75
    assert length_accuracy([-4, -1, 2], held_out).value == 0.25


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_chat_model_scores_what_fine_tuning_learns(batch_size: int, chat_folder: Path, tmp_path: Path) -> None:
    model, tokenizer = load_model(chat_folder).eval(), load_tokenizer(chat_folder)
    # A side of two turns, of which the user's is not scored.
    turns = [*({"role": role, "content": text} for role, text in (("assistant", "2."), ("user", "So?"))), "2."]
    turns[-1] = {"role": "assistant", "content": "Yes."}
    rows = [*ROWS, {**ROWS[0], "prompt": [{"role": "user", "content": "What is 1 + 1?"}], "chosen": turns}]
    rows[-1]["rejected"] = [{"role": "assistant", "content": "3."}]
    pairs = pairs_of(tmp_path, rows)
    found = likelihood_scores(model, tokenizer, pairs, batch_size=batch_size, progress=False)
    assert found.tokens is not None
    for row, scores, tokens in zip(pairs, found.scores, found.tokens, strict=True):
        for side, score, count in zip(("chosen", "rejected"), scores, tokens, strict=True):
            encoded = encode_conversation(tokenizer, [*row["prompt"], *row[side]])
            ids, mask = torch.tensor([encoded["input_ids"]]), torch.tensor(encoded["assistant_masks"]).bool()
            with torch.no_grad():
                log_probs = model(ids).logits.log_softmax(-1)[0, :-1].gather(-1, ids[0, 1:, None])[:, 0]
            assert score == pytest.approx(log_probs[mask[1:]].sum().item(), abs=1e-3)
            assert count == mask.sum()


def test_the_figures_of_pairs(tmp_path: Path) -> None:
    pairs = pairs_of(tmp_path)
    scores = PairScores(
        np.array([[-8.0, -1], [-2, -1], [-1, -2], [-6, -5]]), np.array([[4, 1], [2, 2], [1, 1], [3, 1]])
    )
    before = PairScores(np.array([[-9.0, -1], [-3, -1], [-1, -3], [-6, -5]]), scores.tokens)
    figures = evaluate_preferences(scores, pairs, reference=before).figures()
    assert {name: figure.value for name, figure in figures.items()} == pytest.approx(
        {
            "accuracy": 0.25,
            "accuracy_per_token": 0.5,
            "length_accuracy": 0.625,
            "accuracy_over_length": -0.375,
            "margin": (-7 - 1 + 1 - 1) / 4,
            "gain_accuracy": (1 + 1 + 0 + 0.5) / 4,
            "gain_margin": (1 + 1 - 1 + 0) / 4,
        }
    )
    assert all(figure.low <= figure.value <= figure.high for figure in figures.values())
    better = PairScores(np.array([[-1.0, -2]] * 4), scores.tokens)
    compared = compare({"a": evaluate_preferences(scores, pairs), "b": evaluate_preferences(better, pairs)})
    assert compared.figures["accuracy"]["b"].difference[0] == 0.75


def test_a_pair_that_does_not_fit_counts_half(
    chat_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, tokenizer = load_model(chat_folder).eval(), load_tokenizer(chat_folder)
    long = "number " * 200
    rows = [ROWS[0], {**ROWS[0], "rejected": long}, {**ROWS[0], "prompt": long + ROWS[0]["prompt"]}]
    pairs = pairs_of(tmp_path, rows)
    with caplog.at_level(logging.WARNING):
        found = likelihood_scores(model, tokenizer, pairs, progress=False)
    assert "1 of 3 pairs do not fit into the model's context of 128" in caplog.text
    assert np.isnan(found.scores).tolist() == [[False] * 2, [True] * 2, [False] * 2]
    evaluation = evaluate_preferences(found, pairs)
    right = sum(found.margins[[0, 2]] > 0)
    assert evaluation.measures["accuracy"].value == pytest.approx((right + 0.5) / 3)
    assert evaluation.measures["margin"].value == pytest.approx(found.margins[[0, 2]].mean())
    assert evaluation.settings == {"too_long": 1}
    assert evaluation.examples[1]["margin"] is None
    evaluation.save(tmp_path / "kept")
    assert not math.isnan(Evaluation.load(tmp_path / "kept").measures["margin"].value)
    with pytest.raises(DataError, match=r"None of the 1 pairs of answers can be scored"):
        evaluate_preferences(PairScores(found.scores[1:2]), pairs.select([1]))


def test_a_reward_model_gives_its_scores(reward_folder: Path, tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(reward_folder).eval()
    tokenizer, pairs = load_tokenizer(reward_folder), pairs_of(tmp_path)
    found = reward_scores(model, tokenizer, pairs, batch_size=3, progress=False)
    encoded = encode_conversation(tokenizer, [*pairs[1]["prompt"], *pairs[1]["rejected"]])
    end = len(encoded["input_ids"]) - encoded["assistant_masks"][::-1].index(1)
    with torch.no_grad():
        expected = model(torch.tensor([encoded["input_ids"][:end]])).logits.item()
    assert found.scores[1, 1] == pytest.approx(expected, abs=1e-5)
    assert "accuracy_per_token" not in evaluate_preferences(found, pairs).measures


def test_the_command(
    chat_folder: Path, reward_folder: Path, tmp_path: Path, cli: Callable[..., Any], refused: Callable[..., str]
) -> None:
    file, out = write(tmp_path, ROWS), tmp_path / "out"
    result = cli("evaluate", chat_folder, "--preferences", file, "--reference", chat_folder, "--out", out)
    assert result.code == 0, result.err
    assert "accuracy_over_length" in result.out
    kept = Evaluation.load(out / "preferences-pairs")
    assert kept.measures["gain_accuracy"].value == 0.5
    assert [row["prompt"][0]["content"] for row in kept.examples] == [row["prompt"] for row in ROWS]
    # A test split counts too.
    folder = tmp_path / "split"
    folder.mkdir()
    for split in ("train", "test"):
        write(folder, ROWS).rename(folder / f"{split}.jsonl")
    result = cli("evaluate", chat_folder, "--preferences", folder, "--as_judge", "--out", out)
    assert "None of the 8 pairs of answers can be judged" in result.err
    result = cli("evaluate", reward_folder, "--preferences", file, "--limit", 3, "--out", out)
    assert result.code == 0, result.err
    assert len(next(found for path in out.iterdir() if len(found := Evaluation.load(path).examples) == 3)) == 3
    message = refused("evaluate", reward_folder, "--preferences", file, "--reference", chat_folder)
    assert "is a reward model, which has no use for --reference" in message


def test_models_that_cannot_rank(
    chat_folder: Path, reward_folder: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    file = write(tmp_path, ROWS)
    plain = shutil.copytree(chat_folder, tmp_path / "plain")
    tokenizer = load_tokenizer(plain)
    tokenizer.chat_template = None
    (plain / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer.save_pretrained(plain)
    assert "chat template" in refused("evaluate", plain, "--preferences", file)
    assert "chat template" in refused("evaluate", plain, "--preferences", file, "--as_judge")
    message = "is a ChatGPTForSequenceClassification: only language models can do this"
    assert message in refused("evaluate", reward_folder, "--preferences", file, "--as_judge")
    two = shutil.copytree(reward_folder, tmp_path / "two")
    config = json.loads((two / "config.json").read_text())
    labels = {"id2label": {"0": "a", "1": "b"}, "label2id": {"a": 0, "b": 1}}
    (two / "config.json").write_text(json.dumps({**config, **labels}))
    assert "is a model with 2 outputs, and a reward model has one" in refused("evaluate", two, "--preferences", file)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "Hi", "completion": "Yes.", "label": True}], "it is one answer with a label"),
        (
            [{"prompt": "Hi", "chosen": "Yes.", "rejected": ""}],
            "its rejected is empty (--skip_invalid leaves such rows out)",
        ),
        ([{"prompt": "Hi", "chosen": "Yes.", "rejected": "Yes."}], "has no preferences"),
        ([{"question": "Hi", "answer": "Yes."}], "sft trains on those"),
    ],
)
def test_rows_that_are_no_pairs(
    rows: list[dict[str, Any]], message: str, chat_folder: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    assert message in refused("evaluate", chat_folder, "--preferences", write(tmp_path, rows))
