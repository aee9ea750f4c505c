"""A trained model gets another tokenizer: known tokens keep their rows, others get the mean of their pieces' rows."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from chatgpt_hf import ChatGPTConfig, ChatGPTForCausalLM, train_tokenizer
from chatgpt_hf.errors import ConfigError
from chatgpt_hf.training.vocabulary import transfer_vocabulary

OLD = train_tokenizer(["the cat sat on the mat, the dog ran"] * 20, 280, show_progress=False)
NEW = train_tokenizer(["the weather is unpleasant 天气不好"] * 20, 300, show_progress=False)


def build(**options):
    torch.manual_seed(0)
    config = ChatGPTConfig(
        vocab_size=len(OLD), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, eos_token_id=2, **options
    )
    return ChatGPTForCausalLM(config)


@pytest.mark.parametrize("tied", [True, False])
def test_rows_of_the_new_tokens(tied: bool) -> None:
    model = build(tie_word_embeddings=tied)
    before = {
        "embedding": model.get_input_embeddings().weight.detach().clone(),
        "head": model.get_output_embeddings().weight.detach().clone(),
    }
    transfer_vocabulary(model, OLD, NEW)
    after = {"embedding": model.get_input_embeddings().weight, "head": model.get_output_embeddings().weight}
    assert (after["embedding"] is after["head"]) == tied
    assert model.config.vocab_size == len(NEW)
    assert (model.config.eos_token_id, model.generation_config.eos_token_id) == (NEW.eos_token_id,) * 2
    kinds = set()
    for name, rows in after.items():
        assert rows.shape == (len(NEW), 16)
        for token, index in NEW.get_vocab().items():
            text = NEW.decode([index])
            if token in OLD.get_vocab():
                kinds.add("known")
                expected = before[name][OLD.convert_tokens_to_ids(token)]
            elif "�" in text:
                kinds.add("part of a character")
                expected = before[name].mean(0)
            else:
                kinds.add("new")
                expected = before[name][OLD(text, add_special_tokens=False)["input_ids"]].mean(0)
            torch.testing.assert_close(rows[index], expected)
    assert kinds == {"known", "part of a character", "new"}


def test_a_model_of_another_family() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(OLD), n_embd=16, n_layer=1, n_head=2, n_positions=32))
    row = model.transformer.wte.weight[OLD.convert_tokens_to_ids("a")].detach().clone()
    transfer_vocabulary(model, OLD, NEW)
    torch.testing.assert_close(model.transformer.wte.weight[NEW.convert_tokens_to_ids("a")], row)
    assert model(torch.tensor([[len(NEW) - 1]])).logits.shape == (1, 1, len(NEW))


def test_tables_of_ngrams_cannot_follow() -> None:
    with pytest.raises(ConfigError, match="ngram_vocab_sizes"):
        transfer_vocabulary(build(ngram_vocab_sizes=[64]), OLD, NEW)
