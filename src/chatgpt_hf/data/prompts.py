"""Loads prompts that a model answers itself, with what the rewards of its answers read: rows like `question` and `answer`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from datasets import Dataset, DatasetDict, Features, Json, List, Value

from ..errors import DataError
from .conversation_rows import SingleRowReader
from .conversations import as_json, conversation_key, warn_of_shared_prompts
from .messages import Message, check_conversation, is_blank, normalize_messages
from .row_splits import read_splits
from .shapes import Cells, Row, asked, messages_column, turns_of
from .sources import CorpusSource
from .summary import RowSummary

ANSWER = "answer"
# Columns of a result that no column of a row takes the place of.
_OWN = ("prompt", "place")
_FEATURES = Features({"prompt": List(Json()), "columns": Json(), "source": Value("string"), "place": Value("string")})


@dataclass(frozen=True)
class Prompt:
    """A prompt.

    Attributes:
        messages: The conversation before the answer, as in a `Conversation`.
        columns: The other columns of the row. `answer` is also what the assistant says at the end of a whole conversation.
    """

    messages: list[Message]
    columns: dict[str, Any]


class Prompts(NamedTuple):
    """Prompts, and what was done with the rows and columns that they come from.

    Attributes:
        splits: The split `train`, and `test` if anything is held out. Columns: `prompt`, a list of messages; `place`, the row and
            file; and every other column of the rows, None where a row has none.
        summaries: One for each file, built-in or Hub data set.
    """

    splits: DatasetDict
    summaries: list[RowSummary]


class PromptReader(SingleRowReader):
    """Reads the prompts of one table; see `ConversationReader` for what it counts.

    Args:
        where: Name of the table, for messages.
        named: Columns that the user named, by `prompt` and `answer`.
        reserved: Columns that are not passed on, because rewards are given something else by that name.
    """

    def __init__(self, where: str, named: Mapping[str, str], reserved: Sequence[str] = ()) -> None:
        super().__init__(where, named)
        self._reserved = reserved

    def _cells(self, row: Row) -> Cells:
        return Cells(row, {name: column for name, column in self._named.items() if column in row})

    def _read_row(self, row: Row, cells: Cells) -> list[Any]:
        if not self._is_read(row, cells):
            return []
        column = None if "prompt" in self._named else messages_column(cells)
        written = (
            asked(cells, contexts="prompt" not in self._named) if column is None else turns_of(cells.take(column))
        )
        messages = normalize_messages(written or [], self.unused, self.notes)
        check_conversation(messages)
        said: list[str] = []
        while messages and messages[-1]["role"] == "assistant":
            said.insert(0, messages.pop()["content"])
        if not messages:
            raise DataError("it has no prompt")
        read = set(cells.used)
        left_out = {*read, *self._reserved, *_OWN}
        columns = {str(name): _plain(str(name), value) for name, value in row.items() if name not in left_out}
        if ANSWER in self._named:
            columns[ANSWER] = _plain(ANSWER, cells.take(ANSWER))
        elif said and is_blank(columns.get(ANSWER)):
            columns[ANSWER] = "\n".join(said)
        for name in columns:
            if name in row:
                cells.take(str(name))
        self.shapes["a conversation to answer" if column else "a question"] += 1
        return [Prompt(messages, columns)]


def read_prompts(
    sources: Sequence[CorpusSource],
    *,
    test_fraction: float = 0.0,
    seed: int = 0,
    skip_invalid: bool = False,
    named: Mapping[str, str] | None = None,
    reserved: Sequence[str] = (),
) -> Prompts:
    """Reads prompts from one or several sources, mixed by weight as in `load_mixture`.

    Args:
        sources: The result of `parse_sources`.
        test_fraction: Share of the prompts to hold out, by a hash of the prompt, from each source without its own `test` split.
        seed: Seed of the order in which weighted sources are drawn from.
        skip_invalid: Leave out rows that cannot be used, with a warning that counts them, instead of raising an error.
        named, reserved: See `PromptReader`.

    Raises:
        DataError: If a source does not exist, or a row has no prompt or cannot be used; the message names the row.
    """
    read, summaries = read_splits(
        sources,
        partial(PromptReader, named=named or {}, reserved=reserved),
        _columns,
        _FEATURES,
        key=lambda rows: map(conversation_key, rows["prompt"]),
        units=("prompt", "prompts"),
        test_fraction=test_fraction,
        seed=seed,
        skip_invalid=skip_invalid,
    )
    names = list(dict.fromkeys(name for rows in read.values() for columns in rows["columns"] for name in columns))
    splits = DatasetDict({name: _spread(rows, names) for name, rows in read.items()})
    if "test" in splits:
        warn_of_shared_prompts(splits["train"], splits["test"])
    return Prompts(splits, summaries)


def _columns(read: Prompt) -> dict[str, Any]:
    return {"prompt": as_json(read.messages), "columns": json.dumps(read.columns)}


def _spread(rows: Dataset, names: Sequence[str]) -> Dataset:
    """Returns rows with a column for each name."""
    columns = {name: [json.dumps(cells.get(name)) for cells in rows["columns"]] for name in names}
    kept = {"prompt": [as_json(messages) for messages in rows["prompt"]], "place": rows["place"][:]}
    features = Features({"prompt": List(Json()), "place": Value("string"), **{name: Json() for name in names}})
    return Dataset.from_dict({**kept, **columns}, features)


def _plain(name: str, value: Any) -> Any:
    """The value of a column as JSON holds it, if a data set can hold it too."""
    if "\0" in name:
        raise DataError(f"the name of its column {name!r:.80} has a zero byte: rename the column")

    def whole(text: str) -> int:
        number = int(text)
        if not -(2**63) <= number < 2**64:
            raise DataError(f"its {name} has a whole number beyond 64 bits, {text:.40}: write it as a text")
        return number

    return json.loads(json.dumps(value, default=str), parse_int=whole)
