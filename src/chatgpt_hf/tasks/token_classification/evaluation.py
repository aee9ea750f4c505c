"""Evaluates how well a model finds entities, through the pipeline that people use it with."""

from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TokenClassificationPipeline

from ...evaluation.batching import run_pipeline
from ...evaluation.metrics import measures
from ...evaluation.record import Evaluation
from ...extras import needed_by

TASK = "token-classification"


def join_words(words: Sequence[str]) -> tuple[str, list[int]]:
    """Joins words to the text that the model reads; returns it and where each word begins."""
    starts, length = [], 0
    for word in words:
        starts.append(length)
        length += len(word) + 1
    return " ".join(words), starts


def first_tokens(offsets: Sequence[tuple[int, int]], starts: Sequence[int]) -> list[int | None]:
    """Returns the token with the first character of each word; None if the text was cut before it.

    Args:
        offsets: Offsets of each token, as a fast tokenizer returns them; special tokens are empty.
        starts: Where each word begins.
    """
    places: dict[int, int] = {}
    for token, (begin, end) in enumerate(offsets):
        for character in range(begin, end):
            places.setdefault(character, token)
    return [places.get(start) for start in starts]


def evaluate_token_classification(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    label_names: Sequence[str],
    *,
    data: str,
    batch_size: int = 32,
    progress: bool = True,
) -> Evaluation:
    """Tags words with `pipeline("token-classification")`; a word has the tag of its first token.

    Words beyond the length at which the tokenizer cuts count as having no entity.

    Args:
        rows: Columns `tokens` (words) and `tags` (indices of `label_names`).
        label_names: Label names of the rows; the model's own are in its config.
        data: Where the rows came from, for the record.
    """
    sentences = [join_words(words) for words in rows["tokens"]]
    tag = TokenClassificationPipeline(model=model, tokenizer=tokenizer, batch_size=batch_size, ignore_labels=[])
    outputs = run_pipeline(tag, [text for text, _ in sentences], desc="Tagging", progress=progress)
    predictions = []
    for found, (_, starts) in zip(outputs, sentences, strict=True):
        tokens = first_tokens([(entity["start"], entity["end"]) for entity in found], starts)
        predictions.append(["O" if token is None else found[token]["entity"] for token in tokens])
    references = [[label_names[tag] for tag in tags] for tags in rows["tags"]]
    return tagging_record(rows["tokens"], predictions, references, data=data)


def tagging_record(
    sentences: Sequence[Sequence[str]], predictions: list[list[str]], references: list[list[str]], *, data: str
) -> Evaluation:
    """Evaluates tags, one per word."""
    examples: list[dict[str, Any]] = [
        {"text": " ".join(words), "prediction": _entities(words, said), "reference": _entities(words, true)}
        for words, said, true in zip(sentences, predictions, references, strict=True)
    ]
    return Evaluation(TASK, data, measures("seqeval", predictions, references), examples)


def _entities(words: Sequence[str], tags: Sequence[str]) -> list[str]:
    with needed_by("Evaluation of tags"):
        from seqeval.metrics.sequence_labeling import get_entities

    return [f"{' '.join(words[begin : end + 1])} ({kind})" for kind, begin, end in get_entities(list(tags))]
