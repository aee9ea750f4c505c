"""What is saved loads where this package is not installed, for every head, and can be saved again there."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from chatgpt_hf import ChatGPTConfig, ChatGPTForCausalLM, ChatGPTModel, load_tokenizer
from chatgpt_hf.model import AUTO_CLASSES
from chatgpt_hf.model.configuration_chatgpt import AUTO_MAP

SCRIPT = Path(__file__).parents[1] / "conformance" / "remote_code.py"
CODE = ["configuration_chatgpt.py", "local_context_chatgpt.py", "loss_chatgpt.py", "modeling_chatgpt.py"]
TINY = {"vocab_size": 67, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def remote_code() -> ModuleType:
    spec = importlib.util.spec_from_file_location("remote_code", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def code_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.py"))


def auto_map_of(folder: Path) -> dict[str, str]:
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))["auto_map"]


@pytest.mark.works_with("transformers", "`trust_remote_code=True` without this package, every head", ("transformers",))
@pytest.mark.slow
def test_every_head_without_the_package(remote_code: ModuleType, tmp_path: Path) -> None:
    remote_code.save_models(tmp_path / "saved")
    report = remote_code.run_without_package(
        sys.executable, tmp_path / "saved", tmp_path / "again", "--hide", "chatgpt_hf"
    )
    heads = {auto_class.__name__ for auto_class in AUTO_CLASSES}
    assert {result["head"] for result in report["results"]} == heads
    assert len(report["results"]) == len(heads) * (len(remote_code.VARIANTS) + 1)
    wrong = {(result["variant"], result["head"]): remote_code.faults(result) for result in report["results"]}
    assert {model: faults for model, faults in wrong.items() if faults} == {}
    # In one environment not even the version in config.json may differ.
    for file in (tmp_path / "saved").rglob("*.*"):
        again = tmp_path / "again" / file.relative_to(tmp_path / "saved")
        if len(again.relative_to(tmp_path / "again").parts) == 3:
            assert again.read_bytes() == file.read_bytes(), file
    # And what was saved there is read here by our own classes, without consent to anything.
    assert remote_code.load_again(tmp_path / "saved", tmp_path / "again") == 0


def test_a_tokenizer_needs_no_consent(base_folder: Path) -> None:
    """`AutoTokenizer` asks for it, because it reads config.json first."""
    code = f"""
import sys
sys.modules["chatgpt_hf"] = None  # so that an import of it fails
from transformers import PreTrainedTokenizerFast
print(PreTrainedTokenizerFast.from_pretrained({str(base_folder)!r})("Hi 2024")["input_ids"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == load_tokenizer(base_folder)("Hi 2024")["input_ids"]
    assert "code" not in done.stderr


def test_a_script_that_sees_the_package_shows_nothing(remote_code: ModuleType, tmp_path: Path) -> None:
    script = str(SCRIPT.with_name("without_package.py"))
    command = [sys.executable, script, str(tmp_path), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1
    assert "chatgpt_hf is installed here" in result.stderr


def test_code_and_map_are_beside_every_model(tmp_path: Path) -> None:
    model = ChatGPTForCausalLM(ChatGPTConfig(**TINY))
    model.save_pretrained(tmp_path / "model")
    model.model.save_pretrained(tmp_path / "body")
    for folder in (tmp_path / "model", tmp_path / "body"):
        assert code_of(folder) == CODE
        assert auto_map_of(folder) == AUTO_MAP
    for auto_class, model_class in AUTO_CLASSES.items():
        assert AUTO_MAP[auto_class.__name__] == f"modeling_chatgpt.{model_class.__name__}"


def test_our_own_classes_come_first_where_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ChatGPTForCausalLM(ChatGPTConfig(**TINY)).save_pretrained(tmp_path)
    # Code in the folder that would be found out if it were run.
    for name in CODE:
        (tmp_path / name).write_text("raise RuntimeError('this was run')\n")
    for consent in (None, False, True):
        # None asks on the terminal where there is remote code and no other.
        assert type(AutoConfig.from_pretrained(tmp_path, trust_remote_code=consent)) is ChatGPTConfig
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=consent)
        assert type(loaded) is ChatGPTForCausalLM
        AutoModelForSequenceClassification.from_config(loaded.config, trust_remote_code=consent)
    assert "custom code" not in capsys.readouterr().out


def test_a_map_to_another_repository_becomes_local_and_what_is_not_ours_stays(tmp_path: Path) -> None:
    config = ChatGPTConfig(**TINY)
    config.auto_map = {
        "AutoModel": "someone/theirs--modeling_chatgpt.ChatGPTModel",
        "AutoModelForCausalLM": "modeling_other.OtherForCausalLM",
        "AutoModelForMaskedLM": "modeling_other.OtherForMaskedLM",
    }
    ChatGPTModel(config).save_pretrained(tmp_path)
    others = {
        "AutoModelForCausalLM": "modeling_other.OtherForCausalLM",
        "AutoModelForMaskedLM": "modeling_other.OtherForMaskedLM",
    }
    assert auto_map_of(tmp_path) == {**AUTO_MAP, **others}


def test_a_class_that_fsdp_makes_is_saved_as_ours(tmp_path: Path) -> None:
    model = ChatGPTForCausalLM(ChatGPTConfig(**TINY))
    # What `fully_shard` does to a module's class: a subclass in torch's own module.
    model.__class__ = type("FSDPChatGPTForCausalLM", (ChatGPTForCausalLM,), {"__module__": nn.Module.__module__})
    model.save_pretrained(tmp_path)
    assert code_of(tmp_path) == CODE
    assert auto_map_of(tmp_path) == AUTO_MAP
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path)) is ChatGPTForCausalLM


def test_a_class_of_the_users_own_brings_no_code_unasked(tmp_path: Path) -> None:
    class Mine(ChatGPTForCausalLM):
        pass

    Mine(ChatGPTConfig(**TINY)).save_pretrained(tmp_path / "unasked")
    assert Path(__file__).name not in code_of(tmp_path / "unasked")
    Mine.register_for_auto_class("AutoModelForCausalLM")
    Mine(ChatGPTConfig(**TINY)).save_pretrained(tmp_path / "asked")
    assert Path(__file__).name in code_of(tmp_path / "asked")
    assert auto_map_of(tmp_path / "asked")["AutoModelForCausalLM"].endswith(".Mine")
