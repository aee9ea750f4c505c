"""Peak memory, time and used positions when a corpus of 50 MB is tokenized and packed, all at once and as a stream.

The corpus is made by shuffling and repeating the paragraphs of the shared texts (`$CHATGPT_HF_DATA`, or `shared/data` beside
the repository), as many documents in one JSON Lines file and as one document in one text file, the hardest case. Each way runs
in a separate process, because a process never gives its peak back; the peak includes the libraries. The script fails where a
limit is exceeded.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import harness

CORPUS = harness.SHARED_DATA / "corpus"
# Megabytes.
LIMITS = {"prepare": 2000, "stream": 1000}
RUNS = [("prepare", "corpus.jsonl"), ("prepare", "corpus.txt"), ("stream", "corpus.jsonl"), ("stream", "corpus.txt")]


def make(folder: Path, megabytes: int, vocab_size: int) -> None:
    """Writes both forms of the corpus, and a tokenizer trained on a part of it."""
    from chatgpt_hf import train_tokenizer

    paragraphs = [
        paragraph
        for file in sorted(CORPUS.rglob("*.txt"))
        for paragraph in file.read_text(encoding="utf-8").split("\n\n")
        if paragraph.strip()
    ]
    draw = random.Random(0)
    size, documents = 0, []
    while size < megabytes * 10**6:
        draw.shuffle(paragraphs)
        # Documents of 1 to 40 paragraphs: from a few lines to a chapter.
        rest = iter(paragraphs)
        while size < megabytes * 10**6 and (document := "\n\n".join(islice(rest, draw.randint(1, 40)))):
            documents.append(document)
            size += len(document.encode())
    with (folder / "corpus.jsonl").open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps({"text": document}, ensure_ascii=False) + "\n" for document in documents)
    (folder / "corpus.txt").write_text("\n\n".join(documents), encoding="utf-8")
    tokenizer = train_tokenizer(draw.sample(documents, len(documents) // 20), vocab_size, show_progress=False)
    tokenizer.save_pretrained(folder / "tokenizer")


def measure(way: str, file: Path, block_size: int, rows: int) -> dict[str, Any]:
    """Runs one way in this process; a stream has no end, so `rows` says how many to take from it."""
    from chatgpt_hf import load_tokenizer
    from chatgpt_hf.data.mixture import load_mixture, stream_mixture
    from chatgpt_hf.data.prepare import prepare_rows
    from chatgpt_hf.data.sources import parse_sources
    from chatgpt_hf.data.streaming import StreamingRows

    tokenizer = load_tokenizer(file.parent / "tokenizer")
    sources = parse_sources(str(file))
    start, cpu = time.perf_counter(), time.process_time()
    if way == "prepare":
        documents = load_mixture(sources)["train"]
        prepared = prepare_rows(documents, tokenizer, block_size, cache_dir=file.parent / "cache")
        rows, used = len(prepared.rows), prepared.share_of_positions_used
    else:
        stream = StreamingRows(stream_mixture(sources).train, tokenizer, block_size)
        padding = 0
        for row in islice(stream, rows):
            padding += int((row["input_ids"] == tokenizer.pad_token_id).sum())
        used = 1 - padding / (rows * block_size)
    figures = {"way": way, "file": file.name, "rows": rows, "used": used, "megabytes": file.stat().st_size / 1e6}
    took = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu}
    return {**figures, **took, "peak": harness.peak_bytes() / 1e6}


def apart(folder: Path, *arguments: str) -> str:
    """Runs this script with other arguments in a separate process and returns its output."""
    environment = {"HF_DATASETS_CACHE": str(folder / "datasets"), "HF_HUB_OFFLINE": "1"}
    return harness.run_apart(" ".join(arguments), [sys.executable, __file__, *arguments], **environment)


def ratios(results: list[dict[str, Any]]) -> dict[str, float]:
    """The stream against preparing all rows, and the share of positions that hold a token."""
    found = {}
    for prepared, streamed in zip(results[:2], results[2:], strict=True):
        file = prepared["file"]
        found[f"prepare/stream peak memory, {file}"] = prepared["peak"] / streamed["peak"]
        found[f"prepare/stream CPU seconds, {file}"] = prepared["cpu"] / streamed["cpu"]
        for result in (prepared, streamed):
            found[f"{result['way']} {file}: positions used"] = result["used"]
    return found


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--megabytes", type=int, default=50, help="size of the corpus (default: %(default)s)")
    parser.add_argument("--vocab", type=int, default=4096, help="entries of the vocabulary (default: %(default)s)")
    parser.add_argument("--block", type=int, default=512, help="tokens in a row (default: %(default)s)")
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.make:
        make(args.make, args.megabytes, args.vocab)
        return
    if args.measure:
        way, file, rows = args.measure
        print(json.dumps(measure(way, Path(file), args.block, int(rows))))
        return
    if not CORPUS.is_dir():
        harness.skip(f"There is no folder {CORPUS}: set CHATGPT_HF_DATA to one with texts in corpus/.")

    results = []
    with tempfile.TemporaryDirectory(prefix="data-memory-") as temporary:
        folder = Path(temporary)
        apart(folder, "--make", str(folder), "--megabytes", str(args.megabytes), "--vocab", str(args.vocab))
        print(f"{args.megabytes} MB, {args.vocab} entries, rows of {args.block}\n")
        print(f"{'':<24}{'peak memory':>13}{'limit':>9}{'wall':>9}{'CPU':>9}{'MB/CPU-s':>10}{'rows':>9}{'used':>10}")
        for way, name in RUNS:
            # A stream gives as many rows as preparing the same file gave: one pass over it.
            rows = next((result["rows"] for result in results if result["file"] == name), 0)
            measured = ["--measure", way, str(folder / name), str(rows), "--block", str(args.block)]
            result = json.loads(apart(folder, *measured).splitlines()[-1])
            results.append(result)
            speed = result["megabytes"] / result["cpu"]
            print(
                f"{way + ' ' + name:<24}{result['peak']:>10.0f} MB{LIMITS[way]:>6} MB{result['seconds']:>7.1f} s"
                f"{result['cpu']:>7.1f} s{speed:>10.2f}{result['rows']:>9,}{result['used']:>10.3%}",
                flush=True,
            )
    harness.write_json(args.json, ratios(results), settings=vars(args) | {"json": None}, results=results)
    if any(result["peak"] > LIMITS[result["way"]] for result in results):
        raise SystemExit("A limit was exceeded.")


if __name__ == "__main__":
    main()
