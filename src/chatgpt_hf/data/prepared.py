"""A folder of the cache that several processes fill together, with a record of its files that is written last."""

import json
import logging
import os
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from datasets import Dataset

from ..cache import ABOUT_NAME, PREPARED, PREPARED_NAME, cache_root, checksum, hold, share
from ..errors import DataError, TokenizerError
from ..files import make_folder, write_atomically
from ..parsing import parse_json, read_file
from .prepare import hash_of_values

logger = logging.getLogger(__name__)

Found = TypeVar("Found")
Tasks = Callable[[], Iterator[tuple[Path, Callable[[], None]]]]


class PreparedFolder:
    """The folder for rows that follow from some values.

    Args:
        made_from: Everything that the rows follow from, as JSON values; their hash is the folder's name.
        description: What the folder says about its origin, as JSON values.
        root: Folder of the cache; None means `cache_root()`.
    """

    def __init__(self, made_from: Any, description: Any, root: Path | None = None) -> None:
        self.path = (root or cache_root()) / PREPARED / hash_of_values(made_from)
        self.record = self.path / PREPARED_NAME
        self._description = description

    def find(self, read: Callable[[dict[str, Any]], Found], rows_of: Callable[[Found], Dataset]) -> Found | None:
        """Returns what the folder holds; None if it is not complete, or damaged.

        Args:
            read: Maps the files that the record names. Raises some ordinary exception if they are not as written.
            rows_of: Returns the rows that a training keeps; `prune` leaves the folder alone while they are in use.

        Raises:
            DataError: If it is damaged and other processes of the same run may have begun to use it. It will be made again.
        """
        held = hold(self.record)
        if held is None:
            return None
        try:
            record = parse_json(read_file(self.record))
            if record.pop("checksum") != hash_of_values(record):
                raise ValueError(f"{PREPARED_NAME} is not what was written")
            found = read(record)
            weakref.finalize(rows_of(found).data.table, held.close)
            return found
        except (OSError, ValueError, KeyError, TypeError, AttributeError, TokenizerError) as error:
            held.close()
            self.record.unlink(missing_ok=True)
            if int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1:
                raise DataError(
                    f"The prepared rows in {self.path} are damaged ({error}): start again, and they are made again."
                ) from error
            # As text: a handler that keeps the error would keep the frames of the callers, and with them the rows that are made.
            logger.warning("The prepared rows in %s are damaged (%s) and are made again.", self.path, str(error))
            return None

    def fill(self, tasks: Tasks) -> None:
        """Carries out tasks, together with all other processes that were asked to, until the record is there.

        Args:
            tasks: See `cache.share`.

        Raises:
            OutputError: If the folder cannot be written, or its disk is full.
        """
        make_folder(self.path)
        about = self.path / ABOUT_NAME
        if not about.exists():
            self.write_json(ABOUT_NAME, self._description)
        # Held, so that nobody removes the folder from the cache meanwhile.
        with hold(about) or about.open("rb"):
            share(self.path, self.record.exists, tasks)

    def write_json(self, name: str, content: Any) -> None:
        """Writes a file of JSON in one step."""
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        write_atomically(self.path / name, lambda path: path.write_text(text, encoding="utf-8"))

    def write_record(self, record: dict[str, Any]) -> None:
        """Writes the record, which says that the folder is complete."""
        self.write_json(PREPARED_NAME, record | {"checksum": hash_of_values(record)})


def stamp(file: Path) -> tuple[int, str]:
    """Returns the size and the checksum of a file."""
    return file.stat().st_size, f"{checksum(file):08x}"


def check_stamp(file: Path, size: int, crc32: str) -> None:
    """Compares a file with its stamp. Of the processes that torchrun started on one machine, only the first reads it.

    Raises:
        ValueError: If it is another file.
    """
    if file.stat().st_size != size or (os.environ.get("LOCAL_RANK", "0") == "0" and stamp(file)[1] != crc32):
        raise ValueError(f"{file.name} is not what was written")
