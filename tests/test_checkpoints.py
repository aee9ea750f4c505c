"""Model folders load, or an error says what is wrong with them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, MambaConfig, MambaForCausalLM

from chatgpt_hf import ChatGPTConfig, ChatGPTForCausalLM, load_model, load_tokenizer
from chatgpt_hf.checkpoints import UNLIMITED_CONTEXT, check_tokenizer_fits, context_length, load_for_inference
from chatgpt_hf.errors import CheckpointError, ConfigError


@pytest.fixture
def folder(base_folder: Path, tmp_path: Path) -> Path:
    """A model folder that a test may break."""
    return Path(shutil.copytree(base_folder, tmp_path / "model"))


def edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_whole_model_loads(folder: Path) -> None:
    for model_class in (AutoModelForCausalLM, ChatGPTForCausalLM):
        model = load_model(folder, model_class)
        assert type(model) is ChatGPTForCausalLM
        weights = load_file(folder / "model.safetensors")
        assert all(torch.equal(model.state_dict()[name], weight) for name, weight in weights.items())
    assert load_model(str(folder), dtype=torch.float16).dtype == torch.float16


def test_gpt2_folders_load_as_theirs_and_as_ours(tmp_path: Path) -> None:
    GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=16, n_embd=16, n_layer=1, n_head=2)).save_pretrained(
        tmp_path
    )
    theirs, ours = load_model(tmp_path).eval(), load_model(tmp_path, ChatGPTForCausalLM).eval()
    assert type(theirs) is GPT2LMHeadModel
    assert type(ours) is ChatGPTForCausalLM
    ids = torch.arange(10)[None]
    torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, rtol=0, atol=1e-5)


def test_missing_weights_are_named(folder: Path) -> None:
    edit_weights(folder, lambda weights: weights.pop("model.norm.weight"))
    with pytest.raises(CheckpointError, match=r"1 weights are missing, including model.norm.weight"):
        load_model(folder)


def test_misshaped_weights_are_named(folder: Path) -> None:
    edit_weights(folder, lambda weights: weights.update({"model.norm.weight": torch.ones(7)}))
    with pytest.raises(CheckpointError, match=r"model.norm.weight has the shape \(7,\), config.json asks for \(64,\)"):
        load_model(folder)


@pytest.mark.parametrize("kept", [0, 5, 1000, -1])
def test_truncated_weights_are_named(folder: Path, kept: int) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"model.safetensors is not a complete safetensors file"):
        load_model(folder)


def test_weights_that_are_not_there(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"No model could be loaded from .*model.safetensors"):
        load_model(folder)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"num_attention_heads": 3}, "num_attention_heads"),
        ({"hidden_act": "nonsense"}, "hidden_act"),
        ({"position_embedding_type": "relative"}, "position_embedding_type"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"vocab_size": -1}, "vocab_size"),
        ({"num_attention_heads": None}, "num_attention_heads"),
        ({"model_type": "chatgtp"}, "chatgtp"),
        ({"sliding_window": 8}, "sliding_window"),
    ],
)
def test_a_config_that_contradicts_itself_is_named(folder: Path, changes: dict[str, Any], field: str) -> None:
    edit_config(folder, **changes)
    with pytest.raises(ConfigError, match=rf"(?s)config.json cannot be used: .*{field}"):
        load_model(folder)


def test_a_config_that_does_not_belong_to_the_weights(folder: Path) -> None:
    edit_config(folder, hidden_size=32, head_dim=32, intermediate_size=128)
    with pytest.raises(
        CheckpointError, match=r"asks for .* such weights\). Config and weights do not belong together"
    ):
        load_model(folder)


def test_code_of_a_folder_is_not_run(tmp_path: Path) -> None:
    config = {
        "model_type": "theirs",
        "auto_map": {name: f"theirs.{name}" for name in ("AutoConfig", "AutoModelForCausalLM")},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    trace = tmp_path / "was-run"
    (tmp_path / "theirs.py").write_text(f"open({str(trace)!r}, 'w')\nAutoConfig = AutoModelForCausalLM = object\n")
    with pytest.raises(ConfigError, match="model_type 'theirs', and code from the folder is not run"):
        load_model(tmp_path)
    assert not trace.exists()


def test_a_config_that_is_no_json(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "chatgpt",')
    with pytest.raises(CheckpointError, match=r"config.json"):
        load_model(folder)


def test_folders_without_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match=r"does not contain a model: config.json is missing"):
        load_model(tmp_path)
    with pytest.raises(CheckpointError, match=r"There is no folder .*nothing"):
        load_model(tmp_path / "nothing")
    monkeypatch.chdir(tmp_path)
    for name in ("./nothing", "runs/mine/checkpoint-10"):
        with pytest.raises(CheckpointError, match="There is no folder"):
            load_model(name)
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"is a file; name the folder"):
        load_model(tmp_path / "file")
    # This may be an id of the Hub, and the Hub cannot be asked.
    with pytest.raises(CheckpointError, match=r"No model could be loaded from nobody/nothing: .*"):
        load_model("nobody/nothing")


def test_inference_is_where_the_accelerator_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_for_inference(folder).device.type == (
        torch.accelerator.current_accelerator().type if torch.accelerator.is_available() else "cpu"
    )
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("meta"))
    model = load_for_inference(folder)
    assert model.device.type == "meta"
    assert not model.training


def test_context_length() -> None:
    """The most positions of a model, whatever its family calls them, and no limit where the config names none."""
    tiny = {"hidden_size": 8, "num_hidden_layers": 1, "vocab_size": 16}
    gpt2 = GPT2LMHeadModel(GPT2Config(n_positions=24, n_embd=8, n_layer=1, n_head=2, vocab_size=16))
    assert context_length(gpt2) == 24
    assert (
        context_length(ChatGPTForCausalLM(ChatGPTConfig(max_position_embeddings=40, num_attention_heads=2, **tiny)))
        == 40
    )
    assert context_length(MambaForCausalLM(MambaConfig(**tiny))) == UNLIMITED_CONTEXT


def test_a_tokenizer_that_is_much_too_small_is_named_once(base_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = load_tokenizer(base_folder)
    model, size = load_model(base_folder), len(tokenizer)
    for rows in (size, 2 * size, 2 * size + 512, 6 * size + 777, 6 * size + 777):
        model.config.vocab_size = rows
        check_tokenizer_fits(model, tokenizer)
    (message,) = caplog.messages
    assert f"The tokenizer has {size} tokens and the model's `vocab_size` is {6 * size + 777}: is it" in message
