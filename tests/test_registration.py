"""`import chatgpt_hf` makes transformers know the model, and is all that is needed."""

import subprocess
import sys
from pathlib import Path

import pytest
import transformers
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

import chatgpt_hf
from chatgpt_hf.registration import AUTO_CLASSES, register


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
    result = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-2000:]
