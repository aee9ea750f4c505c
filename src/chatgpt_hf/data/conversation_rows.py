"""Reads conversations row by row, whatever the shape of each row, and counts what was done with rows and columns."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from ..errors import DataError
from ..parsing import is_decimal
from .messages import (
    CONTENT_KEYS,
    FLAG_VALUES,
    FLAGS,
    SPEAKER_KEYS,
    Message,
    check_conversation,
    is_blank,
    normalize_messages,
    text_of,
)
from .preference_shapes import MARK_VALUES, MARKS, is_kto, pair_in, verdict_in
from .shapes import (
    ANSWERS,
    QUESTIONS,
    TABLE_TITLE,
    Cells,
    PairColumns,
    Row,
    Shape,
    continued,
    find_shape,
    history_of,
    is_scalar,
    messages_column,
    system_of,
    tools_of,
)
from .sources import fill_template, template_columns

# The columns that say which messages, in a table with a row per message, are one conversation.
_CONVERSATION_IDS = (
    *("session_id", "conversation_id", "conv_id", "dialog_id", "dialogue_id", "chat_id", "thread_id"),
    *("session", "conversation", "dialog", "dialogue", "chat", "thread", "sessionid", "conversationid", "dialogid"),
    *("dialogueid", "chatid", "threadid", "会话id", "对话id", "会话", "对话编号", "会话编号"),
)
_TURNS = (
    *("turn", "turn_id", "turn_index", "message_index", "turnid", "seq", "轮次", "index", "position"),
    *("timestamp", "created_at", "message_id"),
)
# What else a message may have in such a table.
_MESSAGE_COLUMNS = ("tool_calls", "function_call", "reasoning_content", "thinking", *FLAGS)
# What may say that a row is not to be learned; some files have the flags of messages on the whole row.
EXCLUDING = (*MARKS, *FLAGS)
_REFUSED = ("images", "image", "videos", "video", "audios", "audio")


def is_excluded(name: str, value: Any) -> bool | None:
    """True if the cell of a column in `EXCLUDING` says that its row is not to be learned; None if it does not say so.

    Other labels are classes, and other weights are no flags.
    """
    said = str(text_of(value)).strip().lower()
    flag = MARK_VALUES.get(said) if name == "label" else FLAG_VALUES.get(said, MARK_VALUES.get(said))
    return None if flag is None else flag is FLAGS.get(name, False)


class Conversation(NamedTuple):
    """One conversation.

    Attributes:
        messages: Dicts with `role`, `content`, and any other keys of the source, such as `tool_calls`.
        tools: The tools that the assistant may call, as JSON schemas.
    """

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None


class PreferencesError(DataError):
    """A file has preferences, which another command learns from."""


class ConversationReader:
    """Reads the conversations of one table, and counts what was done with its rows and columns.

    Args:
        where: Name of the table, for messages.
        named: Columns or templates that the user named instead of a shape.

    Attributes:
        rows: Number of rows.
        shapes: Number of rows per shape.
        used, unused: Number of rows that have a value in a column that was read, or was not.
        notes: Number of times that something was changed or left out.
    """

    def __init__(self, where: str, named: PairColumns | None = None) -> None:
        self.where = where
        self.rows = 0
        self.shapes: Counter[str] = Counter()
        self.used: Counter[str] = Counter()
        self.unused: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()
        self._templates = (named or PairColumns()).templates()
        self._shape: Shape | None = None
        # Messages of a table with a row per message, by the id of their conversation.
        self._sessions: dict[str, list[tuple[int, Cells]]] = {}

    def read(self, rows: Iterable[Row]) -> Iterator[tuple[int, Conversation | DataError]]:
        """Yields row numbers, from 1, with each conversation in the row, or with an error if it cannot be used.

        Raises:
            PreferencesError: If a row is a preference, of which some answers must not be learned.
        """
        for number, row in enumerate(rows, start=1):
            self.rows = number
            if all(map(is_blank, row.values())):
                self.notes["blank rows were left out"] += 1
                continue
            cells = self._cells(row)
            try:
                self._check_kind(cells, number)
                if self._is_one_message(cells):
                    key = cells.take(cells.first(_CONVERSATION_IDS, lambda value: not is_blank(value)) or "")
                    self._sessions.setdefault(str(key), []).append((number, cells))
                    continue
                conversations = self._read_row(row, cells)
            except PreferencesError:
                raise
            except DataError as error:
                yield number, error
                continue
            self._count(cells)
            yield from ((number, conversation) for conversation in conversations)
        yield from self._read_sessions()

    def _cells(self, row: Row) -> Cells:
        return Cells(row)

    def _check_kind(self, cells: Cells, number: int) -> None:
        """Raises if a row is a preference. Not even `skip_invalid` leaves those out: the file is for another command."""
        if any(self._templates):
            return
        if pair := pair_in(cells):
            raise PreferencesError(
                f"Row {number} of {self.where} has preferences ({pair}): chatgpt-hf dpo trains on them. For sft, name the columns "
                "of the question and of the answer to learn: --prompt_column (or --prompt_template) and --completion_column."
            )
        if verdict := verdict_in(cells):
            raise PreferencesError(
                f"Row {number} of {self.where} has preferences (an answer with {verdict}): chatgpt-hf dpo trains on them. For sft, "
                "keep the rows with good answers and remove the column."
            )

    def _refuse_media(self, cells: Cells) -> None:
        if refused := cells.first(_REFUSED, lambda value: not is_blank(value)):
            raise DataError(f"it has {refused}: only text can be learned")

    def _read_row(self, row: Row, cells: Cells) -> list[Any]:
        self._refuse_media(cells)
        shape = None
        if any(self._templates):
            written = [self._from_templates(row, cells)]
        else:
            # Files that were put together from several sources change their shape between rows.
            shape = self._shape if self._shape and self._shape.fits(cells) else find_shape(row)
            written = shape.read(cells)
        tools = tools_of(cells)
        if self._is_left_out(cells):
            return []
        conversations = []
        for messages in written:
            if not messages:
                raise DataError("it has no messages")
            conversations.append(Conversation(self._checked(messages), tools))
        self._shape = shape
        self.shapes[shape.title if shape else "the named columns"] += 1
        return conversations

    def _checked(self, messages: list[Any]) -> list[Message]:
        normalized = normalize_messages(messages, self.unused, self.notes)
        check_conversation(normalized)
        return normalized

    def _from_templates(self, row: Row, cells: Cells) -> list[Any]:
        said = []
        for role, template, names in zip(("user", "assistant"), self._templates, (QUESTIONS, ANSWERS), strict=True):
            if template is None:
                name = cells.first(names, is_scalar)
                if name is None:
                    raise DataError(f"it has no column for the {role}'s text: name it too")
                said.append({"role": role, "content": cells.take(name)})
                continue
            for column in template_columns(template):
                if column not in row:
                    raise DataError(f"it has no column {column!r}; it has {', '.join(map(str, row))}")
                cells.used.add(column)
            said.append({"role": role, "content": fill_template(template, row, "the row")})
        return [*system_of(cells), *history_of(cells), *said]

    def _is_left_out(self, cells: Cells, names: Sequence[str] = EXCLUDING) -> bool:
        """True if the row itself says that it is not to be learned: KTO's label, or a flag as messages have it."""
        if "label" in names and is_kto(cells):
            # Every other row of the file would have to be read to know.
            raise DataError(
                f"its label is {text_of(cells.peek('label'))}, which may say whether the answer is good, or be a class: "
                "chatgpt-hf dpo trains on good and bad answers; rename the column if it is a class"
            )
        for name in names:
            # Other labels are classes, and other weights are no flags; they are counted as unused.
            if (excluded := is_excluded(name, value := cells.peek(name))) is not None:
                cells.take(name)
            if excluded:
                self.notes[f"rows with {name} {text_of(value)} were left out"] += 1
                return True
        return False

    def _count(self, cells: Cells) -> None:
        self.used.update(str(column) for column in cells.row if column in cells.used)
        self.unused.update([*cells.unused(), *cells.extra.elements()])

    def _is_one_message(self, cells: Cells) -> bool:
        return (
            not any(self._templates)
            and cells.first(_CONVERSATION_IDS, lambda value: not is_blank(value)) is not None
            and cells.first(SPEAKER_KEYS, is_scalar) is not None
            # An empty message is one too: without it, its neighbours would be taken for one turn.
            and any(name in cells for name in (*CONTENT_KEYS, "tool_calls", "function_call"))
            and messages_column(cells) is None
        )

    def _read_sessions(self) -> Iterator[tuple[int, Conversation | DataError]]:
        for rows in self._sessions.values():
            ordered = self._in_order([cells for _, cells in rows])
            said: list[dict[str, Any]] = []
            for cells in ordered:
                speaker = cells.first(SPEAKER_KEYS, is_scalar) or ""
                content = cells.first(CONTENT_KEYS, lambda value: value is not None) or ""
                said.append({"role": cells.take(speaker), "content": cells.take(content)})
                for name in _MESSAGE_COLUMNS:
                    if not is_blank(cells.peek(name)):
                        said[-1][name] = cells.take(name)
            try:
                before = _same([system_of(cells) for cells in ordered], "system prompts")
                tools = _same([tools_of(cells) for cells in ordered], "tools")
                found: Conversation | DataError = Conversation(self._checked(continued(before or [], said)), tools)
            except DataError as error:
                found = error
            for cells in ordered:
                self._count(cells)
            self.shapes[TABLE_TITLE] += len(rows)
            yield rows[0][0], found

    def _in_order(self, rows: list[Cells]) -> list[Cells]:
        """Returns the messages of a conversation in the order that its columns say; else in the file's."""
        keys: list[tuple[float, ...]] = [() for _ in rows]
        by = []
        for name in _TURNS:
            places = [_place(cells.peek(name)) for cells in rows]
            if len(set(keys)) < len(rows) and all(place is not None for place in places):
                keys = [(*key, place or 0.0) for key, place in zip(keys, places, strict=True)]
                by.append(name)
        for cells in rows:
            for name in by:
                cells.take(name)
        order = sorted(range(len(rows)), key=keys.__getitem__)
        if order != list(range(len(rows))):
            self.notes[f"conversations whose messages were sorted by {' and '.join(by)}"] += 1
        return [rows[index] for index in order]


