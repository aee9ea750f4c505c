"""How well a chat model answers: exact match and ROUGE-L against the reference, and whether it stops by itself."""

import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import takewhile
from typing import Any

import torch
from rouge_score.rouge_scorer import RougeScorer
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import DataError
from ..tokenization_chatgpt import encode_conversation
from .padding import pad

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AnswersResult:
    """Means over the conversations, each in [0, 1].

    Attributes:
        stopped: The share of answers that end with an end mark of the model's own.
        well_formed: Of these, those that say something, in whole characters and without another special token.
    """

    exact_match: float
    rouge_l: float
    stopped: float
    well_formed: float
    conversations: int
    samples: list[dict[str, str]]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def ends_with_an_answer(messages: list[dict[str, str]] | None) -> bool:
    """Whether the last message is the assistant's, with a question before it."""
    return messages is not None and len(messages) >= 2 and messages[-1]["role"] == "assistant"


@torch.inference_mode()
def evaluate_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[list[dict[str, str]]],
    *,
    max_new_tokens: int = 128,
    batch_size: int = 32,
    progress: bool = True,
) -> AnswersResult:
    """Greedy answers to each conversation's last question, against its last message.

    ROUGE-L is the F-measure of Lin 2004 with stemming, as in `rouge_score`.

    Raises:
        DataError: When there is no conversation, or one does not end with the assistant.
    """
    if not conversations:
        raise DataError("There are no conversations to evaluate on.")
    for messages in conversations:
        if not ends_with_an_answer(messages):
            raise DataError(
                f"A conversation to evaluate must end with the assistant's answer, this one is {messages}."
            )
    prompts = [
        encode_conversation(tokenizer, messages[:-1], add_generation_prompt=True)["input_ids"]
        for messages in conversations
    ]
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    limit = getattr(model.config, "max_position_embeddings", None) or sys.maxsize
    if too_long := sum(len(prompt) >= limit for prompt in prompts):
        logger.warning("%d questions leave no room in the context of %d and count as unanswered.", too_long, limit)
        order = order[: len(order) - too_long]
    answers = [""] * len(prompts)
    stopped = well_formed = 0
    specials = set(tokenizer.all_special_ids)
    was_training = model.training
    model.eval()
    eos = model.generation_config.eos_token_id
    ends = set(eos if isinstance(eos, list) else [eos])
    for begin in tqdm(range(0, len(order), batch_size), desc="Answering", disable=not progress):
        indices = order[begin : begin + batch_size]
        inputs = pad([prompts[index] for index in indices], side="left", pad_token_id=tokenizer.pad_token_id)
        room = limit - inputs["input_ids"].shape[1]
        output = model.generate(
            **{name: value.to(model.device) for name, value in inputs.items()},
            max_new_tokens=min(max_new_tokens, room),
            do_sample=False,
        )
        for index, ids in zip(indices, output[:, inputs["input_ids"].shape[1] :], strict=True):
            said = list(takewhile(lambda token: token not in ends, ids.tolist()))
            answers[index] = tokenizer.decode(said, skip_special_tokens=True).strip()
            ended = len(said) < len(ids)
            stopped += ended
            well_formed += ended and bool(answers[index]) and "�" not in answers[index] and not specials & set(said)
    model.train(was_training)
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    references = [messages[-1]["content"].strip() for messages in conversations]
    rouge = sum(
        scorer.score(reference, answer)["rougeL"].fmeasure
        for reference, answer in zip(references, answers, strict=True)
    )
    return AnswersResult(
        exact_match=sum(a == b for a, b in zip(answers, references, strict=True)) / len(answers),
        rouge_l=rouge / len(answers),
        stopped=stopped / len(answers),
        well_formed=well_formed / len(answers),
        conversations=len(answers),
        samples=[
            {"question": messages[-2]["content"], "answer": answer, "reference": reference}
            for messages, answer, reference in list(zip(conversations, answers, references, strict=True))[:8]
        ],
    )
