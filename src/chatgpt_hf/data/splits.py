"""Decides what is learned and what is held out: by the names of files, or else by a hash of each document.

Also recognizes the files of a data set's folder that are about the data instead of data, such as its README.md.
"""

import glob
import hashlib
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

from datasets import Dataset, DatasetDict
from datasets.data_files import NON_WORDS_CHARS, SPLIT_KEYWORDS

from ..errors import ConfigError, DataError
from .files import format_of, is_one_document
from .remote import is_remote, remote_base

logger = logging.getLogger(__name__)

T = TypeVar("T")

# The names of splits as `datasets` recognizes them: `train.csv`, `my_dev-00000-of-00002.parquet`, `testing/a.jsonl`; and
# others that people use.
_SPLIT_OF = {word: str(split) for split, words in SPLIT_KEYWORDS.items() for word in words} | {
    **dict.fromkeys(("trn", "trainset", "traindata"), "train"),
    **dict.fromkeys(("tst", "testset", "testdata", "heldout", "holdout", "hold_out", "held_out"), "test"),
    **dict.fromkeys(("devset", "devdata", "valset", "validset"), "validation"),
}
# Chinese names have no separators: `微博训练集.csv`.
_CHINESE_SPLIT_OF = {"训练": "train", "测试": "test", "验证": "validation", "开发集": "validation"}
_SPLIT_WORD = re.compile(
    rf"(?:^|[{NON_WORDS_CHARS}])({'|'.join(sorted(_SPLIT_OF, key=len, reverse=True))})(?=[{NON_WORDS_CHARS}]|$)"
    rf"|({'|'.join(_CHINESE_SPLIT_OF)})",
    flags=re.IGNORECASE,
)
# Text files beside the data of a data set.
_ABOUT = re.compile(
    r"(readme|licen[cs]e|copying|notice|changelog|contributing|code_of_conduct|citation|dataset_?card|requirements)"
    r"([-_. ].*)?\.(md|txt)",
    flags=re.IGNORECASE,
)
_METADATA = (
    *("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json"),
    *("dataset-metadata.json", "datapackage.json", "croissant.json"),
)
# Only the front matter of a data set's card has these fields.
_CARD_FIELD = re.compile(
    r"^(dataset_info|configs|task_categories|task_ids|size_categories|source_datasets|annotations_creators|"
    r"language_creators|multilinguality|paperswithcode_id|train-eval-index):",
    flags=re.MULTILINE,
)
_LISTED = 4


def split_files(files: Sequence[Path], source: str, *, log: bool = True) -> dict[str, list[Path]]:
    """Divides the files of a source into splits by their names, without files that are about the data.

    In a folder or glob, files or folders named for training and for evaluation, such as `train.csv` and `test.csv`, are
    two splits. If there are both `test` and `validation`, `test` is held out and `validation` is not used. If one side
    is missing, all files are for training. The log says what is used for what.

    Args:
        files: The result of `source_files`.
        source: The source that was named. A file that was named itself is always read, for training.
        log: False if the log already says what is used for what.

    Returns:
        The files of the split `train`, and of `test` if there is one, each in the order of `files`.

    Raises:
        DataError: If the source contains nothing but metadata, or was written by `save_to_disk`.
    """
    say = logger.log if log else _say_nothing
    path = Path(source).expanduser()
    remote = remote_base(files[0]) if files and is_remote(source) else None
    is_file = (not path.is_dir() and path.exists()) if remote is None else source.endswith(f"/{files[0].name}")
    if is_file:
        return {"train": list(files)}
    _refuse_arrow_folder(files, source)
    files = _without_metadata(files, source, say)
    base = remote or (path if path.is_dir() else _before_wildcards(path))
    for name in (_folder_split, _file_split, lambda file: _file_split(file) or _folder_split(file)):
        named: dict[str | None, list[Path]] = {}
        for file in files:
            named.setdefault(name(file.relative_to(base)), []).append(file)
        held_out = named.get("test") or named.get("validation")
        if held_out and (train := named.get("train")):
            break
    else:
        return {"train": list(files)}
    unused = named["validation"] if "test" in named and "validation" in named else []
    others = named.get(None, [])
    if all(map(is_one_document, [*train, *held_out])):
        # Among documents, such a name can be a coincidence: do not lose the others.
        train = [file for file in files if file in {*train, *filter(is_one_document, others)}]
        others = [file for file in others if not is_one_document(file)]
    say(
        logging.INFO,
        "%s: the files' names say what they are for. Training: %s. Held out: %s.",
        source,
        _listed(train, base),
        _listed(held_out, base),
    )
    if unused:
        say(logging.WARNING, "%s: not used, because there is a part named test: %s.", source, _listed(unused, base))
    if others:
        say(logging.WARNING, "%s: not used, because the names say no split: %s.", source, _listed(others, base))
    return {"train": train, "test": held_out}


def held_out_split(names: Iterable[str], source: str) -> str | None:
    """Returns the split of a data set to hold out: `test`, or else `validation`; None if it has neither."""
    known = set(names)
    found = [name for name in ("test", "validation") if name in known]
    if "validation" in found:
        use = "held out" if found[0] == "validation" else "not used, because it has a split test"
        logger.info("%s: its split validation is %s.", source, use)
    return found[0] if found else None


