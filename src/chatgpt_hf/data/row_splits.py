"""Reads examples row by row from one or several sources, with any reader of rows, and divides them into splits."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from datasets import Dataset, DatasetDict, Features, concatenate_datasets, interleave_datasets

from ..errors import DataError
from .sources import CorpusSource, probabilities
from .splits import hold_out
from .summary import RowSummary
from .tables import Table, read_tables


class RowReader(Protocol):
    """Reads the examples of one table, and counts what it did with rows and columns; see `ConversationReader`."""

    rows: int
    shapes: Counter[str]
    used: Counter[str]
    unused: Counter[str]
    notes: Counter[str]

    def read(self, rows: Iterable[Mapping[str, Any]]) -> Iterator[tuple[int, Any]]:
        """Yields row numbers, from 1, with each example in the row, or with a `DataError` if it cannot be used."""
        ...


def read_splits(
    sources: Sequence[CorpusSource],
    reader_of: Callable[[str], RowReader],
    to_columns: Callable[[Any], dict[str, Any]],
    features: Features,
    *,
    key: Callable[[Dataset], Iterable[str]],
    units: tuple[str, str],
    test_fraction: float,
    seed: int,
    skip_invalid: bool,
) -> tuple[DatasetDict, list[RowSummary]]:
    """Reads all tables of the sources; sources with weights are mixed as in `load_mixture`.

    Args:
        sources: The result of `parse_sources`.
        reader_of: Makes a reader for the table of a name.
        to_columns: Returns the columns of an example, without `source` and `place`, which are added.
        features: Of these columns, with `source` and `place`.
        key: Returns the text of each row whose hash decides whether it is held out.
        units: What a key stands for, and what the examples are together, for messages.
        test_fraction: Share to hold out of each source without its own `test` split.
        seed: Seed of the order in which weighted sources are drawn from.
        skip_invalid: Leave out rows that cannot be used, with a warning that counts them, instead of raising.

    Returns:
        The split `train`, and `test` if anything is held out; a summary of each table.

    Raises:
        DataError: If a source cannot be read, has nothing to train on, or a row cannot be used; the message names the
            row.
    """
    unit, examples = units
    train, test, summaries = [], [], []
    for source in sources:
        parts: dict[str, list[Dataset]] = {}
        for table in read_tables(source.source, encoding=source.encoding):
            rows, summary = _read(
                table, source.source, reader_of(table.where), to_columns, features, skip_invalid=skip_invalid
            )
            parts.setdefault(table.split, []).append(rows)
            summaries.append(summary)
            summary.log()
        if "train" not in parts:
            raise DataError(f"{source.source} has no split `train`; it has {', '.join(sorted(parts))}.")
        rows = concatenate_datasets(parts["train"])
        held_out = parts.get("test")
        if held_out is None and test_fraction:
            sides = hold_out(key(rows), test_fraction, source.source, unit=unit)
            held_out = [rows.select([index for index, side in enumerate(sides) if side])]
            rows = rows.select([index for index, side in enumerate(sides) if not side])
        if len(rows) == 0:
            raise DataError(f"{source.source} has no {examples} to train on.")
        train.append(rows)
        test += held_out or []
    result = DatasetDict(train=concatenate_datasets(train))
    if shares := probabilities(sources):
        result["train"] = interleave_datasets(train, shares, seed=seed, stopping_strategy="all_exhausted")
    if any(len(part) for part in test):
        result["test"] = concatenate_datasets(test)
    return result, summaries


def _read(
    table: Table,
    source: str,
    reader: RowReader,
    to_columns: Callable[[Any], dict[str, Any]],
    features: Features,
    *,
    skip_invalid: bool,
) -> tuple[Dataset, RowSummary]:
    """Reads the examples of one table."""
    invalid: list[str] = []

    def examples() -> Iterator[dict[str, Any]]:
        for number, read in reader.read(table.rows()):
            place = f"row {number} of {table.where}"
            if not isinstance(read, DataError):
                yield {**to_columns(read), "source": source, "place": place}
                continue
            if not skip_invalid:
                raise DataError(
                    f"{place[0].upper()}{place[1:]} cannot be used: {read} (--skip_invalid leaves such rows out)."
                )
            invalid.append(f"{place} cannot be used: {read}")

    found = list(examples())
    # `from_list` takes no features for an empty list.
    rows = (
        Dataset.from_list(found, features) if found else Dataset.from_dict({name: [] for name in features}, features)
    )
    summary = RowSummary(
        where=table.where,
        split=table.split,
        shapes=dict(reader.shapes),
        rows=reader.rows,
        kept=len(rows),
        used=dict(reader.used),
        unused=dict(reader.unused),
        notes=dict(reader.notes),
        invalid=invalid,
    )
    return rows, summary
