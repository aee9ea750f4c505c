"""Requests against `chatgpt-hf serve`: one after another in the server, or batched continuously; tokens per second of each.

Both servers run in this one benchmark, one after the other, each in a process of its own. Every greedy reply under load is
compared with the reply to the same request made alone, and the server's memory after the load with that before it.

    python benchmarks/serving.py --model runs/quickstart
"""

import argparse
import atexit
import json
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import psutil
from rich.console import Console
from rich.table import Table

QUESTIONS = [
    "What does str.join do?",
    "How do I open a file?",
    "What is a list comprehension?",
    "Explain os.path.join.",
    "What does len return?",
    "How can I sort a dictionary by its values and print the largest ones first?",
    "hi",
]


def random_model(folder: Path | None = None) -> str:
    """The shape of the quickstart's model, with weights large enough that its likeliest tokens are clearly so.

    Without a folder it is gone when the script ends.
    """
    import torch

    from chatgpt_hf import ChatGPTConfig, ChatGPTForCausalLM, load_builtin, train_tokenizer

    tokenizer = train_tokenizer(load_builtin("builtin:python-docs")["train"]["text"], 4096, show_progress=False)
    torch.manual_seed(0)
    config = ChatGPTConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        num_hidden_layers=4,
        num_attention_heads=3,
        max_position_embeddings=256,
        initializer_range=0.2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    if folder is None:
        folder = Path(tempfile.mkdtemp())
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    ChatGPTForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@contextmanager
def served(model: str, *options: str) -> Iterator[tuple[openai.OpenAI, psutil.Process]]:
    """A client of a server in a process of its own, and the process."""
    command = [
        sys.executable,
        "-c",
        "from chatgpt_hf_cli import main; main()",
        "serve",
        model,
        "--port",
        "0",
        *options,
    ]
    process = subprocess.Popen([*command, "--served_model_name", "model"], stderr=subprocess.PIPE, text=True)
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
    """The load's figures under one way of serving."""
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
        # All of what a load brings with it, once, before memory is looked at.
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a chat model; without one, random weights in the quickstart's shape")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--clients", type=int, default=16, help="requests at a time")
    parser.add_argument("--max_tokens", type=int, default=100, help="of the longest answer; they go from 1 to this")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    args = parser.parse_args()
    table = Table(title=f"{args.requests} requests, {args.clients} at a time")
    for title in (
        "",
        "tokens/s, one client",
        "tokens/s",
        "requests/s",
        "replies as alone",
        "memory after/before",
        "MB",
    ):
        table.add_column(title, justify="left" if not title else "right")
    ways = {"one by one": "--no-continuous_batching", "continuous batching": "--continuous_batching"}
    # Continuous batching knows no penalty, and both have to say the same.
    common = ["--repetition_penalty", "1", "--max_concurrent", str(args.clients)]
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        model = args.model or random_model(Path(folder))
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
    Console(width=140).print(table)
    ratio = results["continuous batching"]["together"] / results["one by one"]["together"]
    print(f"Continuous batching gives {ratio:.2f} times the tokens a second under this load.")
    if args.json:
        ratios = {"continuous batching/one by one tokens per second": ratio}
        ratios |= {f"{name}: replies as alone": figures["same"] / args.requests for name, figures in results.items()}
        args.json.write_text(json.dumps({"results": results, "ratios": ratios}, indent=2) + "\n")


if __name__ == "__main__":
    main()