def hold_out(keys: Iterable[str], test_fraction: float, source: str, *, unit: str = "row") -> list[bool]:
    """Decides which documents or rows are held out, by a hash of each.

    Each stays on its side when the data grow or are reordered, and equal ones are on the same side. If the hash selects
    none, the one with the smallest hash is held out; if it selects all, the one with the largest is not. The log says
    so.

    Args:
        keys: The texts to hash.
        test_fraction: Share to hold out, between 0 and 1; it is met only on average.
        source: Name of the source, for messages.
        unit: What a key stands for, for messages.

    Raises:
        ConfigError: If `test_fraction` is not between 0 and 1.
        DataError: If there are not at least two different keys.
    """
    check_test_fraction(test_fraction)
    hashes = [hash_of(key) for key in keys]
    if not hashes:
        return []
    limit = HashRange(len(hashes), min(hashes), max(hashes)).limit(test_fraction, source, unit=unit)
    return [value < limit for value in hashes]


@dataclass(frozen=True)
class HashRange:
    """The hashes of a source's documents, as far as a split depends on them: their number, the smallest, the largest."""

    count: int
    smallest: int
    largest: int

    def limit(self, test_fraction: float, source: str, *, unit: str = "document") -> int:
        """Returns the hash below which documents are held out, so that neither side is empty; see `hold_out`."""
        limit = hash_limit(test_fraction)
        if self.smallest == self.largest:
            number = f"it has a single {unit}" if self.count == 1 else f"its {self.count} {unit}s are all the same"
            raise DataError(
                f"Holding out test_fraction={test_fraction} of {source} leaves one part empty, because {number}: give more "
                f"{unit}s, or a separate source of held-out ones (--{'eval_corpus' if unit == 'document' else 'eval_dataset'})"
            )
        if limit <= self.smallest:
            logger.warning(
                "test_fraction=%s selects none of the %d %ss of %s: the one with the smallest hash is held out.",
                *(test_fraction, self.count, unit, source),
            )
            return self.smallest + 1
        if limit > self.largest:
            logger.warning(
                "test_fraction=%s selects all %d %ss of %s: the one with the largest hash is kept for training.",
                *(test_fraction, self.count, unit, source),
            )
            return self.largest
        return limit


def split_by_hash(
    dataset: Dataset, test_fraction: float = 0.05, column: str = "text", *, source: str = "the corpus"
) -> DatasetDict:
    """Holds out documents as `hold_out` says.

    A corpus of a single document is cut at a line instead: the held-out part is the lines after the first
    `1 - test_fraction` of its characters.

    Args:
        dataset: The documents, one per row.
        test_fraction: Share to hold out, between 0 and 1; with several documents it is met only on average.
        column: The column to hash.
        source: Name of the source, for messages.

    Returns:
        The splits `train` and `test`, each in the order of `dataset`.

    Raises:
        ConfigError: If `test_fraction` is not between 0 and 1.
        DataError: If either part would be empty.
    """
    check_test_fraction(test_fraction)
    if len(dataset) == 1:
        row = dataset[0]
        halves = dict(zip(("train", "test"), cut_at_line(row[column], test_fraction), strict=True))
        return DatasetDict(
            {name: Dataset.from_list([{**row, column: half}], dataset.features) for name, half in halves.items()}
        )
    held_out = hold_out(cast("Iterable[str]", dataset[column]), test_fraction, source, unit="document")
    train, test = ([index for index, held in enumerate(held_out) if held is side] for side in (False, True))
    return DatasetDict(train=dataset.select(train), test=dataset.select(test))


def cut_at_line(text: str, test_fraction: float) -> tuple[str, str]:
    """Splits a single document into the two parts that `split_by_hash` returns.

    Raises:
        DataError: If the document has no line end to cut at.
    """
    target = round(len(text) * (1 - test_fraction))
    cut = text.rfind("\n", 0, target) + 1 or text.find("\n", target) + 1
    train, test = text[:cut], text[cut:]
    if any(not part or part.isspace() for part in (train, test)):
        raise DataError(
            "the corpus is a single document without a line end to cut at: give more than one document, or an --eval_corpus"
        )
    return train, test


