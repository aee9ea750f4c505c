"""Every kind of run: the content of its folder, and that a stopped and resumed run ends like an uninterrupted one."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer

from chatgpt_hf import pretrain, sft
from chatgpt_hf.data.corpus import load_corpus, split_by_hash
from chatgpt_hf.errors import ChatGPTError, CheckpointError, ConfigError, DataError, OutputError, TrainingDiverged
from chatgpt_hf.training.arguments import (
    ArchitectureArguments,
    ChatModelArguments,
    ChatSFTArguments,
    ConversationArguments,
    CorpusArguments,
    ModelArguments,
    PretrainArguments,
    parse_recipe,
)
from chatgpt_hf.training.run_folder import last_whole_checkpoint

PRETRAIN_TYPES = (ModelArguments, ArchitectureArguments, CorpusArguments, PretrainArguments)
SFT_TYPES = (ChatModelArguments, ConversationArguments, ChatSFTArguments)
Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run_pretrain(pretrain_options: list[str]) -> Run:
    return lambda folder, *more: pretrain(
        *parse_recipe(PRETRAIN_TYPES, None, [*pretrain_options, "--output_dir", str(folder), *map(str, more)])
    )


@pytest.fixture
def run_sft(sft_options: list[str]) -> Run:
    return lambda folder, *more: sft(
        *parse_recipe(SFT_TYPES, None, [*sft_options, "--output_dir", str(folder), *map(str, more)])
    )


class Killed(BaseException):
    """Stands for the death of the process in the middle of a step."""


@pytest.fixture
def kill_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes `Trainer` die in the second batch of an optimizer step; 0 turns this off."""
    step = Trainer.training_step

    def arm(number: int) -> None:
        seen = 0

        def dying(self: Trainer, *args: Any, **kwargs: Any) -> torch.Tensor:
            nonlocal seen
            seen += self.state.global_step == number - 1
            if seen == 2:
                raise Killed
            return step(self, *args, **kwargs)

        monkeypatch.setattr(Trainer, "training_step", dying)

    return arm


def history(checkpoint: Path) -> list[dict[str, float]]:
    """The log up to a checkpoint, without times, and without TRL's token count, which restarts with each process."""
    logged = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    left_out = ("runtime", "per_second", "mfu", "num_tokens")
    return [{k: v for k, v in entry.items() if not any(word in k for word in left_out)} for entry in logged]


def assert_same_weights(folder: Path, other: Path) -> None:
    weights, others = (load_file(path / "model.safetensors") for path in (folder, other))
    assert weights.keys() == others.keys()
    assert all(torch.equal(weight, others[name]) for name, weight in weights.items())


CHECKPOINTS = ["--max_steps", "12", "--save_strategy", "steps", "--save_steps", "4"]
# Dropout draws random numbers in every step, evaluations come in between, and a step takes two batches.
HARD_TO_RESUME = {
    "pretrain": [
        "--residual_dropout",
        "0.2",
        "--gradient_accumulation_steps",
        "2",
        "--eval_strategy",
        "steps",
        "--eval_steps",
        "3",
    ],
    "sft": ["--gradient_accumulation_steps", "2"],
}


