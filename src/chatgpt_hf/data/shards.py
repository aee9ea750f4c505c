"""Tokenizes and packs a corpus once, by any number of processes on any number of machines that see the same folder.

The processes need not know of each other. What is to be done are files that are missing, each is written under a temporary
name, and whoever writes one holds a claim on it that ends with its process; so a killed process is replaced, and one that is
started again continues. Everything follows from the corpus, so the files are the same whoever writes them.

    documents-00000.arrow   texts in the order of the corpus; removed when their tokens are there
    documents.json          the number of these files, and the corpus' fingerprint
    held-out.arrow          the held-out documents
    tokenizer/              the tokenizer, if one is trained on the corpus
    tokens-00000.arrow      the tokens of one file of documents; removed when the rows are there
    rows-00000.arrow        training rows, `_SHARD_WINDOWS` windows of documents in each file
    prepared.json           written last: names, sizes and checksums of all rows
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from datasets import Dataset, DatasetDict, concatenate_datasets
from transformers import PreTrainedTokenizerBase

from ..errors import ConfigError, DataError
from ..extras import needed_by
from ..files import new_folder, write_atomically
from ..parsing import parse_json, read_file
from ..tokenization_chatgpt import load_tokenizer
from .packing import ROW_COLUMNS, Tokens, assembled, iterate_packings, nothing_to_learn, rows_table
from .prepare import (
    CorpusFingerprint,
    PreparedRows,
    SourceStatistics,
    check_room,
    count_sources,
    encode_batch,
    tokenizer_fingerprint,
)
from .prepared import PreparedFolder, check_stamp, stamp

with needed_by("Training"):
    from tqdm import tqdm

# Part of the folder's name. Raise it when the same arguments give different rows or the files change.
_VERSION = 1
# Text in one file of documents: the work of about ten seconds.
_PART_BYTES = 1 << 25
# Documents read at a time. One can be a whole book, and all of them are in memory at once.
_BATCH = 100
# Windows of `packing` in one file of rows, each about two million tokens and 25 MB.
_SHARD_WINDOWS = 40
_DOCUMENTS = pa.schema({"text": pa.string(), "source": pa.string()})
_TOKENS = pa.schema({"input_ids": pa.list_(pa.int32()), "source": pa.string(), "bytes": pa.int64()})
_ROWS = pa.schema({name: pa.list_(pa.int32()) for name in ROW_COLUMNS})
_HELD_OUT = "held-out"


@dataclass(frozen=True)
class PreparedCorpus:
    """A corpus as rows that every process maps from disk.

    Attributes:
        train: The training rows.
        held_out: The held-out rows.
        held_out_documents: The held-out documents; columns `text` and `source`.
        tokenizer: The tokenizer that was trained on the corpus; None if one was given.
    """

    train: PreparedRows
    held_out: PreparedRows
    held_out_documents: Dataset
    tokenizer: PreTrainedTokenizerBase | None


class _Shard(NamedTuple):
    """A file of rows, and where packing continues after it."""

    rows: int
    bytes: int
    crc32: str
    used: int
    windows: int
    rest: list[list[int]]
    last: bool


class CorpusShards:
    """A corpus that is prepared once and shared by all that are given the same arguments.

    Args:
        description: Whatever the documents follow from, as JSON values: the recipe's fields, and names, sizes and times
            of its files.
        read: Reads the documents: splits `train` and `test` with string columns `text` and `source`.
        tokenizer: A fast tokenizer with an eos token; or a function that trains one on texts, and the values that it
            follows from.
        block_size: Tokens in a row.
        seed: Seed of the document order.
        root: Folder of the cache; None means `cache_root()`. All processes must see the same.
        show_progress: Show a progress bar on a terminal.

    Raises:
        ConfigError: If `block_size` is below 2.
        TokenizerError: If the tokenizer is not a fast one.
    """

    def __init__(
        self,
        description: Any,
        read: Callable[[], DatasetDict],
        tokenizer: PreTrainedTokenizerBase | tuple[Callable[[Iterable[str]], PreTrainedTokenizerBase], Any],
        block_size: int,
        *,
        seed: int = 0,
        root: Path | None = None,
        show_progress: bool = True,
    ) -> None:
        if block_size < 2:
            raise ConfigError(f"block_size is {block_size}: a row of fewer than 2 tokens has nothing to predict.")
        self.read, self.block_size, self.seed = read, block_size, seed
        self._train: Callable[[Iterable[str]], PreTrainedTokenizerBase] | None = None
        self._tokenizer: PreTrainedTokenizerBase | None = None
        if isinstance(tokenizer, tuple):
            self._train, made_from = tokenizer
        else:
            self._tokenizer, made_from = tokenizer, tokenizer_fingerprint(tokenizer)
        self._place = PreparedFolder([_VERSION, description, made_from, block_size, seed], description, root)
        self.folder = self._place.path
        # tqdm's None: only on a terminal.
        self._hides_progress = None if show_progress else True
        self._bar: Any = None

    def find(self) -> PreparedCorpus | None:
        """Returns what was prepared; None if that is not complete, or damaged.

        Of the processes that torchrun started on one machine, the first reads all rows to compare their checksums.

        Raises:
            DataError: If rows are damaged and other processes of the same run may have begun to use them. They will be
                made again.
        """
        return self._place.find(self._read, lambda found: found.train.rows)

    def prepare(self) -> PreparedCorpus:
        """Does what is left to do, together with all other processes that were asked to, and returns the result.

        Raises:
            DataError: If the corpus cannot be used, or has nothing to learn.
            OutputError: If the folder cannot be written, or its disk is full.
        """
        while (found := self.find()) is None:
            with tqdm(desc="Preparing", unit="B", unit_scale=True, disable=self._hides_progress) as self._bar:
                self._place.fill(self._tasks)
        return found

    def _tasks(self) -> Iterator[tuple[Path, Callable[[], None]]]:
        """Yields what can be done now: a file that is missing, and a function that writes it."""
        record, tokenizer = self.folder / "documents.json", self.folder / "tokenizer"
        if not record.exists():
            yield record, self._write_documents
        elif self._train is not None and not tokenizer.exists():
            yield tokenizer, self._write_tokenizer
        if self._train is not None and not tokenizer.exists():
            return
        for documents in sorted(self.folder.glob("documents-*.arrow")):
            tokens = self._tokens(documents.stem.removeprefix("documents-"))
            if not tokens.exists():
                yield tokens, partial(self._write_tokens, documents, tokens)
        if not record.exists():
            return
        try:
            parts = parse_json(read_file(record))["parts"]
        except FileNotFoundError:  # another process has finished
            return
        held_out = self._tokens(_HELD_OUT)
        if not held_out.exists():
            yield held_out, partial(self._write_tokens, self.folder / f"{_HELD_OUT}.arrow", held_out)
        elif all(self._tokens(f"{part:05}").exists() for part in range(parts)):
            self._progress(parts, parts)
            yield self._place.record, self._write_rows
        done = sum(1 for _ in self.folder.glob("tokens-0*.arrow"))
        self._progress(done, parts)

    def _progress(self, done: int, parts: int) -> None:
        self._bar.set_postfix_str(f"{done} of {parts} parts have their tokens")

    def _tokens(self, part: str) -> Path:
        return self.folder / f"tokens-{part}.arrow"

    def _write_documents(self) -> None:
        """Reads the corpus, and lets others tokenize each part as soon as it is there."""
        splits = self.read()
        if len(splits["train"]) == 0:
            raise DataError("The corpus has no documents to tokenize.")
        check_room(self.folder, splits["train"], self._tokenizer)
        held_out = splits["test"].select_columns(_DOCUMENTS.names).with_format("arrow").iter(batch_size=_BATCH)
        self._write_table(self.folder / f"{_HELD_OUT}.arrow", _DOCUMENTS, held_out)
        fingerprint = CorpusFingerprint()
        batches = splits["train"].select_columns(_DOCUMENTS.names).with_format("arrow").iter(batch_size=_BATCH)
        parts = 0
        for parts, tables in enumerate(_parts(batches), start=1):
            for table in tables:
                fingerprint.add(table["text"].to_pylist(), table["source"].to_pylist())
            file = self.folder / f"documents-{parts - 1:05}.arrow"
            # A process that was killed may have left the first ones.
            if not file.exists() and not self._tokens(f"{parts - 1:05}").exists():
                self._write_table(file, _DOCUMENTS, tables)
        self._place.write_json("documents.json", {"parts": parts, "fingerprint": fingerprint.hexdigest()})

    def _write_tokenizer(self) -> None:
        parts = sorted(self.folder.glob("documents-*.arrow"))
        documents = concatenate_datasets([_mapped(part) for part in parts])
        assert self._train is not None
        tokenizer = self._train(documents["text"])
        with new_folder(self.folder / "tokenizer") as temporary:
            tokenizer.save_pretrained(temporary)

    def _loaded_tokenizer(self) -> PreTrainedTokenizerBase:
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(str(self.folder / "tokenizer"))
        return self._tokenizer

    def _write_tokens(self, documents: Path, tokens: Path) -> None:
        tokenizer = self._loaded_tokenizer()

        def tables() -> Iterator[pa.Table]:
            for batch in _mapped(documents).iter(batch_size=_BATCH):
                encoded = encode_batch(batch, tokenizer)
                yield pa.table(encoded, schema=_TOKENS)
                self._bar.update(sum(encoded["bytes"]))

        self._write_table(tokens, _TOKENS, tables())
        if documents.name.startswith("documents-"):
            documents.unlink(missing_ok=True)

    def _write_rows(self) -> None:
        """Packs all tokens, finishes the folder, and removes what nobody needs any more."""
        documents = parse_json(read_file(self.folder / "documents.json"))
        parts = [f"{part:05}" for part in range(documents["parts"])]
        record = {
            "tokenizer": tokenizer_fingerprint(self._loaded_tokenizer()),
            "train": self._pack("rows", parts) | {"fingerprint": documents["fingerprint"]},
            "held_out": self._pack(f"rows-{_HELD_OUT}", [_HELD_OUT]),
        }
        self._place.write_record(record)
        left = [self.folder / "documents.json", *map(self._tokens, [*parts, _HELD_OUT])]
        for file in [*left, *self.folder.glob("rows-*.json"), *self.folder.glob("documents-*.arrow")]:
            file.unlink(missing_ok=True)

    def _pack(self, prefix: str, parts: list[str]) -> dict[str, Any]:
        """Writes the rows of one split; continues after the files that an earlier process wrote."""
        mapped = [_mapped(self._tokens(part)) for part in parts]
        statistics: dict[str, SourceStatistics] = {}
        for part in mapped:
            for each in count_sources(part):
                before = statistics.get(each.source, SourceStatistics(each.source, 0, 0, 0))
                statistics[each.source] = before.plus(each)
        # Without the tokenizer's own reading: the end mark fills gaps if there is no padding token.
        tokenizer = self._loaded_tokenizer()
        pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        shards: list[tuple[str, _Shard]] = []
        packings = None
        while not shards or not shards[-1][1].last:
            name = f"{prefix}-{len(shards):05}"
            found = self._found(name)
            if found is None:
                first = shards[-1][1].windows if shards else 0
                if packings is None:
                    rest = (
                        Tokens.of([pa.array(ids, pa.int32()).to_numpy() for ids in shards[-1][1].rest])
                        if shards
                        else None
                    )
                    packings = iterate_packings(
                        concatenate_datasets(mapped), self.block_size, seed=self.seed, first=first, rest=rest
                    )
                found = self._write_shard(name, packings, first, pad)
            shards.append((f"{name}.arrow", found))
        rows = sum(shard.rows for _, shard in shards)
        if rows == 0:
            raise nothing_to_learn(self.block_size)
        return {
            "statistics": [asdict(each) for each in statistics.values()],
            "share_of_positions_used": sum(shard.used for _, shard in shards) / (rows * self.block_size),
            "shards": [
                {"name": name, "rows": shard.rows, "bytes": shard.bytes, "crc32": shard.crc32}
                for name, shard in shards
                if shard.rows
            ],
        }

    def _found(self, name: str) -> _Shard | None:
        """Returns the record of a file of rows that is complete."""
        file = self.folder / f"{name}.arrow"
        try:
            shard = _Shard(**parse_json(read_file(self.folder / f"{name}.json")))
            return shard if file.stat().st_size == shard.bytes else None
        except (OSError, ValueError, TypeError):
            return None

    def _write_shard(self, name: str, packings: Iterator[tuple[Any, Tokens]], first: int, pad: int) -> _Shard:
        file = self.folder / f"{name}.arrow"
        rows = used = windows = 0
        rest = Tokens.of([])

        def tables() -> Iterator[pa.Table]:
            nonlocal rows, used, windows, rest
            for packing, left in islice(packings, _SHARD_WINDOWS):
                rest = left
                windows += 1
                for some in assembled(packing, pad):
                    rows += len(some.labels)
                    used += some.used
                    yield rows_table(some)

        self._write_table(file, _ROWS, tables())
        size, crc = stamp(file)
        carried = [ids.tolist() for ids in rest.documents()]
        shard = _Shard(rows, size, crc, used, first + windows, carried, windows < _SHARD_WINDOWS)
        self._place.write_json(f"{name}.json", shard._asdict())
        return shard

    def _write_table(self, file: Path, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
        def write(path: Path) -> None:
            with pa.ipc.new_stream(str(path), schema) as writer:
                for table in tables:
                    writer.write_table(table.cast(schema))

        write_atomically(file, write)

    def _read(self, record: dict[str, Any]) -> PreparedCorpus:
        """Maps what the record names. Raises some ordinary exception if anything is not as it was written."""

        def rows(split: dict[str, Any]) -> PreparedRows:
            for shard in split["shards"]:
                check_stamp(self.folder / shard["name"], shard["bytes"], shard["crc32"])
            mapped = concatenate_datasets([_mapped(self.folder / shard["name"]) for shard in split["shards"]])
            statistics = [SourceStatistics(**each) for each in split["statistics"]]
            return PreparedRows(mapped, statistics, split["share_of_positions_used"], split.get("fingerprint", ""))

        tokenizer = None
        if self._train is not None:
            tokenizer = load_tokenizer(str(self.folder / "tokenizer"))
            if tokenizer_fingerprint(tokenizer) != record["tokenizer"]:
                raise ValueError("the tokenizer is not the one that was written")
        documents = _mapped(self.folder / f"{_HELD_OUT}.arrow")
        return PreparedCorpus(rows(record["train"]), rows(record["held_out"]), documents, tokenizer)


def _mapped(file: Path) -> Dataset:
    return Dataset.from_file(str(file))


def _parts(batches: Iterable[pa.Table]) -> Iterator[list[pa.Table]]:
    """Groups batches of documents to about `_PART_BYTES`."""
    part: list[pa.Table] = []
    size = 0
    for table in batches:
        part.append(table)
        size += table.nbytes
        if size >= _PART_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part
