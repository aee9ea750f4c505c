"""Reward models: learned from pairs, saved as ordinary classifiers."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, pipeline

from chatgpt_hf.chat_templates import encode_conversation
from chatgpt_hf.errors import ConfigError
from chatgpt_hf.tokenization_chatgpt import load_tokenizer
from chatgpt_hf.training.preference_arguments import PreferenceArguments, RewardArguments, RewardModelArguments
from chatgpt_hf.training.reward import RewardRun

from .watched import Training, Watched

TYPES = (RewardModelArguments, PreferenceArguments, RewardArguments)


@pytest.fixture(scope="module")
def options(pair_options: list[str]) -> list[str]:
    return [*pair_options, "--learning_rate", "3e-3"]


class WatchedRun(Watched, RewardRun):
    pass


training = Training(TYPES, WatchedRun)
run = training.run


def scores(folder: Path, conversations: list[tuple[str, str]]) -> list[float]:
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder).eval(), load_tokenizer(folder)
    found = []
    for question, answer in conversations:
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        encoded = encode_conversation(tokenizer, messages)
        end = len(encoded["input_ids"]) - encoded["assistant_masks"][::-1].index(1)
        with torch.no_grad():
            found.append(model(torch.tensor([encoded["input_ids"][:end]])).logits.item())
    return found


@pytest.mark.parametrize("more", [[], ["--use_peft", "true", "--learning_rate", "2e-2"]], ids=["weights", "adapters"])
def test_a_reward_model_is_an_ordinary_classifier(more: list[str], options: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    figures = run(options, folder, "--max_steps", 24, "--test_fraction", 0.3, *more).figures
    assert figures["held_out_pair_accuracy"] == 1
    assert 0.2 < figures["held_out_length_accuracy"] < 0.8
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert model.config.num_labels == 1
    good, bad = scores(folder, [("Which cat is number 9?", "The cat."), ("Which cat is number 9?", "Nothing.")])
    assert good > bad
    # A pipeline returns the score itself.
    text = pipeline("text-classification", model=str(folder), device="cpu")
    (found,) = text(["The cat."])
    with torch.no_grad():
        ids = text.tokenizer("The cat.", return_tensors="pt")["input_ids"]
        assert found["score"] == pytest.approx(text.model(ids).logits.item(), abs=1e-5)
    assert (folder / "adapter").is_dir() == bool(more)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "pipeline_tag: text-classification" in card
    assert "a reward model, which scores answers" in card


@pytest.mark.parametrize("more", [[], ["--use_peft", "true"]], ids=["weights", "adapters"])
@pytest.mark.usefixtures("without_report")
def test_a_resumed_run_is_the_same_to_the_bit(more: list[str], options: list[str], tmp_path: Path) -> None:
    training.check_resumed(options, tmp_path, *more, last=3, after=(1,))
    assert not (tmp_path / "part1" / "README.md").exists()


def test_bad_input(options: list[str], base_folder: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    assert "--dataset is missing" in refused(
        "reward", "--model_name_or_path", base_folder, "--output_dir", tmp_path / "n"
    )
    with pytest.raises(ConfigError, match="--eos_token does nothing here: the chat template ends the answers"):
        run(options, tmp_path / "run", "--eos_token", "x")
    with pytest.raises(ConfigError, match="--load_in_4bit is for"):
        run(options, tmp_path / "run", "--load_in_4bit", "true")
    assert not (tmp_path / "run").exists()
