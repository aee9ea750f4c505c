"""What a user names as a corpus: one source or several, with weights, text columns and templates."""

import json
import math
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from dataclasses import fields as dataclass_fields
from typing import Any

from ..errors import ConfigError, DataError


@dataclass(frozen=True)
class CorpusSource:
    """One source of documents.

    Attributes:
        source: What `load_corpus` takes: a file, folder, glob, Hub id or `builtin:python-docs`.
        weight: How often its documents are drawn, against the weights of the other sources.
        text_column: The column that holds the documents, in formats that have columns.
        template: In place of one column: a text with column names in braces, as `"{title}\\n{paragraphs}"`.
    """

    source: str
    weight: float | None = None
    text_column: str = "text"
    template: str | None = None


_FIELDS = tuple(item.name for item in dataclass_fields(CorpusSource))


def parse_sources(
    corpus: str | Sequence[str | Mapping[str, Any]], *, text_column: str = "text", field: str = "corpus"
) -> list[CorpusSource]:
    """Read the corpus or dataset argument of a recipe or command line.

    Args:
        corpus: One item or several. An item is a source; a mapping with the fields of `CorpusSource`; or such a mapping
            as a JSON object in a string, for the command line: `{"source": "x.jsonl", "weight": 0.3}`.
        text_column: For items that name neither a text column nor a template.
        field: The argument's name, for messages.

    Raises:
        ConfigError: If an item is none of these, or the items contradict each other; the message names the item.
    """
    items = [corpus] if isinstance(corpus, (str, Mapping)) else list(corpus)
    if not items:
        raise ConfigError(f"{field} is empty: name at least one source")
    sources = [_parse(item, text_column, field) for item in items]
    unweighted = [source.source for source in sources if source.weight is None]
    if unweighted and len(unweighted) < len(sources):
        raise ConfigError(
            f"{field} gives weights to some sources and none to {', '.join(unweighted)}: give one to every source, or to none"
        )
    return sources


def probabilities(sources: Sequence[CorpusSource]) -> list[float] | None:
    """How often each source is drawn from, which adds up to 1; None where they have no weights."""
    weights = [source.weight for source in sources if source.weight is not None]
    return [weight / sum(weights) for weight in weights] if weights else None


def _parse(item: str | Mapping[str, Any], text_column: str, field: str) -> CorpusSource:
    given: Any = item
    if isinstance(item, str):
        if not item.lstrip().startswith("{"):
            if not item.strip():
                raise ConfigError(f"{field} has an empty item: name a file, folder, glob, Hub id or built-in corpus")
            return CorpusSource(item, text_column=text_column)
        try:
            given = json.loads(item)
        except json.JSONDecodeError as error:
            raise ConfigError(f"{field} item {item} is no JSON object: {error}") from error
    if not isinstance(given, Mapping):
        raise ConfigError(f"{field} item {item!r} is neither a source nor a mapping with {', '.join(_FIELDS)}")
    if unknown := [str(key) for key in given if key not in _FIELDS]:
        raise ConfigError(
            f"{field} item {item} has the unknown field {unknown[0]}: the fields are {', '.join(_FIELDS)}"
        )
    # What is left empty in YAML comes as None.
    values = {key: value for key, value in given.items() if value is not None}
    for name in ("source", "text_column", "template"):
        value = values.get(name, "" if name == "source" else "unset")
        if not isinstance(value, str) or not value.strip():
            raise ConfigError(f"{field} item {item} needs a text that is not empty as its {name}")
    weight = values.get("weight", 1)
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < math.inf:
        raise ConfigError(f"{field} item {item} has the weight {weight!r}: give a number above 0")
    if "template" in values:
        if values.get("text_column", "text") != "text":
            raise ConfigError(f"{field} item {item} has a text_column and a template: give one of the two")
        template_columns(values["template"])
        return CorpusSource(**values)
    return CorpusSource(**{"text_column": text_column, **values})


def template_columns(template: str) -> list[str]:
    """The columns that a template names, each once.

    Raises:
        ConfigError: If it names none, or is no template.
    """
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ConfigError(f"{template!r} is no template: {error}; double the braces that are text") from error
    named = [(name, spec, conversion) for _, name, spec, conversion in parts if name is not None]
    if not named or any(not name or spec or conversion for name, spec, conversion in named):
        raise ConfigError(f"{template!r} is no template: put plain column names into its braces, as in {{title}}")
    return list(dict.fromkeys(name for name, _, _ in named))


def fill_template(template: str, row: Mapping[str, Any], where: str) -> str:
    """A template with the columns of one row; a list is joined by line feeds, an empty cell is left empty.

    Raises:
        DataError: If a cell holds something that has no plain text form.
    """
    text = ""
    for literal, name, _, _ in string.Formatter().parse(template):
        text += literal
        if name is None:
            continue
        cell = row[name]
        lines = cell if isinstance(cell, list) else [] if cell is None else [cell]
        if not all(isinstance(line, (str, int, float)) for line in lines):
            raise DataError(f"column {name!r} of {where} holds neither text nor a list of texts, but {cell!r:.80}")
        text += "\n".join(map(str, lines))
    return text
