"""Evaluates a chat model's answers: exact match and ROUGE-L against the reference, and whether they end properly."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..chat_templates import encode_chat_prompt
from ..errors import DataError
from .generation import generate_completions
from .metrics import measures


@dataclass(frozen=True)
class AnswersResult:
    """Means over the conversations, each in [0, 1].

    Attributes:
        rouge_l_signature: How ROUGE-L read the texts; see `Measure`.
        stopped: The share of answers that the model ended with an end mark.
        well_formed: The share of answers that also have text, only whole characters, and no other special token.
    """

    exact_match: float
    rouge_l: float
    stopped: float
    well_formed: float
    conversations: int
    samples: list[dict[str, str]]
    rouge_l_signature: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def ends_with_an_answer(messages: list[dict[str, Any]] | None) -> bool:
    """True if the last message is an answer to learn, with a question before it.

    A call of a tool has no text to compare with, and a message of weight 0 is no answer to repeat.
    """
    if messages is None or len(messages) < 2:
        return False
    last = messages[-1]
    return last["role"] == "assistant" and last.get("weight") != 0 and bool(last["content"])


def last_questions(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[list[dict[str, Any]]],
    tools: Sequence[list[dict[str, Any]] | None] | None = None,
) -> list[list[int]]:
    """Encodes each conversation up to its last message, the answer to compare with.

    Args:
        tools: The tools of each conversation, as JSON schemas.

    Returns:
        Token ids for each conversation, (prompt,).
    """
    return [
        encode_chat_prompt(tokenizer, messages[:-1], given)
        for messages, given in zip(conversations, tools or [None] * len(conversations), strict=True)
    ]


def evaluate_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[list[dict[str, Any]]],
    *,
    tools: Sequence[list[dict[str, Any]] | None] | None = None,
    max_new_tokens: int = 128,
    batch_size: int = 32,
    desc: str = "Answering",
    progress: bool = True,
) -> AnswersResult:
    """Answers each conversation's last question greedily, and compares the answer with its last message.

    Args:
        tools: The tools of each conversation, as JSON schemas.
        desc: Text of the progress bar.

    Raises:
        DataError: If there is no conversation, or one does not end with the assistant's message.
    """
    if not conversations:
        raise DataError("There are no conversations to evaluate on.")
    for messages in conversations:
        if not ends_with_an_answer(messages):
            raise DataError(
                f"A conversation to evaluate must end with the assistant's answer, but this one is {messages}."
            )
    prompts = last_questions(tokenizer, conversations, tools)
    completions = generate_completions(
        model,
        tokenizer,
        prompts,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        progress=progress,
        desc=desc,
        noun="questions",
        do_sample=False,
    )
    answers = [completion.text.strip() for completion in completions]
    specials = set(tokenizer.all_special_ids)
    well_formed = sum(
        completion.ended and bool(answer) and "�" not in answer and not specials & set(completion.ids)
        for completion, answer in zip(completions, answers, strict=True)
    )
    references = [messages[-1]["content"].strip() for messages in conversations]
    scores = score_answers(answers, references)
    return AnswersResult(
        exact_match=scores.exact_match,
        rouge_l=scores.rouge_l,
        rouge_l_signature=scores.signature,
        stopped=sum(completion.ended for completion in completions) / len(answers),
        well_formed=well_formed / len(answers),
        conversations=len(answers),
        samples=[
            {"question": messages[-2]["content"], "answer": answer, "reference": reference}
            for messages, answer, reference in list(zip(conversations, answers, references, strict=True))[:8]
        ],
    )


class AnswerScores(NamedTuple):
    """Means over answers, and how ROUGE-L read the texts."""

    exact_match: float
    rouge_l: float
    signature: str


def score_answers(answers: Sequence[str], references: Sequence[str]) -> AnswerScores:
    """Compares answers with their references in any language: exact match, and ROUGE-L (Lin 2004) with English stems."""
    (rouge,) = measures("rouge", answers, references, rouge_types=["rougeL"], use_stemmer=True).values()
    exact = measures("exact_match", answers, references)["exact_match"]
    return AnswerScores(exact.value, rouge.value, rouge.signature)
