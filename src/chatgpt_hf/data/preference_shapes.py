"""Recognizes preference data by its columns: pairs of a better and a worse answer, and single answers with a verdict."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..errors import DataError
from .messages import FLAG_VALUES, is_blank, spoken, text_of
from .shapes import (
    ANSWERS,
    QUESTIONS,
    Cells,
    Row,
    answer_column,
    as_turns,
    asked,
    history_of,
    is_answer,
    is_candidate,
    is_numpy,
    is_question,
    is_scalar,
    messages_column,
    system_of,
    tools_of,
    turns_of,
)

KNOWN = (
    "pairs: chosen and rejected, as text beside a question (prompt, instruction, conversations ...), or as whole "
    "conversations; OpenAI's input, preferred_output and non_preferred_output; response_0, response_1 and a chosen that "
    "names the better one; or a conversation or question and answer with a label (true for a good answer, false for a "
    "bad one). Or name the columns with --prompt_column, --chosen_column and --rejected_column, or --completion_column "
    "and --label_column"
)
# Columns that say whether the answer of a row is good: TRL's and LLaMA-Factory's names.
MARKS = ("label", "kto_tag")
MARK_VALUES = {"true": True, "false": False, "desirable": True, "undesirable": False}
_OPENAI = ("preferred_output", "non_preferred_output")
_SIDES = ("chosen", "rejected")
# ms-swift's columns of the worse answer, beside a conversation with the better one.
_BESIDE = ("rejected_response", "rejected_messages")
CHOSEN_AND_REJECTED = " and ".join(_SIDES)
# A speaker in the text form of Anthropic's HH data.
_SPEAKER = re.compile(r"(?:\A|\n\n)\s*(Human|Assistant):")


class PreferenceColumns(NamedTuple):
    """Columns that a user names, instead of the usual names."""

    prompt_column: str | None = None
    chosen_column: str | None = None
    rejected_column: str | None = None
    completion_column: str | None = None
    label_column: str | None = None

    def names(self) -> dict[str, str]:
        """Returns the named columns by the usual names that they stand for."""
        return {name.removesuffix("_column"): column for name, column in self._asdict().items() if column is not None}


class WrittenPair(NamedTuple):
    """A pair as the file writes it.

    Attributes:
        prompt: Messages before the answers, as far as the row has them outside of the sides.
        chosen, rejected: Messages of each side, after the prompt or with it.
    """

    prompt: list[Any]
    chosen: list[Any]
    rejected: list[Any]


def named_cells(row: Row, named: PreferenceColumns | None) -> Cells:
    """Returns the cells of a row, also by the usual names of the columns that the user named, as far as it has them."""
    names = {} if named is None else named.names()
    return Cells(row, {name: column for name, column in names.items() if column in row})


def preference_in(cells: Cells) -> str | None:
    """Names the columns that make a row a preference, for messages; None for a row that is none."""
    return pair_in(cells) or verdict_in(cells)


def pair_in(cells: Cells) -> str | None:
    """Names the columns that make a row a pair, for messages; None for a row that is none.

    Numbers and truth values in `chosen` and `rejected` are no answers where the row has another one.
    """
    if any(name in cells for name in _OPENAI):
        return " and ".join(_OPENAI)
    if _better_and_worse(cells.peek("output")) is not None and cells.first(QUESTIONS, is_question):
        return "two answers in output"
    if beside := _beside(cells):
        return f"{messages_column(cells)} and {beside}"
    sides = [cells.peek(side) for side in _SIDES]
    if all(side in cells for side in _SIDES) and not all(map(is_blank, sides)):
        return None if _are_scores(cells, sides) else CHOSEN_AND_REJECTED
    return "chosen, which names one of several answers" if _pointed(cells) else None


def verdict_in(cells: Cells) -> str | None:
    """Names the column and the value that say whether a row's answer is good; None if no column does.

    A `label` may also be a class: only true, false, desirable and undesirable are verdicts.
    """
    for name in MARKS:
        said = str(text_of(cells.peek(name))).strip().lower()
        known = said in MARK_VALUES or (name != "label" and said in FLAG_VALUES)
        if known and (messages_column(cells) or cells.first(ANSWERS, is_answer)):
            return f"{name} {said}"
    return None


def is_kto(cells: Cells) -> bool:
    """True if a row has the columns of KTO's data, with a label of 0 or 1, which may also be a class."""
    said = str(text_of(cells.peek("label"))).strip().lower()
    return said in ("0", "1", "0.0", "1.0") and all(cells.peek(name) is not None for name in ("prompt", "completion"))


