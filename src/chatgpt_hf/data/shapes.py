"""Recognizes the shapes of conversation data by their columns and converts them to the ecosystem's `messages`."""

import ast
import io
import re
import tokenize
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ..errors import ConfigError, DataError
from .json_rows import check_surrogates, parse_text
from .messages import (
    SPEAKER_KEYS,
    has_unstorable_number,
    is_blank,
    is_empty,
    spoken,
    text_of,
)
from .sources import template_columns

Row = Mapping[str, Any]

QUESTIONS = ("prompt", "instruction", "question", "query", "input", "user", "human")
ANSWERS = ("completion", "response", "output", "answer", "reply", "assistant", "gpt", "chosen")
_SYSTEMS = ("system", "system_prompt", "system_message", "systeminstruction", "system_instruction")
_CONTEXTS = ("input", "context", "passage", "background")
_MESSAGES = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat", "turns", "contents")
_TOOLS = ("tools", "functions")
# Read by `ConversationReader`, because a conversation takes several rows.
TABLE_TITLE = "a row per message"
# Some of `SHAPES`, for messages.
_KNOWN = (
    "messages (a list of role and content), ShareGPT's conversations, Alpaca's instruction and output, prompt and completion, question "
    "and answer, or a row per message with session_id, role and content"
)

# Headers in Chinese files.
_ALIASES = {
    **dict.fromkeys(("问题", "提问", "问", "提示", "提示词"), "question"),
    **dict.fromkeys(("回答", "答案", "答", "回复", "应答"), "answer"),
    **dict.fromkeys(("指令", "任务"), "instruction"),
    **dict.fromkeys(("输入",), "input"),
    **dict.fromkeys(("输出",), "output"),
    **dict.fromkeys(("上下文", "背景"), "context"),
    **dict.fromkeys(("系统", "系统提示", "系统提示词"), "system"),
    **dict.fromkeys(("历史", "历史对话"), "history"),
    **dict.fromkeys(("用户",), "user"),
    **dict.fromkeys(("助手",), "assistant"),
    **dict.fromkeys(("角色",), "role"),
    **dict.fromkeys(("内容",), "content"),
    **dict.fromkeys(("对话", "消息"), "messages"),
}


class PairColumns(NamedTuple):
    """Columns or templates that a user names for the question and the answer; see `fill_template`."""

    prompt_column: str | None = None
    completion_column: str | None = None
    prompt_template: str | None = None
    completion_template: str | None = None

    def check(self) -> None:
        """Raises `ConfigError` if a template is invalid, or names the same part as a column."""
        for part in ("prompt", "completion"):
            column, template = getattr(self, f"{part}_column"), getattr(self, f"{part}_template")
            if column and template:
                raise ConfigError(
                    f"--{part}_column and --{part}_template both name the {part}: give only one of them."
                )
            if template:
                template_columns(template)

    def templates(self) -> tuple[str | None, str | None]:
        """Returns the templates of question and answer; None for a part that is not named."""
        return tuple(  # type: ignore[return-value]
            template or (None if column is None else "{" + column + "}")
            for column, template in (
                (self.prompt_column, self.prompt_template),
                (self.completion_column, self.completion_template),
            )
        )


class Cells:
    """The cells of one row by the usual names of their columns; remembers which ones were read.

    Attributes:
        used: The columns that were read, as the file writes them.
        extra: Keys inside a column that nothing reads.

    Args:
        row: The row.
        named: Columns that the user named, by the usual names that they stand for.
    """

    def __init__(self, row: Row, named: Mapping[str, str] | None = None) -> None:
        self.row = row
        self.used: set[str] = set()
        self.extra: Counter[str] = Counter()
        self._columns: dict[str, str] = {}
        for column in row:
            name = str(column).strip().lstrip("\ufeff").lower()
            self._columns.setdefault(_ALIASES.get(name, name), column)
        # The exact name wins over an alias of it.
        self._columns |= {column: column for column in row}
        self._columns |= named or {}

    def __contains__(self, name: str) -> bool:
        return name in self._columns

    def peek(self, name: str) -> Any:
        """Returns a cell without marking it as read; None if there is none."""
        return self.row.get(self._columns[name]) if name in self._columns else None

    def take(self, name: str) -> Any:
        """Returns a cell and marks it as read; None if there is none."""
        if name in self._columns:
            self.used.add(self._columns[name])
        return self.peek(name)

    def first(self, names: Sequence[str], fits: Callable[[Any], bool]) -> str | None:
        """Returns the first name whose cell fits."""
        return next((name for name in names if fits(self.peek(name))), None)

    def unused(self) -> list[str]:
        """Returns the columns that have a value and were not read."""
        return [str(column) for column, value in self.row.items() if column not in self.used and not is_blank(value)]

    def pass_over(self, column: str, item: Mapping[str, Any], *read: str) -> None:
        """Notes the keys of an item in a column that nothing reads."""
        self.extra.update(
            f"{column}[].{key}" for key, value in item.items() if key not in read and not is_blank(value)
        )


