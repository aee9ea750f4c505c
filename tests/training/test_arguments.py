"""Recipes: valid content, and error messages for everything else."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate import PartialState

from chatgpt_hf import ChatGPTConfig
from chatgpt_hf.errors import ConfigError
from chatgpt_hf.training.arguments import (
    ArchitectureArguments,
    ChatModelArguments,
    ConversationDataArguments,
    PretrainArguments,
    parse_recipe,
)
from chatgpt_hf.training.distill_arguments import DistillArguments
from chatgpt_hf.training.grpo_arguments import GRPOArguments, PromptArguments
from chatgpt_hf.training.preference_arguments import (
    DPOArguments,
    PreferenceArguments,
    PreferenceModelArguments,
    RewardArguments,
    RewardModelArguments,
)
from chatgpt_hf.training.recipe import find_recipe, recipes_folder, resolve_recipe
from chatgpt_hf.training.scaling import dial

from .trainings import FINETUNE, PRETRAIN, SFT

# By the beginning of a recipe's name; those with a task are of `finetune`, the others of `pretrain`.
BY_NAME = {
    "sft": SFT,
    "honest": SFT,
    "dpo": (PreferenceModelArguments, PreferenceArguments, DPOArguments),
    "reward": (RewardModelArguments, PreferenceArguments, RewardArguments),
    "distill": (ChatModelArguments, ConversationDataArguments, DistillArguments),
    "grpo": (RewardModelArguments, PromptArguments, GRPOArguments),
}
SHIPPED = sorted(path.stem for path in recipes_folder().glob("*.yaml"))


def write(folder: Path, text: str) -> Path:
    file = folder / "recipe.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def values(group: Any) -> dict[str, Any]:
    return {item.name: getattr(group, item.name) for item in dataclasses.fields(group)}


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipes_parse(name: str) -> None:
    content = yaml.safe_load(find_recipe(name).read_text())
    types = FINETUNE if "task" in content else BY_NAME.get(name.partition("-")[0], PRETRAIN)
    for reference in (name, f"{name}.yaml", recipes_folder() / f"{name}.yaml"):
        parsed = parse_recipe(types, reference, [])
        merged = {field: value for group in parsed for field, value in values(group).items()}
        if isinstance(content.get("corpus"), str):
            content["corpus"] = [content["corpus"]]
        for field, value in content.items():
            assert merged[field] in (value, [value]) or json.loads(merged[field]) == value


def test_the_command_line_wins(tmp_path: Path) -> None:
    recipe = write(tmp_path, "hidden_size: 32\nlearning_rate: 1e-3\nblock_size: 64\n")
    _, architecture, corpus, arguments = parse_recipe(PRETRAIN, recipe, ["--hidden_size", "48", "--qk_norm", "false"])
    assert (architecture.hidden_size, architecture.qk_norm, architecture.num_hidden_layers) == (48, False, None)
    assert (corpus.block_size, corpus.corpus) == (64, ["builtin:python-docs"])
    # YAML reads 1e-3 as a string.
    assert arguments.learning_rate == 1e-3


def test_every_field_of_the_architecture_can_be_set() -> None:
    own = {item.name for item in dataclasses.fields(ArchitectureArguments)}
    inherited = {item.name for item in dataclasses.fields(ChatGPTConfig.__mro__[1])}
    missing = {item.name for item in dataclasses.fields(ChatGPTConfig)} - inherited - own
    ids = {"vocab_size", "bos_token_id", "eos_token_id", "pad_token_id"}
    assert missing <= ids | {"use_cache", "classifier_pooling"}
    assert values(ArchitectureArguments()) == dict.fromkeys(own)


@pytest.mark.parametrize("types", [PRETRAIN, SFT])
def test_a_resolved_recipe_gives_the_same_arguments(types: tuple[type, ...], tmp_path: Path) -> None:
    options = [
        "--block_size",
        "64",
        "--learning_rate",
        "3e-4",
        "--lr_scheduler_type",
        "cosine",
        "--warmup_steps",
        "5",
        "--seed",
        "7",
        "--max_steps",
        "9",
        "--save_strategy",
        "steps",
        "--save_steps",
        "3",
        "--per_device_train_batch_size",
        "3",
    ]
    options += ["--output_dir", str(tmp_path)]
    if types is PRETRAIN:
        options += ["--layer_types", "full_attention", "full_attention", "--rope_parameters", '{"rope_theta": 5.0}']
    parsed = parse_recipe(types, None, options)
    resolved = resolve_recipe(*parsed)
    recipe = write(tmp_path, yaml.safe_dump(resolved))
    again = parse_recipe(types, recipe, [])
    assert resolve_recipe(*again) == resolved
    for group, other in zip(parsed, again, strict=True):
        assert values(group).keys() == values(other).keys()
        for name, value in values(group).items():
            if isinstance(value, (str, int, float, bool, list, type(None))):
                assert getattr(other, name) == value, name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", r"(?s)recipe.yaml is not YAML: .*line 1"),
        ("- 1\n- 2\n", r"recipe.yaml must hold `field: value` lines"),
        ("", r"recipe.yaml must hold `field: value` lines"),
        ("hidden_sise: 32", r"recipe.yaml sets the unknown field 'hidden_sise'. Did you mean --hidden_size\?"),
        ("lerning_rate: 1", r"unknown field 'lerning_rate'. Did you mean --learning_rate\?"),
        ("zzz: 1", r"unknown field 'zzz'\.$"),
        ("1: 1", r"unknown field 1\.$"),
        ("hidden_size: wide", r"recipe.yaml: hidden_size: invalid int value: 'wide'\.$"),
        ("hidden_size: 32.5", r"recipe.yaml: hidden_size: invalid int value: '32.5'\.$"),
        ("block_size: 64.0", r"recipe.yaml: block_size: invalid int value: '64.0'\.$"),
        ("learning_rate: [1, 2]", r"recipe.yaml: learning_rate: invalid float value: '\[1, 2\]'\.$"),
        (f"learning_rate: {10**400}", r"recipe.yaml: --learning_rate is 10+: give a finite number"),
        ("max_steps: true", r"recipe.yaml: max_steps: invalid int value: 'True'\.$"),
        (
            "position_embedding_type: relative",
            r"recipe.yaml: position_embedding_type: invalid choice: 'relative' \(choose from '?rope'?, '?learned'?, '?sinusoidal'?\)",
        ),
        ("qk_norm: perhaps", r"recipe.yaml: qk_norm: Truthy value expected: got perhaps"),
        (
            "lr_scheduler_type: sinus",
            r"recipe.yaml: lr_scheduler_type: invalid choice: 'sinus' \(choose from '?linear'?, '?cosine'?",
        ),
        ("eval_strategy: steps\nload_best_model_at_end: true\nsave_strategy: epoch", r"recipe.yaml: "),
        ("env: 3", r"recipe.yaml: .*env"),
    ],
)
def test_recipes_that_cannot_be_used(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_recipe(PRETRAIN, write(tmp_path, text), [])


def test_a_recipe_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"recipe\.yaml is not YAML"):
        parse_recipe(PRETRAIN, tmp_path / "recipe.yaml", [])


@pytest.mark.parametrize("name", ["pretrain-quickstrat", "runs/mine.yaml", "."])
def test_unknown_recipes_list_the_known(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"There is no recipe {name}: .*pretrain-quickstart.*sft-quickstart"):
        parse_recipe(PRETRAIN, name, [])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--hiden_size", "32"], r"Unknown argument --hiden_size. Did you mean --hidden_size\?"),
        (["--zzz", "32"], r"Unknown argument --zzz\.$"),
        (["extra"], r"Unknown argument extra"),
        (["--config", "x.yaml"], r"Unknown argument --config: name the recipe itself"),
        (["--learning_rate", "fast"], r"learning.rate: invalid float value: 'fast'"),
        (["--learning_rate"], r"learning.rate: expected one argument"),
        (["--qk_norm", "perhaps"], r"(?s)qk_norm|perhaps"),
        (["--norm_type", "batchnorm"], r"norm_type.*'batchnorm'.*rmsnorm"),
        (["--optim", "adamm"], r"adamm"),
        (["--warmup_steps", "-5"], r"warmup_steps"),
        (["--load_best_model_at_end", "true", "--eval_strategy", "epoch"], r"The command line: .*strategy"),
    ],
)
def test_arguments_that_cannot_be_used(options: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_recipe(PRETRAIN, None, options)


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("corpus: a.txt", [], ["a.txt"]),
        ("corpus: [a.txt, b/]", [], ["a.txt", "b/"]),
        ("corpus: [{source: a.txt, weight: 2}, b/]", [], [{"source": "a.txt", "weight": 2}, "b/"]),
        ("corpus: {source: a.txt, weight: 2}", [], [{"source": "a.txt", "weight": 2}]),
        (
            "corpus: a.txt",
            ["--corpus", "c", '{"source": "d", "weight": 0.5}'],
            ["c", '{"source": "d", "weight": 0.5}'],
        ),
        ("block_size: 32", [], ["builtin:python-docs"]),
    ],
)
def test_one_source_or_several(text: str, options: list[str], expected: list[Any], tmp_path: Path) -> None:
    parsed = parse_recipe(PRETRAIN, write(tmp_path, text), options)
    assert parsed[2].corpus == expected
    resolved = write(tmp_path, yaml.safe_dump(resolve_recipe(*parsed)))
    assert parse_recipe(PRETRAIN, resolved)[2].corpus == expected


@pytest.mark.parametrize(
    ("types", "options", "learning_rate"),
    [
        (PRETRAIN, [], 0.005),
        (PRETRAIN, ["--optim", "adamw_torch"], 1e-3),
        (PRETRAIN, ["--optim", "adamw_torch", "--learning_rate", "0.02"], 0.02),
        (PRETRAIN, ["--learning_rate", "0"], 0),
        (SFT, [], 0.01),
        (SFT, ["--optim", "adamw_torch_fused"], 2e-5),
    ],
)
def test_the_learning_rate_suits_the_optimizer(
    types: tuple[type, ...], options: list[str], learning_rate: float, tmp_path: Path
) -> None:
    parsed = parse_recipe(types, None, options)
    assert parsed[-1].learning_rate == learning_rate
    resolved = write(tmp_path, yaml.safe_dump(resolve_recipe(*parsed)) if options else "seed: 42\n")
    assert parse_recipe(types, resolved)[-1].learning_rate == learning_rate


def test_resolving_leaves_the_devices_as_they_are_set_up(tmp_path: Path) -> None:
    """`TrainingArguments` sets the devices for the whole process; the last instance wins."""
    arguments = PretrainArguments(output_dir=str(tmp_path), use_cpu=True)
    before = dict(PartialState._shared_state)
    assert resolve_recipe(arguments)["use_cpu"] is True
    assert PartialState._shared_state == before


def test_muon_without_a_recipe() -> None:
    *_, arguments = parse_recipe(PRETRAIN, None, ["--embedding_learning_rate", "0.005", "--muon_momentum", "0.9"])
    assert (arguments.lr_scheduler_type, arguments.max_grad_norm) == ("warmup_stable_decay", 1.0)
    assert arguments.get_warmup_steps(500) == 20
    assert not arguments.logging_nan_inf_filter
    _, kwargs = arguments.optimizer_cls_and_kwargs
    assert kwargs == {
        "lr": 0.005,
        "embedding_lr": 0.005,
        "momentum": 0.9,
        "betas": (0.9, 0.95),
        "eps": 1e-8,
        "weight_decay": 0.1,
    }
    with pytest.raises(ConfigError, match="--embedding_learning_rate is for --optim muon and --optim is adamw_torch"):
        parse_recipe(PRETRAIN, None, ["--embedding_learning_rate", "0.005", "--optim", "adamw_torch"])


def merged(*parsed: Any) -> dict[str, Any]:
    return {field: value for group in parsed for field, value in values(group).items()}


def test_the_dial_sets_what_is_not_set_by_hand(tmp_path: Path) -> None:
    dialed = dial(3, block_size=64, learning_rate=0.5)
    recipe = write(tmp_path, "depth: 3\nlearning_rate: 5e-1\nblock_size: 999\n")
    parsed = merged(*parse_recipe(PRETRAIN, recipe, ["--block-size=64"]))
    assert {name: parsed[name] for name in dialed} == dialed
    assert (parsed["depth"], parsed["block_size"], parsed["learning_rate"]) == (3, 64, 0.5)
    assert merged(*parse_recipe(PRETRAIN, recipe, ["--depth", "2"]))["num_hidden_layers"] == 2
    assert merged(*parse_recipe(PRETRAIN, recipe, ["--hidden_size", "256"]))["hidden_size"] == 256


def test_the_dial_is_for_new_models_of_pretraining(tmp_path: Path) -> None:
    recipe = write(tmp_path, "depth: 3\nmodel_name_or_path: base\n")
    assert merged(*parse_recipe(PRETRAIN, recipe))["hidden_size"] is None
    with pytest.raises(ConfigError, match="--depth sizes a new model"):
        parse_recipe(SFT, recipe)


def test_the_dial_reads_the_size_of_the_tokenizer(base_folder: Path) -> None:
    parsed = merged(*parse_recipe(PRETRAIN, None, ["--depth", "2", "--tokenizer", str(base_folder)]))
    assert parsed["learning_rate"] == dial(2, vocab_size=300)["learning_rate"]
