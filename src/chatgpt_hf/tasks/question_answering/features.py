"""Turns questions and contexts into training rows."""

from typing import Any

from datasets import Dataset, Features, List, Value
from transformers import PreTrainedTokenizerBase

from ...errors import DataError
from ...model.spans import SpanError, answer_positions, context_windows

_FEATURES = Features(
    {
        "input_ids": List(Value("int64")),
        "attention_mask": List(Value("int64")),
        "start_positions": Value("int64"),
        "end_positions": Value("int64"),
    }
)


def prepare_features(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase, *, max_length: int = 384, stride: int = 128
) -> Dataset:
    """Cuts questions' contexts into windows, like Hugging Face's question-answering example.

    Args:
        rows: Rows that `load_squad` returns.
        tokenizer, max_length, stride: As for `context_windows`.

    Returns:
        One row per window, in the order of `rows`, with columns `input_ids`, `attention_mask`, `start_positions` and
        `end_positions`. The positions are the first and last token of the first answer, or 0 if the window lacks part
        of it.

    Raises:
        DataError: If the tokenizer has no offsets or no bos token, or a question leaves no room for a context.
    """

    def encode(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        made: dict[str, list[Any]] = {name: [] for name in _FEATURES}
        try:
            found = context_windows(
                batch["question"], batch["context"], tokenizer, max_length=max_length, stride=stride
            )
        except SpanError as error:
            raise DataError(str(error)) from error
        for answers, row_windows in zip(batch["answers"], found, strict=True):
            for window in row_windows:
                span = (0, 0)
                if answers["text"]:
                    start = answers["answer_start"][0]
                    span = answer_positions(window, start, start + len(answers["text"][0]))
                made["input_ids"].append(window.input_ids)
                made["attention_mask"].append([1] * len(window.input_ids))
                made["start_positions"].append(span[0])
                made["end_positions"].append(span[1])
        return made

    return rows.map(
        encode,
        batched=True,
        batch_size=100,
        remove_columns=rows.column_names,
        features=_FEATURES,
        desc="Cutting contexts into windows",
    )