def verdict_of(cells: Cells) -> bool:
    """Returns whether the answer of a row is good, where the row is known to be judged.

    Raises:
        DataError: If no column says so, or it says something else.
    """
    name = cells.first(MARKS, lambda value: not is_blank(value))
    if name is None:
        missing = next((name for name in MARKS if name in cells), None)
        raise DataError(f"its {missing} is empty" if missing else "it has no label")
    value = cells.take(name)
    said = str(text_of(value)).strip().lower()
    verdict = MARK_VALUES.get(said, FLAG_VALUES.get(said))
    if verdict is None:
        raise DataError(f"its {name} is {value!r:.80}: write true for a good answer and false for a bad one")
    return verdict


def read_pairs(cells: Cells, *, contexts: bool = True) -> list[WrittenPair]:
    """Returns the pairs of a row, several if the best of more than two answers is named.

    Args:
        cells: The row, for which `pair_in` is true.
        contexts: As for `asked`.

    Raises:
        DataError: If a side or the prompt is missing or is no text and no messages.
    """
    if any(name in cells for name in _OPENAI):
        return [_openai(cells)]
    two = _better_and_worse(cells.peek("output"))
    if two is not None and not any(side in cells for side in _SIDES):
        cells.take("output")
        return [WrittenPair(asked(cells), *(as_turns(text, "assistant") for text in two))]
    if beside := _beside(cells):
        turns = turns_of(cells.take(messages_column(cells) or "")) or []
        asks = max((index for index, turn in enumerate(turns) if spoken(turn)[0] == "user"), default=-1)
        before = [*system_of(cells), *history_of(cells), *turns[: asks + 1]]
        return [WrittenPair(before, turns[asks + 1 :], _side(cells, beside))]
    pointed = _pointed(cells)
    if pointed:
        cells.take("chosen")
    chosen, *rejected = pointed or [_side_column(cells, side) for side in _SIDES]
    sides = [_side(cells, column) for column in (chosen, *rejected)]
    prompt = _prompt(cells, contexts, needed=not all(map(is_whole, sides)))
    return [WrittenPair(prompt, sides[0], side) for side in sides[1:]]


def tools_in(cells: Cells) -> list[dict[str, Any]] | None:
    """Returns the tools of a row, which OpenAI's preference format has inside `input`."""
    inside = cells.peek("input")
    if isinstance(inside, Mapping) and inside.get("tools"):
        return tools_of(Cells({"tools": inside["tools"]}))
    return tools_of(cells)


def joined(prompt: Sequence[Any], side: Sequence[Any], name: str) -> list[Any]:
    """Returns the whole conversation of one side, which may repeat all of the prompt, or the end of it.

    Raises:
        DataError: If it repeats something else.
    """
    if not is_whole(side):
        return [*prompt, *side]
    systems = [turn for turn in prompt if spoken(turn)[0] == "system"]
    known = [spoken(turn) for turn in systems]
    before = [turn for turn in prompt if spoken(turn)[0] != "system"]
    first = next(index for index, turn in enumerate(side) if spoken(turn)[0] != "system")
    systems += [turn for turn in side[:first] if spoken(turn) not in known]
    keys, following = [spoken(turn) for turn in before], [spoken(turn) for turn in side[first:]]
    for start in range(len(keys)):
        if following[: len(keys) - start] == keys[start:]:
            return [*systems, *before[:start], *side[first:]]
    # A file may give only the last question as the prompt.
    if any(following[start : start + len(keys)] == keys for start in range(len(following))):
        return [*systems, *side[first:]]
    raise DataError(f"its {name} is a conversation with another prompt than the row's: {side[first]!r:.80}")


def is_whole(side: Sequence[Any]) -> bool:
    """True if a side begins with the user, so that it is a whole conversation instead of an answer."""
    roles = (spoken(turn)[0] for turn in side)
    return next((role for role in roles if role != "system"), None) == "user"


def _openai(cells: Cells) -> WrittenPair:
    inside = cells.take("input")
    messages = turns_of(inside.get("messages")) if isinstance(inside, Mapping) else turns_of(inside)
    if messages is None:
        raise DataError(f"its input has no list of messages with role and content, but is {inside!r:.80}")
    if isinstance(inside, Mapping):
        cells.extra.update(
            f"input.{key}" for key, value in inside.items() if key not in ("messages", "tools") and not is_blank(value)
        )
    return WrittenPair(messages, *(_side(cells, name) for name in _OPENAI))


def _side_column(cells: Cells, side: str) -> str:
    return answer_column(cells, side) if is_scalar(cells.peek(side)) else side


