"""`chatgpt-hf prepare` by one worker and by two: time, memory, and what a killed worker costs.

The corpus is that of data_memory.py: shuffled and repeated paragraphs of the shared texts, as documents in a JSON Lines file.
Each worker is a separate process with one thread. The speed-up is counted in CPU seconds of the busiest worker, which other
programs on the machine do not change; the wall clock is shown too. Peak memory is that of anonymous pages, sampled: pages
of mapped files are the operating system's, which takes them back when it needs them. The script fails where rows differ.
"""

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import data_memory
import harness


def work(file: Path, block_size: int, part_bytes: int) -> dict[str, Any]:
    """Prepares the rows in this process, together with any other."""
    from chatgpt_hf.data import shards
    from chatgpt_hf.training.arguments import (
        ArchitectureArguments,
        CorpusArguments,
        ModelArguments,
        PretrainArguments,
        parse_recipe,
    )
    from chatgpt_hf.training.preparing import prepare_corpus

    types = (ModelArguments, ArchitectureArguments, CorpusArguments, PretrainArguments)
    options = ["--corpus", str(file), "--tokenizer", str(file.parent / "tokenizer"), "--block_size", str(block_size)]
    shards._PART_BYTES = part_bytes
    peak = [0]

    def sample() -> None:
        while True:
            peak[0] = max(peak[0], harness.status_bytes("RssAnon") or 0)
            time.sleep(0.02)

    threading.Thread(target=sample, daemon=True).start()
    began, cpu = time.perf_counter(), time.process_time()
    figures = prepare_corpus(*parse_recipe(types, None, options))
    took = {"wall": time.perf_counter() - began, "cpu": time.process_time() - cpu}
    return {"tokens": figures["train_tokens"], "anonymous": peak[0], "peak": harness.peak_bytes(), **took}


def start(folder: Path, file: Path, options: list[str]) -> subprocess.Popen[str]:
    """Starts a worker whose caches are in a folder."""
    environment = {
        "CHATGPT_HF_CACHE": str(folder / "cache"),
        "HF_DATASETS_CACHE": str(folder / "datasets"),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, __file__, "--work", str(file), *options]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env={**os.environ, **environment}
    )


def finish(workers: list[subprocess.Popen[str]]) -> list[dict[str, Any]]:
    """Waits for workers, and returns what each of them measured."""
    found = []
    for worker in workers:
        said, _ = worker.communicate()
        if worker.returncode:
            raise SystemExit(f"A worker ended with {worker.returncode}.")
        found.append(json.loads(said.splitlines()[-1]))
    return found


def rows_of(folder: Path) -> dict[str, str]:
    """The checksum of each file of rows."""
    files = (folder / "cache" / "prepared").glob("*/rows-*.arrow")
    return {file.name: hashlib.blake2b(file.read_bytes()).hexdigest() for file in files}


def killed_half_way(folder: Path, file: Path, options: list[str], parts: float) -> None:
    """Kills a worker when half of the parts have their tokens."""
    worker = start(folder, file, options)
    while len(list((folder / "cache" / "prepared").glob("*/tokens-0*.arrow"))) < parts / 2:
        if worker.poll() is not None:
            raise SystemExit("The worker that is to be killed ended by itself.")
        time.sleep(0.01)
    worker.send_signal(signal.SIGKILL)
    worker.wait()


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--megabytes", type=int, default=100, help="size of the corpus (default: %(default)s)")
    parser.add_argument("--vocab", type=int, default=4096, help="entries of the vocabulary (default: %(default)s)")
    parser.add_argument("--block", type=int, default=512, help="tokens in a row (default: %(default)s)")
    parser.add_argument("--part", type=float, default=8, help="megabytes in a part of the work (default: %(default)s)")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        print(json.dumps(work(args.work, args.block, round(args.part * 1e6))))
        return
    if not data_memory.CORPUS.is_dir():
        harness.skip(f"There is no folder {data_memory.CORPUS}: set CHATGPT_HF_DATA to one with texts in corpus/.")

    options = ["--block", str(args.block), "--part", str(args.part)]
    results: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory(prefix="prepare-") as temporary:
        files = {}
        for name, megabytes in (("whole", args.megabytes), ("quarter", max(1, args.megabytes // 4))):
            made = Path(temporary, name)
            made.mkdir()
            making = [sys.executable, str(Path(__file__).with_name("data_memory.py")), "--make", str(made)]
            harness.run_apart("make", [*making, "--megabytes", str(megabytes), "--vocab", str(args.vocab)])
            files[name] = made / "corpus.jsonl"
        shutil.rmtree(Path(temporary, "quarter", "tokenizer"))
        shutil.copytree(Path(temporary, "whole", "tokenizer"), Path(temporary, "quarter", "tokenizer"))
        folders = {name: Path(temporary, f"{name}-caches") for name in ("quarter", "one", "two", "killed")}
        results["one, a quarter"] = finish([start(folders["quarter"], files["quarter"], options)])
        results["one"] = finish([start(folders["one"], files["whole"], options)])
        expected = rows_of(folders["one"])
        results["two"] = finish([start(folders["two"], files["whole"], options) for _ in range(2)])
        killed_half_way(folders["killed"], files["whole"], options, files["whole"].stat().st_size / 1e6 / args.part)
        results["resumed"] = finish([start(folders["killed"], files["whole"], options)])
        for name in ("two", "killed"):
            if rows_of(folders[name]) != expected:
                raise SystemExit(f"The rows of {name} differ from those of one worker.")

    print(f"{args.megabytes} MB, rows of {args.block}, one thread a worker\n")
    print(
        f"{'':<16}{'tokens':>12}{'wall':>9}{'tokens/s':>11}{'CPU, busiest':>14}{'tokens/CPU-s':>14}{'anonymous':>12}{'with files':>12}"
    )
    for name, workers in results.items():
        tokens, wall = workers[0]["tokens"], max(each["wall"] for each in workers)
        cpu, total = max(each["cpu"] for each in workers), sum(each["cpu"] for each in workers)
        memory, peak = (max(each[kind] for each in workers) / 1e6 for kind in ("anonymous", "peak"))
        print(
            f"{name:<16}{tokens:>12,}{wall:>7.1f} s{tokens / wall:>11,.0f}{cpu:>12.1f} s{tokens / total:>14,.0f}"
            f"{memory:>9.0f} MB{peak:>9.0f} MB"
        )
    one, two = results["one"][0], results["two"]
    ratios = {
        "one/two workers, CPU seconds of the busiest": one["cpu"] / max(each["cpu"] for each in two),
        "peak memory of a quarter of the corpus, to that of all": results["one, a quarter"][0]["anonymous"]
        / one["anonymous"],
    }
    harness.write_json(args.json, ratios, settings=vars(args) | {"json": None, "work": None}, results=results)


if __name__ == "__main__":
    main()