@pytest.mark.parametrize("optim", ["muon", "adamw_torch"])
@pytest.mark.parametrize("kind", ["pretrain", "sft"])
def test_a_stopped_run_ends_as_one_that_was_not(
    kind: str, optim: str, run_pretrain: Run, run_sft: Run, kill_at: Callable[[int], None], tmp_path: Path
) -> None:
    run = {"pretrain": run_pretrain, "sft": run_sft}[kind]
    options = [*CHECKPOINTS, *HARD_TO_RESUME[kind], "--optim", optim]
    expected = run(tmp_path / "whole", *options)

    kill_at(11)
    with pytest.raises(Killed):
        run(tmp_path / "stopped", *options)
    assert not (tmp_path / "stopped" / "model.safetensors").exists()
    assert last_whole_checkpoint(tmp_path / "stopped") == tmp_path / "stopped" / "checkpoint-8"
    kill_at(0)
    figures = run(tmp_path / "stopped", *options, "--resume_from_checkpoint", "true")

    logged, again = (history(tmp_path / name / "checkpoint-12") for name in ("whole", "stopped"))
    assert [entry["step"] for entry in logged if "loss" in entry] == list(range(1, 13))
    assert again == logged
    assert_same_weights(tmp_path / "stopped", tmp_path / "whole")
    # transformers averages it only over the steps of this process, so it does not describe the whole run.
    assert set(expected) - set(figures) == {"train_loss"}
    clock = {"train_runtime", "train_mfu", *(f"train_{unit}_per_second" for unit in ("samples", "steps", "tokens"))}
    for name in set(figures) - clock:
        assert figures[name] == expected[name], name


def test_a_run_resumes_from_the_checkpoint_that_is_named(run_pretrain: Run, tmp_path: Path) -> None:
    run_pretrain(tmp_path / "whole", *CHECKPOINTS)
    middle = tmp_path / "whole" / "checkpoint-4"
    run_pretrain(tmp_path / "branch", *CHECKPOINTS, "--resume_from_checkpoint", middle)
    assert_same_weights(tmp_path / "branch", tmp_path / "whole")
    assert not (tmp_path / "branch" / "checkpoint-4").exists()


