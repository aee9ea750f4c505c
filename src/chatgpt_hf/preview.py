"""Behind `chatgpt-hf data preview`: what a command would read from files, before anything is spent on training."""

import logging
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from itertools import groupby, islice
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from .data.conversations import conversation_key, read_conversations, tokenize_conversations
from .data.corpus_summary import summarize_corpus
from .data.mixture import load_mixture
from .data.packing import IGNORE_INDEX
from .data.preference_shapes import PreferenceColumns
from .data.preference_tokens import preference_parts, tokenize_preferences
from .data.preferences import read_preferences
from .data.shapes import PairColumns
from .data.sources import CorpusSource
from .data.splits import hash_of
from .data.summary import RowSummary
from .tasks.arguments import TaskArguments
from .tasks.registry import make_task
from .tokenization_chatgpt import load_tokenizer, train_tokenizer

PURPOSES = ("sft", "dpo", "pretrain", "finetune")
_QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.95, 1.0)
# Scripts are counted in the first characters of this many examples.
_SAMPLED_EXAMPLES, _SAMPLED_CHARACTERS = 2000, 1000


@dataclass
class Preview:
    """The data that a training would read.

    Attributes:
        purpose: One of `PURPOSES`.
        tables: A line for each file: rows, examples, the columns that are read and those that are not.
        splits: Number of examples to train on and held out.
        examples: The first examples as they will be learned: lists of a text and whether it is learned. Of
            preferences, the name of the side instead of True where it is scored.
        unit: What lengths count: tokens, or bytes where no tokenizer is given.
        lengths: Quantiles of the examples' lengths.
        block_size: Length of a training row.
        longer: Number of examples longer than that; None if lengths are in bytes.
        duplicates: Number of examples that repeat an earlier one.
        overlap: Number of held-out examples that are also trained on.
        scripts: Share of the letters in each script.
        labels: Number of training rows per label, or of entities per kind, for tasks that have labels.
        dropped: Why rows are changed or left out, and how many.
        unusable: Number of rows at which a training stops, unless `--skip_invalid` leaves them out.
    """

    purpose: str
    tables: list[dict[str, Any]]
    splits: dict[str, int]
    examples: list[list[tuple[str, bool | str]]]
    unit: str
    lengths: dict[str, int]
    block_size: int
    longer: int | None
    duplicates: int
    overlap: int
    scripts: dict[str, float]
    labels: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    unusable: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Returns everything in JSON's types."""
        return asdict(self)


def preview_conversations(
    sources: Sequence[CorpusSource],
    *,
    tokenizer: str | None = None,
    block_size: int = 512,
    rows: int = 3,
    test_fraction: float = 0.0,
    named: PairColumns | None = None,
) -> Preview:
    """Shows what `sft` reads.

    Args:
        sources: The result of `parse_sources`.
        tokenizer: Folder or Hub id of the tokenizer whose chat template and lengths count; ours, with bytes as tokens,
            if not given.
        block_size: Length of a training row in tokens.
        rows: Number of examples to show.
        test_fraction: Share of the conversations to hold out.
        named: Columns or templates of question and answer.

    Raises:
        ChatGPTError: If the sources or the tokenizer cannot be read, or no row can be used.
    """
    splits, summaries = read_conversations(sources, test_fraction=test_fraction, skip_invalid=True, named=named)
    loaded = _tokenizer(tokenizer)
    tokenized = tokenize_conversations(splits["train"], loaded, skip_invalid=True)
    lengths = [len(ids) for ids in tokenized["input_ids"]]
    texts = {name: [conversation_key(messages) for messages in part["messages"]] for name, part in splits.items()}
    dropped = _dropped(summaries)
    if missing := len(splits["train"]) - len(tokenized):
        dropped["conversations with nothing to learn, or that the chat template refuses"] += missing
    return Preview(
        purpose="sft",
        tables=[summary.line() for summary in summaries],
        splits={name: len(part) for name, part in splits.items()},
        examples=[_learned_parts(row, loaded) for row in tokenized.select(range(min(rows, len(tokenized))))],
        dropped=dict(dropped.most_common()),
        unusable=sum(len(summary.invalid) for summary in summaries),
        **_common(texts, lengths, tokenizer is not None, block_size, _said(splits["train"], ("messages",))),
    )


