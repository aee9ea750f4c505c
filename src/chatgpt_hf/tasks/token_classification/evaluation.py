"""Evaluates how well a model finds entities, through the pipeline that people use it with."""

from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TokenClassificationPipeline

from ...evaluation.batching import run_pipeline
from ...evaluation.metrics import measures
from ...evaluation.record import Evaluation
from ...extras import needed_by
from .tags import find_scheme, is_bio, to_bio
from .words import join_words

TASK = "token-classification"


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
    names = list(model.config.id2label.values())
    if not is_bio(names):
        predictions = [_as_bio(tags, names) for tags in predictions]
    references = [[label_names[tag] for tag in tags] for tags in rows["tags"]]
    return tagging_record(rows["tokens"], predictions, references, data=data)


def _as_bio(tags: Sequence[str], names: Sequence[str]) -> list[str]:
    """Converts predicted tags of a model with another scheme, such as BIOES; unknown tags are no entities."""
    scheme = find_scheme(names)
    return to_bio([scheme.parse(tag) or ("O", "") for tag in tags])[0]


def tagging_record(
    sentences: Sequence[Sequence[str]], predictions: list[list[str]], references: list[list[str]], *, data: str
) -> Evaluation:
    """Evaluates tags, one per word."""
    examples: list[dict[str, Any]] = [
        {"text": join_words(words)[0], "prediction": _entities(words, said), "reference": _entities(words, true)}
        for words, said, true in zip(sentences, predictions, references, strict=True)
    ]
    return Evaluation(TASK, data, measures("seqeval", predictions, references), examples)


def _entities(words: Sequence[str], tags: Sequence[str]) -> list[str]:
    with needed_by("Evaluation of tags"):
        from seqeval.metrics.sequence_labeling import get_entities

    return [f"{join_words(words[begin : end + 1])[0]} ({kind})" for kind, begin, end in get_entities(list(tags))]