@pytest.mark.parametrize("kind", ["pretrain", "sft"])
def test_a_run_leaves_a_plain_model_folder(kind: str, run_pretrain: Run, run_sft: Run, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run = {"pretrain": run_pretrain, "sft": run_sft}[kind]
    figures = run(folder, "--save_strategy", "steps", "--save_steps", "2", "--save_total_limit", "1")
    names = {path.name for path in folder.iterdir()}
    assert names >= {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "README.md"}
    assert names >= {"recipe.yaml", "results.json", "report", "chat_template.jinja"}
    assert {name for name in names if name.startswith("checkpoint-")} == {"checkpoint-4"}
    assert not any(name.startswith(".") for name in names)
    assert {path.name for path in (folder / "report").iterdir()} >= {
        "report.md",
        "report.json",
        "loss.png",
        "samples.md",
    }
    assert json.loads((folder / "results.json").read_text()) == figures

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.config.vocab_size == len(tokenizer)
    ends = model.generation_config.eos_token_id
    end_of_turn = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert ends == ([end_of_turn, tokenizer.eos_token_id] if kind == "sft" else tokenizer.eos_token_id)
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id
    assert_same_weights(folder, folder / "checkpoint-4")


def test_the_recipe_gives_the_same_run_again(run_pretrain: Run, tmp_path: Path) -> None:
    run_pretrain(tmp_path / "run", "--rope_parameters", '{"rope_type": "default", "rope_theta": 500.0}')
    recipe = tmp_path / "run" / "recipe.yaml"
    assert yaml.safe_load(recipe.read_text())["hidden_size"] == 16
    pretrain(*parse_recipe(PRETRAIN_TYPES, recipe, ["--output_dir", str(tmp_path / "again")]))
    assert_same_weights(tmp_path / "again", tmp_path / "run")
    assert yaml.safe_load((tmp_path / "again" / "recipe.yaml").read_text()) == {
        **yaml.safe_load(recipe.read_text()),
        "output_dir": str(tmp_path / "again"),
    }


def test_the_figures_of_pretraining(run_pretrain: Run, corpus_file: Path, tmp_path: Path) -> None:
    options = ["--eval_strategy", "steps", "--eval_steps", "4", "--save_strategy", "steps", "--save_steps", "4"]
    figures = run_pretrain(tmp_path / "run", *options)
    assert figures["parameters"] == AutoModelForCausalLM.from_pretrained(tmp_path / "run").num_parameters()
    assert 0.9 < figures["share_of_positions_used"] <= 1
    held_out = split_by_hash(load_corpus(str(corpus_file))["train"])["test"]["text"]
    nats = figures["held_out_bits_per_byte"] * math.log(2) * sum(len(text.encode()) for text in held_out)
    assert figures["held_out_perplexity"] == pytest.approx(math.exp(nats / figures["held_out_tokens"]))
    evaluated = [entry for entry in history(tmp_path / "run" / "checkpoint-4") if "eval_loss" in entry]
    # Packed rows may start in the middle of a document, so this figure is close to the exact one but not equal.
    assert evaluated[-1]["eval_bits_per_byte"] == pytest.approx(figures["held_out_bits_per_byte"], rel=0.05)


# Errors before anything is written


@pytest.fixture
def stopped(run_pretrain: Run, kill_at: Callable[[int], None], tmp_path: Path) -> Path:
    """A run that was stopped after its first checkpoint."""
    folder = tmp_path / "stopped"
    kill_at(6)
    with pytest.raises(Killed):
        run_pretrain(folder, *CHECKPOINTS, "--gradient_accumulation_steps", "2")
    kill_at(0)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ([], OutputError, "already contains a run. Add --resume"),
        (["--resume_from_checkpoint", "false"], OutputError, "already contains a run"),
        (["--resume_from_checkpoint", "{folder}"], CheckpointError, "is not a complete checkpoint"),
        (
            ["--resume_from_checkpoint", "{folder}/checkpoint-5"],
            CheckpointError,
            "checkpoint-5 is not a complete checkpoint",
        ),
        (["--resume_from_checkpoint", "{folder}/report"], CheckpointError, "report is not a complete checkpoint"),
        (
            ["--resume_from_checkpoint", "true", "--hidden_size", "32"],
            CheckpointError,
            "checkpoint-4 does not belong to this run",
        ),
        (
            ["--resume_from_checkpoint", "true", "--num_hidden_layers", "2"],
            CheckpointError,
            "checkpoint-4 does not belong to this run",
        ),
        (["--resume_from_checkpoint", "true", "--corpus", "no/such.txt"], DataError, "no/such.txt"),
        (
            ["--resume_from_checkpoint", "true", "--block_size", "16", "--max_position_embeddings", "32"],
            CheckpointError,
            r"other data: --block_size was 32 and is 16\. Resume with the original data",
        ),
        (["--resume_from_checkpoint", "true", "--seed", "1"], CheckpointError, "other data: --seed was 42 and is 1"),
        (
            ["--resume_from_checkpoint", "true", "--optim", "adamw_torch"],
            CheckpointError,
            "checkpoint-4 was written with --optim muon, whose state --optim adamw_torch cannot use",
        ),
        (["--resume_from_checkpoint", "true", "--hidden_act", "magic"], ConfigError, "hidden_act"),
    ],
)
def test_a_stopped_run_stays_as_it_was(
    options: list[str], error: type[Exception], message: str, run_pretrain: Run, stopped: Path
) -> None:
    half = shutil.copytree(stopped / "checkpoint-4", stopped / "checkpoint-5")
    (half / "trainer_state.json").unlink()
    before = contents(stopped)
    with pytest.raises(error, match=message):
        run_pretrain(stopped, *CHECKPOINTS, *[option.format(folder=stopped) for option in options])
    assert contents(stopped) == before


