"""Parses what a user names as a corpus: one source or several, with weights, text columns and templates."""

import math
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from dataclasses import fields as dataclass_fields
from typing import Any

from ..errors import ConfigError, DataError
from ..parsing import parse_json
from .encodings import check_encoding


@dataclass(frozen=True)
class CorpusSource:
    """One source of documents.

    Attributes:
        source: Anything that `load_corpus` accepts: a file, folder, glob, Hub id or `builtin:python-docs`.
        weight: How often its documents are drawn, relative to the weights of the other sources.
        text_column: The column with the documents, in formats that have columns.
        template: Used instead of one column: a text with column names in braces, such as `"{title}\\n{paragraphs}"`.
        encoding: Encoding of its files, such as `gb18030`; UTF-8 if not given.
    """

    source: str
    weight: float | None = None
    text_column: str = "text"
    template: str | None = None
    encoding: str | None = None


_FIELDS = tuple(item.name for item in dataclass_fields(CorpusSource))


def parse_sources(
    corpus: str | Sequence[str | Mapping[str, Any]],
    *,
    text_column: str = "text",
    encoding: str | None = None,
    field: str = "corpus",
) -> list[CorpusSource]:
    """Parses the corpus or dataset argument of a recipe or command line.

    Args:
        corpus: One item or several. An item is a source; a mapping with the fields of `CorpusSource`; or such a mapping
            as a JSON object in a string, for the command line: `{"source": "x.jsonl", "weight": 0.3}`.
        text_column: Text column of items that name neither a text column nor a template.
        encoding: Encoding of items that name none.
        field: The argument's name, for error messages.

    Raises:
        ConfigError: If an item is none of these, or the items contradict each other; the message names the item.
    """
    items = [corpus] if isinstance(corpus, (str, Mapping)) else list(corpus)
    if not items:
        raise ConfigError(f"{field} is empty: name at least one source")
    check_encoding(encoding)
    sources = [_parse(item, text_column, encoding, field) for item in items]
    unweighted = [source.source for source in sources if source.weight is None]
    if unweighted and len(unweighted) < len(sources):
        raise ConfigError(
            f"{field} gives weights to some sources but not to {', '.join(unweighted)}: give every source a weight, or none"
        )
    return sources


def probabilities(sources: Sequence[CorpusSource]) -> list[float] | None:
    """Returns the probability of drawing from each source; None if the sources have no weights."""
    weights = [source.weight for source in sources if source.weight is not None]
    return [weight / sum(weights) for weight in weights] if weights else None


def _parse(item: str | Mapping[str, Any], text_column: str, encoding: str | None, field: str) -> CorpusSource:
    given: Any = item
    if isinstance(item, str):
        if not item.lstrip().startswith("{"):
            if not item.strip():
                raise ConfigError(f"{field} has an empty item: name a file, folder, glob, Hub id or built-in corpus")
            return CorpusSource(item, text_column=text_column, encoding=encoding)
        try:
            given = parse_json(item)
        except ValueError as error:
            raise ConfigError(f"{field} item {item:.200} is not a JSON object: {error}") from error
    if not isinstance(given, Mapping):
        raise ConfigError(f"{field} item {item!r} is neither a source nor a mapping with {', '.join(_FIELDS)}")
    if unknown := [str(key) for key in given if key not in _FIELDS]:
        raise ConfigError(
            f"{field} item {item} has the unknown field {unknown[0]}: the fields are {', '.join(_FIELDS)}"
        )
    # Fields left empty in YAML arrive as None.
    values = {key: value for key, value in given.items() if value is not None}
    for name in ("source", "text_column", "template", "encoding"):
        value = values.get(name, "" if name == "source" else "unset")
        if not isinstance(value, str) or not value.strip():
            raise ConfigError(f"{field} item {item} needs a non-empty text as its {name}")
    check_encoding(values.get("encoding"), f"the encoding of the {field} item {item}")
    values = {"encoding": encoding, **values}
    weight = values.get("weight", 1)
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < math.inf:
        raise ConfigError(f"{field} item {item} has the weight {weight!r}: give a number above 0")
    if "template" in values:
        if values.get("text_column", "text") != "text":
            raise ConfigError(f"{field} item {item} has both a text_column and a template: give only one of them")
        template_columns(values["template"])
        return CorpusSource(**values)
    return CorpusSource(**{"text_column": text_column, **values})


def template_columns(template: str) -> list[str]:
    """Returns the columns that a template names, each once.

    Raises:
        ConfigError: If it names none, or is not a valid template.
    """
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ConfigError(f"{template!r} is not a template: {error}; double the braces that are text") from error
    named = [(name, spec, conversion) for _, name, spec, conversion in parts if name is not None]
    if not named or any(not name or spec or conversion for name, spec, conversion in named):
        raise ConfigError(f"{template!r} is not a template: put plain column names in braces, as in {{title}}")
    return list(dict.fromkeys(name for name, _, _ in named))


def fill_template(template: str, row: Mapping[str, Any], where: str) -> str:
    """Fills a template from one row; joins a list by line feeds and inserts nothing for an empty cell.

    Raises:
        DataError: If a cell has a value without a plain text form.
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
