"""A short version of fuzz.py, with the same inputs in every run; and the files that are no files, or made to be expensive."""

import os
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest
from readers import READERS, Files, attempt, try_one, write

INPUTS = 12
MEMORY = 3 << 29


@pytest.fixture(autouse=True)
def limits(patience: int) -> Iterator[None]:
    """Ends a test that would take all memory, or for ever."""
    # What readers import takes more address space than an input may.
    import trl  # noqa: F401

    import chatgpt_hf.evaluate  # noqa: F401

    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, before[1]))
    signal.alarm(patience)
    yield
    signal.alarm(0)
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("name", READERS)
def test_changed_files_are_read_or_refused(tmp_path: Path, name: str) -> None:
    for seed in range(INPUTS):
        try_one(name, seed, tmp_path / "data")


def test_the_inputs_are_neither_all_valid_nor_all_broken(tmp_path: Path) -> None:
    outcomes = [try_one("json", seed, tmp_path / "data") for seed in range(40)]
    assert 5 < sum(outcome is None for outcome in outcomes) < 35


def test_another_exception_is_not_taken_for_an_answer(tmp_path: Path) -> None:
    def read(folder: Path) -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        attempt(read, tmp_path)


def valid(name: str) -> Files:
    """Files of a reader; names are what counts, because the content is replaced."""
    return READERS[name].make(Random(name))


# Each takes the place of a file.
PLACED: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a device": lambda file: file.symlink_to("/dev/zero"),
    "a link to itself": lambda file: file.symlink_to(file),
    "a folder": Path.mkdir,
    "nothing": lambda file: None,
    "a link to nothing": lambda file: file.symlink_to("nowhere"),
}


@pytest.mark.parametrize("kind", PLACED)
def test_what_is_no_file(tmp_path: Path, kind: str) -> None:
    for name, reader in READERS.items():
        files = valid(name)
        for replaced in files:
            folder = tmp_path / "data"
            write(folder, files)
            (folder / replaced).unlink()
            PLACED[kind](folder / replaced)
            if any(folder.iterdir()):
                attempt(reader.read, folder)


LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 8)}]\n" for level in range(1, 12)
)
MERGES = "a0: &a0 {x: 1}\n" + "".join(
    f"a{level}: &a{level} {{<<: [{', '.join([f'*a{level - 1}'] * 8)}]}}\n" for level in range(1, 12)
)
EXPENSIVE: dict[str, bytes] = {
    "deep lists": b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000,
    "deep but whole": b'{"messages": ' + b"[" * 400 + b"]" * 400 + b"}",
    "half a character": b'{"prompt": "\\ud800", "text": "\\ud800", "messages": [{"role": "user", "content": "\\udc00"}]}',
    "many digits": b'{"prompt": ' + b"9" * 10_000 + b"}",
    "a number beyond all": b'[{"text": "a", "label": 1e99999, "n": ' + b"9" * 401 + b"}]",
    "many aliases": LAUGHS.encode(),
    "many merges": MERGES.encode(),
    "an alias of itself": b"corpus: &a [*a]\noutput_dir: x\n",
    "a long line": b"a" * 1_000_000,
    "many quotation marks": b'text,label\n"' + b'""' * 200_000,
    "zero bytes": bytes(10_000),
    "UTF-16": "text,label\na,b\n".encode("utf-16"),
    "UTF-16 without a mark": "text,label\na,b\n".encode("utf-16-le"),
    "no text": bytes(range(256)) * 10,
    "a mark only": b"\xef\xbb\xbf",
    "duplicate keys": b'{"text": "a", "text": "b", "prompt": "a", "prompt": [], "task": 1, "task": {}}',
    "mixed line ends": b"a\rb\nc\r\nd\n\re\x0bf\x0c\xc2\x85g\xe2\x80\xa8h",
    "PAR1": b"PAR1" + b"\xff" * 100 + b"PAR1",
    "GGUF": b"GGUF" + b"\xff" * 100,
}


@pytest.mark.parametrize("kind", EXPENSIVE)
def test_expensive_and_broken_content(tmp_path: Path, kind: str) -> None:
    for name, reader in READERS.items():
        # Files that are compressed or in Arrow's format are broken whatever stands in them.
        files = dict.fromkeys(valid(name), EXPENSIVE[kind])
        write(tmp_path / "data", files)
        attempt(reader.read, tmp_path / "data")
