"""Feeds changed files to everything that reads files: each answers with rows or with a `ChatGPTError`, never another exception.

    python tests/fuzz.py --minutes 60                   # all readers, an equal share of the time each
    python tests/fuzz.py --minutes 5 --only json recipe # some of them
    python tests/fuzz.py --replay json FOLDER           # one kept input again

Each reader runs in its own process, with limits on memory and on the time of one input. An input that fails is kept in
`fuzz-failures/READER-N`, with the traceback; a reader whose process dies or hangs too. A short version runs with the tests.
"""

import argparse
import faulthandler
import gc
import logging
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from readers import READERS, attempt, tokenizer_files, try_one

# For one input: more than any takes on a slow and busy machine, but for one that would take for ever.
SECONDS = 120
# Beyond what the process has before it reads.
MEMORY = 2 << 30


class TooSlow(BaseException):
    """An input took too long. Not an `Exception`, so that nothing handles it."""


def _place(error: BaseException) -> str:
    """Where an exception came from in the package, to keep one input of each kind."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "chatgpt_hf" in frame.filename]
    frame = frames[-1] if frames else None
    return f"{type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}" if frame else type(error).__name__


def _too_slow(*_: Any) -> None:
    raise TooSlow(f"more than {SECONDS} seconds")


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, resource.RLIM_INFINITY))


def _seeds(first: int) -> Iterator[int]:
    while True:
        yield first
        first += 1


def _run(name: str, first: int, seconds: float, failures: str, results: Any) -> None:
    """Tries one input after another in a separate process; sends `(seed, refused)` before each, and the failures."""
    faulthandler.enable()
    signal.signal(signal.SIGALRM, _too_slow)
    _limit_memory()
    folder = Path(tempfile.mkdtemp(prefix=f"fuzz-{name}-"))
    # Data sets that are loaded from files are cached there.
    scratch = Path(os.environ["HF_HOME"])
    end, seen, refused = time.process_time() + seconds, set(), 0
    for seed in _seeds(first):
        if time.process_time() > end:
            break
        results.send((seed, refused, None))
        signal.alarm(SECONDS)
        try:
            refused += try_one(name, seed, folder / "data") is not None
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            place = _place(error)
            if place not in seen:
                seen.add(place)
                kept = Path(failures) / f"{name}-{seed}"
                shutil.copytree(folder / "data", kept, dirs_exist_ok=True, symlinks=True)
                (kept / "traceback.txt").write_text(
                    "".join(traceback.format_exception(error)), errors="backslashreplace"
                )
                results.send((seed, refused, f"{place}: {' '.join(str(error).split())[:200]}"))
        finally:
            signal.alarm(0)
        if seed % 100 == 0:
            gc.collect()
            shutil.rmtree(scratch, ignore_errors=True)
    results.send((seed, refused, "end"))
    shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60, help="CPU time in all")
    parser.add_argument("--only", nargs="+", choices=sorted(READERS), default=list(READERS), metavar="READER")
    parser.add_argument(
        "--seed", type=int, default=int(time.time()) * 1000, help="the first seed; the time if not given"
    )
    parser.add_argument("--failures", default="fuzz-failures", help="folder to keep failing inputs in")
    parser.add_argument(
        "--replay", nargs=2, metavar=("READER", "FOLDER"), help="read a kept input, with its traceback"
    )
    arguments = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    os.environ["HF_HOME"] = os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="fuzz-cache-")
    # Imported before the processes are forked; the readers find them there.
    import datasets
    import trl  # noqa: F401

    import chatgpt_hf.evaluate  # noqa: F401

    datasets.disable_progress_bars()
    logging.disable(logging.CRITICAL)
    if arguments.replay:
        name, folder = arguments.replay
        print(attempt(READERS[name].read, Path(folder)))
        return 0
    tokenizer_files()
    context = multiprocessing.get_context("fork")
    share = 60 * arguments.minutes / len(arguments.only)
    failed = 0
    for name in arguments.only:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_run, args=(name, arguments.seed, share, arguments.failures, theirs))
        process.start()
        theirs.close()
        seed, refused, said = arguments.seed, 0, None
        try:
            while True:
                seed, refused, said = ours.recv()
                if said not in (None, "end"):
                    failed += 1
                    print(f"  {name} {seed}: {said}", flush=True)
        except EOFError:
            process.join()
        if said != "end":
            failed += 1
            print(f"  {name} {seed}: the process ended with {process.exitcode}", flush=True)
        count = seed - arguments.seed
        print(f"{name}: {count} inputs, {refused} refused, {count - refused} read", flush=True)
    shutil.rmtree(os.environ["HF_HOME"], ignore_errors=True)
    print(f"{failed} failures" + (f", kept in {arguments.failures}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
