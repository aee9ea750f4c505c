"""Adapters are trained, loaded, used for chat, and merged; the base model stays as it is."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from chatgpt_hf import ChatGPTForCausalLM, ChatSession, load_model, sft
from chatgpt_hf.checkpoints import check_safetensors
from chatgpt_hf.conversion.merge import merge_adapter
from chatgpt_hf.errors import CheckpointError, ConversionError, OutputError
from chatgpt_hf.tokenization_chatgpt import load_tokenizer
from chatgpt_hf.training.arguments import ChatModelArguments, ChatSFTArguments, ConversationArguments, parse_recipe

TYPES = (ChatModelArguments, ConversationArguments, ChatSFTArguments)
QUESTION = "Hello!"


def run(options: list[str], folder: Path, *more: object) -> Path:
    lora = ["--use_peft", "true", "--lora_r", "8", "--lora_dropout", "0", "--optim", "adamw_torch"]
    sft(*parse_recipe(TYPES, None, [*options, *lora, "--output_dir", str(folder), *map(str, more)]))
    return folder


@pytest.fixture(scope="module")
def adapter(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = request.getfixturevalue("sft_options")
    return run(options, tmp_path_factory.mktemp("lora") / "run", "--max_steps", 30)


@pytest.fixture(scope="module")
def sft_options(base_folder: Path, chats_file: Path) -> list[str]:
    text = """--block_size 64 --per_device_train_batch_size 8 --learning_rate 2e-2 --logging_steps 10
        --save_strategy no --disable_tqdm true"""
    return ["--model_name_or_path", str(base_folder), "--dataset", str(chats_file), *text.split()]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.arange(4, 40)[None]).logits


def test_only_the_adapter_is_trained_and_saved(adapter: Path, base_folder: Path) -> None:
    assert not list(adapter.glob("model*.safetensors"))
    check_safetensors(adapter / "adapter_model.safetensors")
    assert (adapter / "adapter_model.safetensors").stat().st_size < 0.5 * (
        base_folder / "model.safetensors"
    ).stat().st_size
    base, trained = load_model(base_folder), load_model(adapter)
    assert (logits(base) - logits(trained)).abs().max() > 0.1
    with trained.disable_adapter():
        assert torch.equal(logits(base), logits(trained))


def test_the_adapter_is_talked_to_by_its_folder(adapter: Path, cli: Callable[..., Any]) -> None:
    answer = ChatSession.from_pretrained(adapter, do_sample=False, max_new_tokens=8).reply(QUESTION)
    assert answer
    result = cli("chat", adapter, "--prompt", QUESTION, "--temperature", "0", "--max_new_tokens", "8")
    assert (result.code, result.out.strip()) == (0, answer)


def test_merged_it_is_an_ordinary_model(adapter: Path, cli: Callable[..., Any], tmp_path: Path) -> None:
    result = cli("merge", adapter, tmp_path / "merged")
    assert result.code == 0, result.err
    assert "largest difference of the logits" in result.out
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(merged), logits(load_model(adapter)), rtol=0, atol=1e-4)
    assert merged.generation_config.eos_token_id == load_model(adapter).generation_config.eos_token_id
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template
    with pytest.raises(OutputError, match="is not an empty folder"):
        merge_adapter(adapter, tmp_path / "merged")
    with pytest.raises(ConversionError, match="contains no adapter"):
        merge_adapter(tmp_path / "merged", tmp_path / "again")


def test_an_adapter_for_another_base_model(
    sft_options: list[str], base_folder: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    """PEFT checks only shapes, and a base model that was trained further has the same shapes."""
    base = Path(shutil.copytree(base_folder, tmp_path / "base"))
    folder = run([*sft_options, "--model_name_or_path", str(base), "--max_steps", "1"], tmp_path / "run")
    load_model(folder)
    half = load_model(base).to(torch.bfloat16)
    half.save_pretrained(base)
    load_model(folder)
    other = ChatGPTForCausalLM(half.config)
    other.save_pretrained(base)
    message = refused("chat", folder, "--prompt", QUESTION)
    assert "was trained on another model than" in message
    assert str(base) in message
    assert "was trained on another model than" in refused("merge", folder, tmp_path / "merged")


def test_a_run_with_an_adapter_resumes_exactly(sft_options: list[str], tmp_path: Path) -> None:
    options = [word for word in sft_options if word not in ("--save_strategy", "no")]
    whole = run(options, tmp_path / "whole", "--max_steps", 6, "--save_steps", 3)
    part = tmp_path / "part"
    shutil.copytree(whole, part)
    shutil.rmtree(part / "checkpoint-6")
    (part / "adapter_model.safetensors").unlink()
    run(options, part, "--max_steps", 6, "--save_steps", 3, "--resume_from_checkpoint", "true")
    assert (part / "adapter_model.safetensors").read_bytes() == (whole / "adapter_model.safetensors").read_bytes()


def test_new_tokens_are_trained_beside_the_adapter(shared_data: Path, chats_file: Path, tmp_path: Path) -> None:
    base = tmp_path / "gpt2"
    load_tokenizer(shared_data / "gpt2_tokenizer").save_pretrained(base)
    GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=128)).save_pretrained(base)
    options = ["--model_name_or_path", str(base), "--dataset", str(chats_file), "--block_size", "64"]
    options += ["--max_steps", "3", "--learning_rate", "1e-2", "--disable_tqdm", "true"]
    folder = run(options, tmp_path / "run")
    model = load_model(folder)
    table = model.get_input_embeddings().weight if hasattr(model.get_input_embeddings(), "weight") else None
    assert model.config.vocab_size == len(load_tokenizer(folder)) == 50260
    assert table is None or table.shape[0] == 50260
    merged = tmp_path / "merged"
    merge_adapter(folder, merged)
    old, new = load_model(base).get_input_embeddings().weight, load_model(merged).get_input_embeddings().weight
    assert torch.equal(new[:50257], old)
    assert (new[50257:] - old.mean(0)).abs().max() > 1e-3


def test_an_adapter_for_another_base(adapter: Path, base_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(adapter, tmp_path / "adapter"))
    other = load_model(base_folder).config
    other.num_hidden_layers, other.hidden_size, other.intermediate_size, other.head_dim = 1, 16, 64, 8
    AutoModelForCausalLM.from_config(other).save_pretrained(tmp_path / "other")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(
        json.dumps({**config, "base_model_name_or_path": str(tmp_path / "other")})
    )
    with pytest.raises(CheckpointError, match=r"does not fit its base model .*other: .*size mismatch") as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)
    (folder / "adapter_config.json").write_text(
        json.dumps({**config, "base_model_name_or_path": str(tmp_path / "gone")})
    )
    with pytest.raises(CheckpointError, match=r"base model of the adapter .* cannot be loaded.*gone"):
        load_model(folder)