class Shape(NamedTuple):
    """One way to write conversations down.

    Attributes:
        title: A few words, for tables.
        fits: True if a row has this shape.
        read: Returns the conversations of a row, with messages as they are written.
    """

    title: str
    fits: Callable[[Cells], bool]
    read: Callable[[Cells], list[list[Any]]]


def find_shape(row: Row, cells: Cells | None = None) -> Shape:
    """Returns the first of `SHAPES` that fits a row, whose cells may be given.

    Raises:
        DataError: If no shape fits; the message lists the columns.
    """
    cells = Cells(row) if cells is None else cells
    for shape in SHAPES:
        if shape.fits(cells):
            return shape
    if name := cells.first(_MESSAGES, lambda value: isinstance(value, Sequence) and not value):
        raise DataError(f"its {name} are empty")
    if name := cells.first(_MESSAGES, is_numpy):
        raise DataError(f"its {name} are a list as numpy prints it, without commas: write it as JSON")
    for fits, ours, others in ((is_question, QUESTIONS, ANSWERS), (is_answer, ANSWERS, QUESTIONS)):
        missing = next((name for name in others if name in cells), None)
        if missing is not None and cells.first(ours, fits) is not None:
            value = cells.peek(missing)
            raise DataError(f"its {missing} is {'empty' if is_blank(value) else f'no text, but {value!r:.80}'}")
    if name := cells.first(_MESSAGES, lambda value: isinstance(value, Sequence | Mapping) and bool(value)):
        raise DataError(f"its {name} are not a list of messages with role and content, but {cells.peek(name)!r:.80}")
    unfit = [cells.first(names, lambda value: not is_blank(value)) for names in (QUESTIONS, ANSWERS)]
    if unfit[0] and unfit[1]:
        raise DataError(f"its {unfit[0]} is no text, but {cells.peek(unfit[0])!r:.80}")
    raise DataError(
        f"it has the columns {', '.join(map(str, row)) or 'none'}, which fit no known shape of conversations: name the columns with "
        f"--prompt_column and --completion_column, or write {_KNOWN}"
    )


def is_scalar(value: Any) -> bool:
    return text_of(value) is not None


def _list_of(value: Any) -> list[Any] | None:
    """Returns a list, also one that a spreadsheet holds as JSON or pandas as Python; None for anything else."""
    if isinstance(value, str):
        if not value.lstrip().startswith("["):
            return None
        text = value.strip()
        if is_numpy(text):
            # Python would join the texts of such a list to one.
            return None
        for parse in (parse_text, ast.literal_eval):
            try:
                value = parse(text)
                break
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
        check_surrogates(value, text)
    return list(value) if isinstance(value, Sequence) and not isinstance(value, (str, bytes)) else None


def is_numpy(value: Any) -> bool:
    """True if a text is a list as numpy prints it, without commas between texts or dicts."""
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return False
    before = ""
    try:
        for token in tokenize.generate_tokens(io.StringIO(value.strip()).readline):
            if token.type in (tokenize.NL, tokenize.NEWLINE):
                continue
            kind = "text" if token.type == tokenize.STRING else token.string
            if (before, kind) in (("text", "text"), ("}", "{")):
                return True
            before = kind
    except (tokenize.TokenError, SyntaxError):
        pass
    return False


def turns_of(value: Any) -> list[Any] | None:
    """Returns a list of messages: mappings, at least one of which names its speaker; None for anything else."""
    turns = _list_of(value)
    if not turns or not all(isinstance(turn, Mapping) for turn in turns):
        return None
    return turns if any(turn.get(key) is not None for turn in turns for key in SPEAKER_KEYS) else None


def _utterances(value: Any) -> list[Any] | None:
    """Returns a list of what two speakers say in turn: texts, or mappings that name no speaker."""
    turns = _list_of(value)
    if not turns:
        return None
    texts = [turn.get("message") if isinstance(turn, Mapping) else turn for turn in turns]
    return texts if all(isinstance(text, str) for text in texts) else None


def is_question(value: Any) -> bool:
    return is_scalar(value) or turns_of(value) is not None


def is_answer(value: Any) -> bool:
    return is_question(value) or (isinstance(value, Mapping) and turns_of([value]) is not None)


