"""Samples during training: they change nothing, are not duplicated by resuming, and cannot control the terminal."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    default_data_collator,
)

from chatgpt_hf import ChatGPTConfig, ChatGPTForCausalLM
from chatgpt_hf.errors import ConfigError
from chatgpt_hf.reporting.report import read_samples
from chatgpt_hf.tokenization_chatgpt import load_tokenizer
from chatgpt_hf.training.samples import SampleText, sample_text, separate_randomness

PROMPTS = ["", "A cat number 1 sits in"]


def small_model(**changes: Any) -> ChatGPTForCausalLM:
    torch.manual_seed(0)
    values = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return ChatGPTForCausalLM(ChatGPTConfig(**{**values, "max_position_embeddings": 64, **changes}))


def rows() -> list[dict[str, torch.Tensor]]:
    ids = torch.randint(4, 300, (16, 24), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": row, "labels": row} for row in ids]


def train(
    folder: Path, callbacks: list[TrainerCallback], *, model: Any = None, resume: str | None = None, **changes: Any
) -> Trainer:
    values: dict[str, Any] = {
        "max_steps": 6,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_strategy": "steps",
        "save_steps": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "disable_tqdm": True,
        "report_to": "none",
        "use_cpu": True,
    }
    trainer = Trainer(
        model=model or small_model(residual_dropout=0.2, attention_dropout=0.2),
        args=TrainingArguments(str(folder), **{**values, **changes}),
        train_dataset=rows(),
        eval_dataset=rows()[:4],
        data_collator=default_data_collator,
        callbacks=callbacks,
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def test_training_is_the_same_to_the_bit(base_folder: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(base_folder)
    without = train(tmp_path / "without", [])
    with_samples = train(tmp_path / "with", [SampleText(tokenizer, PROMPTS, max_new_tokens=8)])
    assert len(read_samples(tmp_path / "with")) == 6
    assert all(
        torch.equal(weight, with_samples.model.state_dict()[name])
        for name, weight in without.model.state_dict().items()
    )


def test_what_is_written(base_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path, [SampleText(load_tokenizer(base_folder), PROMPTS, max_new_tokens=8)], disable_tqdm=False)
    history = read_samples(tmp_path)
    assert [row["step"] for row in history] == [2, 2, 4, 4, 6, 6]
    assert [row["prompt"] for row in history] == PROMPTS * 3
    assert all(row["text"].startswith(row["prompt"]) for row in history)
    assert len({row["text"] for row in history}) > 2, "the texts change with the weights"
    printed = capsys.readouterr().out
    assert all(f"[step {step}] A cat number 1 sits in" in printed for step in (2, 4, 6))


def test_a_resumed_run_has_each_sample_once(base_folder: Path, tmp_path: Path) -> None:
    """The run is killed after step 5, when the samples of step 4 exist, and resumes from step 2."""
    tokenizer = load_tokenizer(base_folder)
    train(tmp_path / "whole", [SampleText(tokenizer, PROMPTS, max_new_tokens=8)])
    train(tmp_path / "cut", [SampleText(tokenizer, PROMPTS, max_new_tokens=8)])
    resumed = str(tmp_path / "cut" / "checkpoint-2")
    train(tmp_path / "cut", [SampleText(tokenizer, PROMPTS, max_new_tokens=8)], resume=resumed)
    assert read_samples(tmp_path / "cut") == read_samples(tmp_path / "whole")


def test_samples_beyond_the_checkpoint_go_at_once(base_folder: Path, tmp_path: Path) -> None:
    callback = SampleText(load_tokenizer(base_folder), PROMPTS, max_new_tokens=8)
    train(tmp_path, [callback])
    resumed = str(tmp_path / "checkpoint-2")
    train(tmp_path, [callback], resume=resumed, eval_strategy="no")
    assert {row["step"] for row in read_samples(tmp_path)} == {2}


def test_several_held_out_sets_give_one_sample_a_step(base_folder: Path, tmp_path: Path) -> None:
    callback = SampleText(load_tokenizer(base_folder), [""], max_new_tokens=4)
    trainer = train(tmp_path, [callback], max_steps=2, save_strategy="no")
    trainer.eval_dataset = {"one": rows()[:2], "two": rows()[2:4]}
    trainer.state.global_step = 3
    trainer.evaluate()
    assert [row["step"] for row in read_samples(tmp_path)] == [2, 3]


@pytest.mark.parametrize("mode", [True, False])
def test_mode_and_random_state_are_left_alone(mode: bool, base_folder: Path) -> None:
    model = small_model(residual_dropout=0.5).train(mode)
    state = torch.get_rng_state()
    first = sample_text(model, load_tokenizer(base_folder), ["", ""], max_new_tokens=16)
    assert model.training is mode
    assert torch.equal(torch.get_rng_state(), state)
    assert first[0] != first[1], "one seed, and yet two draws"
    assert sample_text(model, load_tokenizer(base_folder), ["", ""], max_new_tokens=16) == first


def test_a_diverged_model_speaks_too(base_folder: Path) -> None:
    """Sampling must not decide whether the run continues."""
    model = small_model()
    model.lm_head.weight.data.fill_(float("nan"))
    assert sample_text(model, load_tokenizer(base_folder), ["A cat"], max_new_tokens=4)[0].startswith("A cat")


def test_the_random_state_survives_an_error() -> None:
    state = torch.get_rng_state()
    with pytest.raises(RuntimeError), separate_randomness(torch.device("cpu"), 3):
        torch.rand(1) @ torch.rand(2)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("positions", ["rope", "learned"])
def test_the_context_is_the_limit(positions: str, base_folder: Path) -> None:
    model = small_model(position_embedding_type=positions, max_position_embeddings=12)
    tokenizer = load_tokenizer(base_folder)
    assert sample_text(model, tokenizer, ["A cat"], max_new_tokens=100)[0].startswith("A cat")
    with pytest.raises(ConfigError, match=r"takes \d+ tokens, but the model's context is 12"):
        sample_text(model, tokenizer, ["A cat number 1 sits in the garden by the river"])


def test_the_terminal_is_not_steered(
    base_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chatgpt_hf.training.samples.sample_text", lambda *_, **__: ["\x1b[2Jred\nnext\r你好"])
    train(tmp_path, [SampleText(load_tokenizer(base_folder), [""])], max_steps=2, save_strategy="no")
    assert "[step 2] ␛[2Jred\nnext␍你好\n" in capsys.readouterr().out
    assert read_samples(tmp_path)[0]["text"] == "\x1b[2Jred\nnext\r你好", "the file has it as it was"


def test_only_the_first_process_writes(base_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The others generate too, because a sharded model needs all processes."""
    model = small_model()
    forward_calls: list[int] = []
    model.register_forward_hook(lambda *_: forward_calls.append(1))
    callback = SampleText(load_tokenizer(base_folder), PROMPTS, max_new_tokens=4)
    state = TrainerState(global_step=3, is_world_process_zero=False)
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    callback.on_train_begin(arguments, state, TrainerControl(), model=model)
    callback.on_evaluate(arguments, state, TrainerControl(), model=model)
    assert forward_calls
    assert not (tmp_path / "report").exists()
    assert "step 3" not in capsys.readouterr().out
