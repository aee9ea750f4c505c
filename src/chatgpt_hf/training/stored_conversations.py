"""The rows of chat fine-tuning in the cache, made once for all processes that train with the same recipe."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset, load_from_disk

from ..data.prepared import PreparedFolder, check_stamp, stamp
from ..data.summary import RowSummary
from ..files import new_folder

# Part of the folder's name. Raise it when the same recipe gives different rows or the files change.
_VERSION = 1
_FOLDER = "conversations"


@dataclass
class ConversationRows:
    """Conversations as rows, and what else a training keeps of them.

    Attributes:
        rows, eval_rows: What is learned, and what is measured on, if anything is held out.
        parts: Conversations to answer, by the name of their part in the results.
        share_learned: Share of the tokens that are learned.
        rows_fingerprint: Of `rows`.
        dataset_fingerprint: Of the conversations that were read.
        test_fraction: Share that was held out.
        summaries: How each file was read.
    """

    rows: Dataset
    eval_rows: Dataset | None
    parts: dict[str, Dataset]
    share_learned: float
    rows_fingerprint: str
    dataset_fingerprint: str
    test_fraction: float | None
    summaries: list[RowSummary]


class StoredConversations:
    """A place in the cache for the rows of a recipe.

    Args:
        description: Whatever the rows follow from, as JSON values.
    """

    def __init__(self, description: Any) -> None:
        self._place = PreparedFolder([_VERSION, _FOLDER, description], description)
        self.folder = self._place.path

    def find(self) -> ConversationRows | None:
        """Returns the rows; None if they are not there, or damaged.

        Raises:
            DataError: If they are damaged and other processes of the same run may have begun to use them. They will be
                made again.
        """
        return self._place.find(self._read, lambda found: found.rows)

    def prepare(self, make: Callable[[], ConversationRows]) -> ConversationRows:
        """Returns the rows after one of all processes that ask for them has made them.

        Args:
            make: Reads and tokenizes the conversations.

        Raises:
            DataError: If the conversations cannot be used.
            OutputError: If the cache cannot be written, or its disk is full.
        """
        while (found := self.find()) is None:
            self._place.fill(partial(self._tasks, make))
        return found

    def _tasks(self, make: Callable[[], ConversationRows]) -> Iterator[tuple[Path, Callable[[], None]]]:
        yield self._place.record, lambda: self._write(make())

    def _write(self, made: ConversationRows) -> None:
        splits = {"rows": made.rows, **made.parts}
        if made.eval_rows is not None:
            splits["eval_rows"] = made.eval_rows
        target = self.folder / _FOLDER
        for left in sorted(target.rglob("*"), reverse=True) if target.exists() else ():
            left.rmdir() if left.is_dir() else left.unlink()
        with new_folder(target) as temporary:
            for name, split in splits.items():
                split.save_to_disk(temporary / name)
        files = {
            path.relative_to(target).as_posix(): stamp(path) for path in sorted(target.rglob("*")) if path.is_file()
        }
        facts = {
            "share_learned": made.share_learned,
            "rows_fingerprint": made.rows_fingerprint,
            "dataset_fingerprint": made.dataset_fingerprint,
            "test_fraction": made.test_fraction,
            "summaries": [asdict(summary) for summary in made.summaries],
            "parts": list(made.parts),
        }
        self._place.write_record({"files": files, "facts": facts})

    def _read(self, record: dict[str, Any]) -> ConversationRows:
        """Maps what the record names. Raises some ordinary exception if anything is not as it was written."""
        folder, facts = self.folder / _FOLDER, record["facts"]
        for name, (size, crc) in record["files"].items():
            check_stamp(folder / name, size, crc)
        summaries = [RowSummary(**each) for each in facts.pop("summaries")]
        return ConversationRows(
            rows=_loaded(folder / "rows"),
            eval_rows=_loaded(folder / "eval_rows") if (folder / "eval_rows").is_dir() else None,
            parts={name: _loaded(folder / name) for name in facts.pop("parts")},
            summaries=summaries,
            **facts,
        )


def _loaded(folder: Path) -> Dataset:
    loaded = load_from_disk(folder)
    assert isinstance(loaded, Dataset)
    return loaded
