"""Reads labeled texts for text classification and regression; finds columns and label names that are not given."""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import NamedTuple

from datasets import ClassLabel, Dataset, Features, List, Value

from ...data.corpus import is_blank
from ...data.summary import RowSummary, summarize_rows
from ...errors import ConfigError, DataError
from ..labels import (
    FEATURES,
    PROBLEM_TYPES,
    LabelEncoder,
    Labelled,
    find_label_names,
    find_problem_type,
    list_of_labels,
    number_of,
    read_numbered_names,
    unlabelled,
)
from ..tables import Rejected, Table, find_accepted, load_tables, split_rows

logger = logging.getLogger(__name__)

# If a row has all columns of a group, their texts are joined by a line feed.
_TEXT_COLUMNS = (
    ("title", "description"),
    ("title", "content"),
    ("title", "text"),
    ("premise", "hypothesis"),
    ("sentence1", "sentence2"),
    ("text",),
    ("sentence",),
    ("review",),
    ("content",),
    ("document",),
    ("comment",),
    ("tweet",),
    ("title",),
    ("标题", "内容"),
    ("标题", "正文"),
    ("标题", "描述"),
    ("句子1", "句子2"),
    ("文本",),
    ("正文",),
    ("内容",),
    ("句子",),
    ("评论",),
    ("评论内容",),
    ("评价",),
    ("评价内容",),
    ("微博",),
    ("新闻",),
    ("摘要",),
    ("标题",),
)
_LABEL_COLUMNS = (
    *("label", "labels", "class", "category", "sentiment", "score", "target", "class index", "intent", "emotion"),
    *("topic", "rating", "stars"),
    *("标签", "类别", "分类", "情感", "情感倾向", "情绪", "类型", "意图", "主题", "评分", "星级", "得分", "分数"),
)
# Texts that come in pairs, whose data sets hide labels as -1.
_PAIRS = (("premise", "hypothesis"), ("sentence1", "sentence2"), ("句子1", "句子2"))
# Names of columns are short, and classes repeat.
_LONGEST_NAME = 24
_FEW = 4
_MANY = 20
_HEADER = {name for group in _TEXT_COLUMNS for name in group} | set(_LABEL_COLUMNS)


@dataclass(frozen=True)
class LabelledSplits:
    """Texts with labels.

    Attributes:
        train: Columns `text` and `label`. A label is an int, the index of a name; for several labels a list of 0.0 and
            1.0, one per name; for regression a float.
        test: The same columns; None if nothing is held out.
        label_names: Names in the order of their indices; none for regression.
        problem_type: One of `PROBLEM_TYPES`, as in a Hugging Face config.
        text_columns: The columns of the text.
        label_column: The column of the label.
        first_label: The number of the first name, 0 or 1, if the labels are numbers of given names; otherwise None.
        summaries: How the rows and columns of each file were read.
    """

    train: Dataset
    test: Dataset | None
    label_names: list[str]
    problem_type: str
    text_columns: tuple[str, ...]
    label_column: str
    first_label: int | None = None
    summaries: Sequence[RowSummary] = ()


class _Columns(NamedTuple):
    text: tuple[str, ...]
    label: str


