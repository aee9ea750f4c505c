"""Fields out of their range: every training refuses them by name, before it reads or loads anything."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from chatgpt_hf.errors import CheckpointError, ConfigError
from chatgpt_hf.training import ranges
from chatgpt_hf.training.adapters import check_target_modules
from chatgpt_hf.training.arguments import (
    ChatModelArguments,
    ChatSFTArguments,
    ConversationArguments,
    PretrainArguments,
    TaskModelArguments,
    parse_recipe,
)
from chatgpt_hf.training.distill_arguments import DistillArguments
from chatgpt_hf.training.grpo_arguments import GRPOArguments
from chatgpt_hf.training.preference_arguments import DPOArguments, RewardArguments, RewardModelArguments
from chatgpt_hf.training.sft import SFTRun

from .trainings import COMMANDS, PRETRAIN

TRAININGS = (
    *(types[-1] for types, _ in COMMANDS.values()),
    *(DPOArguments, RewardArguments, GRPOArguments, DistillArguments),
)
# Values out of range, and values at its ends.
FIELDS = {
    "per_device_train_batch_size": ("0 -8", "1"),
    "per_device_eval_batch_size": ("0 -1", "1"),
    "gradient_accumulation_steps": ("0 -1", "1"),
    "eval_accumulation_steps": ("0", "1"),
    "save_total_limit": ("0 -1", "1"),
    "max_steps": ("0 -5", "1 -1"),
    "num_train_epochs": ("0 -0.0 -1 nan inf", "0.1"),
    "learning_rate": ("-0.1 nan inf -inf", "0 -0.0"),
    "embedding_learning_rate": ("-1 nan inf", "0"),
    "weight_decay": ("-0.1 nan inf", "0 -0.0"),
    "adam_epsilon": ("-1 nan", "0"),
    "adam_beta1": ("-0.1 1 nan", "0"),
    "adam_beta2": ("-0.1 1 nan", "0"),
    "muon_momentum": ("-0.1 1 nan inf", "0"),
    "max_grad_norm": ("-1 nan inf", "0"),
    "label_smoothing_factor": ("-0.1 1.1 nan", "0 1"),
    "warmup_steps": ("-1 1.5 nan inf", "0 -0.0 0.5 1 3"),
    "logging_steps": ("0 -0.0 -1 1.5 nan inf", "0.5 1"),
    "save_steps": ("0 -1 2.5 nan inf", "0.5 1"),
    "eval_steps": ("0 -1 2.5 nan inf", "0.5 1"),
    "dataloader_num_workers": ("-1", "0"),
    "seed": ("-1 4294967296", "0 4294967295"),
    "fsdp_replicas": ("0 -2", "1"),
}
ADAPTERS = {
    "lora_r": ("0 -3", "1"),
    "lora_alpha": ("0 -1", "1"),
    "lora_dropout": ("-0.1 1 1.5 nan inf", "0 -0.0 0.99"),
}


def test_the_table_tests_what_it_can() -> None:
    ranged = {name for item in (*ranges.RANGES, ranges.EPOCHS) for name in item.names}
    assert ranged - set(FIELDS) == {"eval_delay", "neftune_noise_alpha", "dataloader_prefetch_factor", "data_seed"}
    assert {name for item in ranges.ADAPTERS for name in item.names} == set(ADAPTERS)


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_of_every_training(field: str) -> None:
    wrong, right = (values.split() for values in FIELDS[field])
    for value in wrong:
        with pytest.raises(ConfigError, match=rf"^The command line: --{field} is \S+: give .*\.$"):
            parse_recipe((ChatSFTArguments,), None, [f"--{field}={value}", "--use_cpu", "true"])
    for value in right:
        (parsed,) = parse_recipe((ChatSFTArguments,), None, [f"--{field}={value}", "--use_cpu", "true"])
        assert getattr(parsed, field) == float(value)


@pytest.mark.parametrize("training", TRAININGS, ids=lambda kind: kind.__name__)
def test_every_training_checks_them(training: Any) -> None:
    for name, value in (("max_steps", 0), ("per_device_eval_batch_size", 0), ("num_train_epochs", 0.0)):
        with pytest.raises(ValueError, match=f"--{name} is"):
            training(**{name: value}, use_cpu=True)


@pytest.mark.parametrize("field", ADAPTERS)
@pytest.mark.parametrize("kind", [ChatModelArguments, RewardModelArguments, TaskModelArguments])
def test_adapters(kind: type, field: str) -> None:
    wrong, right = (values.split() for values in ADAPTERS[field])
    for value in wrong:
        with pytest.raises(ConfigError, match=rf"^The command line: --{field} is \S+: give "):
            parse_recipe((kind,), None, [f"--{field}={value}"])
    for value in right:
        (parsed,) = parse_recipe((kind,), None, [f"--{field}={value}"])
        assert getattr(parsed, field) == float(value)


def test_steps_decide_over_epochs() -> None:
    assert PretrainArguments(max_steps=3, num_train_epochs=0, use_cpu=True).max_steps == 3


def test_the_dial_computes_with_numbers_in_range(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("depth: 2\nper_device_train_batch_size: 0\n")
    with pytest.raises(ConfigError, match=r"recipe\.yaml: --per_device_train_batch_size is 0: give a whole number"):
        parse_recipe(PRETRAIN, tmp_path / "recipe.yaml", [])
    assert parse_recipe(PRETRAIN, None, ["--depth", "2", "--learning_rate", "0"])[-1].weight_decay == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--fp16 true", "--fp16 needs an accelerator, and this is a CPU: give --bf16 true, or leave it out"),
        ("--fsdp full_shard", "--fsdp shares a model among several processes, and this is a single one"),
        ("--deepspeed x.json", "--deepspeed needs the package deepspeed, which is not installed: pip install"),
    ],
)
def test_what_this_process_cannot_do(options: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "is_deepspeed_available", lambda: False)
    with pytest.raises(ConfigError, match=words):
        parse_recipe((ChatSFTArguments,), None, [*options.split(), "--use_cpu", "true"])


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "--optim muon needs them whole: give --optim adamw_torch"),
        ({"PARALLELISM_CONFIG_CP_SIZE": "2"}, r"Context parallelism \(cp_size\) drops the attention mask, so packed"),
        ({"PARALLELISM_CONFIG_SP_SIZE": "2"}, r"Sequence parallelism \(sp_size\) drops"),
        ({"PARALLELISM_CONFIG_TP_SIZE": "2"}, r"tensor parallelism \(tp_size\) does not share"),
    ],
)
def test_engines_that_would_compute_something_else(
    environment: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--optim", "muon", "--use_cpu", "true"]
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if "ACCELERATE_USE_DEEPSPEED" not in environment:
        parse_recipe((ChatSFTArguments,), None, options)
        monkeypatch.setenv("ACCELERATE_USE_PARALLELISM_CONFIG", "true")
    with pytest.raises(ConfigError, match=words):
        parse_recipe((ChatSFTArguments,), None, options)


def test_muon_is_refused_with_a_deepspeed_config(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "is_deepspeed_available", lambda: True)
    options = ["--deepspeed", "x.json", "--use_cpu", "true"]
    with pytest.raises(ConfigError, match="DeepSpeed flattens matrices"):
        parse_recipe((ChatSFTArguments,), None, [*options, "--optim", "muon"])


@pytest.mark.parametrize("folder", ["base_folder", "llama_folder"])
def test_layers_that_get_adapters(folder: str, request: pytest.FixtureRequest) -> None:
    config = AutoConfig.from_pretrained(request.getfixturevalue(folder))
    check_target_modules(["q_proj", "layers.0.self_attn.v_proj"] if folder == "llama_folder" else ["lm_head"], config)
    # PEFT takes the first and says nothing about the others.
    for name in ("foo", "proj", "model"):
        with pytest.raises(
            ConfigError, match=rf"--lora_target_modules {name} names no layer of the model: choose .*, or"
        ):
            check_target_modules(["lm_head", name], config)


def _check(base: Path | str, out: Path, dataset: str = "missing.jsonl", **options: Any) -> None:
    model = ChatModelArguments(model_name_or_path=str(base), **options)
    arguments = ChatSFTArguments(output_dir=str(out), max_steps=1, use_cpu=True)
    SFTRun(model, ConversationArguments(dataset=dataset, block_size=100_000), arguments).check()


def test_the_config_refuses_before_the_data_is_read(
    base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="--block_size 100000 is longer than the model's context"):
        _check(base_folder, tmp_path / "new")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"^--model_name_or_path nowhere: there is no such folder here, and"):
        _check("nowhere", tmp_path / "new")
    assert not list(tmp_path.iterdir())
