"""Reads texts with the places of their entities, as Doccano, Prodigy and spaCy write them, as words with tags."""

import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

from datasets import Dataset

from .words import UNSPACED

_TEXTS = ("text", "data", "content", "sentence")
_ENTITIES = ("entities", "spans", "label", "labels")
_STARTS = ("start", "start_offset")
_ENDS = ("end", "end_offset")
_LABELS = ("label", "type", "entity", "entity_group")
# The entity's own text. Rasa's `value` may also be another name of it.
_WRITTEN = ("text", "word", "value")
_READ = (_STARTS, _ENDS, _LABELS)
# A character of a script without spaces, or what stands between spaces: dividing it further would add spaces.
_WORD = re.compile(rf"[{UNSPACED}]|[^\s{UNSPACED}]+")


def annotated_columns(rows: Dataset, text_column: str | None, label_column: str | None) -> tuple[str, str] | None:
    """Returns the columns of texts and of their entities; None if the rows have none."""
    texts = [name for name in ([text_column] if text_column else _TEXTS) if name in rows.column_names]
    entities = [name for name in ([label_column] if label_column else _ENTITIES) if name in rows.column_names]
    for text in texts:
        if not all(value is None or isinstance(value, str) for value in rows[text][:]):
            continue
        for name in entities:
            values = [value for value in rows[name][:] if value]
            if any(isinstance(value, list) and _place(value[0]) for value in values):
                return text, name
    return None


def words_of(text: Any, entities: Any) -> tuple[list[str], list[str]] | str:
    """Returns the words of a text and their BIO tags, or what is wrong with them.

    A word is also divided where an entity begins or ends.
    """
    if not isinstance(text, str) or not text.strip():
        return "its text is empty"
    places = []
    for entity in entities or ():
        if (place := _place(entity)) is None:
            return f"its entity {entity!r:.80} is not a start, an end and a label"
        start, end, label = place
        if not 0 <= start < end <= len(text) or not text[start:end].strip():
            return f"its entity {label!r} from {start} to {end} is not in its text of {len(text)} characters"
        if (written := _contradiction(entity, text, text[start:end])) is not None:
            return (
                f"its entity {label!r} from {start} to {end} is {text[start:end]!r:.60} in its text, but {written!r:.60} in "
                "the entity: places count characters (Unicode code points) from 0, and the end is the place after the "
                "last one"
            )
        places.append(place)
    places.sort()
    for (_, end, label), (start, _, other) in pairwise(places):
        if start < end:
            return f"its entities {label!r} and {other!r} overlap at {start}: give each character one entity at most"
    words, tags, position = [], [], 0
    for start, end, label in [*places, (len(text), len(text), "")]:
        found = _WORD.findall(text[position:start])
        inside = _WORD.findall(text[start:end])
        words += found + inside
        tags += ["O"] * len(found) + [f"{'I' if index else 'B'}-{label}" for index in range(len(inside))]
        position = end
    return words, tags


def unread_keys(entities: Any, column: str) -> Iterator[str]:
    """Yields the keys of entities that nothing reads, as `spans[].id`."""
    for entity in entities if isinstance(entities, list) else ():
        if isinstance(entity, Mapping):
            read = set(_WRITTEN) | {
                next((name for name in names if entity.get(name) is not None), "") for names in _READ
            }
            yield from (
                f"{column}[].{name}" for name, value in entity.items() if name not in read and value is not None
            )


def _contradiction(entity: Any, text: str, found: str) -> str | None:
    """Returns the text that an entity gives itself, if another one is at its place; spaces and case may differ."""
    for name in _WRITTEN if isinstance(entity, Mapping) else ():
        written = entity.get(name)
        is_other = isinstance(written, str) and written.strip() and _plain(written) != _plain(found)
        if is_other and (name != "value" or _plain(written) in _plain(text)):
            return str(written)
    return None


def _plain(text: str) -> str:
    return "".join(text.split()).casefold()


def _place(entity: Any) -> tuple[int, int, str] | None:
    """Returns start, end and label of an entity that is a list of the three or a mapping; None if it is neither."""
    if isinstance(entity, Mapping):
        values: list[Any] = [
            next((entity[name] for name in names if entity.get(name) is not None), None) for names in _READ
        ]
    else:
        values = list(entity) if isinstance(entity, (list, tuple)) else []
    if len(values) != 3 or not isinstance(values[2], str) or not values[2].strip():
        return None
    start, end, label = values
    if not all(isinstance(value, int) and not isinstance(value, bool) for value in (start, end)):
        return None
    return int(start), int(end), label.strip()
