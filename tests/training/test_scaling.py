"""Compares the counts with torch's, and the dial with its formulas and its reference recipe."""

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from chatgpt_hf import ChatGPTConfig, ChatGPTForCausalLM
from chatgpt_hf.errors import ConfigError
from chatgpt_hf.training import scaling
from chatgpt_hf.training.arguments import (
    ArchitectureArguments,
    CorpusArguments,
    ModelArguments,
    PretrainArguments,
    parse_recipe,
)
from chatgpt_hf.training.optim import MuonFactory
from chatgpt_hf.training.recipe import recipes_folder

PRETRAIN = (ModelArguments, ArchitectureArguments, CorpusArguments, PretrainArguments)


def small_config(**changes: Any) -> ChatGPTConfig:
    shape = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    return ChatGPTConfig(**{**shape, "max_position_embeddings": 64, **changes})


@pytest.mark.parametrize(
    "changes",
    [{}, {"tie_word_embeddings": False}, {"gated_mlp": True, "num_key_value_heads": 2}, {"attention_bias": True}],
    ids=str,
)
def test_parameters_are_counted_exactly(changes: dict[str, Any]) -> None:
    config = small_config(**changes)
    model = ChatGPTForCausalLM(config)
    counts = scaling.count_parameters(config)
    assert counts.total == model.num_parameters()
    heads = 1 if config.tie_word_embeddings else 2
    assert counts.non_embedding == counts.total - heads * 97 * 32
    layers = sum(p.numel() for name, p in model.named_parameters() if "layers" in name and p.ndim == 2)
    assert counts.matrices == layers + 97 * 32


@pytest.mark.parametrize(
    "changes", [{}, {"tie_word_embeddings": False}, {"gated_mlp": True, "num_key_value_heads": 2}]
)
def test_flops_are_those_that_torch_counts(changes: dict[str, Any]) -> None:
    config = small_config(attn_implementation="eager", **changes)
    model = ChatGPTForCausalLM(config).train()
    ids = torch.randint(97, (3, 48))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids).loss.backward()
    assert scaling.flops_per_token(config, 48) * ids.numel() == counter.get_total_flops()


def test_a_sliding_layer_counts_its_window() -> None:
    full = scaling.flops_per_token(small_config(), 64)
    sliding = scaling.flops_per_token(small_config(sliding_window=16), 64)
    assert full - sliding == 12 * 2 * 32 * (64 - 16)