def preview_preferences(
    sources: Sequence[CorpusSource],
    *,
    tokenizer: str | None = None,
    block_size: int = 512,
    rows: int = 3,
    test_fraction: float = 0.0,
    named: PreferenceColumns | None = None,
) -> Preview:
    """Shows what `dpo` reads; see `preview_conversations`. A length is that of the prompt with the longer side."""
    kind, splits, summaries = read_preferences(sources, test_fraction=test_fraction, skip_invalid=True, named=named)
    loaded = _tokenizer(tokenizer)
    tokenized, notes = tokenize_preferences(splits["train"], loaded, skip_invalid=True)
    sides = [name for name in tokenized.column_names if name.endswith("_ids") and name != "prompt_ids"]
    lengths = [len(row["prompt_ids"]) + max(len(row[side]) for side in sides) for row in tokenized]
    said = ("prompt", "completion") if kind == "judged" else ("prompt", "chosen", "rejected")
    texts = {
        name: ["\n".join(conversation_key(row[part]) for part in said) for row in rows]
        for name, rows in splits.items()
    }
    dropped = _dropped(summaries)
    dropped.update({f"preferences that {note}": count for note, count in notes.items()})
    verdicts = Counter("good" if label else "bad" for label in splits["train"]["label"]) if kind == "judged" else {}
    return Preview(
        purpose="dpo",
        tables=[summary.line() for summary in summaries],
        splits={name: len(part) for name, part in splits.items()},
        examples=[preference_parts(row, loaded) for row in tokenized.select(range(min(rows, len(tokenized))))],
        dropped=dict(dropped.most_common()),
        unusable=sum(len(summary.invalid) for summary in summaries),
        labels=dict(verdicts),
        **_common(texts, lengths, tokenizer is not None, block_size, _said(splits["train"], said)),
    )


def preview_corpus(
    sources: Sequence[CorpusSource],
    *,
    tokenizer: str | None = None,
    block_size: int = 512,
    rows: int = 3,
    test_fraction: float = 0.05,
) -> Preview:
    """Shows what `pretrain` reads; see `preview_conversations`."""
    splits = load_mixture(sources, test_fraction=test_fraction)
    texts = {name: part["text"][:] for name, part in splits.items()}
    summaries = [summary for source in sources for summary in summarize_corpus(source)]
    return Preview(
        purpose="pretrain",
        tables=[summary.line() for summary in summaries],
        dropped=dict(_dropped(summaries).most_common()),
        splits={name: len(part) for name, part in splits.items()},
        examples=[[(text[: 4 * block_size], True)] for text in texts["train"][:rows]],
        **_common(texts, _lengths(texts["train"], tokenizer), tokenizer is not None, block_size, texts["train"]),
    )


def preview_task(arguments: TaskArguments, *, tokenizer: str | None = None, rows: int = 3, seed: int = 42) -> Preview:
    """Shows what `finetune` reads; see `preview_conversations`.

    Args:
        arguments: As in the recipe: the task, its dataset and columns.
        seed: Seed of the run.
    """
    task = make_task(arguments, seed)
    names = getattr(task, "label_names", [])
    parts = {"train": task.train, **({"test": task.test} if task.test is not None else {})}
    texts = {name: [_text_of(row) for row in part] for name, part in parts.items()}
    return Preview(
        purpose=f"finetune, {arguments.task}",
        tables=[summary.line() for summary in task.summaries],
        splits={name: len(part) for name, part in parts.items()},
        examples=[_fields(row, names) for row in islice(task.train, rows)],
        dropped=dict(_dropped(task.summaries).most_common()),
        unusable=sum(len(summary.invalid) for summary in task.summaries),
        labels=_labels(task.train, names),
        **_common(
            texts, _lengths(texts["train"], tokenizer), tokenizer is not None, arguments.max_length, texts["train"]
        ),
    )


def _dropped(summaries: Iterable[RowSummary]) -> Counter[str]:
    """Counts the reasons; the rows differ, and the reasons seldom do."""
    dropped: Counter[str] = Counter()
    for summary in summaries:
        dropped.update(reason.partition("cannot be used: ")[2] for reason in summary.invalid)
        dropped.update(summary.notes)
    return dropped


def _common(
    texts: dict[str, list[str]], lengths: Sequence[int], in_tokens: bool, block_size: int, said: Iterable[str]
) -> dict[str, Any]:
    hashes = {name: [hash_of(text) for text in part] for name, part in texts.items()}
    train = set(hashes["train"])
    values = np.quantile(lengths, _QUANTILES).round().astype(int).tolist() if lengths else [0] * len(_QUANTILES)
    return {
        "unit": "tokens" if in_tokens else "bytes",
        "lengths": {f"{100 * share:.0f} %": value for share, value in zip(_QUANTILES, values, strict=True)},
        "block_size": block_size,
        "longer": sum(length > block_size for length in lengths) if in_tokens else None,
        "duplicates": len(hashes["train"]) - len(train),
        "overlap": sum(value in train for value in hashes.get("test", ())),
        "scripts": _scripts(said),
    }


