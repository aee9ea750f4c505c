from pathlib import Path

import pytest
import torch
from transformers import WatermarkDetector, WatermarkingConfig, set_seed

from chatgpt_hf import ChatGPTConfig, ChatGPTForCausalLM, ChatSession, load_tokenizer
from chatgpt_hf.errors import ConfigError
from chatgpt_hf.inference.parameters import bad_words_ids, generation_config_with, restrictions


def test_a_bad_word_is_not_said(chat_folder: Path) -> None:
    session = ChatSession.from_pretrained(chat_folder, do_sample=False)
    assert "tiny" in session.reply("Who are you?")
    session.reset()
    session.set(**restrictions(session.tokenizer, ["TINY"], watermark=False))
    assert "tiny" not in session.reply("Who are you?").lower()


def test_bad_words_have_tokens(base_folder: Path) -> None:
    tokenizer = load_tokenizer(base_folder)
    spelled = [tokenizer.decode(ids) for ids in bad_words_ids(tokenizer, ["caT"])]
    assert spelled == ["caT", " caT", "cat", " cat", "CAT", " CAT", "Cat", " Cat"]
    # A special token's text is text.
    assert all(len(ids) > 1 for ids in bad_words_ids(tokenizer, [tokenizer.eos_token]))
    for word in ("", " "):
        with pytest.raises(ConfigError, match="has no tokens"):
            bad_words_ids(tokenizer, ["cat", word])


def test_a_watermark_is_found(base_folder: Path) -> None:
    tokenizer = load_tokenizer(base_folder)
    torch.manual_seed(0)
    config = ChatGPTConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=256,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = ChatGPTForCausalLM(config).eval()
    detector = WatermarkDetector(config, "cpu", WatermarkingConfig())
    for watermark in (True, False):
        generation = generation_config_with(
            model.generation_config,
            do_sample=True,
            max_new_tokens=200,
            min_new_tokens=200,
            **restrictions(tokenizer, [], watermark),
        )
        set_seed(0)
        ids = model.generate(torch.tensor([[tokenizer.bos_token_id]]), generation_config=generation)
        assert ids.shape[1] == 201
        assert detector(ids).tolist() == [watermark]