def test_activations_are_what_autograd_keeps() -> None:
    config = small_config(embedding_dropout=0.1)
    model = ChatGPTForCausalLM(config).train()
    kept = {}

    def remember(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        hidden = model.model(input_ids=torch.zeros(3, 48, dtype=torch.long)).last_hidden_state
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    expected = sum(t.untyped_storage().nbytes() for pointer, t in kept.items() if pointer not in weights)
    assert hidden.requires_grad
    assert scaling.activation_bytes(config, 3, 48) == expected


@pytest.mark.parametrize("optim", ["muon", "adamw_torch"])
def test_optimizer_state_is_what_the_optimizer_keeps(optim: str) -> None:
    config = small_config()
    model = ChatGPTForCausalLM(config).train()
    factory: Any = MuonFactory() if optim == "muon" else lambda model, lr: torch.optim.AdamW(model.parameters(), lr=lr)
    optimizer = factory(model, lr=0.01)
    ids = torch.randint(97, (1, 8))
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    kept = sum(t.nbytes for state in optimizer.state.values() for t in state.values() if t.ndim)
    memory = scaling.memory_bytes(config, 1, 8, optim)
    assert memory.optimizer == kept
    assert memory.weights == memory.gradients == 4 * model.num_parameters()


STEP = r"""
import json, re, sys, torch
from pathlib import Path
from chatgpt_hf import ChatGPTConfig, ChatGPTForCausalLM
from chatgpt_hf.training.optim import MuonFactory
from chatgpt_hf.training.recipe import recipes_folder
def held(name):  # Unlike ru_maxrss, VmHWM leaves out the process that started this one.
    return int(re.search(name + r":\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
def step(config):
    model = ChatGPTForCausalLM(config).train()
    optimizer = MuonFactory()(model, lr=0.01)
    ids = torch.randint(config.vocab_size, (8, 256))
    for _ in range(2):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
step(ChatGPTConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=1))
before = held("VmRSS")
step(ChatGPTConfig(**json.loads(sys.argv[1])))
print(held("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_memory_is_near_what_a_step_takes() -> None:
    shape = {"vocab_size": 16384, "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}
    # Each thread has its own buffers, and a machine with more cores has more threads.
    command, environment = [sys.executable, "-c", STEP, json.dumps(shape)], {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    estimate = scaling.memory_bytes(ChatGPTConfig(**shape), 8, 256).total
    assert estimate == pytest.approx(int(run.stdout), rel=0.3)


def reference() -> dict[str, Any]:
    return yaml.safe_load((recipes_folder() / "pretrain-quickstart.yaml").read_text(encoding="utf-8"))


def test_the_dial_goes_through_the_reference_recipe() -> None:
    recipe = reference()
    shape = {name: recipe[name] for name in ("hidden_size", "num_attention_heads", "block_size", "vocab_size")}
    batch = recipe["per_device_train_batch_size"] * recipe["block_size"]
    dialed = scaling.dial(recipe["num_hidden_layers"], max_steps=recipe["max_steps"], **shape)
    assert dialed["per_device_train_batch_size"] * dialed["gradient_accumulation_steps"] * 256 == batch
    assert dialed["learning_rate"] == pytest.approx(recipe["learning_rate"], rel=0.01)
    # Bergsma et al.'s original fit, not the one through the reference.
    assert 1 < dialed["weight_decay"] / recipe["weight_decay"] < 2.5
    assert scaling.dial(4, hidden_size=192)["vocab_size"] == recipe["vocab_size"]


def test_the_shape_is_that_of_from_depth() -> None:
    for depth in (1, 4, 12):
        dialed = scaling.dial(depth)
        config = ChatGPTConfig.from_depth(depth)
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads"):
            assert dialed[name] == getattr(config, name)


def test_the_dial_rises_with_depth() -> None:
    dialed = [scaling.dial(depth) for depth in (1, 2, 4, 8, 12, 20)]
    for small, large in pairwise(dialed):
        assert large["block_size"] >= small["block_size"]
        assert large["vocab_size"] > small["vocab_size"]
        # The rows of a step are rounded to a power of two, and the learning rate compensates for the rounding.
        assert large["learning_rate"] / batch_factor(large) < small["learning_rate"] / batch_factor(small)
        assert tokens(large) > tokens(small)
        assert step_tokens(large) >= step_tokens(small)
    for recipe in dialed:
        config = scaling.model_config(recipe)
        ratio = tokens(recipe) / scaling.count_parameters(config).matrices
        assert ratio == pytest.approx(scaling.TOKENS_PER_PARAMETER, rel=0.01)


def batch_factor(recipe: dict[str, Any]) -> float:
    """The factor in the learning rate for the difference between the recipe's batch and the rule's."""
    return (step_tokens(recipe) / scaling.best_batch(tokens(recipe))) ** 0.5


def step_tokens(recipe: dict[str, Any]) -> int:
    return recipe["per_device_train_batch_size"] * recipe["gradient_accumulation_steps"] * recipe["block_size"]


def tokens(recipe: dict[str, Any]) -> int:
    return step_tokens(recipe) * recipe["max_steps"]


def test_what_is_set_by_hand_wins_and_the_rest_follows() -> None:
    free = scaling.dial(3)
    by_hand = {"vocab_size": 300, "block_size": 100, "per_device_train_batch_size": 3, "weight_decay": 0.0}
    dialed = scaling.dial(3, **by_hand)
    assert not set(by_hand) & set(dialed)
    assert dialed["max_steps"] * 3 * dialed["gradient_accumulation_steps"] * 100 < tokens(free), "fewer parameters"

    quadrupled = scaling.dial(3, per_device_train_batch_size=8, gradient_accumulation_steps=step_tokens(free) // 512)
    assert quadrupled["max_steps"] == pytest.approx(free["max_steps"] / 4, abs=1)
    assert quadrupled["learning_rate"] == pytest.approx(2 * free["learning_rate"], rel=0.06)

    shorter = scaling.dial(3, max_steps=free["max_steps"] // 10)
    assert "max_steps" not in shorter
    shorter_batch, free_batch = (
        batch_factor({**free, **shorter, "max_steps": free["max_steps"] // 10}),
        batch_factor(free),
    )
    assert shorter["learning_rate"] / shorter_batch > free["learning_rate"] / free_batch
    assert step_tokens({**free, **shorter}) < step_tokens(free)
    assert "max_steps" not in scaling.dial(3, num_train_epochs=2)
    assert scaling.dial(3, learning_rate=0.001)["weight_decay"] > free["weight_decay"]
    assert scaling.dial(3, optim="adamw_torch")["learning_rate"] < free["learning_rate"]


def test_processes_share_the_step() -> None:
    alone, four = scaling.dial(6), scaling.dial(6, world_size=4)
    assert step_tokens(alone) == 4 * step_tokens(four)
    assert alone["max_steps"] == four["max_steps"]


@pytest.mark.parametrize(
    ("depth", "by_hand", "message"),
    [
        (0, {}, "--depth must be at least 1, got 0"),
        (-3, {}, "--depth must be at least 1"),
        (2, {"hidden_size": 100}, "give --num_attention_heads too"),
        (2, {"hidden_act": "none"}, "No model has this shape"),
    ],
)
def test_impossible_dials_are_refused(depth: int, by_hand: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        scaling.dial(depth, **by_hand)


def test_a_recipe_with_a_depth_is_filled_in(tmp_path: Path) -> None:
    recipe = tmp_path / "deep.yaml"
    recipe.write_text("depth: 2\nblock_size: 512\n")
    model, shape, corpus, training = parse_recipe(PRETRAIN, recipe, ["--max-steps=50"])
    dialed = scaling.dial(2, block_size=512, max_steps=50)
    assert model.depth == 2
    assert (shape.hidden_size, corpus.block_size, training.max_steps) == (128, 512, 50)
    assert corpus.vocab_size == dialed["vocab_size"]
    assert training.learning_rate == dialed["learning_rate"]
    assert training.weight_decay == dialed["weight_decay"]
    # The recipe's 512 counts as set by hand, although it is also the default.
    assert parse_recipe(PRETRAIN, None, ["--depth", "2"])[2].block_size == 256


def test_a_default_set_by_hand_is_not_overridden() -> None:
    *_, training = parse_recipe(PRETRAIN, None, ["--depth", "2", "--weight_decay", "0.0"])
    assert training.weight_decay == 0.0


def test_without_a_depth_a_recipe_is_what_it_says() -> None:
    *_, training = parse_recipe(PRETRAIN, "pretrain-quickstart")
    assert (training.max_steps, training.learning_rate) == (480, 0.005)


def test_a_tokenizer_decides_the_vocabulary(base_folder: Path) -> None:
    parsed = parse_recipe(PRETRAIN, None, ["--depth", "2", "--tokenizer", str(base_folder)])
    size = ChatGPTConfig.from_pretrained(base_folder).vocab_size
    assert parsed[-1].max_steps == scaling.dial(2, vocab_size=size)["max_steps"]
