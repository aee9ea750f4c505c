"""`chatgpt-hf convert`: in both directions, with the tokenizer, and nothing is written unless the logits agree."""

import copy
import gc
import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from chatgpt_hf import ChatGPTConfig, ChatGPTForCausalLM, convert_checkpoint
from chatgpt_hf.conversion import convert
from chatgpt_hf.errors import CheckpointError, ConversionError
from chatgpt_hf.tokenization_chatgpt import load_tokenizer

TEXTS = ["Hello, world!", "你好 👍🏽", "    def f(x):\n\treturn x ** 2\n", "<|endoftext|> it's 12345"]
TOKENIZER_FILES = {"tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"}


def gpt2(vocab_size: int, dtype: torch.dtype = torch.float32) -> GPT2LMHeadModel:
    """A tiny model whose weights are large enough to reveal a wrong one."""
    config = GPT2Config(
        vocab_size=vocab_size, n_positions=32, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model.to(dtype).eval()


@torch.no_grad()
def assert_same_logits(first: Any, second: Any) -> None:
    ids = torch.arange(20)[None]
    torch.testing.assert_close(first.eval()(ids).logits, second.eval()(ids).logits, rtol=0, atol=1e-4)


def assert_same_ids(first: Any, second: Any) -> None:
    assert len(first) == len(second)
    assert first(TEXTS)["input_ids"] == second(TEXTS)["input_ids"]
    assert [second.decode(ids) for ids in second(TEXTS)["input_ids"]] == TEXTS
    assert (first.bos_token, first.eos_token, first.pad_token) == (
        second.bos_token,
        second.eos_token,
        second.pad_token,
    )


def test_gpt2_with_its_own_tokenizer_both_ways(cli: Callable[..., Any], shared_data: Path, tmp_path: Path) -> None:
    theirs = gpt2(50257)
    theirs.save_pretrained(tmp_path / "gpt2")
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / "gpt2" / name).write_bytes((shared_data / "gpt2_tokenizer" / name).read_bytes())
    reference = load_tokenizer(tmp_path / "gpt2")

    result = cli("convert", tmp_path / "gpt2", tmp_path / "ours")
    assert result.code == 0
    assert f"Written to {tmp_path / 'ours'}; largest difference of the logits: " in result.out
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert type(ours) is ChatGPTForCausalLM
    assert_same_logits(theirs, ours)
    assert_same_ids(reference, AutoTokenizer.from_pretrained(tmp_path / "ours"))

    assert cli("convert", tmp_path / "ours", tmp_path / "again", "--to", "gpt2").code == 0
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    assert type(again) is GPT2LMHeadModel
    assert all(torch.equal(weight, again.state_dict()[name]) for name, weight in theirs.state_dict().items())
    assert_same_ids(reference, AutoTokenizer.from_pretrained(tmp_path / "again"))
    expected = [json.loads(line) for line in (shared_data / "gpt2_tokenizer" / "reference_encodings.jsonl").open()]
    text, ids = (next(v for v in expected[0].values() if isinstance(v, kind)) for kind in (str, list))
    assert AutoTokenizer.from_pretrained(tmp_path / "again")(text)["input_ids"] == ids


def test_ours_to_gpt2_and_back(cli: Callable[..., Any], base_folder: Path, tmp_path: Path) -> None:
    """A model of ours that GPT-2 can express, with our tokenizer including chat template and padding."""
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 32}
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model = ChatGPTForCausalLM(ChatGPTConfig.gpt2(vocab_size=len(tokenizer), **sizes, **special)).eval()
    model.generation_config.temperature, model.generation_config.do_sample = 0.5, True
    model.save_pretrained(tmp_path / "ours")
    tokenizer.save_pretrained(tmp_path / "ours")
    assert cli("convert", tmp_path / "ours", tmp_path / "gpt2", "--to", "gpt2").code == 0
    assert cli("convert", tmp_path / "gpt2", tmp_path / "again", "--to", "chatgpt").code == 0
    for name in ("gpt2", "again"):
        assert_same_logits(model, AutoModelForCausalLM.from_pretrained(tmp_path / name))
        carried = AutoTokenizer.from_pretrained(tmp_path / name)
        assert_same_ids(tokenizer, carried)
        assert carried.chat_template == tokenizer.chat_template
        generation = json.loads((tmp_path / name / "generation_config.json").read_text())
        assert (generation["temperature"], generation["do_sample"]) == (0.5, True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_storage_type_is_kept(dtype: torch.dtype, tmp_path: Path) -> None:
    gpt2(50, dtype).save_pretrained(tmp_path / "gpt2")
    # Both compute in float32, so the storage type makes no difference.
    assert convert_checkpoint(tmp_path / "gpt2", tmp_path / "ours") < 1e-4
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "ours").dtype == dtype
    convert_checkpoint(tmp_path / "ours", tmp_path / "again", "gpt2")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "again").dtype == dtype


def test_a_model_without_a_tokenizer(tmp_path: Path) -> None:
    gpt2(50).save_pretrained(tmp_path / "gpt2")
    convert_checkpoint(tmp_path / "gpt2", tmp_path / "ours")
    convert_checkpoint(tmp_path / "ours", tmp_path / "again", "gpt2")
    for name in ("ours", "again"):
        assert not {path.name for path in (tmp_path / name).iterdir()} & TOKENIZER_FILES


