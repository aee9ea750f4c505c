"""Tokens per second of `chatgpt-hf serve` under load: requests answered one by one, or batched continuously.

Both servers run one after the other, each in a separate process. Every greedy reply under load is compared with the reply to
the same request made alone, and the server's memory after the load with its memory before.

    python benchmarks/serving.py --model runs/quickstart
"""

import re
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import harness
import openai
import psutil

QUESTIONS = [
    "What does str.join do?",
    "How do I open a file?",
    "What is a list comprehension?",
    "Explain os.path.join.",
    "What does len return?",
    "How can I sort a dictionary by its values and print the largest ones first?",
    "hi",
]


@contextmanager
def served(model: str, *options: str) -> Iterator[tuple[openai.OpenAI, psutil.Process]]:
    """Starts a server; yields a client of it and its process."""
    command = [*harness.CLI, "serve", model, "--port", "0", "--served_model_name", "model", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if found := re.search(r"at (http://\S+)", line):
                break
        else:
            raise SystemExit(f"The server ended with {process.wait()}.")
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield openai.OpenAI(base_url=found[1], api_key="none", timeout=600), psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


def measure(model: str, requests: int, clients: int, max_tokens: int, *options: str) -> dict[str, Any]:
    """Measures one way of serving under the load."""
    tasks = [(QUESTIONS[i % len(QUESTIONS)], 1 + i * 37 % max_tokens) for i in range(requests)]

    with served(model, *options) as (client, process):

        def ask(task: tuple[str, int]) -> tuple[str, int]:
            messages: Any = [{"role": "user", "content": task[0]}]
            result = client.chat.completions.create(
                model="model", messages=messages, temperature=0, max_tokens=task[1]
            )
            return result.choices[0].message.content or "", result.usage.completion_tokens if result.usage else 0

        ask(tasks[0])
        different = sorted(set(tasks))
        start = time.perf_counter()
        alone = {task: ask(task) for task in different}
        alone_seconds = time.perf_counter() - start
        # A short load first, so that memory is compared after everything has been allocated once.
        with ThreadPoolExecutor(clients) as pool:
            list(pool.map(ask, tasks[: 2 * clients]))
            before = process.memory_info().rss
            start = time.perf_counter()
            together = list(pool.map(ask, tasks))
            seconds = time.perf_counter() - start
        after = process.memory_info().rss
    return {
        "alone": sum(tokens for _, tokens in alone.values()) / alone_seconds,
        "together": sum(tokens for _, tokens in together) / seconds,
        "requests": requests / seconds,
        "same": sum(reply == alone[task] for reply, task in zip(together, tasks, strict=True)),
        "memory": after / before,
        "megabytes": after / 1e6,
    }


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--model", help="folder of a chat model (default: the quickstart's shape, random weights)")
    parser.add_argument("--requests", type=int, default=200, help="number of requests (default: %(default)s)")
    parser.add_argument("--clients", type=int, default=16, help="requests at a time (default: %(default)s)")
    parser.add_argument(
        "--max_tokens", type=int, default=100, help="longest answer; the shortest is 1 (default: %(default)s)"
    )
    args = parser.parse_args()
    titles = ("tokens/s, one client", "tokens/s", "requests/s", "replies as alone", "memory after/before", "MB")
    table = harness.rich_table("", *titles, left=("",), title=f"{args.requests} requests, {args.clients} at a time")
    ways = {"one by one": "--no-continuous_batching", "continuous batching": "--continuous_batching"}
    # Continuous batching has no repetition penalty, and both ways must give the same replies.
    common = ["--repetition_penalty", "1", "--max_concurrent", str(args.clients)]
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        model = args.model or harness.random_model(Path(folder))
        for name, option in ways.items():
            results[name] = figures = measure(model, args.requests, args.clients, args.max_tokens, option, *common)
            table.add_row(
                name,
                f"{figures['alone']:.0f}",
                f"{figures['together']:.0f}",
                f"{figures['requests']:.1f}",
                f"{figures['same']} of {args.requests}",
                f"{figures['memory']:.3f}",
                f"{figures['megabytes']:.0f}",
            )
    harness.show(table, width=140)
    ratio = results["continuous batching"]["together"] / results["one by one"]["together"]
    print(f"Continuous batching gives {ratio:.2f} times the tokens a second under this load.")
    ratios = {"continuous batching/one by one tokens per second": ratio}
    ratios |= {f"{name}: replies as alone": figures["same"] / args.requests for name, figures in results.items()}
    harness.write_json(args.json, ratios, results=results)


if __name__ == "__main__":
    main()