def load_labelled(
    source: str,
    *,
    text_column: str | Sequence[str] | None = None,
    label_column: str | None = None,
    label_names: str | PathLike[str] | Sequence[str] | None = None,
    problem_type: str = "auto",
    test_fraction: float = 0.0,
    eval_source: str | None = None,
    encoding: str | None = None,
    skip_invalid: bool = False,
    first_label: int | None = None,
    is_training: bool = True,
) -> LabelledSplits:
    """Loads labeled texts from files with or without a header, or from the Hub.

    In a file without a header, the label is in the first or the last column, whichever has fewer or else shorter
    values; the other columns are text. Texts from several columns are joined by a line feed. Cells such as `NaN`,
    `null` and `-` are no labels unless they are among the `label_names`, and a cell that is a list in JSON or Python
    has several.

    Args:
        source: A file, folder or glob of csv, tsv, txt (with tabs), jsonl, json or parquet files, or a Hub id.
        text_column: One column or several; found by name if not given. Columns without a header are called `column0`,
            `column1` ...
        label_column: Likewise. It has names, numbers of the `label_names` from 0 or from 1, lists of them, or
            quantities.
        label_names: Names in the order of their indices, or the path of a file with one per line, which may number
            them. If not given, the labels that occur, sorted.
        problem_type: One of `PROBLEM_TYPES`; `auto` chooses several labels for lists, regression for numbers with a
            fraction, and a single label for everything else.
        test_fraction: Share of texts to hold out, by a hash of the text, unless the source has a `test` split.
        eval_source: Source of the held-out rows to use instead, with the same columns and labels.
        encoding: Encoding of the files, such as `gb18030`; UTF-8 if not given.
        skip_invalid: Leave out rows without a text or a label, with a warning that counts them, instead of raising an
            error.
        first_label: The number of the first name, if labels are numbers; if not given, the training rows must have 0,
            or else the number of names.
        is_training: False if the rows are only evaluated, so that all may have the same label.

    Raises:
        DataError: If a column is missing, a row has no text or no label, a label is not among the names, all labels to
            learn are the same, numbers may be classes or quantities, or count from 0 or 1, or a first line may be a
            header; the message names the file and the row.
        ConfigError: If `problem_type` is unknown, or `test_fraction` is not between 0 and 1.
    """
    if problem_type not in ("auto", *PROBLEM_TYPES):
        raise ConfigError(f"problem_type is {problem_type!r}: give auto or one of {', '.join(PROBLEM_TYPES)}")
    given = (text_column,) if isinstance(text_column, str) else tuple(text_column or ())
    tables = _load(source, given, label_column, encoding)
    columns = _find_columns(tables[0], given, label_column, problem_type)
    summaries: list[RowSummary] = []
    given_names: list[str] = []
    numbered = None
    if label_names is not None and problem_type != "regression":
        given_names, numbered = read_numbered_names(label_names)
    rows = _read(tables, columns, given_names, skip_invalid, summaries)
    held_out = None
    if eval_source is not None:
        others = _load(eval_source, columns.text, columns.label, encoding)
        held_out = _read(others, columns, given_names, skip_invalid, summaries)
    rows = split_rows(rows, held_out, test_fraction, lambda row: row.text, source)
    known = rows["train"] if eval_source is not None else rows["train"] + rows["test"]
    # A file whose columns are named `column0`, `column1` ... has no header.
    if is_training and not tables[0].has_header and not given_names and not (given and label_column):
        _check_first_lines(known)
        if label_column is None and problem_type != "regression":
            _check_repeats(known, columns.label)
    if problem_type == "auto" and label_names is not None and not any(isinstance(row.label, list) for row in known):
        # Labels with names are classes, also if they are written as 1.0.
        problem_type = "single_label_classification"
    problem_type = find_problem_type(known, problem_type)
    if problem_type == "regression":
        names: list[str] = []
    elif label_names is not None:
        names = given_names
        first_label = numbered if first_label is None else first_label
    else:
        names = _own_names(tables[0], columns.label) or find_label_names(known, problem_type)
    encode = LabelEncoder(known, names, problem_type, first=first_label)
    features = Features({"text": Value("string"), "label": FEATURES[problem_type]})
    parts_of = {
        name: Dataset.from_dict({"text": [row.text for row in part], "label": [encode(row) for row in part]}, features)
        for name, part in rows.items()
    }
    if is_training and len(set(map(str, parts_of["train"]["label"]))) < 2:
        raise DataError(
            f"All training rows of {source} have the label {rows['train'][0].label!r}: add rows with other labels."
        )
    if encode.first is not None:
        logger.info("%s: the labels are numbers, and %d is %s.", source, encode.first, names[0])
    if is_training and problem_type == "single_label_classification":
        _warn_of_unlearned(parts_of["train"]["label"][:], parts_of["test"]["label"][:], names, source)
    test = parts_of["test"] if len(parts_of["test"]) else None
    return LabelledSplits(
        parts_of["train"], test, names, problem_type, columns.text, columns.label, encode.first, summaries
    )


def _warn_of_unlearned(train: list[int], test: list[int], names: Sequence[str], source: str) -> None:
    """Warns of labels that occur only in the held-out part, which a model cannot learn."""
    if only := sorted(set(test) - set(train)):
        shown = ", ".join(names[index] for index in only[:5]) + (" ..." if len(only) > 5 else "")
        logger.warning(
            "%s: %d label(s) occur in held-out rows but in no training row, so they cannot be learned: %s.",
            source,
            len(only),
            shown,
        )


