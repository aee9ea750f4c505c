"""Reads conversations row by row, whatever the shape of each row, and counts what was done with rows and columns."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from ..errors import DataError
from .messages import (
    CONTENT_KEYS,
    FLAG_VALUES,
    FLAGS,
    SPEAKER_KEYS,
    Message,
    check_conversation,
    normalize_messages,
    text_of,
)
from .shapes import (
    ANSWERS,
    QUESTIONS,
    TABLE_TITLE,
    Cells,
    PairColumns,
    Row,
    Shape,
    find_shape,
    history_of,
    is_blank,
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
_TURNS = ("turn", "turn_id", "turn_index", "message_index", "turnid", "seq", "轮次")
# Columns of KTO's data that say which answers are bad.
_MARKS = ("label", "kto_tag")
# Flags of messages that some files have on the whole row.
EXCLUDING = (*_MARKS, "weight", "train", "masked")
_REFUSED = ("images", "image", "videos", "video", "audios", "audio")


def is_excluded(name: str, value: Any) -> bool | None:
    """True if the cell of a column in `EXCLUDING` says that its row is not to be learned; None if it does not say so.

    Other labels are classes, and other weights are no flags.
    """
    flag = FLAG_VALUES.get(str(text_of(value)).strip().lower())
    if flag is None or (name in _MARKS and not isinstance(value, (bool, str))) or value in ("0", "1"):
        return None
    return flag is FLAGS.get(name, False)


class Conversation(NamedTuple):
    """One conversation.

    Attributes:
        messages: Dicts with `role`, `content`, and any other keys of the source, such as `tool_calls`.
        tools: The tools that the assistant may call, as JSON schemas.
    """

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None


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
        """Yields row numbers, from 1, with each conversation in the row, or with an error if it cannot be used."""
        for number, row in enumerate(rows, start=1):
            self.rows = number
            if all(map(is_blank, row.values())):
                self.notes["blank rows were left out"] += 1
                continue
            cells = Cells(row)
            if self._is_one_message(cells):
                key = cells.take(cells.first(_CONVERSATION_IDS, lambda value: not is_blank(value)) or "")
                self._sessions.setdefault(str(key), []).append((number, cells))
                continue
            try:
                conversations = self._read_row(row, cells)
            except DataError as error:
                yield number, error
                continue
            self._count(cells)
            yield from ((number, conversation) for conversation in conversations)
        yield from self._read_sessions()

    def _read_row(self, row: Row, cells: Cells) -> list[Conversation]:
        if refused := cells.first(_REFUSED, lambda value: not is_blank(value)):
            raise DataError(f"it has {refused}: only text can be learned")
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

    def _is_left_out(self, cells: Cells) -> bool:
        """True if the row itself says that it is not to be learned: KTO's label, or a flag as messages have it."""
        for name in EXCLUDING:
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
            and cells.first(CONTENT_KEYS, lambda value: value is not None) is not None
            and messages_column(cells) is None
        )

    def _read_sessions(self) -> Iterator[tuple[int, Conversation | DataError]]:
        for rows in self._sessions.values():
            places = [_place(cells) for _, cells in rows]
            ordered = [cells for _, cells in rows]
            if all(place is not None for place in places):
                ordered = [
                    cells for _, cells in sorted(zip(places, ordered, strict=True), key=lambda pair: pair[0] or 0)
                ]
                for cells in ordered:
                    cells.take(cells.first(_TURNS, is_scalar) or "")
            said = []
            for cells in ordered:
                speaker = cells.first(SPEAKER_KEYS, is_scalar) or ""
                content = cells.first(CONTENT_KEYS, lambda value: value is not None) or ""
                said.append({"role": cells.take(speaker), "content": cells.take(content)})
                for name in ("tool_calls", *FLAGS):
                    if not is_blank(cells.peek(name)):
                        said[-1][name] = cells.take(name)
                self._count(cells)
            self.shapes[TABLE_TITLE] += len(rows)
            try:
                yield rows[0][0], Conversation(self._checked(said))
            except DataError as error:
                yield rows[0][0], error


def _place(cells: Cells) -> float | None:
    """Returns a message's place in its conversation; None if no column says it."""
    name = cells.first(_TURNS, is_scalar)
    try:
        return None if name is None else float(cells.peek(name))
    except ValueError:
        return None
