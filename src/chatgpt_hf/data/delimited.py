"""Reads csv and tsv files as spreadsheets and editors write them; every cell is the text that stands in the file."""

import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ..errors import DataError
from .files import faults_named, format_of, open_text

_QUOTED = re.compile(r'"(?:[^"]|"")*"')
# The largest number that fits a C long everywhere; the module's own limit is 128 KiB.
_LONGEST_CELL = (1 << 31) - 1
_SAMPLED_LINES = 20


def read_table(
    path: Path, *, encoding: str | None = None, column_names: Sequence[str] | None = None
) -> Iterator[tuple[int, dict[str, str]]]:
    """Yields the rows of a csv, tsv or tab-separated txt file, each with the number of its first line.

    Args:
        path: The file, possibly compressed.
        encoding: Its encoding, UTF-8 if not given.
        column_names: Names of the columns of a file without a header; the first line is then a row.

    Raises:
        DataError: If a row has more or fewer cells than the header, a quotation mark is left open, or the header names
            a column twice; the message names the file and the line.
    """
    records = read_cells(path, encoding=encoding)
    if column_names is None:
        _, header = next(records, (0, []))
        if not header:
            return
        names = _column_names(path, header)
    else:
        names = list(column_names)
    width = len(names)
    first = "its header" if column_names is None else "its first line"
    # Spreadsheets write empty columns to the right of a table.
    while width > 1 and not names[width - 1]:
        width -= 1
    names = [name or f"Unnamed: {index}" for index, name in enumerate(names[:width])]
    for line, cells in records:
        if len(cells) != width:
            cells = _fitted(path, line, cells, width, first)
        yield line, dict(zip(names, cells, strict=True))


def read_cells(path: Path, *, encoding: str | None = None) -> Iterator[tuple[int, list[str]]]:
    """Yields the cells of each record, including the header, with the number of its first line; skips blank lines."""
    separator, skipped = _separator(path, encoding)
    is_quoted = separator != "\t" or _is_quoted(path, encoding)
    csv.field_size_limit(_LONGEST_CELL)
    line = 0
    with faults_named(path, encoding), open_text(path, encoding, newline="") as stream:
        for _ in range(skipped):
            next(stream, None)
        # `strict` refuses text after a closing quotation mark, and a mark that never closes.
        records = csv.reader(
            _checked(stream, path, skipped),
            delimiter=separator,
            quoting=csv.QUOTE_MINIMAL if is_quoted else csv.QUOTE_NONE,
            strict=True,
        )
        try:
            is_first, width = True, 0
            while True:
                line = records.line_num + skipped + 1
                cells = next(records, None)
                if cells is None:
                    return
                if not cells or (len(cells) == 1 and not cells[0].strip() and (is_first or width > 1)):
                    continue
                width = len(cells) if is_first else width
                is_first = False
                yield line, cells
        except csv.Error as error:
            raise DataError(_quote_fault(path, line, str(error))) from error


def _column_names(path: Path, header: Sequence[str]) -> list[str]:
    names = [name.strip() for name in header]
    if twice := next((name for index, name in enumerate(names) if name and name in names[:index]), None):
        raise DataError(f"{path} has two columns named {twice!r} in its header: give each its own name")
    return names


def _fitted(path: Path, line: int, cells: list[str], width: int, first: str) -> list[str]:
    """Leaves out empty cells to the right of the last column; raises `DataError` if the others are not as many."""
    if len(cells) > width and not any(cell.strip() for cell in cells[width:]):
        return cells[:width]
    if len(cells) > width:
        raise DataError(
            f"{path} has more fields in line {line} ({len(cells)}) than in {first} ({width}): quote texts that contain "
            "a separator, and name every column"
        )
    raise DataError(
        f"{path} has fewer fields in line {line} ({len(cells)}) than in {first} ({width}): write the separators of "
        "empty cells too, and quote texts with line ends"
    )


def _quote_fault(path: Path, line: int, error: str) -> str:
    kind = (format_of(path) or ".csv")[1:]
    if "unexpected end" in error:
        reason = "a quotation mark is never closed"
    elif "expected after" in error:
        reason = "text follows a closing quotation mark"
    else:
        return f"{path} cannot be read as {kind}: the row that begins in line {line}: {error}"
    return (
        f"{path} cannot be read as {kind}: in the row that begins in line {line} {reason}. Double the quotation marks that "
        'are text, and enclose their cell in others: "He said ""yes"""'
    )


def _checked(lines: Iterable[str], path: Path, skipped: int) -> Iterator[str]:
    for number, line in enumerate(lines, start=skipped + 1):
        if "\0" in line:
            raise DataError(
                f"{path} has a zero byte in line {number}, so it is not plain text: save it as UTF-8, or name its "
                "--encoding"
            )
        yield line


def _separator(path: Path, encoding: str | None) -> tuple[str, int]:
    """Returns the character between the cells of a file, and the number of lines before its header."""
    if format_of(path) != ".csv":
        return "\t", 0
    sample: list[str] = []
    skipped = 0
    with faults_named(path, encoding), open_text(path, encoding, newline="") as stream:
        for line in stream:
            if not sample and (match := re.fullmatch(r'"?sep=(.)"?', line.rstrip("\r\n"), re.IGNORECASE)):
                # Written and read by Excel.
                return match[1], skipped + 1
            if line.strip():
                sample.append(re.sub(r'"[^"]*"?', "", line))
            elif not sample:
                skipped += 1
            if len(sample) == _SAMPLED_LINES:
                break
    # Editors and databases write tabs, and Excel semicolons where the comma is the decimal mark.
    found = [mark for mark in "\t,;" if sample and mark in sample[0]]
    even = [mark for mark in found if len({line.count(mark) for line in sample}) == 1]
    return next(iter(even if len(found) > 1 else found), ","), skipped


def _is_quoted(path: Path, encoding: str | None) -> bool:
    """True if quotation marks enclose the cells of a tab-separated file; False if they are part of the text.

    They are part of the text if a cell begins with a quotation mark and does not end with its match: `"Is he right?" "I
    don't think so."`. Only where lines have different numbers of tabs, and quotation marks explain it, such a cell goes
    on in the next line.
    """
    width = None
    open_line = None  # of a cell that begins with a quotation mark and does not end with its match
    is_even = True
    with faults_named(path, encoding), open_text(path, encoding, newline="") as stream:
        for number, line in enumerate(stream, start=1):
            if not (line := line.rstrip("\r\n")).strip():
                continue
            cells = line.split("\t")
            width = len(cells) if width is None else width
            is_even = is_even and len(cells) == width
            if open_line is None and any(cell.startswith('"') and not _QUOTED.fullmatch(cell) for cell in cells):
                open_line = number
    if open_line is None:
        return True
    if is_even and width != 1:
        return False
    if not _closes(path, encoding):
        return False
    if not is_even:
        return True
    raise DataError(
        f"{path} has only one column, and a quotation mark in line {open_line} that may be text or the beginning of a text "
        "of several lines: write it as jsonl, or as csv"
    )


def _closes(path: Path, encoding: str | None) -> bool:
    """True if every quotation mark at the beginning of a tab-separated cell has its match at the end of one."""
    csv.field_size_limit(_LONGEST_CELL)
    with faults_named(path, encoding), open_text(path, encoding, newline="") as stream:
        try:
            for _ in csv.reader(stream, delimiter="\t", strict=True):
                pass
        except csv.Error:
            return False
    return True