def _side(cells: Cells, column: str) -> list[Any]:
    value = cells.take(column)
    if column not in cells:
        raise DataError(f"it has no {column} answer")
    if is_blank(value):
        raise DataError(f"its {column} is empty")
    _refuse_numpy(column, value)
    if not is_answer(value):
        raise DataError(f"its {column} is neither a text nor a list of messages, but {value!r:.80}")
    if _is_hh(value):
        return _hh(value)
    if isinstance(value, str) and any(_is_hh(cells.peek(name)) for name in QUESTIONS):
        # The space belongs to the form: "\n\nAssistant: Hello".
        value = value.strip()
    return as_turns(value, "assistant")


def _prompt(cells: Cells, contexts: bool, *, needed: bool) -> list[Any]:
    name = cells.first(QUESTIONS, is_question)
    if name is not None:
        value = cells.peek(name)
        _refuse_numpy(name, value)
        if not _is_hh(value):
            return asked(cells, contexts=contexts)
        cells.take(name)
        return [*system_of(cells), *_hh(value)]
    before = [*system_of(cells), *history_of(cells)]
    column = messages_column(cells)
    if not needed:
        # Whole conversations have their own prompt; a column of messages often repeats the chosen one.
        return before
    if column is None:
        raise DataError("it has no prompt: give one, or whole conversations in chosen and rejected")
    return [*before, *(turns_of(cells.take(column)) or [])]


def _refuse_numpy(column: str, value: Any) -> None:
    """Raises for messages as pandas writes an array of them to a csv file, which would be taken for a text."""
    if is_numpy(value) and value.lstrip("[ \n").startswith("{"):
        raise DataError(f"its {column} is a list as numpy prints it, without commas: write it as JSON")


def _is_hh(value: Any) -> bool:
    return isinstance(value, str) and value.lstrip().startswith("Human:") and "\n\nAssistant:" in value


def _hh(text: str) -> list[Any]:
    """Returns the messages of a dialogue in the text form of Anthropic's HH data.

    A prompt in this form ends with an open `Assistant:`, which is no message.
    """
    _, *parts = _SPEAKER.split(text)
    turns = [
        {"role": {"Human": "user", "Assistant": "assistant"}[speaker], "content": said.strip()}
        for speaker, said in zip(parts[::2], parts[1::2], strict=True)
    ]
    return turns[:-1] if parts[-2] == "Assistant" and is_blank(parts[-1]) else turns


def _better_and_worse(value: Any) -> list[str] | None:
    """Returns the two answers of LLaMA-Factory's earlier format, the better one first."""
    is_two = isinstance(value, Sequence) and not isinstance(value, (str, bytes)) and len(value) == 2
    return list(value) if is_two and all(isinstance(text, str) for text in value) else None


def _pointed(cells: Cells) -> list[str] | None:
    """Returns the column of the answer that `chosen` names, followed by those of the other answers."""
    if is_blank(cells.peek("chosen")) or not is_blank(cells.peek("rejected")):
        return None
    used = set(cells.used)
    try:
        named = answer_column(cells)
    except DataError:
        return None
    finally:
        cells.used = used
    stem = _stem(named)
    others = [
        str(column)
        for column, value in cells.row.items()
        if column != named and is_candidate(column) and _stem(column) == stem and is_answer(value)
    ]
    return [named, *others] if named != "chosen" and others else None


def _beside(cells: Cells) -> str | None:
    """Returns the column of the worse answer beside a conversation with the better one."""
    name = cells.first(_BESIDE, lambda value: not is_blank(value) and is_answer(value))
    return name if name and "chosen" not in cells and messages_column(cells) else None


def _stem(column: str) -> str:
    return re.sub(r"[_ -]?(\d+|[a-h])$", "", str(column).strip().lower())


def _are_scores(cells: Cells, sides: Sequence[Any]) -> bool:
    if not all(is_blank(side) or _is_number_or_flag(side) for side in sides):
        return False
    column = messages_column(cells)
    if column is not None:
        return spoken((turns_of(cells.peek(column)) or [None])[-1])[0] == "assistant"
    answer = cells.first([name for name in ANSWERS if name != "chosen"], is_answer)
    said = text_of(cells.peek(answer)) if answer else None
    return answer is not None and said not in [text_of(side) for side in sides]


def _is_number_or_flag(value: Any) -> bool:
    text = text_of(value)
    if text is None:
        return False
    if text.strip().lower() in FLAG_VALUES:
        return True
    try:
        float(text)
    except ValueError:
        return False
    return True