def _tokenizer(name: str | None) -> PreTrainedTokenizerBase:
    if name is not None:
        return load_tokenizer(name)
    logger = logging.getLogger(train_tokenizer.__module__)
    level = logger.level
    # It has only the bytes, on purpose.
    logger.setLevel(logging.ERROR)
    try:
        return train_tokenizer(["a"], 260, show_progress=False)
    finally:
        logger.setLevel(level)


def _lengths(texts: Sequence[str], tokenizer: str | None) -> list[int]:
    if tokenizer is None:
        return [len(text.encode()) for text in texts]
    loaded = load_tokenizer(tokenizer)
    return [len(loaded(text, verbose=False)["input_ids"]) for text in texts]


def _learned_parts(row: dict[str, list[int]], tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, bool | str]]:
    pairs = zip(row["input_ids"], row["labels"], strict=True)
    return [
        (tokenizer.decode([token for token, _ in span], skip_special_tokens=False), is_learned)
        for is_learned, span in groupby(pairs, lambda pair: pair[1] != IGNORE_INDEX)
    ]


def _said(rows: Dataset, columns: Sequence[str]) -> Iterable[str]:
    for row in islice(rows, _SAMPLED_EXAMPLES):
        yield " ".join(str(message.get("content") or "") for column in columns for message in row[column])


def _text_of(row: dict[str, Any]) -> str:
    """Returns all texts of a task's row."""
    return "\n".join(
        text
        for value in row.values()
        for text in ([value] if isinstance(value, str) else value if isinstance(value, list) else [])
        if isinstance(text, str)
    )


def _fields(row: dict[str, Any], names: Sequence[str]) -> list[tuple[str, bool | str]]:
    """Returns a row's fields as a person reads them, and whether they are learned."""
    if "tags" in row:
        pairs = zip(row["tokens"], row["tags"], strict=True)
        words = ((f"{token}/{names[tag]}" if names[tag] != "O" else token, names[tag] != "O") for token, tag in pairs)
        return [(f"{word} ", is_entity) for word, is_entity in words]
    parts: list[tuple[str, bool | str]] = []
    for name, value in row.items():
        if name == "label" and "continuations" in row:
            value = row["continuations"][value]
        elif name == "label":
            value = _label_names([value], names)[0]
        elif name == "answers":
            value = "; ".join(value["text"]) or "(none)"
        elif isinstance(value, list):
            value = " | ".join(dict.fromkeys(map(str, value)))
        parts.append((f"{name}: {value}\n", name in ("label", "completion", "answers")))
    return parts


def _label_names(labels: Sequence[Any], names: Sequence[str]) -> list[str]:
    """Returns labels by their names: an index, or a list of 0.0 and 1.0 for each name; numbers stay."""
    if not names:
        return [f"{label:g}" if isinstance(label, float) else str(label) for label in labels]
    return [
        ", ".join(name for name, is_set in zip(names, label, strict=True) if is_set) or "(none)"
        if isinstance(label, list)
        else names[label]
        for label in labels
    ]


def _labels(rows: Dataset, names: Sequence[str]) -> dict[str, int]:
    if "tags" in rows.column_names:
        kinds = (names[tag][2:] for tags in rows["tags"] for tag in tags if names[tag].startswith("B-"))
        return dict(Counter(kinds).most_common())
    if not names or "label" not in rows.column_names:
        return {}
    return dict(Counter(_label_names(rows["label"][:], names)).most_common())


def _scripts(texts: Iterable[str]) -> dict[str, float]:
    """Returns the share of the letters in each script, as the names of the characters have it; the largest first."""
    counts: Counter[str] = Counter()
    for text in islice(texts, _SAMPLED_EXAMPLES):
        counts.update(script for character in text[:_SAMPLED_CHARACTERS] if (script := _script(character)))
    total = sum(counts.values())
    return {script: count / total for script, count in counts.most_common(6)}


@cache
def _script(character: str) -> str | None:
    if not character.isalpha():
        return None
    name = unicodedata.name(character, "").partition(" ")[0].partition("-")[0]
    return {"CJK": "Han", "": "unknown"}.get(name, name.capitalize())
