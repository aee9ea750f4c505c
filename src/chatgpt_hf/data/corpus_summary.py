"""Says which columns of a corpus are documents and which are not read."""

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import islice
from typing import Any

from .corpus import is_blank
from .files import is_one_document, source_files
from .sources import CorpusSource, template_columns
from .splits import split_files
from .summary import RowSummary
from .tables import Table, load_hub_splits, read_rows, read_tables


def summarize_corpus(source: CorpusSource, *, limit: int | None = None) -> list[RowSummary]:
    """Reads the rows of a source, and counts the values in their columns.

    Args:
        limit: Number of rows to read of each table; None for all. Only then are blank documents counted.

    Returns:
        One summary for the text files of each split, and one for the tables of each split that have the same columns.

    Raises:
        DataError: If a table cannot be read; the message names the file and the place.
    """
    texts: dict[str, list[str]] = {}
    tables: list[Table] = []
    files = None if source.source.startswith("builtin:") else source_files(source.source)
    if files is None and limit is not None and not source.source.startswith("builtin:"):
        # A data set that is streamed must not be downloaded for this.
        splits = load_hub_splits(source.source, streaming=True)
        tables = [Table(source.source, str(name), partial(iter, split)) for name, split in splits.items()]
    elif files is None:
        tables = read_tables(source.source)
    else:
        for split, part in split_files(files, source.source, log=False).items():
            texts[split] = [str(file) for file in part if is_one_document(file)]
            tables += [
                Table(str(file), split, partial(read_rows, file, encoding=source.encoding))
                for file in part
                if not is_one_document(file)
            ]
    whole = [
        RowSummary(_named(names), split, {"text files": len(names)}, len(names), len(names), {"the text": len(names)})
        for split, names in texts.items()
        if names
    ]
    groups: dict[Any, list[RowSummary]] = {}
    for table in tables:
        summary = _summarize(table, islice(table.rows(), limit), source, is_whole=limit is None)
        groups.setdefault((table.split, *map(tuple, (summary.used, summary.unused))), []).append(summary)
    return [*whole, *map(_joined, groups.values())]


def _summarize(table: Table, rows: Iterable[dict[str, Any]], source: CorpusSource, *, is_whole: bool) -> RowSummary:
    wanted = [source.text_column] if source.template is None else template_columns(source.template)
    counts: Counter[str] = Counter()
    count = kept = 0
    for row in rows:
        count += 1
        filled = [str(name) for name, value in row.items() if value not in (None, "", [])]
        counts.update(filled)
        kept += any(name in filled and not (isinstance(row[name], str) and is_blank(row[name])) for name in wanted)
    return RowSummary(
        where=table.where,
        split=table.split,
        shapes={"documents": count},
        rows=count,
        kept=kept,
        used={name: counts[name] for name in wanted if name in counts},
        unused={name: count for name, count in counts.items() if name not in wanted},
        notes={"blank documents were left out": count - kept} if is_whole and kept < count else {},
    )


def _joined(summaries: Sequence[RowSummary]) -> RowSummary:
    """Returns one summary of tables with the same columns."""

    def total(name: str) -> dict[str, int]:
        counts: Counter[str] = Counter()
        for summary in summaries:
            counts.update(getattr(summary, name))
        return dict(counts)

    return RowSummary(
        where=_named([summary.where for summary in summaries]),
        split=summaries[0].split,
        shapes=total("shapes"),
        rows=sum(summary.rows for summary in summaries),
        kept=sum(summary.kept for summary in summaries),
        used=total("used"),
        unused=total("unused"),
        notes=total("notes"),
    )


def _named(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
