"""`PretrainTrainer`: exact resuming of a stream, and speed in the logs."""

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch.utils.data import IterableDataset
from transformers import TrainerCallback, TrainingArguments, default_data_collator

from chatgpt_hf import ChatGPTConfig, ChatGPTForCausalLM
from chatgpt_hf.errors import CheckpointError
from chatgpt_hf.training.optim import hidden_matrices
from chatgpt_hf.training.run_folder import read_data_state
from chatgpt_hf.training.trainer import PretrainTrainer, Stopwatch

VOCAB, BLOCK = 32, 8


class Counting(IterableDataset):
    """Rows that depend on how many came before: a minimal `StreamingRows`."""

    def __init__(self) -> None:
        self.next = 0

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        while True:
            self.next += 1
            ids = (torch.arange(BLOCK) * self.next) % VOCAB
            yield {"input_ids": ids, "labels": ids}

    def state_dict(self) -> dict[str, int]:
        return {"next": self.next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.next = state["next"]


def rows() -> Dataset:
    ids = [[(start + step) % VOCAB for step in range(BLOCK)] for start in range(64)]
    return Dataset.from_dict({"input_ids": ids, "labels": ids})


def trainer(folder: Path, data: Any, *callbacks: TrainerCallback, **changes: Any) -> PretrainTrainer:
    torch.manual_seed(0)
    config = ChatGPTConfig(
        vocab_size=VOCAB, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, residual_dropout=0.1
    )
    own = {name: changes.pop(name) for name in ("eval_bytes_per_token", "flops_per_token") if name in changes}
    settings: dict[str, Any] = {
        "max_steps": 8,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2,
        "save_steps": 3,
        "logging_steps": 1,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
    }
    return PretrainTrainer(
        ChatGPTForCausalLM(config),
        TrainingArguments(str(folder), **{**settings, **changes}),
        train_dataset=data,
        eval_dataset=rows().select(range(8)),
        data_collator=default_data_collator,
        callbacks=list(callbacks),
        **own,
    )


class Killed(BaseException):
    """Stands for the death of the process in the middle of a run."""


class KillAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step + 1 == self.step:
            raise Killed


def watch(run: PretrainTrainer) -> list[torch.Tensor]:
    seen: list[torch.Tensor] = []
    step = run.training_step

    def watched(model: Any, inputs: dict[str, torch.Tensor], *args: Any) -> torch.Tensor:
        seen.append(inputs["input_ids"].clone())
        return step(model, inputs, *args)

    run.training_step = watched  # type: ignore[method-assign]
    return seen


@pytest.mark.parametrize("eval_strategy", ["no", "steps"])
def test_a_stream_goes_on_with_the_batches_that_come_next(eval_strategy: str, tmp_path: Path) -> None:
    settings = {"eval_strategy": eval_strategy, "eval_steps": 2}
    whole = trainer(tmp_path / "whole", Counting(), **settings)
    expected = watch(whole)
    whole.train()
    with pytest.raises(Killed):
        trainer(tmp_path / "cut", Counting(), KillAt(5), **settings).train()
    resumed = trainer(tmp_path / "cut", Counting(), **settings)
    seen = watch(resumed)
    resumed.train(resume_from_checkpoint=True)
    assert len(expected) == 16
    assert all(torch.equal(a, b) for a, b in zip(seen, expected[6:], strict=True))
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name
    epochs = [entry["epoch"] for entry in resumed.state.log_history if "loss" in entry]
    assert epochs == [step / 8 for step in range(1, 9)]


def test_where_the_stream_was_stands_in_the_checkpoint(tmp_path: Path) -> None:
    trainer(tmp_path, Counting()).train()
    checkpoint = tmp_path / "checkpoint-3"
    text = (checkpoint / "data_state_0.json").read_text()
    assert json.loads(text)["processes"] == 1
    assert read_data_state(checkpoint, rank=0, processes=1)
    with pytest.raises(CheckpointError, match=r"was written by 1 processes that shared a stream.* start 1"):
        read_data_state(checkpoint, rank=0, processes=2)
    (checkpoint / "data_state_0.json").write_text(text[:-5])
    with pytest.raises(CheckpointError, match=r"data_state_0.json cannot be read .*Use an earlier checkpoint"):
        trainer(tmp_path, Counting()).train(resume_from_checkpoint=str(checkpoint))
    (checkpoint / "data_state_0.json").unlink()
    with pytest.raises(CheckpointError, match=r"data_state_0.json cannot be read"):
        trainer(tmp_path, Counting()).train(resume_from_checkpoint=str(checkpoint))


def test_true_is_the_newest_checkpoint_that_is_whole(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="contains no complete checkpoint to resume from"):
        trainer(tmp_path, Counting()).train(resume_from_checkpoint=True)
    trainer(tmp_path, Counting()).train()
    (tmp_path / "checkpoint-8" / "trainer_state.json").unlink()
    run = trainer(tmp_path, Counting())
    seen = watch(run)
    run.train(resume_from_checkpoint=True)
    assert len(seen) == 4


def test_an_old_checkpoint_is_not_whole_while_it_is_written_over(tmp_path: Path) -> None:
    trainer(tmp_path, rows()).train()
    run = trainer(tmp_path, rows())

    def die(output_dir: str) -> None:
        raise Killed

    run._save_optimizer_and_scheduler = die  # type: ignore[method-assign]
    with pytest.raises(Killed):
        run.train()
    assert not (tmp_path / "checkpoint-3" / "trainer_state.json").exists()


class Clock:
    """Replaces the trainer's clock; advances only when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(sys.modules[Stopwatch.__module__], "time", clock)
    return clock


def test_the_speed_is_that_of_this_process_and_of_training_alone(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Take(TrainerCallback):
        """Takes 0.25 seconds in every training step, and 100 in every evaluation step."""

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            clock.now += 0.25

        def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            clock.now += 100

    save = torch.save

    def slow_save(*args: Any, **kwargs: Any) -> None:
        clock.now += 100
        save(*args, **kwargs)

    monkeypatch.setattr(torch, "save", slow_save)
    settings: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": 2, "per_device_eval_batch_size": 8}
    run = trainer(tmp_path, rows(), Take(), flops_per_token=1e6, **settings)
    began = clock.now
    output = run.train()
    # Four evaluations and three checkpoints took long.
    assert clock.now - began > 1000
    logs = [entry for entry in run.state.log_history if "loss" in entry]
    tokens = 4 * 2 * BLOCK
    assert [entry["tokens_per_second"] for entry in logs] == pytest.approx([tokens / 0.25] * 8)
    assert output.metrics["train_tokens_per_second"] == pytest.approx(tokens / 0.25)
    shares = [entry["mfu"] / entry["tokens_per_second"] for entry in logs]
    assert shares == pytest.approx([shares[0]] * 8)
    assert 0 < output.metrics["train_mfu"] < 1

    resumed = trainer(tmp_path, rows(), Take(), max_steps=10, **settings)
    output = resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    assert resumed._tokens == 2 * tokens


def test_the_measurement_of_the_peak_leaves_the_random_numbers_alone(tmp_path: Path) -> None:
    plain = trainer(tmp_path / "a", rows())
    plain.train()
    measured = trainer(tmp_path / "b", rows(), flops_per_token=1e6)
    measured.train()
    for name, weight in plain.model.state_dict().items():
        assert torch.equal(weight, measured.model.state_dict()[name]), name


def test_what_is_said_of_held_out_text(tmp_path: Path) -> None:
    run = trainer(tmp_path, rows(), eval_bytes_per_token=2.5)
    metrics = run.evaluate()
    assert metrics["eval_perplexity"] == pytest.approx(math.exp(metrics["eval_loss"]))
    assert metrics["eval_bits_per_byte"] == pytest.approx(metrics["eval_loss"] / math.log(2) / 2.5)
    assert run.state.log_history[-1]["eval_bits_per_byte"] == metrics["eval_bits_per_byte"]
    assert "eval_bits_per_byte" not in trainer(tmp_path, rows()).evaluate()
    run.log({"eval_loss": 1e4})


@pytest.mark.parametrize("norm_type", ["rmsnorm", "layernorm"])
def test_only_matrices_inside_the_layers_decay(norm_type: str, tmp_path: Path) -> None:
    """Also with torch's AdamW, as `Trainer` creates it."""
    run = trainer(tmp_path, rows(), weight_decay=0.5)
    shape: dict[str, Any] = {"vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    run.model = ChatGPTForCausalLM(
        ChatGPTConfig(**shape, norm_type=norm_type, tie_word_embeddings=False, position_embedding_type="learned")
    )
    optimizer = run.create_optimizer()
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in run.model.named_parameters():
        inside = name.startswith("model.layers.") and parameter.ndim == 2
        assert decays[id(parameter)] == (0.5 if inside else 0), name
        assert (name in hidden_matrices(run.model)) == inside


@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        (None, [0, 0.5, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]),
        ({"num_decay_steps": 2}, [0, 0.5, 1, 1, 1, 1, 1, 1, 1, 0.5]),
        ({"decay_type": "1-sqrt"}, [0, 0.5, 1, 1, 1, 1, 1, 0.5, 1 - 0.5**0.5, 1 - 0.75**0.5]),
    ],
)
def test_warmup_stable_decay_needs_no_number(
    kwargs: dict[str, Any] | None, expected: list[float], tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": kwargs}
    run = trainer(tmp_path, rows(), learning_rate=1.0, warmup_steps=2, **settings)
    schedule = run.create_scheduler(10, run.create_optimizer())
    assert [schedule.lr_lambdas[0](step) for step in range(10)] == pytest.approx(expected)
    assert schedule.lr_lambdas[0](10) == 0


def test_a_stopwatch_leaves_out_what_it_was_stopped_for(clock: Clock) -> None:
    watch = Stopwatch()
    with watch.stopped():
        clock.now += 2
    assert watch.seconds == 0
    watch.start()
    with watch.stopped():
        clock.now += 20
    watch.start()
    clock.now += 3
    assert watch.seconds == 3
