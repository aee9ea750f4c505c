"""Makes prompts and completions for generative tasks (translation, summaries, poems, code) from any columns."""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from datasets import Dataset, Features, Value

from ...data.conversation_rows import EXCLUDING, is_excluded
from ...data.corpus import is_blank
from ...data.messages import text_of
from ...data.sources import fill_template, template_columns
from ...data.summary import RowSummary, summarize_rows
from ...errors import ConfigError, DataError
from ..tables import Accepted, Rejected, find_accepted, load_tables, split_rows

PARTS = ("prompt", "completion")
_FEATURES = Features(dict.fromkeys(PARTS, Value("string")))


@dataclass(frozen=True)
class PairSplits:
    """Prompts with their completions.

    Attributes:
        train: Columns `prompt` and `completion`, non-blank texts.
        test: The same columns; None if nothing is held out.
        summaries: How the rows and columns of each file were read.
    """

    train: Dataset
    test: Dataset | None
    summaries: Sequence[RowSummary] = ()


def load_pairs(
    source: str,
    *,
    prompt_template: str = "{prompt}",
    completion_template: str = "{completion}",
    column_names: Sequence[str] | None = None,
    test_fraction: float = 0.0,
    split_by: str = "prompt",
    eval_source: str | None = None,
    encoding: str | None = None,
    skip_invalid: bool = False,
) -> PairSplits:
    """Fills two templates with the columns of each row.

    Rows that say that they are not to be learned, such as `"label": false` or `"train": false`, are left out, as they
    are from conversations, unless the templates have these columns.

    Args:
        source: A file, folder or glob of jsonl, json, csv, tsv, txt (with tabs) or parquet files, a Hub id,
            `builtin:python-functions` or `builtin:relations`.
        prompt_template: A text with column names in braces, such as `"{title}\\n"`; a list is joined by line feeds.
        completion_template: The same for the completion.
        column_names: Column names of csv, tsv and txt files without a header. If not given, the first line is a header
            if it has one of the templates' columns; otherwise the columns are `column0`, `column1` ...
        test_fraction: Share to hold out, by a hash of the prompt, unless the source has a `test` split.
        split_by: `completion` hashes the completion instead, so that one text under two prompts (a poem with two
            titles) is on one side.
        eval_source: Source of the held-out rows to use instead, with the same columns.
        encoding: Encoding of the files, such as `gb18030`; UTF-8 if not given.
        skip_invalid: Leave out rows in which a column of the templates is blank, with a warning that counts them,
            instead of raising an error.

    Raises:
        DataError: If the source cannot be read, a column is missing, or a row has a blank column; the message names
            the row.
        ConfigError: If a template is invalid, `split_by` is unknown, or `test_fraction` is not between 0 and 1.
    """
    templates = (prompt_template, completion_template)
    options = (templates, column_names, encoding, skip_invalid)
    rows, summaries = _read(source, *options)
    held_out = None
    if eval_source is not None:
        held_out, others = _read(eval_source, *options)
        summaries += others
    if split_by not in PARTS:
        raise ConfigError(f"split_by is {split_by!r}: give one of {', '.join(PARTS)}")
    key = PARTS.index(split_by)
    rows = split_rows(rows, held_out, test_fraction, lambda pair: pair[key], source)
    parts = {
        name: Dataset.from_dict(
            {column: [pair[index] for pair in part] for index, column in enumerate(_FEATURES)}, _FEATURES
        )
        for name, part in rows.items()
    }
    return PairSplits(parts["train"], parts["test"] if len(parts["test"]) else None, summaries)


def _read(
    source: str,
    templates: tuple[str, str],
    column_names: Sequence[str] | None,
    encoding: str | None,
    skip_invalid: bool,
) -> tuple[dict[str, list[tuple[str, str]]], list[RowSummary]]:
    """Returns prompts and completions by split, and a summary of each table."""
    summaries = []
    wanted = list(dict.fromkeys(name for template in templates for name in template_columns(template)))
    found: dict[str, list[tuple[str, str]]] = {"train": [], "test": []}
    header = {name.lower() for name in wanted}
    for table in load_tables(source, header=header, column_names=column_names, encoding=encoding):
        for split, rows in table.splits.items():
            rejected = Rejected(table.where, skip_invalid)
            if missing := [name for name in wanted if name not in rows.column_names]:
                # A first line is a header if it names what the templates want.
                unnamed = (
                    " or the names in its first line, if that is a header" if "column0" in rows.column_names else ""
                )
                raise DataError(
                    f"{table.where} has no column {missing[0]!r}; the templates of prompt and completion may name "
                    f"{', '.join(rows.column_names)}{unnamed}."
                )
            accepted, notes = _find_accepted(rows, wanted)
            pairs = list(_pairs(rows, templates, wanted, accepted.rows, rejected))
            found[str(split)] += pairs
            read = {**{name: name for name in wanted}, **accepted.columns}
            summary = summarize_rows(
                table.where,
                str(split),
                "prompts with completions",
                rows,
                read,
                len(pairs),
                notes,
                rejected.reasons,
            )
            summary.log()
            summaries.append(summary)
    return found, summaries


def _find_accepted(rows: Dataset, used: Collection[str]) -> tuple[Accepted, dict[str, int]]:
    """Returns which rows neither a person nor a flag in the row excludes, and notes on the others."""
    found = find_accepted(rows, used)
    accepted, columns, notes = list(found.rows), dict(found.columns), Counter(found.notes())
    for name in EXCLUDING:
        if name in used or name not in rows.column_names:
            continue
        for index, value in enumerate(rows[name]):
            excluded = is_excluded(name, value)
            if excluded is not None:
                columns[name] = "decision"
            if excluded and accepted[index]:
                accepted[index] = False
                notes[f"rows with {name} {text_of(value)} were left out"] += 1
    return Accepted(accepted, columns), dict(notes)


def _pairs(
    rows: Dataset, templates: tuple[str, str], wanted: Sequence[str], accepted: Sequence[bool], rejected: Rejected
) -> Iterator[tuple[str, str]]:
    for number, row in enumerate(rows.select_columns(list(wanted)), start=1):
        if not accepted[number - 1]:
            continue
        where = f"row {number} of {rejected.where}"
        # A template filled with a blank cell is useless, even though its literal text is not blank.
        blank = [name for name in wanted if is_blank(fill_template(f"{{{name}}}", row, where))]
        if blank:
            rejected.add(number, f"its {blank[0]} is empty")
        else:
            prompt, completion = (fill_template(template, row, where) for template in templates)
            yield prompt, completion
