"""Figures on answers, compared with direct calls of `rouge_score` and `model.generate`."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer
from transformers import AutoTokenizer

from chatgpt_hf import ChatGPTConfig, ChatGPTForCausalLM, load_model
from chatgpt_hf.errors import DataError
from chatgpt_hf.evaluation.answers import ends_with_an_answer, evaluate_answers
from chatgpt_hf.tokenization_chatgpt import encode_conversation


def conversation(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


@pytest.fixture(scope="module")
def model(chat_folder: Path) -> Any:
    return load_model(chat_folder)


@pytest.fixture(scope="module")
def tokenizer(chat_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(chat_folder)


# References: the model's answer, one that shares words with it, and one that shares none.
CONVERSATIONS = [
    conversation("Hello!", "Hi! How are you?"),
    conversation("Count to five.", " 1, 2, 3, 4, 5.\n"),
    conversation("Who are you?", "I was a tiny model, made tests."),
    conversation("Smile", "No."),
    conversation("Something that it has never seen, and longer than the others", "Nothing."),
]


def by_hand(model: Any, tokenizer: Any, messages: list[dict[str, str]], max_new_tokens: int) -> tuple[str, bool]:
    ids = torch.tensor([encode_conversation(tokenizer, messages[:-1], add_generation_prompt=True)["input_ids"]])
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": max_new_tokens, "do_sample": False}
    said = model.eval().generate(ids, **options)[0, ids.shape[1] :]
    return tokenizer.decode(said, skip_special_tokens=True).strip(), said[-1].item() in (0, 3)


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_figures(batch_size: int, model: Any, tokenizer: Any) -> None:
    limit = 30
    result = evaluate_answers(
        model, tokenizer, CONVERSATIONS, batch_size=batch_size, max_new_tokens=limit, progress=False
    )
    answers, stopped = zip(*(by_hand(model, tokenizer, m, limit) for m in CONVERSATIONS), strict=True)
    references = [messages[-1]["content"].strip() for messages in CONVERSATIONS]
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    rouge = [scorer.score(*pair)["rougeL"].fmeasure for pair in zip(references, answers, strict=True)]
    assert result.conversations == 5
    assert result.exact_match == sum(map(str.__eq__, answers, references)) / 5 == 2 / 5
    assert result.rouge_l == pytest.approx(sum(rouge) / 5)
    assert rouge[0] == 1 > rouge[2] > 0.5 > rouge[3] == 0
    assert result.stopped == sum(stopped) / 5 >= 4 / 5
    assert result.well_formed == result.stopped
    assert result.samples == [
        {"question": messages[0]["content"], "answer": answer, "reference": reference}
        for messages, answer, reference in zip(CONVERSATIONS, answers, references, strict=True)
    ]
    assert result.as_dict()["rouge_l"] == result.rouge_l


def test_answers_that_are_cut_off_did_not_stop(model: Any, tokenizer: Any) -> None:
    result = evaluate_answers(model, tokenizer, CONVERSATIONS[:2], max_new_tokens=3, progress=False)
    assert (result.stopped, result.exact_match) == (0, 0)


@pytest.mark.parametrize(
    ("said", "stopped", "well_formed"),
    [
        ([65, 66, 3], 1, 1),
        ([65, 66, 0], 1, 1),
        ([65, 66, 67], 0, 0),
        ([3, 65, 66], 1, 0),
        ([65, 2, 3], 1, 0),
        ([244, 244, 3], 1, 0),
    ],
    ids=["ends", "ends as a document", "cut off", "says nothing", "begins a turn", "breaks a character"],
)
def test_what_is_well_formed(said: list[int], stopped: int, well_formed: int, model: Any, tokenizer: Any) -> None:
    class Says(type(model)):
        def generate(self, input_ids: torch.Tensor, **options: Any) -> torch.Tensor:
            return torch.cat((input_ids, torch.tensor([said])), dim=1)

    speaker = Says(model.config)
    speaker.generation_config = model.generation_config
    assert tokenizer.decode([244, 244]) == "��"
    result = evaluate_answers(speaker, tokenizer, CONVERSATIONS[:1], progress=False)
    assert (result.stopped, result.well_formed) == (stopped, well_formed)


@pytest.mark.parametrize("answer", ["北京是中国的首都。", "こんにちは", "Привет, мир", "สวัสดีครับ", "👍"])
def test_right_answers_in_any_language(answer: str, model: Any, tokenizer: Any) -> None:
    said = [*tokenizer(answer, add_special_tokens=False)["input_ids"], 3]

    class Says(type(model)):
        def generate(self, input_ids: torch.Tensor, **options: Any) -> torch.Tensor:
            return torch.cat((input_ids, torch.tensor([said])), dim=1)

    speaker = Says(model.config)
    speaker.generation_config = model.generation_config
    right, wrong = (
        evaluate_answers(speaker, tokenizer, [conversation("?", reference)], progress=False)
        for reference in (answer, "天气很冷")
    )
    assert (right.exact_match, right.rouge_l, right.well_formed) == (1, 1, 1)
    assert right.rouge_l_signature == "case:lc|tok:words|stem:yes"
    assert (wrong.exact_match, wrong.rouge_l) == (0, 0)


def test_earlier_turns_are_seen(model: Any, tokenizer: Any) -> None:
    long = [*conversation("Hello!", "Hi! How are you?"), *conversation("Smile", "Yes")]
    result = evaluate_answers(model, tokenizer, [long], max_new_tokens=20, progress=False)
    assert result.samples[0]["question"] == "Smile"
    assert result.samples[0]["answer"] == by_hand(model, tokenizer, long, 20)[0]


def test_the_model_is_left_as_it_was(model: Any, tokenizer: Any) -> None:
    model.train()
    evaluate_answers(model, tokenizer, CONVERSATIONS[:1], max_new_tokens=2, progress=False)
    assert model.training
    model.eval()


def test_dropout_is_off(tokenizer: Any) -> None:
    config = ChatGPTConfig(
        vocab_size=300, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, residual_dropout=0.9
    )
    model = ChatGPTForCausalLM(config).train()
    first, second = (evaluate_answers(model, tokenizer, CONVERSATIONS, max_new_tokens=8, progress=False) for _ in "ab")
    assert first == second


@pytest.mark.parametrize("positions", ["learned", "rope"])
def test_questions_that_fill_the_context(positions: str, tokenizer: Any, caplog: pytest.LogCaptureFixture) -> None:
    config = ChatGPTConfig(
        vocab_size=300,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=40,
        position_embedding_type=positions,
    )
    model = ChatGPTForCausalLM(config)
    asked = [*CONVERSATIONS[:2], conversation("word " * 60, "Yes")]
    with caplog.at_level(logging.WARNING):
        result = evaluate_answers(model, tokenizer, asked, progress=False)
    assert "1 questions leave no room in the context of 40 and count as unanswered" in caplog.text
    assert result.conversations == 3
    assert result.samples[2]["answer"] == ""


def test_tokenizers_without_padding(model: Any, tokenizer: Any, chat_folder: Path) -> None:
    other = AutoTokenizer.from_pretrained(chat_folder)
    other.pad_token = None
    expected = evaluate_answers(model, tokenizer, CONVERSATIONS, max_new_tokens=10, progress=False)
    assert evaluate_answers(model, other, CONVERSATIONS, max_new_tokens=10, progress=False) == expected


@pytest.mark.parametrize(
    ("conversations", "message"),
    [
        ([], "no conversations to evaluate on"),
        ([[{"role": "user", "content": "Hello!"}]], "must end with the assistant's answer"),
        ([[{"role": "assistant", "content": "Hello!"}]], "must end with the assistant's answer"),
        ([[*CONVERSATIONS[0], {"role": "user", "content": "And?"}]], "must end with the assistant's answer"),
    ],
)
def test_what_cannot_be_evaluated(conversations: Any, message: str, model: Any, tokenizer: Any) -> None:
    with pytest.raises(DataError, match=message):
        evaluate_answers(model, tokenizer, conversations, progress=False)
    assert not any(map(ends_with_an_answer, conversations))
    assert not ends_with_an_answer(None)