def _load(source: str, text: Sequence[str], label: str | None, encoding: str | None) -> list[Table]:
    named = {_plain(name) for name in (*text, *([label] if label else []))}
    return load_tables(source, header=_HEADER | named, encoding=encoding)


def _plain(name: str) -> str:
    """Returns a column's name without what spreadsheets and editors put around it, in lower case."""
    return name.strip().strip("\ufeff\u200b").strip().lower()


def _resolved(where: str, found: Sequence[str], wanted: str) -> str:
    """Returns the column that a name means: itself, or the only one that differs in case or spaces around it."""
    alike = [name for name in found if _plain(name) == _plain(wanted)]
    if wanted in found or len(alike) != 1:
        _check_columns(where, found, [wanted])
        return wanted
    return alike[0]


def _find_columns(table: Table, text: tuple[str, ...], label: str | None, problem_type: str) -> _Columns:
    """Returns the named columns, and finds those that are not named."""
    rows = table.splits["train"]
    found = list(rows.column_names)
    text = tuple(_resolved(table.where, found, name) for name in text)
    label = None if label is None else _resolved(table.where, found, label)
    by_lower_name = {_plain(name): name for name in found}
    if label is None:
        label = next((by_lower_name[name] for name in _LABEL_COLUMNS if name in by_lower_name), None)
        if label is None and not table.has_header:
            label = _label_by_values(rows, [name for name in found if name not in text], problem_type)
        if label is None:
            raise DataError(
                f"{table.where} has the columns {', '.join(found)}, and it is unclear which has the label: name it with "
                "--label_column."
            )
    if not text:
        others = [name for name in found if name != label]
        group = next((group for group in _TEXT_COLUMNS if all(name in by_lower_name for name in group)), None)
        if not table.has_header or (group is None and len(others) == 1):
            text = tuple(others)
        elif group is not None:
            text = tuple(by_lower_name[name] for name in group)
        if not text or label in text:
            raise DataError(
                f"{table.where} has the columns {', '.join(found)}, and it is unclear which has the text: name it with "
                "--text_column."
            )
    return _Columns(text, label)


def _label_by_values(rows: Dataset, columns: list[str], problem_type: str) -> str | None:
    """Picks the first or last column: the one with fewer or else shorter values; for regression, with numbers."""
    # Spreadsheets write empty columns to the right of a table.
    columns = [name for name in columns if any(value.strip() for value in rows[name])]
    ends = {name: [value for value in rows[name][:] if value.strip()] for name in (*columns[:1], *columns[-1:])}
    if not ends:
        return None
    if problem_type == "regression":
        numbers = [name for name, values in ends.items() if all(number_of(value) is not None for value in values)]
        return numbers[0] if len(numbers) == 1 else None
    sizes = {name: (len(set(values)), sum(map(len, values))) for name, values in ends.items()}
    smallest = min(sizes, key=lambda name: sizes[name])
    return smallest if list(sizes.values()).count(sizes[smallest]) == 1 else None


def _check_columns(where: str, found: Sequence[str], wanted: Sequence[str]) -> None:
    for name in wanted:
        if name not in found:
            raise DataError(f"{where} has no column {name!r}; it has {', '.join(found)}.")


def _class_label(rows: Dataset, column: str) -> ClassLabel | None:
    feature = rows.features[column]
    feature = feature.feature if isinstance(feature, List) else feature
    return feature if isinstance(feature, ClassLabel) else None


def _own_names(table: Table, column: str) -> list[str] | None:
    """Returns the data set's own names for the numbers in its label column."""
    feature = _class_label(table.splits["train"], column)
    return list(feature.names) if feature else None


