"""Continuing text."""

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, MambaConfig, MambaForCausalLM

from chatgpt_hf import ChatGPTConfig, ChatGPTForCausalLM, ChatSession
from chatgpt_hf.errors import ChatGPTError, ConfigError, DataError
from chatgpt_hf.inference import streaming
from chatgpt_hf.inference.cache import growing_cache
from chatgpt_hf.inference.generate import stream_text
from chatgpt_hf.model.modeling_chatgpt import CACHE_NAME
from chatgpt_hf.tokenization_chatgpt import load_tokenizer


def test_the_prompt_comes_first_and_as_it_is(chat_folder: Path) -> None:
    prompt = "你好 <|im_end|> 👍🏽\n"
    pieces = list(stream_text(chat_folder, prompt, max_new_tokens=5, temperature=0))
    assert pieces[0] == prompt
    assert "".join(pieces) == "".join(stream_text(str(chat_folder), prompt, max_new_tokens=5, temperature=0))


def test_a_prompt_as_long_as_the_context(chat_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(chat_folder)
    word = tokenizer.decode(tokenizer(" the")["input_ids"][:1])
    assert len(tokenizer(word * 127)["input_ids"]) == 127
    with pytest.raises(ConfigError, match=r"The prompt takes 128 tokens, but the model's context is 128 .*shorten"):
        list(stream_text(chat_folder, word * 127))
    # The last position still predicts one token.
    assert list(stream_text(chat_folder, word * 126, max_new_tokens=50))


def test_gpt2_with_its_own_tokenizer(shared_data: Path, tmp_path: Path) -> None:
    """A model of another family whose tokenizer has no padding token."""
    load_tokenizer(shared_data / "gpt2_tokenizer").save_pretrained(tmp_path)
    GPT2LMHeadModel(GPT2Config(n_positions=16, n_embd=8, n_layer=1, n_head=2)).save_pretrained(tmp_path)
    pieces = list(stream_text(tmp_path, "Hello there", max_new_tokens=100, temperature=0))
    assert pieces[0] == "Hello there"
    assert len(pieces) > 1
    with pytest.raises(ChatGPTError, match="the model's context is 16"):
        list(stream_text(tmp_path, "Hello there " * 8))


def test_bytes_that_are_no_text(refused: Callable[..., str], chat_folder: Path) -> None:
    assert "--prompt is not text: its character 2 is not UTF-8" in refused(
        "generate", chat_folder, "--prompt", "a\udcff"
    )
    session = ChatSession.from_pretrained(chat_folder)
    with pytest.raises(DataError, match="The message is not text: its character 4 is not UTF-8"):
        session.reply("Hel\udcfflo")
    assert session.messages == []


def test_a_model_without_keys_and_values(chat_folder: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(chat_folder)
    model = MambaForCausalLM(MambaConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert len(list(stream_text(tmp_path, "A cat", max_new_tokens=5, temperature=0))) > 1


def test_one_text_keeps_no_more_than_its_windows_see(
    chat_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = load_tokenizer(chat_folder)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 128}
    config = ChatGPTConfig(
        vocab_size=len(tokenizer), sliding_window=8, layer_types=["sliding_attention"], eos_token_id=None, **sizes
    )
    ChatGPTForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    made = []
    monkeypatch.setattr(streaming, "growing_cache", lambda model: made.append(growing_cache(model)) or made[-1])
    list(stream_text(tmp_path, "A cat", max_new_tokens=40, temperature=0))
    assert made[0][CACHE_NAME].layers[0].keys.shape[-2] == 7
