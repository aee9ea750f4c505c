"""Says what was done with the rows and columns of a file."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RowSummary:
    """Counts of how one table's rows and columns were read.

    Attributes:
        where: The file, built-in or Hub data set.
        split: `train` or `test`.
        shapes: The number of rows of each recognized shape.
        rows: The number of rows in the table.
        kept: The number of examples made of them.
        used: The columns that were read, with the number of rows that have a value there.
        unused: The same for columns, and keys inside columns, that were not read.
        notes: What was changed or left out, with the number of times.
        invalid: Why each row that cannot be used was left out.
        unit: What `invalid` counts, such as `question`.
        roles: What a column was read as, if its name does not say so.
    """

    where: str
    split: str
    shapes: Mapping[str, int]
    rows: int
    kept: int
    used: Mapping[str, int]
    unused: Mapping[str, int] = field(default_factory=dict)
    notes: Mapping[str, int] = field(default_factory=dict)
    invalid: Sequence[str] = ()
    unit: str = "row"
    roles: Mapping[str, str] = field(default_factory=dict)

    def log(self) -> None:
        """Logs the columns, and warns about rows that were left out."""
        unused = f"; not used: {', '.join(self.unused)}" if self.unused else ""
        logger.info("%s: read %s%s.", self.where, self._read() or "nothing", unused)
        for note, count in self.notes.items():
            logger.info("%s: %s: %d.", self.where, note, count)
        if self.invalid:
            count = len(self.invalid)
            logger.warning("%d %ss of %s are left out; the first: %s.", count, self.unit, self.where, self.invalid[0])

    def _read(self) -> str:
        roles = {name: role for name, role in self.roles.items() if role != name}
        return ", ".join(f"{name} ({roles[name]})" if name in roles else name for name in self.used)

    def as_dict(self) -> dict[str, Any]:
        """Returns the summary for JSON."""
        return asdict(self)

    def line(self) -> dict[str, Any]:
        """Returns a line of a table for people."""
        changes = [f"{note}: {count}" for note, count in self.notes.items()]
        changes += [f"{self.unit}s that cannot be used were left out: {len(self.invalid)}"] if self.invalid else []
        return {
            "source": self.where,
            "split": self.split,
            "rows": self.rows,
            "examples": self.kept,
            "shape": ", ".join(
                shape if len(self.shapes) == 1 else f"{shape}: {count}" for shape, count in self.shapes.items()
            ),
            "read": self._read(),
            "not used": ", ".join(self.unused) or "-",
            "changes": "; ".join(changes) or "-",
        }


def summarize_rows(
    where: str,
    split: str,
    shape: str,
    rows: Dataset,
    used: Mapping[str, str],
    kept: int,
    notes: Mapping[str, int],
    invalid: Sequence[str],
    inside: Mapping[str, int] | None = None,
) -> RowSummary:
    """Summarizes a table whose columns are known; see `RowSummary`.

    Args:
        shape: What the rows were read as.
        used: The columns that were read, and as what; all others are unused, unless no row has a value there.
        inside: Keys inside the columns that were not read.
    """
    counts = _filled(rows)
    return RowSummary(
        where=where,
        split=split,
        shapes={shape: len(rows)},
        rows=len(rows),
        kept=kept,
        used={name: counts[name] for name in counts if name in used},
        unused={**{name: count for name, count in counts.items() if count and name not in used}, **(inside or {})},
        notes={note: count for note, count in notes.items() if count},
        invalid=invalid,
        roles=used,
    )


def _filled(rows: Dataset) -> dict[str, int]:
    """Returns for each column how many rows have a value other than an empty text."""
    table = rows.with_format("arrow")[:]
    counts = {}
    for name in table.column_names:
        column = table[name]
        counts[name] = len(column) - column.null_count
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            counts[name] -= pc.sum(pc.equal(column, "")).as_py() or 0
    return counts
