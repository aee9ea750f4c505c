"""The rows of chat fine-tuning in the cache, made once for all processes that train with the same recipe."""

import json
import os
import weakref
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset, load_from_disk

from ..cache import ABOUT_NAME, PREPARED, PREPARED_NAME, cache_root, checksum, hold, share
from ..data.prepare import hash_of_values
from ..data.summary import RowSummary
from ..errors import DataError
from ..files import make_folder, new_folder, write_atomically
from ..parsing import parse_json, read_file

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
        self._description = description
        self.folder = cache_root() / PREPARED / hash_of_values([_VERSION, _FOLDER, description])

    def find(self) -> ConversationRows | None:
        """Returns the rows; None if they are not there, or damaged.

        Raises:
            DataError: If they are damaged and other processes of the same run may have begun to use them. They will be
                made again.
        """
        held = hold(self.folder / PREPARED_NAME)
        if held is None:
            return None
        try:
            found = self._read()
            weakref.finalize(found.rows.data.table, held.close)
            return found
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            held.close()
            (self.folder / PREPARED_NAME).unlink(missing_ok=True)
            if int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1:
                raise DataError(
                    f"The prepared rows in {self.folder} are damaged ({error}): start again, and they are made again."
                ) from error
            return None

    def prepare(self, make: Callable[[], ConversationRows]) -> ConversationRows:
        """Returns the rows after one of all processes that ask for them has made them.

        Args:
            make: Reads and tokenizes the conversations.

        Raises:
            DataError: If the conversations cannot be used.
            OutputError: If the cache cannot be written, or its disk is full.
        """
        while (found := self.find()) is None:
            make_folder(self.folder)
            about = self.folder / ABOUT_NAME
            if not about.exists():
                self._write_json(ABOUT_NAME, self._description)
            record = self.folder / PREPARED_NAME
            # Held, so that nobody removes the folder from the cache meanwhile.
            with hold(about) or about.open("rb"):
                share(self.folder, record.exists, partial(self._tasks, record, make))
        return found

    def _tasks(self, record: Path, make: Callable[[], ConversationRows]) -> Iterator[tuple[Path, Callable[[], None]]]:
        yield record, lambda: self._write(make())

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
            path.relative_to(target).as_posix(): [path.stat().st_size, f"{checksum(path):08x}"]
            for path in sorted(target.rglob("*"))
            if path.is_file()
        }
        facts = {
            "share_learned": made.share_learned,
            "rows_fingerprint": made.rows_fingerprint,
            "dataset_fingerprint": made.dataset_fingerprint,
            "test_fraction": made.test_fraction,
            "summaries": [asdict(summary) for summary in made.summaries],
            "parts": list(made.parts),
        }
        record = {"files": files, "facts": facts}
        self._write_json(PREPARED_NAME, record | {"checksum": hash_of_values(record)})

    def _read(self) -> ConversationRows:
        """Maps what `prepared.json` names. Raises some ordinary exception if anything is not as it was written."""
        record = parse_json(read_file(self.folder / PREPARED_NAME))
        if record.pop("checksum") != hash_of_values(record):
            raise ValueError(f"{PREPARED_NAME} is not what was written")
        folder, facts = self.folder / _FOLDER, record["facts"]
        verify = os.environ.get("LOCAL_RANK", "0") == "0"
        for name, (size, crc) in record["files"].items():
            file = folder / name
            if file.stat().st_size != size or (verify and f"{checksum(file):08x}" != crc):
                raise ValueError(f"{name} is not what was written")
        summaries = [RowSummary(**each) for each in facts.pop("summaries")]
        return ConversationRows(
            rows=_loaded(folder / "rows"),
            eval_rows=_loaded(folder / "eval_rows") if (folder / "eval_rows").is_dir() else None,
            parts={name: _loaded(folder / name) for name in facts.pop("parts")},
            summaries=summaries,
            **facts,
        )

    def _write_json(self, name: str, content: Any) -> None:
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        write_atomically(self.folder / name, lambda path: path.write_text(text, encoding="utf-8"))


def _loaded(folder: Path) -> Dataset:
    loaded = load_from_disk(folder)
    assert isinstance(loaded, Dataset)
    return loaded
