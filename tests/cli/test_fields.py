"""The fields that the command line reads from source files are those of the imported classes, and so are its messages."""

import dataclasses
import enum
from pathlib import Path
from typing import Any

import pytest

import chatgpt_hf_cli
from chatgpt_hf.errors import ConfigError
from chatgpt_hf.training.recipe import RecipeParser, parse_recipe
from chatgpt_hf_cli import evaluate, fields
from chatgpt_hf_cli.errors import UsageMistake

TYPES = {
    name: getattr(chatgpt_hf_cli, name).TYPES
    for name in ("prepare", "pretrain", "sft", "dpo", "reward", "grpo", "distill", "finetune", "plan")
}
TYPES["evaluate"] = evaluate.TASK


def plain(value: Any) -> Any:
    """A default as it is compared: those of `Enum` types by their values, those made by a call by what it makes."""
    return value.value if isinstance(value, enum.Enum) else value


@pytest.mark.parametrize("command", TYPES)
def test_the_fields_are_those_of_the_classes(command: str) -> None:
    for read, real in zip(fields.read_types(TYPES[command]), fields.imported_types(TYPES[command]), strict=True):
        assert read is not real
        assert read.__name__ == real.__name__
        ours, theirs = dataclasses.fields(read), dataclasses.fields(real)
        assert [item.name for item in ours] == [item.name for item in theirs]
        for mine, other in zip(ours, theirs, strict=True):
            assert mine.metadata["help"] == other.metadata["help"], other.name
            assert plain(mine.default) == plain(other.default), other.name
            assert (mine.default_factory is dataclasses.MISSING) == (other.default_factory is dataclasses.MISSING)
            if other.default_factory is not dataclasses.MISSING:
                assert mine.default_factory() == other.default_factory()
            assert mine.init == other.init
            assert fields.default_of(mine) == fields.default_of(other)


@pytest.mark.parametrize("command", TYPES)
def test_the_parsers_take_the_same(command: str) -> None:
    light = fields.light_parser(TYPES[command])
    real = RecipeParser(fields.imported_types(TYPES[command]))
    assert list(light.fields) == list(real.fields)
    assert light.options == real.options
    unread = set()
    for name, action in real.fields.items():
        mine = light.fields[name]
        assert (mine.nargs, mine.const, mine.option_strings) == (action.nargs, action.const, action.option_strings), (
            name
        )
        assert getattr(mine.type, "__name__", None) == getattr(action.type, "__name__", None), name
        if mine.choices is None and action.choices is not None:
            unread.add(name)
        else:
            assert (mine.choices is None) == (action.choices is None), name
            assert list(map(str, mine.choices or ())) == list(map(str, action.choices or ())), name
    # Made by a function of transformers: left to the library's parser.
    assert unread <= {"log_level", "log_level_replica"}


INPUTS = [
    ("pretrain", "", []),
    ("pretrain", "learning_rate: 1e-3\nlogging_first_step: true\nhidden_size: 64", []),
    ("pretrain", "corpus: {source: a.txt, weight: 2}", ["--corpus", "b", "c"]),
    ("pretrain", "rope_parameters: {rope_theta: 5}\nlr_scheduler_kwargs: {a: 1}", []),
    ("pretrain", "ngram_vocab_sizes: [100, 200]\nlayer_types: [a, b]", []),
    ("pretrain", "ngram_vocab_sizes: [100, x]", []),
    ("pretrain", "hidden_size: {a: 1}", []),
    ("pretrain", "resume_from_checkpoint: null\ntokenizer: null", []),
    ("pretrain", "max_steps: -1\nrun_name: ''", ["--hidden-size", "32", "--qk_norm=false"]),
    ("pretrain", None, ["--norm_type", "batchnorm"]),
    ("pretrain", None, ["--eval_strategy", "never"]),
    ("pretrain", None, ["--hidden_size", "none"]),
    ("pretrain", None, ["--hiden_size=3"]),
    ("pretrain", None, ["--learning_rate"]),
    ("pretrain", None, ["stray"]),
    ("pretrain", None, ["--config=x.yaml"]),
    ("pretrain", "env: {A: b}", []),
    ("pretrain", "env: 3", []),
    ("pretrain", "- 1", []),
    ("pretrain", "a: [1", []),
    ("pretrain", "1: 1", []),
    ("sft", "bf16: maybe", []),
    ("sft", "packing: 'yes'\nmax_length: none", []),
    ("sft", "long_conversations: fold", []),
    ("sft", "report_to: [none]\ndataset: [a, {source: b}]", []),
    ("sft", "learning_rate: fast", []),
    ("sft", "load_in_4bit: 2", ["--no_skip_memory_metrics"]),
    ("dpo", "loss_type: ipo\nloss_weights: [1]\ndataset: {source: b}", []),
    ("dpo", "beta: much", ["--use_peft"]),
    ("distill", "lmbda: some", ["--repetition_penalty", "1.1"]),
    ("grpo", "rewards: [exact, {name: length, most: 64}]\nreward_weights: [1, 0.1]\nreward_clip_range: [0, 1]", []),
    ("grpo", "num_generations: several", []),
    ("finetune", "task: guess", []),
    ("finetune", "label_map: {PER: person}\nlabel_names: [a, b]", ["--dataset", "a", "b"]),
    ("finetune", None, ["--no_baseline", "--class_weights"]),
    ("plan", None, ["--mfu", "half"]),
    ("plan", None, ["--json", "perhaps"]),
    ("evaluate", None, ["--taks", "x"]),
    ("evaluate", None, ["--label_column", "x"]),
]


def outcome(check: Any, recipe: Path | None, arguments: list[str], error: type[Exception]) -> str | None:
    try:
        check(recipe, arguments)
    except error as mistake:
        return str(mistake)
    return None


@pytest.mark.parametrize(("command", "text", "arguments"), INPUTS)
def test_the_messages_are_the_same(command: str, text: str | None, arguments: list[str], tmp_path: Path) -> None:
    recipe = None if text is None else tmp_path / "recipe.yaml"
    if recipe is not None:
        # An empty file is not a recipe.
        recipe.write_text(text or "seed: 1")
    types = TYPES[command]
    kinds = fields.imported_types(types)
    light = outcome(lambda *given: fields.check_recipe(types, *given), recipe, arguments, UsageMistake)
    real = outcome(lambda *given: parse_recipe(kinds, *given), recipe, arguments, ConfigError)
    assert light == real


def test_what_only_the_library_finds(tmp_path: Path) -> None:
    """Contradictions between fields, and what a class itself refuses, are not the light check's."""
    arguments = ["--load_best_model_at_end", "true", "--eval_strategy", "epoch"]
    fields.check_recipe(TYPES["pretrain"], None, arguments)
    with pytest.raises(ConfigError, match="strategy"):
        parse_recipe(fields.imported_types(TYPES["pretrain"]), None, arguments)