class SingleRowReader(ConversationReader):
    """Reads rows of which each stands for itself, whether or not they are preferences; see `ConversationReader` for what it counts.

    Args:
        where: Name of the table, for messages.
        named: Columns that the user named, by what they hold.
    """

    def __init__(self, where: str, named: Mapping[str, str]) -> None:
        super().__init__(where)
        self._named = named

    def _check_kind(self, cells: Cells, number: int) -> None:
        pass

    def _is_one_message(self, cells: Cells) -> bool:
        return False

    def _is_read(self, row: Row, cells: Cells) -> bool:
        """False if the row itself says that it is left out.

        Raises:
            DataError: If it has no column of a name that the user gave, or something other than text.
        """
        self._refuse_media(cells)
        if missing := next((column for column in self._named.values() if column not in row), None):
            raise DataError(f"it has no column {missing!r}; it has {', '.join(map(str, row))}")
        return not self._is_left_out(cells, tuple(FLAGS))


def _same(values: Sequence[Any], what: str) -> Any:
    """Returns the only value among those of a conversation's rows; None if there is none."""
    found = [value for value in values if value]
    if any(value != found[0] for value in found):
        raise DataError(f"the rows of its conversation have different {what}: give each conversation its own id")
    return found[0] if found else None


def _place(value: Any) -> float | None:
    """Returns a number, or the seconds of a date in ISO's format; None for anything else."""
    text = str(text_of(value)).strip()
    if is_decimal(text):  # may have more digits than a float
        return int(text)
    try:
        place = float(text)
        return place if math.isfinite(place) else None
    except ValueError:
        pass
    try:
        date = datetime.fromisoformat(text)
    except ValueError:
        return None
    return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
