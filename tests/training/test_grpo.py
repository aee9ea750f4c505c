"""Learning from rewards: TRL's mathematics on our prompts and samples; what teaches nothing has no gradient."""

import json
import logging
import re
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from trl import GRPOConfig, GRPOTrainer, RLOOConfig

from chatgpt_hf import load_model
from chatgpt_hf.chat_templates import encode_chat_prompt
from chatgpt_hf.checkpoints import extend_vocabulary
from chatgpt_hf.errors import ChatGPTError, CheckpointError, ConfigError
from chatgpt_hf.tokenization_chatgpt import IM_END, load_tokenizer
from chatgpt_hf.training import grpo as module
from chatgpt_hf.training import rollouts
from chatgpt_hf.training.grpo import LOSSES, GRPORun
from chatgpt_hf.training.grpo_arguments import GRPOArguments, PromptArguments
from chatgpt_hf.training.optim import MuonAdamW
from chatgpt_hf.training.preference_arguments import RewardModelArguments
from chatgpt_hf.training.rollouts import RLOO, part_of, plain_copy

from .watched import RESUME, Training, Watched

TYPES = (RewardModelArguments, PromptArguments, GRPOArguments)
# What the model of `chat_folder` has memorized, and what it has not.
QUESTIONS = ["Hello!", "Smile", "Count to five.", "Who are you?", "Which cat is number 1?", "What is a list?"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompts, and rewards that differ between almost any two answers."""
    folder = tmp_path_factory.mktemp("grpo")
    rows = [{"question": question, "answer": "1, 2, 3, 4, 5."} for question in QUESTIONS]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "rewards.py").write_text(
        "def text(completion):\n"
        "    return completion[0]['content']\n"
        "def varied(completions, **columns):\n"
        "    return [sum(map(ord, text(each))) % 7 / 7 for each in completions]\n"
        "def spaces(completions, **columns):\n"
        "    return [text(each).count(' ') / (1 + len(text(each))) for each in completions]\n"
        "def one(completions, **columns):\n"
        "    return [1.0] * len(completions)\n"
        "def first(prompts, completions, **columns):\n"
        "    return [1.0 if prompt != prompts[0] else value for prompt, value in zip(prompts, varied(completions))]\n"
        "def broken(completions, **columns):\n"
        "    return [float('nan')] * len(completions)\n",
        encoding="utf-8",
    )
    return folder


@pytest.fixture(scope="module")
def options(base_folder: Path, files: Path) -> list[str]:
    """Arguments of a training that takes a second, of a model whose answers all differ; tests may append arguments."""
    text = f"""--model_name_or_path {base_folder} --dataset {files}/prompts.jsonl --rewards {files}/rewards.py:varied
        --max_completion_length 8 --num_generations 4 --per_device_train_batch_size 8 --max_steps 2
        --learning_rate 1e-3 --test_fraction 0 --evaluate_prompts 0 --logging_steps 1 --save_strategy no --disable_tqdm true"""
    return text.split()


class WatchedRun(Watched, GRPORun):
    """A run in which short answers are not punished for their end."""

    def _measure(self) -> Any:
        # An answer of 8 tokens rarely has an end mark. This is called before the training, too.
        for reward in self.rewards:
            reward.ends = ()
        return super()._measure()


training = Training(TYPES, WatchedRun)
run, start = training.run, training.start


def first_batch(watched: Watched) -> dict[str, Any]:
    """The first batch of answers, with their rewards."""
    trainer = watched.trainer
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    return trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))


def gradients(watched: Watched, loss: Callable[..., torch.Tensor], inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
    model = watched.trainer.model
    model.zero_grad()
    loss(model, inputs).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def moved(model: Any) -> Any:
    """A model as it may be after work in memory: other weights and a larger vocabulary than those of its folder."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    extend_vocabulary(model, model.config.vocab_size + 3)
    return model


def test_the_losses_are_those_that_trl_lists() -> None:
    (described,) = [item.metadata["help"] for item in fields(GRPOConfig) if item.name == "loss_type"]
    assert set(re.findall(r"'(\w+)'", described.partition("Aggregates")[0])) | {RLOO} == set(LOSSES)
    # The arguments of one command are given to either trainer.
    assert {item.name for item in fields(RLOOConfig)} <= {item.name for item in fields(GRPOArguments)}


def test_rows_that_are_left_out_change_no_gradient(options: list[str], files: Path, tmp_path: Path) -> None:
    """Every loss, of a batch with a group that teaches nothing, is TRL's own without a KL term."""
    watched = start(options, tmp_path / "run", "--rewards", f"{files}/rewards.py:first")
    trainer = watched.trainer
    inputs = first_batch(watched)
    assert inputs["live"].sum() == 4
    for name in LOSSES:
        if name == RLOO:
            continue
        trainer.loss_type = name
        trainer.importance_sampling_level = "sequence" if name == "luspo" else "token"
        ours = gradients(watched, trainer.compute_loss, inputs)
        theirs = gradients(watched, lambda *given: GRPOTrainer.compute_loss(trainer, *given), inputs)
        assert max(value.abs().max() for value in ours.values()) > 1e-6
        for key, value in theirs.items():
            torch.testing.assert_close(ours[key], value, rtol=1e-4, atol=1e-7, msg=name)


@pytest.mark.parametrize("loss", ["dapo", "grpo", "bnpo", RLOO])
def test_groups_of_equal_reward_have_no_gradient_of_a_kl_term(
    loss: str, options: list[str], files: Path, tmp_path: Path
) -> None:
    watched = start(
        options, tmp_path / "run", "--loss_type", loss, "--beta", "0.5", "--rewards", f"{files}/rewards.py:first"
    )
    with torch.no_grad():
        for parameter in watched.trainer.model.parameters():
            parameter.mul_(1.1)
    inputs = first_batch(watched)
    dead = (~inputs["live"]).nonzero()[:, 0]
    assert len(dead) == 4
    assert not inputs["advantages"][dead].any()
    for rows, moves in ((dead, False), (inputs["live"].nonzero()[:, 0], True)):
        found = gradients(watched, watched.trainer.compute_loss, part_of(inputs, rows))
        assert any(value.any() for value in found.values()) == moves


def test_a_part_of_a_batch_has_only_its_own_padding() -> None:
    inputs = {
        "prompt_ids": torch.tensor([[0, 0, 5], [6, 7, 8]]),
        "prompt_mask": torch.tensor([[0, 0, 1], [1, 1, 1]]),
        "completion_ids": torch.tensor([[1, 2, 0, 0], [1, 2, 3, 4]]),
        "completion_mask": torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]]),
        "advantages": torch.tensor([1.0, 2.0]),
        "num_items_in_batch": torch.tensor(6),
    }
    part = part_of(inputs, torch.tensor([0]))
    assert {name: value.tolist() for name, value in part.items()} == {
        "prompt_ids": [[5]],
        "prompt_mask": [[1]],
        "completion_ids": [[1, 2]],
        "completion_mask": [[1, 1]],
        "advantages": [1.0],
        "num_items_in_batch": 6,
    }


