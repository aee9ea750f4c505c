"""Likelihoods of tokens, compared with one forward pass per row."""

from pathlib import Path
from typing import Any

import pytest
import torch
from numpy.testing import assert_allclose

from chatgpt_hf import load_model, load_tokenizer
from chatgpt_hf.evaluation.scoring import continuation, negative_log_likelihoods


@pytest.fixture(scope="module")
def model(base_folder: Path) -> Any:
    return load_model(base_folder).eval()


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_batches_change_nothing(batch_size: int, model: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    pieces = [
        (torch.randint(5, 200, (length,), generator=generator).tolist(), first)
        for length, first in ((9, 1), (4, 3), (30, 12), (2, 1))
    ]
    expected = []
    for ids, first in pieces:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        expected.append(-sum(logits[place - 1, ids[place]].item() for place in range(first, len(ids))))
    found = negative_log_likelihoods(model, pieces, pad_token_id=0, batch_size=batch_size, progress=False)
    assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(("context", "text"), [("The cat", " sits."), ("The cat ", "sits."), ("", "sits.")])
def test_what_counts_of_a_continuation(context: str, text: str, base_folder: Path) -> None:
    tokenizer = load_tokenizer(str(base_folder))
    ids, first = continuation(tokenizer, context, text, max_length=64)
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids[1:]) == context + text
    assert tokenizer.decode(ids[first:]).strip() == "sits."


def test_a_long_context_loses_its_beginning(base_folder: Path) -> None:
    tokenizer = load_tokenizer(str(base_folder))
    ids, first = continuation(tokenizer, "one two three " * 20, "four", max_length=16)
    assert len(ids) == 16
    assert tokenizer.decode(ids[first:]).strip() == "four"


def test_a_model_that_is_trained_goes_on_so(model: Any) -> None:
    model.train()
    modes = [module.training for module in model.modules()]
    with pytest.raises(ValueError, match="this model knows 0 to 299"):
        negative_log_likelihoods(model, [([10**9] * 3, 1)], pad_token_id=0, progress=False)
    assert [module.training for module in model.modules()] == modes
    model.eval()