def messages_column(cells: Cells) -> str | None:
    return cells.first(_MESSAGES, lambda value: turns_of(value) is not None)


def _messages(cells: Cells) -> list[list[Any]]:
    messages = turns_of(cells.take(messages_column(cells) or "")) or []
    messages = continued(history_of(cells), messages)
    # A conversation may end with the user, and the answer be in a column.
    if cells.peek("chosen") is not None and spoken(messages[-1])[0] != "assistant":
        messages = continued(messages, as_turns(cells.take(answer_column(cells)), "assistant"))
    return [[*system_of(cells), *messages]]


def _dialogue(cells: Cells) -> list[list[Any]]:
    column = cells.first(_MESSAGES, lambda value: _utterances(value) is not None)
    roles = ("user", "assistant")
    turns = cells.take(column or "")
    for turn in _list_of(turns) or ():
        if isinstance(turn, Mapping):
            cells.pass_over(str(column), turn, "message")
    texts = _utterances(turns) or []
    said = [{"role": roles[index % 2], "content": text} for index, text in enumerate(texts)]
    return [[*system_of(cells), *history_of(cells), *said]]


def _self_instruct(cells: Cells) -> list[list[Any]]:
    instruction = text_of(cells.take("instruction")) or ""
    before = [*system_of(cells), *history_of(cells)]
    for instance in cells.take("instances"):
        cells.pass_over("instances", instance, "input", "output")
    return [
        [
            *before,
            {"role": "user", "content": _joined(instruction, text_of(instance.get("input")))},
            {"role": "assistant", "content": instance.get("output")},
        ]
        for instance in cells.take("instances")
    ]


def _pair(cells: Cells) -> list[list[Any]]:
    answer = cells.first(ANSWERS, is_answer)
    if answer is None:
        raise DataError("it has no answer")
    if answer == "chosen":
        answer = answer_column(cells)
    # Where `chosen` is the whole conversation, it repeats the question.
    return [[*continued(asked(cells), as_turns(cells.take(answer), "assistant"))]]


def asked(cells: Cells, *, contexts: bool = True) -> list[Any]:
    """Returns the messages before an answer: the system prompt, the history, and the question.

    Args:
        cells: The row.
        contexts: Add to a question that is a text what it is about, from columns such as `input`.

    Raises:
        DataError: If there is no question.
    """
    question = cells.first(QUESTIONS, is_question)
    if question is None:
        raise DataError("it has no question")
    said = cells.take(question)
    messages = [*system_of(cells), *history_of(cells)]
    if contexts and turns_of(said) is None:
        about = [_context(cells, name) for name in _CONTEXTS if name != question]
        said = _joined(text_of(said), *about)
    return continued(messages, as_turns(said, "user"))


def _whole_answer(cells: Cells) -> list[list[Any]]:
    return [continued([*system_of(cells), *history_of(cells)], turns_of(cells.take("chosen")) or [])]


def _context(cells: Cells, name: str) -> str | None:
    """Returns a text that a question is about; None if the row has none."""
    value = cells.peek(name)
    if is_blank(value):
        return None
    texts = [text_of(item) for item in value] if isinstance(value, (list, tuple)) else [text_of(value)]
    if any(text is None for text in texts):
        raise DataError(
            f"its {name} is neither a text nor a list of texts, but {value!r:.80}: write it as text, or name the columns of "
            "the question with --prompt_template"
        )
    cells.take(name)
    return _joined(*texts)


def answer_column(cells: Cells, side: str = "chosen") -> str:
    """Returns the column of the chosen (or rejected) answer, which the column `chosen` either holds, or names.

    Raises:
        DataError: If it names something that is no answer.
    """
    pointer = str(text_of(cells.peek(side))).strip().lower().removesuffix(".0")
    others = {str(column).strip().lower(): column for column in cells.row}
    others = {name: column for name, column in others.items() if name not in ("chosen", "rejected")}
    named = [column for name, column in others.items() if name == pointer or _points_to(pointer, name)]
    if len(named) == 1 and is_candidate(named[0]) and is_answer(cells.row[named[0]]):
        cells.take(side)
        return named[0]
    is_number = re.fullmatch(r"[+-]?\d+", pointer) is not None
    if named or (is_number and "rejected" not in cells):
        raise DataError(
            f"its {side} is {cells.peek(side)!r}, which points to an answer instead of being one, and the row has "
            f"no answer of that {'number' if is_number else 'name'}: write the answer itself into {side}"
        )
    return side


def is_candidate(column: str) -> bool:
    """True if a column is named like one of several answers, such as response_0 and answer_b."""
    return re.match(_CANDIDATE, str(column).strip().lower()) is not None


