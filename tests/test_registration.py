"""`import chatgpt_hf` is enough to register the model with transformers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, Trainer, TrainingArguments

import chatgpt_hf
from chatgpt_hf import registration
from chatgpt_hf.model import AUTO_CLASSES
from chatgpt_hf.registration import NAME_TABLES, register


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
    # transformers replaces its module while its parts are imported; both of these are in use.
    for module in (registration.transformers, sys.modules["transformers"]):
        for model_class in AUTO_CLASSES.values():
            assert getattr(module, model_class.__name__) is model_class
        assert module.ChatGPTConfig is chatgpt_hf.ChatGPTConfig


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
    for name, table in NAME_TABLES.items():
        assert table["chatgpt"] == name


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


# What leads to the classes, each as the first thing done after `import chatgpt_hf`.
ROUTES = {
    "AutoConfig": "config = AutoConfig.for_model('chatgpt', **SIZES)",
    "the Auto class of a saved model": "config = AutoModelForCausalLM.from_pretrained(FOLDER).config",
    "an attribute of transformers": "config = transformers.ChatGPTForCausalLM.config_class(**SIZES)",
    "an import from transformers": "from transformers import ChatGPTConfig; config = ChatGPTConfig(**SIZES)",
    "an attribute of the package": "config = chatgpt_hf.ChatGPTConfig(**SIZES)",
    "the module of the config": "from chatgpt_hf.model.configuration_chatgpt import ChatGPTConfig; config = ChatGPTConfig(**SIZES)",
    "the module of the model": "from chatgpt_hf.model.modeling_chatgpt import ChatGPTConfig; config = ChatGPTConfig(**SIZES)",
    "a module that registering imports": "from chatgpt_hf.conversion.families.gpt2 import ChatGPTConfig; config = ChatGPTConfig(**SIZES)",
    "a module after one that needs no model": "from chatgpt_hf.errors import ConfigError; from chatgpt_hf.checkpoints import load_model; "
    "config = load_model(FOLDER).config",
    "registering": "from chatgpt_hf.registration import register; register(); config = AutoConfig.for_model('chatgpt', **SIZES)",
}
FIRST = """
import json, os, sys, traceback
import chatgpt_hf, transformers
from transformers import AutoConfig, AutoModelForCausalLM
heavy = {"chatgpt_hf.model.configuration_chatgpt", "scipy", "torch._dynamo", "transformers.modeling_utils"} & set(sys.modules)
assert not heavy, heavy
assert "chatgpt" in transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
try:
    transformers.NoSuchName
    raise SystemExit("an unknown name was found")
except AttributeError:
    pass
SIZES = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
routes, FOLDER = json.loads(sys.argv[1])
failed = []
for name, code in routes.items():
    if child := os.fork():
        if os.waitpid(child, 0)[1]:
            failed.append(name)
        continue
    try:
        exec(code)
        assert type(config) is chatgpt_hf.ChatGPTConfig is transformers.ChatGPTConfig
        assert type(AutoModelForCausalLM.from_config(config)) is chatgpt_hf.ChatGPTForCausalLM
        assert set(chatgpt_hf.ChatGPTConfig.foreign_config_readers) >= {"gpt2", "llama"}
        # Nothing is loaded twice.
        assert sys.modules["chatgpt_hf.model.configuration_chatgpt"].ChatGPTConfig is type(config)
        code = 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stderr.flush()
    os._exit(code)
assert not failed, failed
"""


@pytest.mark.slow
def test_the_model_is_registered_when_it_is_needed(base_folder: Path) -> None:
    arguments = [sys.executable, "-c", FIRST, json.dumps([ROUTES, str(base_folder)])]
    result = subprocess.run(arguments, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr[-4000:]


def test_the_names_are_those_of_the_classes() -> None:
    assert chatgpt_hf.ChatGPTConfig.model_type == registration.MODEL_TYPE
    assert chatgpt_hf.ChatGPTConfig.__name__ == registration.CONFIG_NAME
    assert list(NAME_TABLES) == [model_class.__name__ for model_class in AUTO_CLASSES.values()]
