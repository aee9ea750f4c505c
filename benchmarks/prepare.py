"""`chatgpt-hf prepare` by one worker and by two: time, memory, and what a killed worker costs.

The corpus is that of data_memory.py: shuffled and repeated paragraphs of the shared texts, as documents in a JSON Lines file.
Each worker is a separate process with one thread, forked from one that has imported the libraries. The speed-up is counted in CPU seconds of the busiest worker, which other
programs on the machine do not change; the wall clock is shown too. Peak memory is that of anonymous pages, sampled: pages
of mapped files are the operating system's, which takes them back when it needs them. The script fails where rows differ.
"""

import hashlib
import importlib
import multiprocessing
import os
import tempfile
import threading
import time
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import data_memory
import harness

FORK = multiprocessing.get_context("fork")


def make(folder: Path, megabytes: int, vocab_size: int) -> None:
    """Writes a corpus and a tokenizer."""
    folder.mkdir()
    data_memory.make(folder, megabytes, vocab_size)


def work(folder: Path, file: Path, tokenizer: Path, block_size: int, part: float, connection: Connection) -> None:
    """Prepares the rows in this process, together with any other whose caches are in the same folder."""
    import datasets

    from chatgpt_hf.data import shards
    from chatgpt_hf.training.arguments import (
        ArchitectureArguments,
        CorpusArguments,
        ModelArguments,
        PretrainArguments,
        parse_recipe,
    )
    from chatgpt_hf.training.preparing import prepare_corpus

    datasets.disable_progress_bars()
    datasets.config.HF_DATASETS_CACHE = folder / "datasets"
    os.environ["CHATGPT_HF_CACHE"] = str(folder / "cache")
    shards._PART_BYTES = round(part * 1e6)
    types = (ModelArguments, ArchitectureArguments, CorpusArguments, PretrainArguments)
    options = ["--corpus", str(file), "--tokenizer", str(tokenizer), "--block_size", str(block_size)]
    recipe = parse_recipe(types, None, options)
    peak = [0]

    def sample() -> None:
        while True:
            peak[0] = max(peak[0], harness.status_bytes("RssAnon") or 0)
            time.sleep(0.02)

    threading.Thread(target=sample, daemon=True).start()
    before = peak[0] = harness.status_bytes("RssAnon") or 0
    began, cpu = time.perf_counter(), time.process_time()
    figures = prepare_corpus(*recipe)
    took = {"wall": time.perf_counter() - began, "cpu": time.process_time() - cpu}
    connection.send({"tokens": figures["train_tokens"], "anonymous": peak[0], "before": before, **took})


Worker = tuple[BaseProcess, Connection]


def start(*arguments: Any) -> Worker:
    """Starts a worker."""
    return harness.start_worker("fork", work, *arguments)


def finish(workers: list[Worker]) -> list[dict[str, Any]]:
    """Waits for workers, and returns what each of them measured."""
    found = []
    for worker, connection in workers:
        found.append(harness.receive("A worker", connection))
        worker.join()
    return found


def rows_of(folder: Path) -> dict[str, str]:
    """The checksum of each file of rows."""
    files = (folder / "cache" / "prepared").glob("*/rows-*.arrow")
    return {file.name: hashlib.blake2b(file.read_bytes()).hexdigest() for file in files}


def kill_half_way(worker: Worker, folder: Path, parts: float) -> None:
    """Kills a worker when half of the parts have their tokens."""
    while len(list((folder / "cache" / "prepared").glob("*/tokens-0*.arrow"))) < parts / 2:
        if not worker[0].is_alive():
            raise SystemExit("The worker that is to be killed ended by itself.")
        time.sleep(0.01)
    worker[0].kill()
    worker[0].join()


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--megabytes", type=int, default=100, help="size of the corpus (default: %(default)s)")
    parser.add_argument("--vocab", type=int, default=4096, help="entries of the vocabulary (default: %(default)s)")
    parser.add_argument("--block", type=int, default=512, help="tokens in a row (default: %(default)s)")
    parser.add_argument("--part", type=float, default=8, help="megabytes in a part of the work (default: %(default)s)")
    args = parser.parse_args()
    if not data_memory.CORPUS.is_dir():
        harness.skip(f"There is no folder {data_memory.CORPUS}: set CHATGPT_HF_DATA to one with texts in corpus/.")

    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    # Imported once: the workers are forked.
    importlib.import_module("chatgpt_hf.training.preparing")
    results: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory(prefix="prepare-") as temporary:
        base = Path(temporary)
        for name, megabytes in (("whole", args.megabytes), ("quarter", max(1, args.megabytes // 4))):
            maker = FORK.Process(target=make, args=(base / name, megabytes, args.vocab))
            maker.start()
            maker.join()
        whole = (base / "whole" / "corpus.jsonl", base / "whole" / "tokenizer", args.block, args.part)
        quarter = (base / "quarter" / "corpus.jsonl", *whole[1:])
        results["one, a quarter"] = finish([start(base / "0", *quarter)])
        results["one"] = finish([start(base / "1", *whole)])
        expected = rows_of(base / "1")
        results["two"] = finish([start(base / "2", *whole) for _ in range(2)])
        killed = base / "3"
        kill_half_way(start(killed, *whole), killed, whole[0].stat().st_size / 1e6 / args.part)
        results["resumed"] = finish([start(killed, *whole)])
        for folder in (base / "2", killed):
            if not expected or rows_of(folder) != expected:
                raise SystemExit("The rows differ from those of one worker.")

    print(f"{args.megabytes} MB, rows of {args.block}, one thread a worker\n")
    titles = ("tokens", "wall", "tokens/s", "CPU, busiest", "tokens/CPU-s", "peak", "of that new")
    print(" " * 16 + "".join(f"{title:>14}" for title in titles))
    for name, workers in results.items():
        tokens, wall = workers[0]["tokens"], max(each["wall"] for each in workers)
        cpu, total = max(each["cpu"] for each in workers), sum(each["cpu"] for each in workers)
        memory = max(each["anonymous"] for each in workers) / 1e6
        new = max(each["anonymous"] - each["before"] for each in workers) / 1e6
        cells = (f"{tokens:,}", f"{wall:.1f} s", f"{tokens / wall:,.0f}", f"{cpu:.1f} s", f"{tokens / total:,.0f}")
        print(f"{name:<16}" + "".join(f"{cell:>14}" for cell in (*cells, f"{memory:.0f} MB", f"{new:.0f} MB")))
    one, two = results["one"][0], results["two"]
    ratios = {
        "one/two workers, CPU seconds of the busiest": one["cpu"] / max(each["cpu"] for each in two),
        "peak memory of a quarter of the corpus, to that of all": results["one, a quarter"][0]["anonymous"]
        / one["anonymous"],
    }
    harness.write_json(args.json, ratios, settings=vars(args) | {"json": None}, results=results)


if __name__ == "__main__":
    main()
