"""Shared checks of the conversion tests, on three levels: logits, greedy ids and text."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

VOCAB, PAD, EOS = 259, 256, 257
PROMPT = "Once upon"


@pytest.fixture(scope="session")
def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of 259 entries: all bytes and three special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: index for index, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|pad|>", "<|endoftext|>", "<|extra|>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|endoftext|>", padding_side="left"
    )


@pytest.fixture(scope="session")
def assert_parity(byte_tokenizer: PreTrainedTokenizerFast) -> Callable[[Any, Any], None]:
    """Compares two models; each may also be a plain function from ids (batch, seq) to logits."""

    def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
        return model(ids).logits if isinstance(model, PreTrainedModel) else model(ids)

    def greedy(model: Any, ids: torch.Tensor) -> torch.Tensor:
        if isinstance(model, PreTrainedModel):
            return model.generate(ids, do_sample=False, max_new_tokens=12, eos_token_id=None, pad_token_id=PAD)
        for _ in range(12):
            ids = torch.cat((ids, logits(model, ids)[:, -1:].argmax(-1)), dim=1)
        return ids

    @torch.no_grad()
    def check(theirs: Any, ours: Any) -> None:
        for model in (theirs, ours):
            if isinstance(model, torch.nn.Module):
                model.eval()
        ids = torch.randint(0, VOCAB, (2, 20), generator=torch.Generator().manual_seed(3))
        assert (logits(theirs, ids) - logits(ours, ids)).abs().max().item() <= 1e-4
        prompt = byte_tokenizer(PROMPT, return_tensors="pt")["input_ids"]
        expected, found = greedy(theirs, prompt).tolist(), greedy(ours, prompt).tolist()
        assert found == expected
        text = byte_tokenizer.decode(found[0])
        assert text == byte_tokenizer.decode(expected[0])
        assert text.startswith(PROMPT)

    return check