def split_rows(
    rows: Mapping[str, list[T]],
    held_out: Mapping[str, list[T]] | None,
    test_fraction: float,
    key: Callable[[T], str],
    source: str,
) -> dict[str, list[T]]:
    """Splits rows into those to learn from and those to hold out.

    Args:
        rows: Rows of the source by split: `train`, and optionally `test`.
        held_out: Rows of an evaluation source, likewise; its `test` split or, without one, all of it is held out.
        test_fraction: Share to hold out, as in `hold_out`, if there is no evaluation source and no `test` split.
        key: Returns the string to hash. Rows with the same string stay on the same side when the data grow or are
            reordered.
        source: Name of the source, for messages.

    Returns:
        The splits `train` and `test`; the latter is empty if nothing should be held out.

    Raises:
        DataError: If there is nothing to learn from, or nothing is held out although something should be.
        ConfigError: If `test_fraction` is neither 0 nor between 0 and 1.
    """
    if test_fraction:
        check_test_fraction(test_fraction)
    train, test = rows.get("train", []), rows.get("test", [])
    if held_out is not None:
        test = held_out.get("test") or held_out.get("train", [])
    elif test_fraction and not test:
        sides = hold_out(map(key, train), test_fraction, source)
        train, test = ([row for row, held in zip(train, sides, strict=True) if held is side] for side in (False, True))
    if not train:
        raise DataError(f"{source} has nothing to learn from: give more rows, or hold out fewer.")
    if not test and (test_fraction or held_out is not None):
        raise DataError(
            f"No rows of {source} are held out: give more rows, a larger --test_fraction or an --eval_dataset."
        )
    warn_of_overlap(map(key, train), map(key, test))
    return {"train": train, "test": test}


def warn_of_overlap(train: Iterable[str], test: Iterable[str], *, unit: str = "row") -> None:
    """Logs a warning that counts the held-out rows that are also training rows."""
    learned = set(map(hash_of, train))
    found = [hash_of(key) in learned for key in test]
    if any(found):
        logger.warning("%d of %d held-out %ss are also training %ss.", sum(found), len(found), unit, unit)


def is_held_out(text: str, test_fraction: float) -> bool:
    """True if the hash of a document selects it for the held-out part, regardless of the other documents."""
    return hash_of(text) < hash_limit(test_fraction)


def hash_of(text: str) -> int:
    """Returns the hash that decides about a document, a number of 64 bits."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def hash_limit(test_fraction: float) -> int:
    """Returns the number below which a hash selects a document for the held-out part."""
    return int(test_fraction * 2**64)


def check_test_fraction(test_fraction: float) -> None:
    """Raises `ConfigError` if the share to hold out is not between 0 and 1."""
    if not 0 < test_fraction < 1:
        raise ConfigError(f"test_fraction is {test_fraction}: give a number between 0 and 1, both excluded")


def _split_named(name: str) -> str | None:
    # The last word counts: `dev_blog_train.csv` is training data.
    words = [word or chinese for word, chinese in _SPLIT_WORD.findall(name)]
    return {**_SPLIT_OF, **_CHINESE_SPLIT_OF}[words[-1].lower()] if words else None


def _folder_split(file: Path) -> str | None:
    """Returns the split that the innermost folder with such a name stands for."""
    return next(filter(None, map(_split_named, reversed(file.parent.parts))), None)


def _file_split(file: Path) -> str | None:
    # A Markdown file is a document about something: `training.md` and `testing.md` are no splits.
    return None if format_of(file) == ".md" else _split_named(file.name)


def _say_nothing(level: int, message: str, *values: object) -> None:
    pass


def _without_metadata(files: Sequence[Path], source: str, say: Callable[..., None]) -> list[Path]:
    """Leaves out files that are about the data; the log names them."""
    data = [file for file in files if not is_one_document(file) and file.name.lower() not in _METADATA]

    def is_about_the_data(file: Path) -> bool:
        if not is_one_document(file):
            return file.name.lower() in _METADATA
        if not _ABOUT.fullmatch(re.sub(r"\.(gz|zst)$", "", file.name.lower())):
            return False
        return any(other.is_relative_to(file.parent) for other in data) or _is_data_card(file)

    left_out = [file for file in files if is_about_the_data(file)]
    names = ", ".join(dict.fromkeys(file.name for file in left_out))
    if left_out and len(left_out) == len(files):
        raise DataError(f"{source} has no data, only files about them: {names}. Name such a file itself to read it")
    if left_out:
        say(logging.INFO, "%s: left out files about the data: %s. Name a file itself to read it.", source, names)
    return [file for file in files if file not in set(left_out)]


def _is_data_card(file: Path) -> bool:
    """True if a Markdown file begins with the front matter of a data set's card."""
    if file.suffix.lower() != ".md":
        return False
    try:
        with file.open(encoding="utf-8-sig", errors="replace") as stream:
            head = stream.read(1 << 16)
    except OSError:
        return False
    front = re.match(r"---[ \t]*\n(.*?)^---[ \t]*$", head, flags=re.DOTALL | re.MULTILINE)
    return front is not None and _CARD_FIELD.search(front[1]) is not None


def _refuse_arrow_folder(files: Sequence[Path], source: str) -> None:
    for file in files:
        if file.name == "state.json" and any(file.parent.glob("*.arrow")):
            folder = file.parent
            raise DataError(
                f"{folder} of {source} was written by `save_to_disk`, whose files are not read: write it as parquet, with "
                f"datasets.load_from_disk({str(folder)!r}).to_parquet({folder.name + '.parquet'!r})"
            )


def _before_wildcards(path: Path) -> Path:
    """Returns the part of a glob that has no wildcards."""
    return next(parent for parent in path.parents if not glob.has_magic(str(parent)))


def _listed(files: Sequence[Path], base: Path) -> str:
    names = [str(file.relative_to(base)) for file in files[:_LISTED]]
    more = len(files) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")