def test_a_tokenizer_that_is_broken_is_not_left_behind_silently(refused: Callable[..., str], tmp_path: Path) -> None:
    gpt2(50).save_pretrained(tmp_path / "gpt2")
    (tmp_path / "gpt2" / "tokenizer.json").write_text('{"version":')
    assert "tokenizer.json cannot be read" in refused("convert", tmp_path / "gpt2", tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_logits_that_differ_stop_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gpt2(50).save_pretrained(tmp_path / "gpt2")

    read = convert.read_checkpoint

    def wrong(source: Path) -> tuple[Any, Any]:
        model, reference = read(source)
        with torch.no_grad():
            model.model.layers[1].mlp.down_proj.weight[0, 0] += 1
        return model, reference

    monkeypatch.setattr(convert, "read_checkpoint", wrong)
    with pytest.raises(ConversionError, match=r"logits differ by .* from the source's .*Nothing was written"):
        convert_checkpoint(tmp_path / "gpt2", tmp_path / "ours")
    monkeypatch.setattr(convert, "logits_difference", lambda *models: float("nan"))
    with pytest.raises(ConversionError, match="logits differ by nan"):
        convert_checkpoint(tmp_path / "gpt2", tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_the_weights_are_in_memory_once(architecture: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = gpt2(50, torch.bfloat16)
    source.save_pretrained(tmp_path / "source")
    if architecture == "llama":
        config = LlamaConfig(
            vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
        )
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path / "source")
    load, loaded = convert.load_model, []

    def load_alone(*args: Any, **kwargs: Any) -> Any:
        gc.collect()
        assert not any(model() for model in loaded), "another model is still in memory"
        model = load(*args, **kwargs)
        loaded.append(weakref.ref(model))
        return model

    monkeypatch.setattr(convert, "load_model", load_alone)
    convert_checkpoint(tmp_path / "source", tmp_path / "ours")
    assert len(loaded) == 2


def test_logits_in_float32_without_a_copy_of_all_weights() -> None:
    model = gpt2(50, torch.bfloat16)
    whole = copy.deepcopy(model).float()
    before = {name: (tensor.data_ptr(), tensor.dtype) for name, tensor in model.state_dict().items()}
    wide: list[int] = []
    for module in model.modules():
        module.register_forward_hook(
            lambda *_: wide.append(sum(tensor.dtype == torch.float32 for tensor in model.parameters()))
        )
    assert convert.logits_difference(whole, model) == 0
    # At most a module's own weight and bias, or the tied head's matrix.
    assert max(wide) <= 2
    assert {name: (tensor.data_ptr(), tensor.dtype) for name, tensor in model.state_dict().items()} == before


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    gpt2(50).save_pretrained(tmp_path / "gpt2")
    (tmp_path / "ours").mkdir()
    convert_checkpoint(tmp_path / "gpt2", tmp_path / "ours")
    assert (tmp_path / "ours" / "model.safetensors").is_file()


def test_sources_that_cannot_be_read(tmp_path: Path) -> None:
    for source in (tmp_path / "nothing", tmp_path, "nobody/nothing"):
        for to in convert.TARGETS:
            with pytest.raises(CheckpointError):
                convert_checkpoint(source, tmp_path / "new", to)
    assert list(tmp_path.iterdir()) == []


def test_unknown_families_are_refused_with_what_is_known(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "bert").mkdir()
    BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2).save_pretrained(tmp_path / "bert")
    message = refused("convert", tmp_path / "bert", tmp_path / "new")
    known = "chatgpt, gpt2, llama, mistral, qwen2, qwen3, smollm3, nanogpt (ckpt.pt), litgpt (lit_model.pth)"
    assert f"belongs to the family 'bert', which is unknown here. Known families: {known}" in message
    (tmp_path / "empty").mkdir()
    message = refused("convert", tmp_path / "empty", tmp_path / "new")
    assert "config.json is missing" in message
    assert known in message
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    assert "model.gguf is a GGUF file" in refused("convert", tmp_path / "model.gguf", tmp_path / "new")
    message = refused("convert", tmp_path / "bert", tmp_path / "new", "--to", "bert")
    assert message == f"--to bert is unknown; choose from {', '.join(convert.TARGETS)}.\n"
    (tmp_path / "empty" / "adapter_config.json").write_text("{}")
    assert "first, with `chatgpt-hf merge`" in refused("convert", tmp_path / "empty", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_from_one_family_to_another(tmp_path: Path) -> None:
    """One call converts, and compares the logits of the first format and the last."""
    theirs = gpt2(50)
    theirs.config.activation_function = "gelu"
    theirs = GPT2LMHeadModel._from_config(theirs.config)
    theirs.save_pretrained(tmp_path / "gpt2")
    assert convert_checkpoint(tmp_path / "gpt2", tmp_path / "nanogpt", "nanogpt") < 1e-4
    assert convert_checkpoint(tmp_path / "nanogpt", tmp_path / "again", "gpt2") < 1e-4
    assert_same_logits(theirs, GPT2LMHeadModel.from_pretrained(tmp_path / "again"))


def test_the_help_names_every_family(cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    words = cli("convert", "--help").out.replace(",", " ").replace(".", " ").split()
    assert set(convert.TARGETS) <= set(words)
