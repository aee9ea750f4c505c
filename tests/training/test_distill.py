"""Distillation: a student learns what its teacher predicts, on the tokens that fine-tuning learns, or on its own answers."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch.nn.functional import kl_div

from chatgpt_hf import load_model, train_tokenizer
from chatgpt_hf.chat_templates import encode_chat_prompt
from chatgpt_hf.checkpoints import extend_vocabulary
from chatgpt_hf.data.conversations import tokenize_conversations
from chatgpt_hf.errors import ConfigError
from chatgpt_hf.tokenization_chatgpt import load_tokenizer
from chatgpt_hf.training.arguments import ChatModelArguments, ConversationDataArguments
from chatgpt_hf.training.distill import DistillRun, as_prompt, last_prompt
from chatgpt_hf.training.distill_arguments import DistillArguments
from chatgpt_hf.training.optim import MuonAdamW

from .watched import Training, Watched

TYPES = (ChatModelArguments, ConversationDataArguments, DistillArguments)


@pytest.fixture(scope="module")
def options(sft_options: list[str], chat_folder: Path) -> list[str]:
    return [*sft_options, "--teacher_model_name_or_path", str(chat_folder), "--evaluate_answers", "0"]


class WatchedRun(Watched, DistillRun):
    pass


training = Training(TYPES, WatchedRun)
run, start = training.run, training.start


def divergence(teacher: torch.Tensor, student: torch.Tensor, beta: float) -> torch.Tensor:
    """The generalized Jensen-Shannon divergence of Agarwal et al. 2024, equation 1, per token."""
    if beta in (0, 1):
        one, other = (student, teacher) if beta else (teacher, student)
        return kl_div(other, one, reduction="none", log_target=True).sum(-1)
    mixed = (beta * teacher.exp() + (1 - beta) * student.exp()).log()
    return beta * divergence(teacher, mixed, 0) + (1 - beta) * divergence(student, mixed, 0)


@pytest.mark.parametrize("beta", [0, 0.3, 1])
@pytest.mark.usefixtures("without_report")
def test_the_loss_is_the_divergence_on_what_fine_tuning_learns(
    beta: float, options: list[str], base_folder: Path, chat_folder: Path, tmp_path: Path
) -> None:
    more = ["--max_steps", 1, "--per_device_train_batch_size", 1, "--gradient_accumulation_steps", 5]
    watched = run(options, tmp_path / "run", *more, "--beta", beta, "--temperature", 2)
    (path,) = [options[index + 1] for index, name in enumerate(options) if name == "--dataset"]
    conversations = Dataset.from_list([json.loads(line) for line in Path(path).read_text("utf-8").splitlines()])
    student, teacher = load_model(base_folder).eval(), load_model(chat_folder).eval()
    found = []
    for row in tokenize_conversations(conversations, load_tokenizer(base_folder)):
        with torch.no_grad():
            logits = [model(torch.tensor([row["input_ids"]])).logits[0, :-1] / 2 for model in (teacher, student)]
        learned = torch.tensor(row["labels"])[1:] != -100
        found.append(divergence(*(part.log_softmax(-1)[learned] for part in logits), beta))
    assert len(found) == 5
    # The mean over all tokens of the step, however it is divided.
    assert watched.logged()[0] == pytest.approx(torch.cat(found).mean().item(), rel=1e-4)


def test_conversations_are_divided_before_the_first_learned_token() -> None:
    row = as_prompt([1, 2, 3, 4, 5, 6, 7], [-100, -100, 3, -100, -100, 6, -100])
    assert row == {"prompt_ids": [1, 2], "completion_ids": [3, 4, 5, 6], "completion_mask": [1, 0, 0, 1]}
    # An own answer is to the last message; what was said before is context.
    assert last_prompt(row) == [1, 2, 3, 4, 5]
    first = as_prompt([1, 2], [1, 2])
    assert first == {"prompt_ids": [1], "completion_ids": [2], "completion_mask": [1]}
    assert last_prompt(first) == [1]


def sampled(watched: Watched) -> Any:
    """What the trainer would learn of all rows, with own answers."""
    watched.trainer.model.train()
    torch.manual_seed(3)
    prompts, answers, *_ = watched.trainer._generate([row["prompt"] for row in watched.rows])
    return prompts, answers


def test_own_answers_are_samples_of_the_student_as_it_is(
    options: list[str], chat_folder: Path, tmp_path: Path
) -> None:
    student = Path(shutil.copytree(chat_folder, tmp_path / "student"))
    # It knows its answers by heart.
    more = ["--model_name_or_path", student, "--lmbda", 1, "--max_completion_length", 40, "--temperature", 0.01]
    watched = start(options, tmp_path / "run", *more)
    prompts, answers = sampled(watched)
    asked = encode_chat_prompt(watched.tokenizer, [{"role": "user", "content": "Who are you?"}])
    said = watched.tokenizer.decode(answers[prompts.index(asked)])
    assert said == "I am a tiny model,\nmade for a test.<|im_end|>"
    # Settings of the model's generation config are for those who chat with it.
    watched.model.generation_config.no_repeat_ngram_size = 1
    assert sampled(watched) == (prompts, answers)
    assert watched.model.generation_config.no_repeat_ngram_size == 1
    assert watched.trainer.model.training


def test_a_prompt_without_room_keeps_the_answer_of_the_data(options: list[str], tmp_path: Path) -> None:
    watched = start(options, tmp_path / "run", "--lmbda", 1, "--max_completion_length", 10)
    rows = [row["prompt"] for row in watched.rows]
    shortest = min(len(row["prompt_ids"]) for row in rows)
    watched.trainer.context = shortest + 10
    for row, answer in zip(rows, sampled(watched)[1], strict=True):
        assert (answer == row["completion_ids"]) == (len(row["prompt_ids"]) > shortest)


RESUMED = {
    "muon": ["--optim", "muon", "--gradient_accumulation_steps", "1"],
    "own answers, adapters with dropout": ["--lmbda", "0.5", "--use_peft", "true", "--lora_dropout", "0.3"],
}


@pytest.mark.parametrize("kind", RESUMED)
@pytest.mark.usefixtures("without_report")
def test_a_resumed_run_is_the_same_to_the_bit(kind: str, options: list[str], tmp_path: Path) -> None:
    more = [*RESUMED[kind], "--max_completion_length", "8"] if "own" in kind else RESUMED[kind]
    file = "adapter_model.safetensors" if "adapters" in kind else "model.safetensors"
    # Five conversations: an epoch has two steps, and the last one is left out. In the middle of an epoch, and at the end of one.
    resumed = training.check_resumed(options, tmp_path, *more, last=5, after=(3, 4), file=file)
    if kind == "muon":
        assert isinstance(resumed.trainer.optimizer.optimizer, MuonAdamW)
        changes = (
            (["--beta", "0.5"], "--beta was 0.0 and is 0.5"),
            (["--lmbda", "0.5"], "--lmbda was 0.0 and is 0.5"),
            (["--teacher_model_name_or_path", options[1]], "--teacher_model_name_or_path was"),
        )
        training.check_unchanged([*options, *more, "--max_steps", "5"], tmp_path / "part4", changes)


def test_a_student_learns_what_its_teacher_says(options: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    more = ["--optim", "adamw_torch", "--max_steps", 100, "--per_device_train_batch_size", 5]
    watched = run(options, folder, *more, "--evaluate_answers", 5, "--evaluate_base", "true")
    figures = watched.figures
    assert figures["teacher_trained_exact_match"] == figures["trained_exact_match"] == 1
    assert figures["base_trained_exact_match"] == 0
    assert watched.logged()[-1] < watched.logged()[0] / 20
    assert json.loads((folder / "results.json").read_text()) == figures
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "learned to predict what `" in card
    assert load_model(folder).config.vocab_size == load_model(options[1]).config.vocab_size


@pytest.mark.usefixtures("without_report")
def test_evaluation_is_on_the_answers_of_the_data(options: list[str], tmp_path: Path) -> None:
    more = ["--eval_dataset", options[3], "--lmbda", 1, "--max_completion_length", 4]
    watched = run(options, tmp_path / "run", *more, "--max_steps", 1)
    again = watched.trainer.evaluate()["eval_loss"]
    assert watched.figures["held_out_divergence"] == again > 0
    # TRL would write a card.
    assert not (tmp_path / "run" / "README.md").exists()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("--lmbda 1.5", "--lmbda is 1.5: give the share of answers that the student samples, from 0 to 1"),
        ("--temperature 0", "--temperature is 0.0: give a finite number above 0"),
        ("--lmbda 1 --max_completion_length 0", "--max_completion_length is 0: give 1 or more tokens"),
        ("--top_p 0.5", "--top_p does nothing here: it is for answers of the model's own: give --lmbda above 0"),
        ("--use_vllm true", "--use_vllm does nothing here: own answers are sampled with transformers"),
        ("--vllm_server_port 1", "--vllm_server_port does nothing here: vLLM is not used"),
        ("--train_sampling_strategy sequential", "--train_sampling_strategy does nothing here"),
        ("--use_peft true --disable_dropout true", "--lora_dropout 0.05 does nothing while --disable_dropout is true"),
        ("--block_size 4096", "--block_size 4096 is longer than the model's context"),
        ("--eval_strategy steps", "--eval_strategy steps needs conversations to measure on"),
    ],
)
def test_contradictions_are_refused_before_anything_is_written(
    more: str, words: str, options: list[str], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        run(options, tmp_path / "run", *more.split())
    assert not (tmp_path / "run").exists()


def test_bad_input(options: list[str], chat_folder: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    new = ["--output_dir", tmp_path / "new"]
    assert "--teacher_model_name_or_path is missing" in refused("distill", *options[:4], *new)
    assert "--model_name_or_path is missing" in refused("distill", *options[2:], *new)
    message = refused("distill", *options, *new, "--per_device_train_batch_size", 6)
    assert "chats.jsonl: the rows to train on are 5, and a step takes 6" in message
    assert "beta" in refused("distill", *options, *new, "--beta", 2)

    def teacher(name: str) -> Path:
        return Path(shutil.copytree(chat_folder, tmp_path / name))

    larger = load_model(chat_folder)
    extend_vocabulary(larger, larger.config.vocab_size + 3)
    larger.save_pretrained(teacher("larger"))
    train_tokenizer(["Other words."] * 3, 270, show_progress=False).save_pretrained(teacher("other"))
    for name in ("larger", "other"):
        message = refused("distill", *options, *new, "--teacher_model_name_or_path", tmp_path / name)
        assert f"--teacher_model_name_or_path {tmp_path / name} has another vocabulary" in message
    (teacher("plain") / "chat_template.jinja").unlink()
    message = refused("distill", *options, *new, "--teacher_model_name_or_path", tmp_path / "plain")
    assert "has no chat template, so it is a base model" in message
    template = teacher("formal") / "chat_template.jinja"
    template.write_text("{# formal #}" + template.read_text())
    message = refused("distill", *options, *new, "--teacher_model_name_or_path", tmp_path / "formal")
    assert "has another chat template than" in message
    assert not (tmp_path / "new").exists()
