"""`transformers serve` and `transformers chat`, each in a process of its own, over a socket."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import torch
from forking import ForkServer
from openai import OpenAI
from transformers import AutoModelForCausalLM, AutoTokenizer

import chatgpt_hf  # noqa: F401

MESSAGES = [{"role": "user", "content": "Count to five."}]


def generated(folder: Path, messages: list[dict[str, str]]) -> str:
    """The greedy answer of `generate`."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        output = model.generate(**inputs, do_sample=False, max_new_tokens=32)
    return tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


@contextmanager
def serving(server: ForkServer, folder: Path, port: int, *options: str) -> Iterator[str]:
    """`transformers serve` with our classes made known by an import; gives its address once it answers."""
    words = [
        "transformers",
        "serve",
        str(folder),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--device",
        "cpu",
        *options,
    ]
    code = f"import sys, chatgpt_hf; from transformers.cli.transformers import main; sys.argv = {words!r}; main()"
    with server.running(folder, code=code) as process:
        printed = process.keep_reading()
        address = f"http://127.0.0.1:{port}"
        while True:
            assert process.poll() is None, "".join(printed)[-3000:]
            try:
                if httpx.get(f"{address}/health").status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.2)
        yield address


@pytest.fixture(scope="module")
def address(fork_server: ForkServer, chat_folder: Path, free_port: Callable[[], int]) -> Iterator[str]:
    with serving(fork_server, chat_folder, free_port()) as address:
        yield address


@pytest.mark.slow
@pytest.mark.works_with(
    "transformers", "`transformers serve`: chat completions, streaming and not, through OpenAI's client",
    ("transformers", "openai"),
)  # fmt: skip
def test_serve(address: str, chat_folder: Path) -> None:
    client = OpenAI(base_url=f"{address}/v1", api_key="none")
    expected = generated(chat_folder, MESSAGES)
    assert expected == "1, 2, 3, 4, 5."
    asked = {"model": str(chat_folder), "messages": MESSAGES, "temperature": 0.0, "max_tokens": 32}
    whole = client.chat.completions.create(**asked)
    assert whole.choices[0].message.content == expected
    assert whole.choices[0].finish_reason == "stop"
    pieces = [chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(**asked, stream=True)]
    assert "".join(pieces) == expected
    assert len(pieces) > 2
    # A second turn sees the first.
    turns = [*MESSAGES, {"role": "assistant", "content": expected}, {"role": "user", "content": "Hello!"}]
    again = client.chat.completions.create(**{**asked, "messages": turns})
    assert again.choices[0].message.content == generated(chat_folder, turns)
    assert client.responses.create(
        model=str(chat_folder), input="Hello!", temperature=0.0, max_output_tokens=32, stream=False
    ).output_text == generated(chat_folder, [{"role": "user", "content": "Hello!"}])


@pytest.mark.slow
@pytest.mark.works_with("transformers", "`transformers chat` with that server, typed at its prompt", ("transformers",))
def test_chat(address: str, chat_folder: Path, tmp_path: Path) -> None:
    command = [str(Path(sys.executable).with_name("transformers")), "chat", str(chat_folder), address]
    done = subprocess.run(
        [*command, "do_sample=False", "max_new_tokens=32", "--user", "me"],
        input="Count to five.\n!clear\nHello!\n!exit\n",
        capture_output=True,
        text=True,
        timeout=900,
        cwd=tmp_path,
        # The client behind it refuses any address while it is offline, so only the Hub's is put out of reach.
        env={
            **os.environ,
            "HF_HUB_OFFLINE": "0",
            "HF_ENDPOINT": "http://127.0.0.1:9",
            "COLUMNS": "200",
            "TERM": "dumb",
        },
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", done.stdout)
    for question in ("Count to five.", "Hello!"):
        assert generated(chat_folder, [{"role": "user", "content": question}]) in said


@pytest.mark.slow
@pytest.mark.works_with(
    "transformers", "`transformers serve --continuous-batching`: paged attention, the same answers", ("transformers",)
)
def test_serve_with_continuous_batching(
    fork_server: ForkServer, chat_folder: Path, free_port: Callable[[], int]
) -> None:
    options = ("--continuous-batching", "--cb-num-blocks", "64", "--cb-block-size", "32")
    with serving(fork_server, chat_folder, free_port(), *options) as address:
        answer = OpenAI(base_url=f"{address}/v1", api_key="none").chat.completions.create(
            model=str(chat_folder), messages=MESSAGES, temperature=0.0, max_tokens=32
        )
        assert answer.choices[0].message.content == generated(chat_folder, MESSAGES)
