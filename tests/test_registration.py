"""`import chatgpt_hf` is enough to register the model with transformers."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, Trainer, TrainingArguments

import chatgpt_hf
from chatgpt_hf.registration import AUTO_CLASSES, NAME_TABLES, register


@pytest.mark.parametrize("auto_class", AUTO_CLASSES, ids=lambda auto_class: auto_class.__name__)
def test_auto_classes_know_the_model(auto_class: type, tmp_path: Path) -> None:
    config = AutoConfig.for_model("chatgpt", vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    assert type(config) is chatgpt_hf.ChatGPTConfig
    model = auto_class.from_config(config)
    assert type(model) is AUTO_CLASSES[auto_class]
    model.save_pretrained(tmp_path)
    assert type(auto_class.from_pretrained(tmp_path)) is AUTO_CLASSES[auto_class]
    assert type(AutoConfig.from_pretrained(tmp_path)) is chatgpt_hf.ChatGPTConfig


def test_transformers_has_the_names() -> None:
    for model_class in AUTO_CLASSES.values():
        assert getattr(transformers, model_class.__name__) is model_class
    assert transformers.ChatGPTConfig is chatgpt_hf.ChatGPTConfig


def test_label_smoothing_is_of_the_next_token(tmp_path: Path) -> None:
    # `Trainer` shifts the labels of models whose names are in a table that `Auto*.register` does not update.
    torch.manual_seed(0)
    sizes = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = chatgpt_hf.ChatGPTForCausalLM(chatgpt_hf.ChatGPTConfig(**sizes, initializer_range=0.5))
    arguments = TrainingArguments(str(tmp_path), label_smoothing_factor=0.1, use_cpu=True, report_to="none")
    ids = torch.randint(0, 30, (2, 8))
    found = Trainer(model, arguments).compute_loss(model, {"input_ids": ids, "labels": ids.clone()})
    logits = model(ids).logits[:, :-1].reshape(-1, 30)
    expected = torch.nn.functional.cross_entropy(logits, ids[:, 1:].reshape(-1), label_smoothing=0.1)
    torch.testing.assert_close(found, expected)


def test_the_tables_of_names_have_ours() -> None:
    for model_class, table in NAME_TABLES.items():
        assert table["chatgpt"] == model_class.__name__


def test_registering_again_changes_nothing() -> None:
    before = AutoModelForCausalLM._model_mapping[chatgpt_hf.ChatGPTConfig]
    register()
    register()
    assert AutoModelForCausalLM._model_mapping[chatgpt_hf.ChatGPTConfig] is before
    assert AutoModel._model_mapping[chatgpt_hf.ChatGPTConfig] is chatgpt_hf.ChatGPTModel


@pytest.mark.parametrize("name", chatgpt_hf.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(chatgpt_hf, name) is not None
    assert name in dir(chatgpt_hf)


def test_unknown_names() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'ChatGTP'"):
        _ = chatgpt_hf.ChatGTP


LIGHT = """
import sys, chatgpt_hf
assert "transformers" in sys.modules
heavy = {"trl", "datasets", "matplotlib", "rouge_score", "pandas"} & set(sys.modules)
assert not heavy, heavy
from transformers import AutoConfig
assert type(AutoConfig.for_model("chatgpt")) is chatgpt_hf.ChatGPTConfig
from chatgpt_hf.quickstart import quickstart
assert callable(chatgpt_hf.pretrain) and callable(chatgpt_hf.sft) and callable(quickstart)
"""


@pytest.mark.slow
def test_the_import_is_light_and_the_rest_comes_when_asked_for() -> None:
    result = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr[-2000:]