@pytest.mark.parametrize(
    ("in_memory", "more"),
    [
        (True, []),
        (True, ["--use_peft", "true"]),
        (False, ["--loss_type", RLOO]),
        (False, ["--sync_ref_model", "true"]),
    ],
)
@pytest.mark.usefixtures("without_report")
def test_the_reference_is_the_model_as_it_was_handed_over(
    in_memory: bool, more: list[str], options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if in_memory:
        monkeypatch.setattr(module, "load_model", lambda *a, **k: moved(load_model(*a, **k)))
    watched = run(options, tmp_path / "run", "--beta", "0.1", *more)
    first, second = watched.logged("kl")
    assert first == pytest.approx(0, abs=1e-6)
    assert abs(second) > 1e-5
    # TRL would write a card; PEFT does.
    assert (tmp_path / "run" / "README.md").exists() == ("--use_peft" in more)


def test_what_is_sampled(options: list[str], chat_folder: Path, tmp_path: Path) -> None:
    """The prompt is what fine-tuning has seen, and the answer is not what the generation config would make of it."""
    poisoned = Path(shutil.copytree(chat_folder, tmp_path / "poisoned"))
    settings = json.loads((poisoned / "generation_config.json").read_text())
    settings |= {"repetition_penalty": 9.0, "no_repeat_ngram_size": 1, "min_new_tokens": 5}
    (poisoned / "generation_config.json").write_text(json.dumps(settings))
    found = []
    for folder in (chat_folder, poisoned):
        more = ["--model_name_or_path", folder, "--max_completion_length", 24, "--temperature", 1.5]
        watched = start(options, tmp_path / "run", *more)
        found.append(first_batch(watched))
    for name in ("prompt_ids", "completion_ids", "advantages"):
        assert torch.equal(found[0][name], found[1][name])
    tokenizer = load_tokenizer(chat_folder)
    end = tokenizer.convert_tokens_to_ids(IM_END)
    assert end in found[0]["completion_ids"]
    asked = {tuple(encode_chat_prompt(tokenizer, [{"role": "user", "content": text}])) for text in QUESTIONS}
    for row, mask in zip(found[0]["prompt_ids"], found[0]["prompt_mask"], strict=True):
        assert tuple(row[mask.bool()].tolist()) in asked
    # The copy that samples does not call the forward pass of the model that learns.
    model = watched.trainer.model
    fast = plain_copy(model)
    if fast is not model:  # this CPU has packed layers
        assert "forward" in vars(model)
        assert "forward" not in vars(fast)
    # The log-probabilities of the sampler are those that the training computes.
    samples = watched.trainer.sample([list(next(iter(asked)))] * 4)
    prompt = torch.tensor([next(iter(asked))] * 4)
    for row, sample in zip(prompt, samples, strict=True):
        ids = torch.cat([row, torch.tensor(sample.ids)])[None]
        log_probs, *_ = watched.trainer._get_per_token_logps_and_entropies(
            model, ids, torch.ones_like(ids), len(sample.ids)
        )
        torch.testing.assert_close(log_probs[0].detach(), torch.tensor(sample.log_probs), rtol=0, atol=1e-5)


@pytest.mark.usefixtures("without_report")
def test_accumulated_steps_are_those_of_the_whole_batch(options: list[str], tmp_path: Path) -> None:
    whole = run(options, tmp_path / "whole")
    parts = run(options, tmp_path / "parts", "--per_device_train_batch_size", 1, "--gradient_accumulation_steps", 8)
    assert parts.logged("reward") == whole.logged("reward")
    assert parts.logged() == pytest.approx(whole.logged(), abs=1e-5)
    assert parts.logged("grad_norm") == pytest.approx(whole.logged("grad_norm"), rel=1e-3)


RESUMED = {
    "muon": ["--optim", "muon", "--beta", "0.1"],
    "adapters": ["--use_peft", "true", "--disable_dropout", "false", "--lora_dropout", "0.3"],
    RLOO: ["--loss_type", RLOO, "--beta", "0.1"],
}


@pytest.mark.parametrize("kind", RESUMED)
@pytest.mark.usefixtures("without_report")
def test_a_resumed_run_is_the_same_to_the_bit(kind: str, options: list[str], tmp_path: Path) -> None:
    more, figures = RESUMED[kind], ("loss", "reward", "completions/mean_length")
    file = "adapter_model.safetensors" if kind == "adapters" else "model.safetensors"
    # Three steps are an epoch: the run resumes in the second one.
    resumed = training.check_resumed(options, tmp_path, *more, last=5, after=(4,), figures=figures, file=file)
    if kind == "muon":
        assert isinstance(resumed.trainer.optimizer.optimizer, MuonAdamW)
        changes = (
            (["--beta", "0.2"], "--beta was 0.1 and is 0.2"),
            (["--rewards", "exact"], "--rewards was"),
            (["--temperature", "2"], "--temperature was 1.0 and is 2.0"),
        )
        training.check_unchanged([*options, *more, "--max_steps", "5"], tmp_path / "part4", changes)


@pytest.mark.usefixtures("without_report")
def test_a_run_resumes_only_at_the_end_of_a_batch_of_answers(options: list[str], tmp_path: Path) -> None:
    more = ["--num_iterations", "2", "--save_strategy", "steps"]
    with pytest.raises(ConfigError, match=r"--save_steps 3: a batch of answers is learned in 2 steps"):
        run(options, tmp_path / "run", *more, "--save_steps", "3")
    with pytest.raises(ConfigError, match="is not a multiple of --gradient_accumulation_steps 2"):
        run(options, tmp_path / "run", "--gradient_accumulation_steps", "2", "--steps_per_generation", "3")
    assert not (tmp_path / "run").exists()
    run(options, tmp_path / "run", *more, "--save_steps", "2", "--max_steps", "1")
    # A run that was stopped between the two steps; it saves at its end.
    with pytest.raises(CheckpointError, match="was saved in the middle of a batch of answers"):
        run(options, tmp_path / "run", *more, "--save_steps", "2", *RESUME)


@pytest.mark.usefixtures("without_report")
def test_evaluation_changes_nothing_in_the_training(options: list[str], tmp_path: Path) -> None:
    more = ["--test_fraction", "0.4"]
    plain = run(options, tmp_path / "plain", *more)
    evaluated = run(
        options,
        tmp_path / "evaluated",
        *more,
        "--eval_strategy",
        "steps",
        "--eval_steps",
        "1",
        "--evaluate_prompts",
        "2",
    )
    assert evaluated.logged() == plain.logged()
    assert len(evaluated.logged("eval_reward")) == 2


def test_a_reward_is_learned_and_reported(options: list[str], files: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    more = [
        "--rewards",
        f"{files}/rewards.py:spaces",
        "--max_steps",
        "12",
        "--evaluate_prompts",
        "6",
        "--learning_rate",
        "5e-3",
    ]
    figures = run(options, folder, *more).figures
    assert figures["trained_reward"] > figures["trained_reward_before"]
    assert figures["trained_reward_gain"] == pytest.approx(
        figures["trained_reward"] - figures["trained_reward_before"]
    )
    assert figures["trained_reward_gain_low"] <= figures["trained_reward_gain"] <= figures["trained_reward_gain_high"]
    assert figures["trained_best_of_4"] >= figures["trained_reward"]
    assert 0 <= figures["trained_distinct_answers"] <= 1
    assert figures["train_groups"] == 24
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "learned from rewards (spaces) with GRPO (dapo)" in card
    assert json.loads((folder / "results.json").read_text()) == figures
    samples = (folder / "report" / "samples.md").read_text(encoding="utf-8")
    assert samples.count("(before)") == samples.count("(after)") == 4
    # An ordinary model folder.
    assert load_model(folder).config.vocab_size == load_model(options[1]).config.vocab_size


@pytest.mark.usefixtures("without_report")
def test_what_teaches_nothing_is_said(
    options: list[str],
    chat_folder: Path,
    files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(rollouts, "PATIENCE", 2)
    more = ["--model_name_or_path", chat_folder, "--rewards", f"{files}/rewards.py:one", "--evaluate_prompts", "2"]
    more += ["--max_completion_length", "24"]
    with caplog.at_level(logging.WARNING):
        watched = run(options, tmp_path / "one", *more)
    assert "Before the training, all answers get the same reward, 1" in caplog.text
    assert (
        "For 2 batches of answers in a row, all answers to a prompt got the same reward (1 on average)" in caplog.text
    )
    assert "the reward accepts everything" in caplog.text
    assert watched.figures["train_groups_of_equal_reward"] == watched.figures["train_groups"] == 4
    # Nothing was learned.
    assert watched.logged("grad_norm") == [0, 0]
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        run(
            options,
            tmp_path / "clipped",
            "--rewards",
            "exact",
            "--evaluate_prompts",
            "2",
            "--max_completion_length",
            "1",
        )
    assert "Before the training, no answer ended within --max_completion_length" in caplog.text
    assert "so nothing is learned: no answer ended within" in caplog.text


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("--loss_type ppo", "--loss_type ppo is unknown; choose from dapo, cispo"),
        ("--min_p 0.1", "--min_p does nothing here: answers are sampled as they are learned"),
        ("--repetition_penalty 1.1", "--repetition_penalty does nothing here"),
        ("--trust_remote_code true", "--trust_remote_code does nothing here"),
        ("--normalize_advantages true", "--normalize_advantages is for --loss_type rloo"),
        ("--loss_type rloo --scale_rewards none", "--scale_rewards does nothing with --loss_type rloo"),
        ("--scale_rewards all", "--scale_rewards all is unknown; choose from group, batch, none"),
        ("--beta -1", "--beta is -1.0: give 0, or how much"),
        ("--temperature 0", "--temperature is 0.0: give a number above 0"),
        ("--max_completion_length 0", "--max_completion_length is 0: give 1 or more tokens"),
        ("--max_completion_length 128", "leaves no room for a prompt in the model's context, which is 128"),
        ("--sync_ref_model true", "--sync_ref_model needs a reference in memory"),
        ("--lora_dropout 0.1", "--lora_dropout 0.1 does nothing while --disable_dropout is true"),
        ("--num_generations 1", "at least 2 generations per prompt"),
        ("--num_generations 3", "must be divisible by num_generations"),
        ("--reward_weights 1 2", "There are 1 rewards and 2 weights"),
        ("--rewards nosuch", "The reward 'nosuch' is unknown"),
        ("--eval_strategy steps", "--eval_strategy steps needs prompts to measure on"),
        ("--evaluate_prompts -1", "--evaluate_prompts is -1"),
    ],
)
def test_contradictions_are_refused_before_anything_is_written(
    more: str, words: str, options: list[str], tmp_path: Path
) -> None:
    with pytest.raises(ChatGPTError, match=re.escape(words)):
        run(options, tmp_path / "run", *more.split())
    assert not (tmp_path / "run").exists()


def test_bad_input(
    options: list[str], files: Path, chat_folder: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    new = ["--output_dir", tmp_path / "new"]
    assert "--rewards is missing" in refused("grpo", *options[:4], *new)
    assert "--dataset is missing" in refused("grpo", *options[:2], *options[4:], *new)
    assert "--model_name_or_path is missing" in refused("grpo", *options[2:], *new)

    def with_rows(*rows: dict[str, Any], more: tuple[object, ...] = ()) -> str:
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return refused("grpo", *options, "--dataset", file, *more, *new)

    two = {"question": "1+1=", "answer": "2"}
    assert "rows.jsonl: the prompts to train on are 1, and 2 are answered at a time" in with_rows(two)
    message = with_rows({"question": "1+1="}, two, more=("--rewards", "exact"))
    assert "Row 1 of" in message
    assert "cannot be used by the reward exact: its answer is None" in message
    message = with_rows({"question": "1+1=", "gold": "2"}, more=("--rewards", "exact"))
    assert "The reward exact reads the column 'answer', which row 1 of" in message
    assert "its columns are prompt, gold." in message
    assert "it has no question" in with_rows({"answer": "2"})
    assert "it has no column 'ask'; it has question, answer" in with_rows(two, more=("--prompt_column", "ask"))
    assert "none of the 1 prompts leaves room for --max_completion_length 8" in with_rows({"question": "why? " * 200})
    # Found before the training, when the model answers some prompts.
    message = refused("grpo", *options, "--rewards", f"{files}/rewards.py:broken", "--evaluate_prompts", "1", *new)
    assert "The reward broken returned nan: return a finite number for each answer" in message
    endless = Path(shutil.copytree(chat_folder, tmp_path / "endless"))
    template = "{% for m in messages %}{{ m.role }}: {% generation %}{{ m.content }}.{% endgeneration %}\n{% endfor %}"
    (endless / "chat_template.jinja").write_text(template)
    message = refused("grpo", *options, "--model_name_or_path", endless, *new)
    assert "The model has no end mark: its chat template ends answers with" in message
    plain = Path(shutil.copytree(chat_folder, tmp_path / "plain"))
    (plain / "chat_template.jinja").unlink()
    assert "so it is a base model" in refused("grpo", *options, "--model_name_or_path", plain, *new)
    assert not (tmp_path / "new").exists()