@pytest.mark.parametrize("resume", ["true", "{folder}/checkpoint-4"])
@pytest.mark.parametrize(
    ("options", "differing"),
    [
        (["--tokenizer", "{base}"], "the tokenizer was [0-9a-f]{{32}} and is [0-9a-f]{{32}}"),
        (["--corpus", "{other}", "--tokenizer", "{folder}/checkpoint-4"], "the corpus was [0-9a-f]{{32}} and is"),
        (["--test_fraction", "0.2", "--tokenizer", "{folder}/checkpoint-4"], "the corpus was [0-9a-f]{{32}} and is"),
    ],
)
def test_other_rows_are_refused(
    resume: str,
    options: list[str],
    differing: str,
    run_pretrain: Run,
    stopped: Path,
    base_folder: Path,
    corpus_file: Path,
    tmp_path: Path,
) -> None:
    """Also when resuming from another run's checkpoint: the record of its rows is next to it."""
    other = tmp_path / "other.jsonl"
    other.write_text(corpus_file.read_text().replace("cat", "dog"))
    before = contents(stopped)
    words = {"folder": stopped, "base": base_folder, "other": other}
    given = [option.format(**words) for option in [*options, "--resume_from_checkpoint", resume]]
    output = stopped if resume == "true" else tmp_path / "new"
    with pytest.raises(CheckpointError, match=f"checkpoint-4 was trained on other data: {differing.format()}"):
        run_pretrain(output, *CHECKPOINTS, *given)
    assert contents(stopped) == before
    assert not (tmp_path / "new").exists()


def test_a_run_that_is_finished_takes_no_further_step(run_pretrain: Run, tmp_path: Path) -> None:
    """The run was killed after its last checkpoint and before its model was written."""
    options = [*CHECKPOINTS, "--lr_scheduler_type", "constant"]
    run_pretrain(tmp_path / "whole", *options)
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    for name in ("model.safetensors", "results.json"):
        (tmp_path / "killed" / name).unlink()
    figures = run_pretrain(tmp_path / "killed", *options, "--resume_from_checkpoint", "true")
    assert_same_weights(tmp_path / "killed", tmp_path / "whole")
    assert not (tmp_path / "killed" / "checkpoint-13").exists()
    assert figures["held_out_tokens"] > 0


def test_a_learning_rate_that_diverges_at_once(run_pretrain: Run, tmp_path: Path) -> None:
    options = ["--max_steps", "100", "--learning_rate", "1e4", "--save_strategy", "steps", "--save_steps", "1"]
    with pytest.raises(TrainingDiverged, match=r"diverged at step .*--learning_rate is 10000"):
        run_pretrain(tmp_path / "run", *options)
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert not (tmp_path / "run" / "results.json").exists()
    newest = last_whole_checkpoint(tmp_path / "run")
    assert newest is not None
    assert all(weight.isfinite().all() for weight in load_file(newest / "model.safetensors").values())


def test_what_a_killed_process_was_writing_is_cleared_away(run_pretrain: Run, tmp_path: Path) -> None:
    (tmp_path / "run" / ".saving-abc").mkdir(parents=True)
    run_pretrain(tmp_path / "run", "--resume_from_checkpoint", "true")
    assert not list((tmp_path / "run").glob(".saving-*"))


def test_the_sources_are_in_the_results_and_the_data_beside_the_checkpoints(run_pretrain: Run, tmp_path: Path) -> None:
    figures = run_pretrain(tmp_path / "run")
    (source,) = figures["sources"]
    assert source["tokens"] == figures["train_tokens"]
    assert source["bytes_per_token"] == source["bytes"] / source["tokens"]
    record = json.loads((tmp_path / "run" / "data.json").read_text())
    assert (record["block_size"], record["seed"], record["stream"]) == (32, 42, None)
    assert record["sources"] == figures["sources"]


def test_a_new_run_that_cannot_start_leaves_nothing(
    run_pretrain: Run, run_sft: Run, pretrain_options: list[str], chats_file: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    for options in (["--corpus", "no/such.txt"], ["--vocab_size", "100"], ["--num_attention_heads", "3"]):
        with pytest.raises(ChatGPTError):
            run_pretrain(folder, *options)
    for options in (
        ["--dataset", "no/such.jsonl"],
        ["--model_name_or_path", "no/such/model"],
        ["--block_size", "129"],
    ):
        with pytest.raises(ChatGPTError):
            run_sft(folder, *options)
    assert not folder.exists()