_CANDIDATE = rf"({'|'.join(ANSWERS)}|candidate|generation)(\b|_|\d)"


def _points_to(pointer: str, column: str) -> bool:
    """True if a number or letter is the one at the end of a column's name, as in response_0 and answer_b."""
    if re.fullmatch(r"\d+|[a-h]", pointer) is None or re.match(_CANDIDATE, column) is None:
        return False
    return re.search(rf"(_|[ -]|(?<!\d)(?=\d)){pointer}$", column) is not None


def as_turns(value: Any, role: str) -> list[Any]:
    """Returns the messages of one side, which may be a text."""
    turns = turns_of([value] if isinstance(value, Mapping) else value)
    return [{"role": role, "content": value}] if turns is None else turns


def continued(before: Sequence[Any], turns: Sequence[Any]) -> list[Any]:
    """Returns messages with those that follow, without repeating the last ones; system messages come first."""
    if not before:
        return list(turns)
    systems = [turn for turn in before if spoken(turn)[0] == "system"]
    said = [turn for turn in before if spoken(turn)[0] != "system"]
    first = next((index for index, turn in enumerate(turns) if spoken(turn)[0] != "system"), len(turns))
    known = [spoken(turn) for turn in systems]
    systems += [turn for turn in turns[:first] if spoken(turn) not in known]
    turns = turns[first:]
    keys, following = [spoken(turn) for turn in said], [spoken(turn) for turn in turns]
    repeated = next(
        (count for count in range(min(len(keys), len(following)), 0, -1) if keys[-count:] == following[:count]), 0
    )
    return [*systems, *said, *turns[repeated:]]


def system_of(cells: Cells) -> list[Any]:
    name = cells.first(_SYSTEMS, lambda value: not is_blank(value))
    return [] if name is None else [{"role": "system", "content": cells.take(name)}]


def history_of(cells: Cells) -> list[Any]:
    history = cells.take("history")
    turns = _list_of(history)
    if is_blank(history) or turns == []:
        return []
    turns = turns or []
    if (messages := turns_of(turns)) is not None:
        return messages
    pairs = [_list_of(turn) for turn in turns]
    if not pairs or not all(pair and len(pair) == 2 for pair in pairs):
        raise DataError(
            f"its history is neither a list of messages nor of pairs of question and answer: {history!r:.80}"
        )
    return [
        {"role": role, "content": text}
        for pair in pairs
        for role, text in zip(("user", "assistant"), pair or (), strict=True)
    ]


def _joined(*parts: str | None) -> str:
    return "\n\n".join(part for part in parts if part is not None and not is_empty(part))


def tools_of(cells: Cells) -> list[dict[str, Any]] | None:
    name = cells.first(_TOOLS, lambda value: not is_blank(value))
    if name is None:
        return None
    tools = cells.take(name)
    if isinstance(tools, str):
        try:
            tools = parse_text(tools)
        except ValueError as error:
            raise DataError(f"its `{name}` are not JSON: {error}") from error
    tools = [tools] if isinstance(tools, Mapping) else tools
    try:
        tools = [parse_text(tool) if isinstance(tool, str) else tool for tool in tools or []]
    except (TypeError, ValueError) as error:
        raise DataError(f"its `{name}` are not a list of JSON schemas, but {tools!r:.80}") from error
    if not all(isinstance(tool, Mapping) for tool in tools):
        raise DataError(f"its `{name}` are not a list of JSON schemas, but {tools!r:.80}")
    if has_unstorable_number(tools):
        raise DataError(
            f"its `{name}` have a number that is infinite or an integer of more than 64 bits: write it as text"
        )
    if name == "functions":
        tools = [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools]
    return [dict(tool) for tool in tools] or None


SHAPES = (
    Shape(
        "messages with roles",
        lambda cells: messages_column(cells) is not None,
        _messages,
    ),
    Shape(
        "texts by two speakers in turn",
        lambda cells: cells.first(_MESSAGES, lambda value: _utterances(value) is not None) is not None,
        _dialogue,
    ),
    Shape(
        "self-instruct",
        lambda cells: (
            is_scalar(cells.peek("instruction"))
            and isinstance(cells.peek("instances"), Sequence)
            and all(isinstance(instance, Mapping) for instance in cells.peek("instances"))
        ),
        _self_instruct,
    ),
    Shape(
        "question and answer",
        lambda cells: cells.first(QUESTIONS, is_question) is not None and cells.first(ANSWERS, is_answer) is not None,
        _pair,
    ),
    Shape(
        "the chosen conversation",
        lambda cells: turns_of(cells.peek("chosen")) is not None,
        _whole_answer,
    ),
)
