"""Says what was done with the rows and columns of a file."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

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

    def log(self) -> None:
        """Logs the columns, and warns about rows that were left out."""
        unused = f"; not used: {', '.join(self.unused)}" if self.unused else ""
        logger.info("%s: read %s%s.", self.where, ", ".join(self.used) or "nothing", unused)
        for note, count in self.notes.items():
            logger.info("%s: %s: %d.", self.where, note, count)
        if self.invalid:
            logger.warning(
                "%d rows of %s are left out; the first: %s.", len(self.invalid), self.where, self.invalid[0]
            )

    def as_dict(self) -> dict[str, Any]:
        """Returns the summary for JSON."""
        return asdict(self)

    def line(self) -> dict[str, Any]:
        """Returns a line of a table for people."""
        changes = [f"{note}: {count}" for note, count in self.notes.items()]
        changes += [f"rows that cannot be used were left out: {len(self.invalid)}"] if self.invalid else []
        return {
            "source": self.where,
            "split": self.split,
            "rows": self.rows,
            "examples": self.kept,
            "read": ", ".join(self.used),
            "not used": ", ".join(self.unused) or "-",
            "changes": "; ".join(changes) or "-",
        }