def _read(
    tables: Sequence[Table],
    columns: _Columns,
    names: Sequence[str],
    skip_invalid: bool,
    summaries: list[RowSummary],
) -> dict[str, list[Labelled]]:
    """Returns the usable rows by split, `train` or `test`, and adds a summary of each table."""
    used = (*columns.text, columns.label)
    found: dict[str, list[Labelled]] = {"train": [], "test": []}
    for table in tables:
        for split, rows in table.splits.items():
            _check_columns(table.where, rows.column_names, used)
            rejected = Rejected(table.where, skip_invalid)
            accepted = find_accepted(rows, used)
            usable = list(_usable(rows, columns, names, accepted.rows, rejected))
            found[str(split)] += usable
            read = {**dict.fromkeys(columns.text, "text"), columns.label: "label", **accepted.columns}
            summary = summarize_rows(
                table.where, str(split), "labelled texts", rows, read, len(usable), accepted.notes(), rejected.reasons
            )
            summary.log()
            summaries.append(summary)
    return found


def _usable(
    rows: Dataset, columns: _Columns, names: Sequence[str], accepted: Sequence[bool], rejected: Rejected
) -> Iterator[Labelled]:
    """Yields the accepted rows with a text and a label."""
    own = _class_label(rows, columns.label)
    is_pair = tuple(map(_plain, columns.text)) in _PAIRS
    none = unlabelled([] if own else rows[columns.label][:], is_pair) - set(names)
    texts = [rows[name][:] for name in columns.text]
    for number, (label, *cells) in enumerate(zip(rows[columns.label][:], *texts, strict=True), start=1):
        if not accepted[number - 1]:
            continue
        for name, cell in zip(columns.text, cells, strict=True):
            if cell is not None and not isinstance(cell, str):
                raise DataError(
                    f"Row {number} of {rejected.where} has {cell!r:.80} instead of a text in the column {name!r}: name "
                    "the column of the text with --text_column."
                )
        text = "\n".join(cell for cell in cells if not is_blank(cell))
        # Data sets on the Hub use -1 for a label that is kept secret.
        if label is None or (isinstance(label, str) and not label.strip()) or (own and label == -1):
            rejected.add(number, f"it has no label in the column {columns.label!r}")
        elif not isinstance(label, list) and str(label).strip() in none:
            rejected.add(number, f"{label!r} in the column {columns.label!r} is no label, unless --class_names has it")
        elif not all(isinstance(item, (str, int, float)) for item in (label if isinstance(label, list) else [label])):
            rejected.add(
                number,
                f"it has {label!r:.80} in the column {columns.label!r}, but a label is a name, a number or a list of these",
            )
        elif not text:
            rejected.add(number, f"it has no text in the column {' or '.join(map(repr, columns.text))}")
        else:
            if isinstance(label, str):
                several = None if label.strip() in names else list_of_labels(label)
                label = label.strip() if several is None else several
            elif own:
                label = own.int2str(label)
            yield Labelled(rejected.where, number, text, label)


def _check_first_lines(rows: Sequence[Labelled]) -> None:
    """Raises if a first line that was read as a row may be a header: no row below it has its label."""
    others = Counter(str(row.label) for row in rows if row.number > 1)
    for first in rows:
        if first.number > 1 or not others or str(first.label) in others:
            continue
        is_only_name = number_of(first.label) is None and all(number_of(label) is not None for label in others)
        is_only_single = len(others) > 1 and min(others.values()) > 1
        if is_only_name or is_only_single or all(map(_may_be_name, [*first.text.split("\n"), str(first.label)])):
            raise DataError(
                f"{first} has the label {first.label!r}, which no other row has, so it may be a header: if it is, name its "
                "columns with --text_column and --label_column; if the file has no header, give --text_column and "
                "--label_column as column0, column1 ..."
            )


def _may_be_name(cell: str) -> bool:
    """True if a cell can be the name of a column: short, no number, and no sentence."""
    width = sum(1 if character.isascii() else 2 for character in cell)
    return width <= _LONGEST_NAME and number_of(cell) is None and not cell.rstrip().endswith(tuple(".!?。！？…"))


def _check_repeats(rows: Sequence[Labelled], column: str) -> None:
    """Raises if the column that was chosen by its values has identifiers rather than classes."""
    labels = [row.label for row in rows]
    if all(number_of(label) is not None for label in labels):
        # These may be quantities.
        return
    count = len(set(map(str, labels)))
    if count == len(labels) >= _FEW or (len(labels) >= _MANY and count > len(labels) / 2):
        raise DataError(
            f"{rows[0].where} has no header, and {count} of {len(labels)} values in {column} differ, so they are hardly "
            "labels: name the columns with --label_column and --text_column (column0, column1 ...)."
        )
