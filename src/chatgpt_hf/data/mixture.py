"""Combines several sources into one corpus with a held-out part, loaded at once or streamed."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar, cast

from datasets import Dataset, DatasetDict, Features, IterableDataset, Value, concatenate_datasets, interleave_datasets

from ..errors import DataError
from .corpus import is_blank, load_corpus, stream_corpus
from .files import is_one_document, read_text, source_files, text_chunks
from .sources import CorpusSource, parse_sources, probabilities
from .splits import HashRange, check_test_fraction, cut_at_line, hash_limit, hash_of, split_by_hash

AnyDataset = TypeVar("AnyDataset", Dataset, IterableDataset)

# In characters; applies to streams.
_LONGEST_DOCUMENT = 1 << 22
_TEXT = Features({"text": Value("string")})
_COLUMNS = Features({"text": Value("string"), "source": Value("string")})


@dataclass(frozen=True)
class StreamedCorpus:
    """A corpus that is read during training.

    Attributes:
        train: An endless stream of documents, pass after pass over the sources; columns `text` and `source`.
        test: The held-out documents for evaluation, with the same columns.
        parts: The sources of `train`, one pass of each.
        shares: Probabilities of drawing from them; None if they take turns.
        seed: Seed of the draws.
    """

    train: IterableDataset
    test: Dataset
    parts: tuple[IterableDataset, ...] = ()
    shares: Sequence[float] | None = None
    seed: int = 0

    def files(self) -> int:
        """Returns the smallest number of files of a source, which each can be read separately."""
        return min(part.num_shards for part in self.parts)

    def shard(self, index: int, count: int) -> IterableDataset:
        """Returns one of `count` endless streams that divide the documents among them.

        Of a source with fewer files than there are shards, several shards share a file: each reads all of it and takes
        its share of the documents. Other files are read for one shard only.

        Raises:
            DataError: If a source has no documents for this shard.
        """
        train = []
        for part in self.parts:
            shard = _shard(part, index, count)
            if next(iter(shard), None) is None:
                raise DataError(
                    f"Shard {index + 1} of {count} of the stream has no documents of one of the sources: give fewer "
                    "--stream_shards."
                )
            train.append(shard)
        return _endless(train, None if self.shares is None else list(self.shares), self.seed + index)


def load_mixture(
    sources: Sequence[CorpusSource],
    *,
    test_fraction: float = 0.05,
    seed: int = 0,
    skip_broken_files: bool = False,
    eval_corpus: str | None = None,
    encoding: str | None = None,
) -> DatasetDict:
    """Loads several sources as one corpus.

    Without weights, the training part has every document once, source after source. With weights, documents are drawn
    from the sources in random order until each source has been used up. A source that is used up earlier starts again,
    so nothing is lost. Weights count documents, not tokens: of two sources with equal weight, the one with longer
    documents contributes more tokens.

    Args:
        sources: The result of `parse_sources`.
        test_fraction: Share of documents to hold out, by a hash of the document, from each source without its own
            `test` split.
        seed: Seed of the order in which weighted sources are drawn from.
        skip_broken_files: Leave out files that cannot be used, with a warning, instead of raising an error.
        eval_corpus: A source, as `parse_sources` reads it, to use as the held-out part: its `test` split if it has
            one, else all of it. Then nothing is held out from `sources`.
        encoding: Encoding of the files of `eval_corpus`, UTF-8 if not given.

    Returns:
        The splits `train` and `test` with string columns `text` and `source`; the latter is `CorpusSource.source`.

    Raises:
        DataError: If a source cannot be used, or either part is empty.
    """
    check_test_fraction(test_fraction)
    parts = []
    last_choices: set[int] = set()
    for source in sources:
        splits = _load(source, skip_broken_files)
        if eval_corpus is None and "test" not in splits:
            is_single = len(splits["train"]) == 1
            try:
                splits = split_by_hash(splits["train"], test_fraction, source=source.source)
            except DataError as error:
                raise DataError(f"{source.source} has no held-out part: {error}") from error
            if not is_single:
                last_choices |= _last_choices(splits["test"]["text"], test_fraction)
        parts.append(splits)
    if eval_corpus is None:
        test = concatenate_datasets([splits["test"] for splits in parts])
    else:
        splits = _load(_only(eval_corpus, encoding), skip_broken_files)
        test = splits.get("test", splits["train"])
    train = [_without(splits["train"], last_choices) for splits in parts]
    shares = probabilities(sources)
    if shares is None:
        mixed = concatenate_datasets(train)
    else:
        mixed = interleave_datasets(train, shares, seed=seed, stopping_strategy="all_exhausted")
    for name, part in (("training", mixed), ("held-out", test)):
        if len(part) == 0:
            raise DataError(f"The {name} part of {_names(sources)} is empty: give more documents, or an eval_corpus.")
    return DatasetDict(train=mixed, test=test)


def stream_mixture(
    sources: Sequence[CorpusSource],
    *,
    test_fraction: float = 0.05,
    seed: int = 0,
    eval_documents: int = 256,
    eval_corpus: str | None = None,
    encoding: str | None = None,
    skip_broken_files: bool = False,
) -> StreamedCorpus:
    """Combines several sources into one endless stream of documents, read from files or the Hub on demand.

    Each source repeats, pass after pass, in its own order. With weights, the source of each document is drawn at
    random. Without weights, the sources take turns until each has given all its documents once, and then start again
    together. A source that is one text file is one document. It is cut at a line, as in `split_by_hash`, and again
    every four million characters, so that memory does not grow with the file while the stream is read.

    Args:
        sources: The result of `parse_sources`.
        test_fraction: As for `load_mixture`; the same documents are held out.
        seed: As for `load_mixture`.
        eval_documents: Number of held-out documents to keep: the first of each source, in proportion to its weight.
        eval_corpus: As for `load_mixture`.
        encoding: As for `load_mixture`.
        skip_broken_files: Leave out the rest of a file that turns out to be broken, with a warning, instead of raising
            an error.

    Raises:
        DataError: If a source cannot be used, or has nothing to train on or nothing held out; and, during reading, if
            a file is broken.
    """
    check_test_fraction(test_fraction)
    train, test = [], []
    last_choices: set[int] = set()
    shares = probabilities(sources) or [1 / len(sources)] * len(sources)
    for source, share in zip(sources, shares, strict=True):
        splits, is_divided = _stream(source, skip_broken_files, None if eval_corpus else test_fraction)
        if next(iter(splits["train"]), None) is None:
            raise DataError(f"{source.source} has nothing to train on: it has only blank documents.")
        train.append(splits["train"])
        if eval_corpus is None:
            held_out = list(islice(splits["test"], max(1, round(share * eval_documents))))
            if not held_out:
                raise DataError(f"The held-out part of {source.source} is empty: it has only blank documents.")
            test += held_out
            if is_divided:
                last_choices |= _last_choices((row["text"] for row in held_out), test_fraction)
    if eval_corpus is not None:
        splits, _ = _stream(_only(eval_corpus, encoding), skip_broken_files, None)
        test = list(islice(splits.get("test", splits["train"]), eval_documents))
        if not test:
            raise DataError(f"The held-out part is empty: {eval_corpus} has only blank documents.")
    train = [_without(part, last_choices) for part in train]
    chances = probabilities(sources)
    held_out_documents = Dataset.from_list(test, _COLUMNS)
    return StreamedCorpus(_endless(train, chances, seed), held_out_documents, tuple(train), chances, seed)


def _load(source: CorpusSource, skip_broken_files: bool) -> DatasetDict:
    splits = load_corpus(
        source.source,
        text_column=source.text_column,
        template=source.template,
        encoding=source.encoding,
        skip_broken_files=skip_broken_files,
    )
    # A separate column: the text is not rewritten.
    return DatasetDict(
        {name: split.add_column("source", [source.source] * len(split)) for name, split in splits.items()}
    )


def _last_choices(held_out: Iterable[str], test_fraction: float) -> set[int]:
    """Returns the hashes of documents that are held out only because the hash selects none of their source."""
    return {value for value in map(hash_of, held_out) if value >= hash_limit(test_fraction)}


def _without(train: AnyDataset, hashes: set[int]) -> AnyDataset:
    """Leaves out documents that another source holds out; without such a choice, equal ones are on the same side."""
    if not hashes:
        return train
    return cast(AnyDataset, train.filter(partial(_is_other, hashes=frozenset(hashes)), input_columns=["text"]))


def _is_other(text: str, hashes: frozenset[int]) -> bool:
    return hash_of(text) not in hashes


def _stream(
    source: CorpusSource, skip_broken_files: bool, test_fraction: float | None
) -> tuple[dict[str, IterableDataset], bool]:
    """Streams the non-blank documents of a source: `train`, and `test` if it has one or a share is held out.

    Returns:
        The streams, and whether a share was held out by hash.
    """
    is_divided = False
    files = None if source.source.startswith("builtin:") else source_files(source.source)
    if files is not None and len(files) == 1 and is_one_document(files[0]) and test_fraction is not None:
        train, test = map(len, cut_at_line(read_text(files[0], source.encoding), test_fraction))
        streams = {
            name: IterableDataset.from_generator(
                _read_part,
                gen_kwargs={"path": str(files[0]), "start": start, "stop": stop, "encoding": source.encoding},
                features=_TEXT,
            )
            for name, start, stop in (("train", 0, train), ("test", train, train + test))
        }
    else:
        streams = stream_corpus(
            source.source,
            text_column=source.text_column,
            template=source.template,
            encoding=source.encoding,
            skip_broken_files=skip_broken_files,
        )
        if test_fraction is not None and "test" not in streams:
            streams = _split_by_hash(streams["train"], test_fraction, source.source)
            is_divided = True
    name_it = partial(_with_source, name=source.source)
    named = {name: stream.filter(_is_filled).map(name_it, features=_COLUMNS) for name, stream in streams.items()}
    return named, is_divided


def _split_by_hash(train: IterableDataset, test_fraction: float, source: str) -> dict[str, IterableDataset]:
    """Streams the two parts of `split_by_hash`.

    Where the hash of each document leaves one part empty, the split depends on all documents: then they are read once.
    """

    def parts(limit: int) -> dict[str, IterableDataset]:
        return {
            name: train.filter(partial(_is_on_side, held_out=name == "test", limit=limit))
            for name in ("train", "test")
        }

    streams = parts(hash_limit(test_fraction))
    if all(next(iter(stream.filter(_is_filled)), None) is not None for stream in streams.values()):
        return streams
    found: HashRange | None = None
    first = ""
    for row in train.filter(_is_filled):
        value = hash_of(row["text"])
        if found is None:
            found, first = HashRange(1, value, value), row["text"]
        else:
            found = HashRange(found.count + 1, min(found.smallest, value), max(found.largest, value))
    if found is None:
        return streams
    try:
        if found.count > 1:
            return parts(found.limit(test_fraction, source))
        halves = zip(("train", "test"), cut_at_line(first, test_fraction), strict=True)
    except DataError as error:
        raise DataError(f"{source} has no held-out part: {error}") from error
    return {
        name: IterableDataset.from_generator(_one_document, gen_kwargs={"text": half}, features=_TEXT)
        for name, half in halves
    }


def _one_document(text: str) -> Iterator[dict[str, str]]:
    yield {"text": text}


def _read_part(path: str, start: int, stop: int, encoding: str | None) -> Iterator[dict[str, str]]:
    """Yields one side of a single document; if it is very long, in several parts that end at line ends."""
    text = ""
    for chunk in text_chunks(Path(path), start, stop, encoding=encoding):
        text += chunk
        if len(text) >= _LONGEST_DOCUMENT and (end := text.rfind("\n") + 1):
            yield {"text": text[:end]}
            text = text[end:]
    yield {"text": text}


def _shard(part: IterableDataset, index: int, count: int) -> IterableDataset:
    files = part.num_shards
    if files >= count:
        return part.shard(count, index, contiguous=False)
    file, place = index % files, index // files
    sharing = len(range(file, count, files))
    own = part.shard(files, file, contiguous=False)
    return own.filter(partial(_is_own, place=place, sharing=sharing), with_indices=True)


def _is_own(row: Mapping[str, Any], index: int, place: int, sharing: int) -> bool:
    return index % sharing == place


def _endless(train: list[IterableDataset], shares: list[float] | None, seed: int) -> IterableDataset:
    if shares is None:
        if len(train) == 1:
            return train[0].repeat(None)
        return interleave_datasets(train, stopping_strategy="all_exhausted_without_replacement").repeat(None)
    return interleave_datasets([stream.repeat(None) for stream in train], shares, seed=seed)


def _is_on_side(row: Mapping[str, Any], held_out: bool, limit: int) -> bool:
    return (hash_of(row["text"]) < limit) is held_out


def _is_filled(row: Mapping[str, Any]) -> bool:
    return not is_blank(row["text"])


def _with_source(row: Mapping[str, Any], name: str) -> dict[str, str]:
    return {"text": row["text"], "source": name}


def _only(eval_corpus: str, encoding: str | None) -> CorpusSource:
    (source,) = parse_sources(eval_corpus, encoding=encoding)
    return source


def _names(sources: Sequence[CorpusSource]) -> str:
    return ", ".join(source.source for source in sources)
