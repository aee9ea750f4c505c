"""PEFT adapters: trained, saved, loaded and merged."""

from pathlib import Path

import pytest
import torch
from tiny_model import VOCAB, build, some_ids
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from chatgpt_hf import ChatGPTForCausalLM


@pytest.mark.works_with("PEFT", "LoRA on a GPT-2 checkpoint as it is read; the head as a target", ("peft",))
@pytest.mark.parametrize("origin", ["fresh", "gpt2"])
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"], ["q_proj", "lm_head"]], ids=str)
def test_lora(origin: str, targets: str | list[str], tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    if origin == "gpt2":
        config = GPT2Config(
            vocab_size=VOCAB, n_positions=64, n_embd=32, n_layer=2, n_head=4, tie_word_embeddings=False
        )
        GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
    else:
        build(tie_word_embeddings=False).save_pretrained(tmp_path / "base")

    def base() -> ChatGPTForCausalLM:
        return ChatGPTForCausalLM.from_pretrained(tmp_path / "base", residual_dropout=0.0)

    plain = base()(some_ids()).logits.detach()
    model = peft.get_peft_model(base(), peft.LoraConfig(r=2, target_modules=targets, task_type="CAUSAL_LM"))
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    for _ in range(3):
        output = model(input_ids=some_ids(), labels=some_ids())
        assert (output.logits is not None) == ("lm_head" in targets)
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    trained = model(input_ids=some_ids()).logits.detach()
    assert (trained - plain).abs().max() > 1e-2

    model.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(base(), str(tmp_path / "adapter"))
    torch.testing.assert_close(again(input_ids=some_ids()).logits, trained)
    merged = again.merge_and_unload()
    assert type(merged) is ChatGPTForCausalLM
    torch.testing.assert_close(merged(some_ids()).logits, trained, rtol=1e-4, atol=1e-4)
    merged.save_pretrained(tmp_path / "merged")
    torch.testing.assert_close(
        AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(some_ids()).logits, trained, rtol=1e-4, atol=1e-4
    )
    # And by transformers' own adapter support, which renames keys by the registered mapping.
    own = base()
    own.load_adapter(str(tmp_path / "adapter"))
    torch.testing.assert_close(own(some_ids()).logits, trained)
