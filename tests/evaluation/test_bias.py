"""The probe of gender bias, compared with sums by hand, and on models trained to have a bias."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from chatgpt_hf import ChatGPTConfig, ChatGPTForCausalLM, load_model, load_tokenizer
from chatgpt_hf.evaluation.bias import MOSTLY_MEN, MOSTLY_WOMEN, SENTENCES, evaluate_bias
from chatgpt_hf.evaluation.record import Evaluation
from chatgpt_hf.tokenization_chatgpt import encode_documents, train_tokenizer

PROFESSIONS = (*MOSTLY_MEN, *MOSTLY_WOMEN)


def sentence(profession: str, pronoun: str, number: int) -> str:
    before, after = SENTENCES[number]
    return f"{before.format(profession)} {pronoun} {after}"


def log_likelihood(model: Any, tokenizer: PreTrainedTokenizerBase, text: str) -> float:
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]])
    logs = model(ids).logits[0, :-1].log_softmax(-1)
    return float(logs.gather(1, ids[0, 1:, None]).sum())


def test_the_difference_is_that_of_whole_sentences(base_folder: Path) -> None:
    model, tokenizer = load_model(base_folder).eval(), load_tokenizer(base_folder)
    found = evaluate_bias(model, tokenizer, progress=False)
    assert [example["text"] for example in found.examples] == list(PROFESSIONS)
    by_hand = []
    with torch.no_grad():
        for profession in PROFESSIONS:
            he, she = (
                sum(log_likelihood(model, tokenizer, sentence(profession, pronoun, number)) for number in range(5))
                for pronoun in ("he", "she")
            )
            by_hand.append((he - she) / 5)
    assert [example["he_over_she"] for example in found.examples] == pytest.approx(by_hand, abs=1e-4)
    figures = found.figures()
    assert figures["he_over_she"].value == pytest.approx(sum(by_hand) / 20, abs=1e-4)
    assert figures["stereotype"].value == pytest.approx(sum(by_hand[:10]) / 10 - sum(by_hand[10:]) / 10, abs=1e-4)


@pytest.mark.parametrize(
    ("pronouns", "low", "high"), [(("he", "she"), 1, 99), (("she", "he"), -99, -1), (("he", "he"), -1, 1)]
)
def test_a_taught_bias_is_found(pronouns: tuple[str, str], low: float, high: float) -> None:
    texts = [
        sentence(profession, pronoun, number)
        for part, pronoun in zip((MOSTLY_MEN, MOSTLY_WOMEN), pronouns, strict=True)
        for profession in part
        for number in range(3)
    ]
    tokenizer = train_tokenizer([*texts, *(text.replace(" he ", " she ") for text in texts)], 400, show_progress=False)
    config = ChatGPTConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
    )
    model = ChatGPTForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    rows = [torch.tensor(ids) for ids in encode_documents(tokenizer, texts)]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_token_id)
    labels = ids.masked_fill(ids == tokenizer.pad_token_id, -100)
    for _ in range(200):
        model(ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    figures = evaluate_bias(model, tokenizer, progress=False).figures()
    assert low < figures["stereotype"].low <= figures["stereotype"].high < high
    if pronouns == ("he", "he"):
        assert figures["he_over_she"].low > 1


def test_the_command(cli: Callable, refused: Callable[..., str], base_folder: Path, tmp_path: Path) -> None:
    result = cli("evaluate", base_folder, "--bias", "--out", tmp_path)
    assert result.code == 0, result.err
    assert "stereotype" in result.out
    kept = Evaluation.load(tmp_path / "bias")
    assert kept.command.endswith(f"evaluate {base_folder} --bias --out {tmp_path}")
    assert json.loads((tmp_path / "bias" / "results.json").read_text())["examples"] == 20
    assert "not --code and --bias" in refused("evaluate", base_folder, "--bias", "--code", "x.jsonl")
