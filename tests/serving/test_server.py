"""The server as clients see it, through OpenAI's own library and over bare HTTP."""

import asyncio
import json
import re
import shutil
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import Any

import httpx
import openai
import psutil
import pytest
from forking import Command
from transformers.cli.serving.utils import ToolCall

from chatgpt_hf import ChatGPTConfig, ChatGPTForCausalLM, ChatSession, load_model, load_tokenizer
from chatgpt_hf.errors import ConfigError, ContentFiltered
from chatgpt_hf.inference.abstention import Abstention
from chatgpt_hf.inference.cache import PrefixCache
from chatgpt_hf.serving.engine import Ended, Engine, GenerationFailed, _passes

# Only ends a test that hangs; far longer than an answer takes on a slow and busy machine.
PATIENCE = 900
KNOWN = {
    "Hello!": "Hi! How are you?",
    "你好": "你好！我是一个小模型。",
    "Smile": "😀👍🏽 yes 🎉",
    "Count to five.": "1, 2, 3, 4, 5.",
    "Who are you?": "I am a tiny model,\nmade for a test.",
}


def ask(client: openai.OpenAI, text: str, **options: Any) -> Any:
    messages = [{"role": "user", "content": text}]
    return client.chat.completions.create(model="tiny", messages=messages, temperature=0, **options)


def said(chunks: Any) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


@pytest.mark.works_with("OpenAI's client", "`chatgpt-hf serve`: streaming and non-streaming answers", ("openai",))
def test_answers_whole_and_streamed_are_those_of_a_session(address, client, chat_folder):
    one = client(address)
    for question, answer in KNOWN.items():
        session = ChatSession.from_pretrained(chat_folder, do_sample=False)
        assert session.reply(question) == answer
        whole = ask(one, question)
        assert whole.choices[0].message.content == answer
        assert whole.choices[0].finish_reason == "stop"
        assert whole.usage.completion_tokens == len(session.ending.answer_ids)
        assert whole.usage.prompt_tokens == len(session.ending.prompt_ids)
        chunks = list(ask(one, question, stream=True, stream_options={"include_usage": True}))
        assert said(chunks) == answer
        assert [c.choices[0].finish_reason for c in chunks if c.choices] == [None] * (len(chunks) - 2) + ["stop"]
        assert chunks[-1].usage == whole.usage


def test_a_conversation_of_several_turns_and_text_parts(address, client, chat_folder):
    session = ChatSession.from_pretrained(chat_folder, do_sample=False, system_prompt="Be kind.", max_new_tokens=20)
    replies = [session.reply("Hello!"), session.reply("Smile")]
    parts = [{"type": "text", "text": "Smi"}, {"type": "text", "text": "le"}]
    messages = [*session.messages[:3], {"role": "user", "content": parts}]
    result = client(address).chat.completions.create(model="tiny", messages=messages, temperature=0, max_tokens=20)
    assert result.choices[0].message.content.strip() == replies[1]


def test_completions_go_on_with_the_text_as_generate_does(address, client, cli, chat_folder):
    expected = cli(
        "generate", chat_folder, "--prompt", "A cat number", "--max_new_tokens", "5", "--temperature", "0"
    ).out
    result = client(address).completions.create(model="tiny", prompt="A cat number", max_tokens=5, temperature=0)
    assert "A cat number" + result.choices[0].text == expected.removesuffix("\n")
    assert result.choices[0].finish_reason == "length"
    assert result.usage.completion_tokens == 5
    chunks = list(
        client(address).completions.create(
            model="tiny", prompt="A cat number", max_tokens=5, temperature=0, stream=True
        )
    )
    assert "".join(chunk.choices[0].text for chunk in chunks) == result.choices[0].text
    assert chunks[-1].choices[0].finish_reason == "length"


def test_greedy_answers_are_the_same_everywhere(address, client, chat_folder, cli):
    from transformers import pipeline

    pipe = pipeline("text-generation", str(chat_folder))
    for question in KNOWN:
        messages = [{"role": "user", "content": question}]
        answers = {
            ChatSession.from_pretrained(chat_folder, do_sample=False).reply(question),
            pipe(messages, do_sample=False, max_new_tokens=64)[0]["generated_text"][-1]["content"],
            cli("chat", chat_folder, "--prompt", question, "--temperature", "0").out.removesuffix("\n"),
            ask(client(address), question).choices[0].message.content,
        }
        assert answers == {KNOWN[question]}


@pytest.mark.parametrize(
    ("question", "stop", "answer"),
    [
        ("Who are you?", "made for", "I am a tiny model,\n"),
        ("你好", ["小模", "x"], "你好！我是一个"),
        ("Smile", "yes", "😀👍🏽 "),
    ],
)
def test_stop_strings_that_span_tokens(address, client, question, stop, answer):
    whole = ask(client(address), question, stop=stop)
    assert whole.choices[0].message.content == answer
    assert whole.choices[0].finish_reason == "stop"
    chunks = list(ask(client(address), question, stop=stop, stream=True))
    assert said(chunks) == answer
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_every_chunk_is_valid_utf_8(address):
    for question in ("你好", "Smile"):
        body = {"messages": [{"role": "user", "content": question}], "stream": True, "temperature": 0}
        with httpx.stream("POST", f"{address}/v1/chat/completions", json=body, timeout=PATIENCE) as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            raw = b"".join(response.iter_raw())
        events = raw.split(b"\n\n")
        assert events.pop() == b""
        assert events.pop() == b"data: [DONE]"
        pieces = [json.loads(event.decode("utf-8").removeprefix("data: ")) for event in events]
        contents = [piece["choices"][0]["delta"].get("content", "") for piece in pieces]
        assert "�" not in "".join(contents)
        assert "".join(contents) == KNOWN[question]


def test_sampling_parameters_of_one_request_do_not_reach_another(make_engine, client, running):
    with running(make_engine(continuous_batching=True)) as address:
        one = client(address)

        def sampled(_: int) -> str:
            messages = [{"role": "user", "content": "Hello!"}]
            result = one.chat.completions.create(model="tiny", messages=messages, temperature=50, max_tokens=20)
            return result.choices[0].message.content

        with ThreadPoolExecutor(8) as pool:
            hot = pool.map(sampled, range(12))
            cold = pool.map(lambda _: ask(one, "Hello!").choices[0].message.content, range(12))
            assert set(cold) == {KNOWN["Hello!"]}
            assert len(set(hot)) > 6


def test_a_seed_gives_the_same_sample(make_engine, client, running):
    with running(make_engine()) as address:
        one = client(address)

        def sample(seed: int) -> str:
            messages = [{"role": "user", "content": "Hello!"}]
            return (
                one.chat.completions.create(model="tiny", messages=messages, temperature=5, seed=seed, max_tokens=30)
                .choices[0]
                .message.content
            )

        with ThreadPoolExecutor(4) as pool:
            first, *others = pool.map(sample, [1] * 6)
        assert set(others) == {first}
        assert len({sample(seed) for seed in range(5)}) == 5


def test_penalties_and_bias_where_requests_are_not_batched(make_engine, client, running):
    tokenizer = load_tokenizer(str(make_engine().model.name_or_path))
    with running(make_engine()) as address:
        forbidden = tokenizer.encode("H", add_special_tokens=False)[0]
        assert (
            not ask(client(address), "Hello!", logit_bias={forbidden: -100}).choices[0].message.content.startswith("H")
        )
        penalized = ask(client(address), "Count to five.", extra_body={"repetition_penalty": 5.0})
        assert penalized.choices[0].message.content != KNOWN["Count to five."]
    with running(make_engine(continuous_batching=True)) as address:
        for options in ({"logit_bias": {forbidden: -1}}, {"seed": 1}, {"extra_body": {"min_p": 0.1}}):
            with pytest.raises(openai.BadRequestError, match="cannot be set per request with continuous batching"):
                ask(client(address), "Hello!", **options)


HELLO = [{"role": "user", "content": "Hello!"}]


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"{", 400, "not valid JSON"),
        (b"\xff\xfe", 400, ""),
        (b"[]", 400, "the request"),
        (b"", 400, "the request"),
        ({"messages": HELLO, "model": "gpt-9"}, 404, "There is no model 'gpt-9' here; this server has 'tiny'"),
        ({"messages": HELLO, "max_tokens": -1}, 400, "max_tokens: Input should be greater than or equal to 1"),
        ({"messages": HELLO, "max_tokens": 10**9}, 400, "max_tokens is 1000000000, but the model's context is 128"),
        ({"messages": HELLO, "max_tokens": 10**400}, 400, "max_tokens"),
        ({"messages": HELLO, "max_tokens": "5"}, 400, "max_tokens: Input should be a valid integer"),
        ({"messages": HELLO, "max_completion_tokens": 0}, 400, "max_completion_tokens"),
        ({"messages": HELLO, "temperature": "hot"}, 400, "temperature: Input should be a valid number"),
        ({"messages": HELLO, "temperature": -1}, 400, "temperature"),
        ({"messages": HELLO, "top_p": 2}, 400, "top_p: Input should be less than or equal to 1"),
        ({"messages": HELLO, "stop": [""]}, 400, "stop.0: String should have at least 1 character"),
        ({"messages": HELLO, "n": 2}, 400, "n: Input should be 1"),
        ({"messages": HELLO, "frequency_penalty": 1}, 400, "frequency_penalty"),
        ({"messages": HELLO, "temprature": 1}, 400, "temprature: Extra inputs are not permitted"),
        ({"messages": []}, 400, "messages: List should have at least 1 item"),
        ({"messages": "Hello!"}, 400, "messages: Input should be a valid list"),
        ({"messages": [{"content": "Hello!"}]}, 400, "messages.0.role: Field required"),
        ({"messages": [{"role": "user", "content": 3}]}, 400, "messages.0.content"),
        ({"messages": [{"role": "wizard", "content": "Hello!"}]}, 400, "Unknown role 'wizard'"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, 400, "half a surrogate pair"),
        (
            {"messages": [{"role": "user", "content": "long " * 300}]},
            400,
            "but the model's context is 128: shorten it",
        ),
        ({"messages": HELLO, "logit_bias": {"100000": 1}}, 400, "logit_bias: '100000' is not a token id"),
    ],
)
def test_bad_requests_are_explained(server, body, status, says):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"content-type": "application/json"}
    response = httpx.post(f"{server}/v1/chat/completions", content=content, headers=headers, timeout=PATIENCE)
    assert response.status_code == status
    error = response.json()["error"]
    assert says in error["message"]
    assert error["type"] == "invalid_request_error"
    # The server answers the next request.
    assert httpx.post(f"{server}/v1/chat/completions", json={"messages": HELLO}, timeout=PATIENCE).status_code == 200


@pytest.fixture(scope="module")
def server(chat_folder, running):
    engine = Engine("tiny", load_model(chat_folder), load_tokenizer(str(chat_folder)), do_sample=False)
    with running(engine) as base:
        yield base


def test_what_there_is_besides_answers(server, client):
    assert [(model.id, model.object) for model in client(server).models.list()] == [("tiny", "model")]
    assert client(server).models.retrieve("tiny").owned_by == "chatgpt_hf"
    with pytest.raises(openai.NotFoundError, match="this server has 'tiny'"):
        client(server).models.retrieve("org/large")
    assert httpx.get(f"{server}/health", timeout=PATIENCE).json() == {"status": "ok"}
    unknown = httpx.get(f"{server}/v1/none", timeout=PATIENCE)
    assert (unknown.status_code, unknown.json()["error"]["type"]) == (404, "invalid_request_error")
    assert httpx.get(f"{server}/v1/completions", timeout=PATIENCE).status_code == 405
    before = metrics(server)
    ask(client(server), "Hello!")
    after = metrics(server)
    answered = 'chatgpt_hf_requests_total{path="/v1/chat/completions",status="200"}'
    assert after[answered] == before.get(answered, 0) + 1
    assert after["chatgpt_hf_completion_tokens_total"] > before["chatgpt_hf_completion_tokens_total"]
    assert after["chatgpt_hf_requests_running"] == 0
    assert 'chatgpt_hf_requests_total{path="other",status="404"}' in after


def metrics(address: str) -> dict[str, float]:
    lines = httpx.get(f"{address}/metrics", timeout=PATIENCE).text.splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}


def test_a_base_model_completes_and_does_not_chat(base_folder, client, running):
    tokenizer = load_tokenizer(str(base_folder))
    tokenizer.chat_template = None
    with running(Engine("base", load_model(base_folder), tokenizer)) as address:
        one = client(address)
        assert one.completions.create(model="base", prompt="A", max_tokens=3).usage.completion_tokens <= 3
        with pytest.raises(openai.BadRequestError, match="no chat template"):
            one.chat.completions.create(model="base", messages=HELLO)


def test_an_engine_that_keeps_what_it_computed(make_engine, client, running):
    # With PyTorch's own kernels compiled steps are tested in tests/inference/test_compiling.py.
    engine = make_engine()
    prefix = PrefixCache(engine.model)
    with running(Engine("tiny", engine.model, engine.tokenizer, prefix=prefix, do_sample=False)) as address:
        one = client(address)
        for question, answer in KNOWN.items():
            assert ask(one, question).choices[0].message.content == answer
            assert said(ask(one, question, stream=True)) == answer
    assert prefix.processed_tokens > 0


def test_the_api_key(make_engine, client, running):
    with running(make_engine(), api_key="sesame") as address:
        assert ask(client(address, "sesame"), "Hello!").choices[0].finish_reason == "stop"
        for wrong in ("open", "sesam", "sesames"):
            with pytest.raises(openai.AuthenticationError, match="The API key is missing or wrong"):
                ask(client(address, wrong), "Hello!")
        assert httpx.get(f"{address}/v1/models", timeout=PATIENCE).status_code == 401
        assert (
            httpx.get(
                f"{address}/v1/models", headers={"authorization": "Bearer sésame".encode()}, timeout=PATIENCE
            ).status_code
            == 401
        )
        assert httpx.get(f"{address}/health", timeout=PATIENCE).status_code == 200


def test_bodies_that_are_too_large_are_not_read(make_engine, running):
    with running(make_engine(), max_body_bytes=10_000) as address:
        host, port = address.removeprefix("http://").split(":")
        with closing(socket.create_connection((host, int(port)), timeout=PATIENCE)) as connection:
            # The answer comes although none of the 100 MB were sent.
            connection.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                b"Content-Length: 100000000\r\n\r\n"
            )
            assert connection.recv(100).startswith(b"HTTP/1.1 413")

        sent = 0

        def pieces() -> Any:
            nonlocal sent
            for _ in range(1600):
                sent += 65536
                yield b" " * 65536

        try:
            response = httpx.post(f"{address}/v1/completions", content=pieces(), timeout=PATIENCE)
            assert response.status_code == 413
            assert "10,000 bytes" in response.json()["error"]["message"]
        except (httpx.WriteError, httpx.RemoteProtocolError):
            pass  # The server closed the connection, which is fine too.
        assert sent < 50_000_000
        assert (
            httpx.post(
                f"{address}/v1/completions", json={"prompt": "A", "max_tokens": 1}, timeout=PATIENCE
            ).status_code
            == 200
        )


def test_a_body_that_does_not_come(make_engine, running):
    with running(make_engine(), request_seconds=0.5) as address:
        host, port = address.removeprefix("http://").split(":")
        with closing(socket.create_connection((host, int(port)), timeout=PATIENCE)) as connection:
            connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{")
            assert connection.recv(100).startswith(b"HTTP/1.1 408")


def work_of_another_answer(engine: Engine, held: Any, max_tokens: int) -> int:
    """Makes another answer without the server's limits; returns the tokens that the model reads for other requests."""
    ids = engine.tokenizer.apply_chat_template(HELLO, add_generation_prompt=True)["input_ids"]
    before = held.tokens

    async def answer() -> list[Any]:
        return [item async for item in engine.generate(ids, engine.config(len(ids), max_tokens))]

    held.open()
    assert asyncio.run(answer())[-1] == Ended("length", max_tokens)
    return held.tokens - before - (len(ids) + max_tokens - 1)


# An end mark that the model never generates: answers continue until the context is full.
ENDLESS: dict[str, Any] = {"eos_token_id": 0, "max_new_tokens": 90}


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_stops_the_model(make_engine, batched, stream, running, gate, wait_until):
    engine = make_engine(continuous_batching=batched, **ENDLESS)
    held = gate(engine.model)
    with running(engine) as address, held:
        host, port = address.removeprefix("http://").split(":")
        body = json.dumps({"messages": HELLO, "stream": stream}).encode()
        held.give(5)
        connection = socket.create_connection((host, int(port)), timeout=PATIENCE)
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            + f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        held.wait()
        connection.close()
        wait_until(lambda: metrics(address)["chatgpt_hf_cancelled_total"] == 1)
        wait_until(lambda: metrics(address)["chatgpt_hf_requests_running"] == 0)
        if batched:
            assert engine.batching.manager.output_router.result_handlers == {}
        # The step that was running, and one until the batch manager notices; without the cancellation it would be 40.
        assert work_of_another_answer(engine, held, 40) <= 2


@pytest.mark.parametrize("batched", [False, True])
def test_the_first_token_leaves_before_the_last_is_computed(make_engine, client, batched, running, gate):
    engine = make_engine(continuous_batching=batched, **ENDLESS)
    held = gate(engine.model)
    with running(engine) as address, held:
        held.give(3)
        chunks = ask(client(address), "Hello!", stream=True, max_tokens=40)
        contents = (chunk.choices[0].delta.content for chunk in chunks if chunk.choices[0].delta.content)
        # Each piece arrives while the model is blocked before a later step.
        next(contents)
        assert held.steps <= 3
        held.give(35)
        for _ in range(5):
            next(contents)
        assert held.steps <= 38
        held.open()
        assert list(contents)
        assert held.steps >= 39


@pytest.mark.parametrize("batched", [False, True])
def test_answers_that_take_too_long(make_engine, client, batched, running, gate):
    engine = make_engine(continuous_batching=batched, **ENDLESS)
    held = gate(engine.model)
    with running(engine, request_seconds=3) as address, held:
        held.give(5)
        with pytest.raises(openai.InternalServerError, match="not finished within") as error:
            ask(client(address), "Hello!")
        assert error.value.status_code == 504
        with pytest.raises(openai.APIError, match="not finished in time"):
            list(ask(client(address), "Hello!", stream=True))
        assert held.steps <= 5
        prompt = len(engine.tokenizer.apply_chat_template(HELLO, add_generation_prompt=True)["input_ids"])
        # One step of the first request; the second may have started.
        assert work_of_another_answer(engine, held, 40) <= 2 + prompt + 2


def test_requests_that_arrive_slowly_do_not_keep_others_out(make_engine, client, running):
    with running(make_engine(), max_concurrent=1) as address:
        host, port = address.removeprefix("http://").split(":")
        slow = [socket.create_connection((host, int(port)), timeout=PATIENCE) for _ in range(3)]
        for connection in slow:
            connection.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                b"Content-Length: 32\r\n\r\n{"
            )
        assert ask(client(address), "Hello!").choices[0].finish_reason == "stop"
        # They can still finish, one at a time.
        for connection in slow:
            connection.sendall(b'"prompt": "A", "max_tokens": 1}')
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
            connection.close()


def test_batching_that_has_ended_answers_no_more(make_engine, monkeypatch):
    engine = make_engine(continuous_batching=True)
    manager = engine.batching.manager
    add = manager.add_request

    def late(*args, **options):
        # The thread ends between the check and the request, which transformers then drops without a word.
        manager.stop(block=True)
        return add(*args, **options)

    async def answer() -> None:
        async for _ in engine.generate([1], engine.config(1, 1)):
            pass

    monkeypatch.setattr(manager, "add_request", late)
    assert engine.healthy
    with pytest.raises(GenerationFailed, match="stopping"):
        asyncio.run(answer())
    assert not engine.healthy
    monkeypatch.undo()
    with pytest.raises(GenerationFailed, match="stopping"):
        asyncio.run(answer())
    assert manager.output_router.result_handlers == {}


def test_more_requests_than_there_may_be(make_engine, client, running, gate, wait_until):
    engine = make_engine(**ENDLESS)
    held = gate(engine.model)
    with running(engine, max_concurrent=1) as address, held:
        held.give(0)
        stream = ask(client(address), "Hello!", stream=True)
        next(iter(stream))
        with pytest.raises(openai.RateLimitError, match="1 requests are in progress"):
            ask(client(address), "Hello!")
        stream.close()
        wait_until(lambda: metrics(address)["chatgpt_hf_requests_running"] == 0)
        held.open()
        assert ask(client(address), "Hello!", max_tokens=1).usage.completion_tokens == 1


def test_a_model_that_fails(make_engine, client, running):
    engine = make_engine()

    def fail(*args: Any) -> None:
        raise RuntimeError('a "bad" day')

    handle = engine.model.register_forward_pre_hook(fail)
    with running(engine) as address:
        with pytest.raises(openai.InternalServerError, match="bad"):
            ask(client(address), "Hello!")
        with pytest.raises(openai.APIError, match='a "bad" day'):
            list(ask(client(address), "Hello!", stream=True))
        handle.remove()
        assert ask(client(address), "Hello!").choices[0].message.content == KNOWN["Hello!"]


class NoWord:
    """A moderator that blocks one word in messages and answers."""

    def __init__(self, word: str) -> None:
        self.word, self.finish_reason, self.held = word, None, ""

    def check(self, text: str) -> None:
        if self.word in text:
            raise ContentFiltered("The message does not pass.")

    def filter(self) -> "NoWord":
        return NoWord(self.word)

    def feed(self, piece: str) -> str:
        text = self.held + piece
        if self.word in text:
            self.finish_reason = "content_filter"
            return text[: text.index(self.word)]
        safe = max(0, len(text) - len(self.word) + 1)
        self.held = text[safe:]
        return text[:safe]

    def finish(self) -> str:
        return self.held


def test_moderation(make_engine, client, running):
    with running(make_engine(moderation=NoWord("model"))) as address:
        one = client(address)
        with pytest.raises(openai.BadRequestError, match="does not pass") as error:
            ask(one, "Are you a model?")
        assert error.value.code == "content_filter"
        with pytest.raises(openai.BadRequestError):
            one.completions.create(model="tiny", prompt="a model")
        tool = {"type": "function", "function": {"name": "add", "description": "a m\\u006fdel"}}
        for fields in ({"tools": [tool]}, {"user": "model"}, {"stop": ["model"]}, {"metadata": {"model": "a"}}):
            with pytest.raises(openai.BadRequestError, match="does not pass"):
                ask(one, "Hello!", **fields)
        with pytest.raises(openai.BadRequestError, match="does not pass"):
            one.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "Hi", "mood": "model"}])
        whole = ask(one, "Who are you?")
        assert whole.choices[0].message.content == "I am a tiny "
        assert whole.choices[0].finish_reason == "content_filter"
        chunks = list(ask(one, "Who are you?", stream=True))
        assert said(chunks) == "I am a tiny "
        assert chunks[-1].choices[0].finish_reason == "content_filter"
        assert ask(one, "Smile").choices[0].message.content == KNOWN["Smile"]
        counted = metrics(address)
        assert counted['chatgpt_hf_filtered_total{where="input"}'] == 7
        assert counted['chatgpt_hf_filtered_total{where="output"}'] == 2


def test_tool_calls_are_moderated_as_their_reader_decodes_them():
    word = NoWord("model")
    assert _passes(word, ToolCall("add", '{"a": "mode", "b": "l"}'))
    for call in (
        ToolCall("model", "{}"),
        ToolCall("add", '{"a": "a model"}'),
        ToolCall("add", '{"model": 1}'),
        ToolCall("add", '{"a": "\\u006d\\u006Fdel"}'),
        ToolCall("add", json.dumps({"a": json.dumps("m\\u006fdel")})),
    ):
        assert not _passes(word, call)
    chinese = ToolCall("add", json.dumps({"a": "模型"}))
    assert "模" not in chinese.arguments
    assert not _passes(NoWord("模型"), chinese)


def test_tool_calls_come_apart_from_the_text(base_folder, tmp_path, client, running):
    """Clients receive text between <tool_call> and </tool_call> as tool calls."""
    from chatgpt_hf import sft
    from chatgpt_hf.training.arguments import ChatModelArguments, ChatSFTArguments, ConversationArguments

    tools = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}]
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 2}}}
    messages = [{"role": "user", "content": "1+2"}, {"role": "assistant", "content": "So:", "tool_calls": [call]}]
    file = tmp_path / "tools.jsonl"
    file.write_text(json.dumps({"messages": messages, "tools": tools}) + "\n", encoding="utf-8")
    model = load_model(base_folder)
    model.config.max_position_embeddings = 512
    model.save_pretrained(tmp_path / "base")
    load_tokenizer(str(base_folder)).save_pretrained(tmp_path / "base")
    sft(
        ChatModelArguments(model_name_or_path=str(tmp_path / "base")),
        ConversationArguments(dataset=str(file), block_size=512),
        ChatSFTArguments(
            output_dir=str(tmp_path / "chat"),
            optim="adamw_torch",
            learning_rate=1e-2,
            max_steps=80,
            per_device_train_batch_size=1,
            save_strategy="no",
            disable_tqdm=True,
            report_to="none",
        ),
    )
    tokenizer = load_tokenizer(str(tmp_path / "chat"))
    with running(Engine("tiny", load_model(tmp_path / "chat"), tokenizer, max_new_tokens=100)) as address:
        whole = ask(client(address), "1+2", tools=tools).choices[0]
        assert whole.message.content == "So:"
        assert whole.finish_reason == "tool_calls"
        function = whole.message.tool_calls[0].function
        assert (function.name, json.loads(function.arguments)) == ("add", {"a": 1, "b": 2})
        chunks = list(ask(client(address), "1+2", tools=tools, stream=True))
        assert said(chunks) == "So:"
        (streamed,) = [c.choices[0].delta.tool_calls[0] for c in chunks if c.choices[0].delta.tool_calls]
        assert (streamed.function.name, json.loads(streamed.function.arguments)) == ("add", {"a": 1, "b": 2})
        assert chunks[-1].choices[0].finish_reason == "tool_calls"
    # A call is not withheld, however unsure the model is; a text is.
    engine = Engine(
        "tiny", load_model(tmp_path / "chat"), tokenizer, max_new_tokens=100, abstain=Abstention(0.0, "No.")
    )
    with running(engine) as address:
        assert ask(client(address), "1+2", tools=tools).choices[0].message.tool_calls[0].function.name == "add"
        assert ask(client(address), "What?", max_tokens=5).choices[0].message.content == "No."


@pytest.fixture
def spawn(chat_folder, fork_server, tmp_path):
    """Runs `chatgpt-hf serve` in a separate process; returns the process and its address."""
    with ExitStack() as started:

        def start(*options: str, model: Any = chat_folder, before: str = "") -> tuple[Command, str]:
            arguments = ["serve", str(model), "--port", "0", *options]
            process = started.enter_context(fork_server.running(tmp_path, code=before, arguments=arguments))
            for line in process.output:
                if found := re.search(r"is served at (http://\S+)/v1", line):
                    process.keep_reading()
                    return process, found[1]
            raise AssertionError(f"the server ended with {process.wait()}")

        yield start


# Blocks the model before its fourth step until the test sends a line.
HELD = """
import sys
from torch.nn.modules.module import register_module_forward_pre_hook
steps = []
def hold(module, arguments):
    if type(module).__name__ == "ChatGPTForCausalLM":
        steps.append(1)
        if len(steps) == 4:
            sys.stdin.readline()
register_module_forward_pre_hook(hold)
"""


@pytest.mark.e2e
@pytest.mark.slow
def test_sigterm_ends_the_server_after_what_is_under_way(spawn, client, tmp_path, chat_folder, wait_until):
    model = load_model(chat_folder)
    model.generation_config.update(do_sample=False, **ENDLESS)
    model.save_pretrained(tmp_path / "endless")
    load_tokenizer(str(chat_folder)).save_pretrained(tmp_path / "endless")
    process, address = spawn("--served_model_name", "tiny", model=tmp_path / "endless", before=HELD)
    chunks = iter(ask(client(address), "Hello!", stream=True, max_tokens=30))
    next(chunks)
    process.send_signal(signal.SIGTERM)

    def refuses_connections() -> bool:
        try:
            httpx.get(f"{address}/health", timeout=PATIENCE)
        except httpx.TransportError:
            return True
        return False

    # The server has received the signal, and waits for the answer in progress.
    wait_until(refuses_connections)
    assert process.poll() is None
    process.stdin.write("\n")
    process.stdin.flush()
    rest = list(chunks)
    assert rest[-1].choices[0].finish_reason == "length"
    assert process.wait() == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{address}/health", timeout=PATIENCE)


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.parametrize("batching", ["--no-continuous_batching", "--continuous_batching"])
def test_two_hundred_requests_sixteen_at_a_time(spawn, client, batching):
    process, address = spawn("--served_model_name", "tiny", batching)
    one = client(address)
    questions = [*KNOWN, *(f"{question} {number}" for question in KNOWN for number in range(3))]
    tasks = [(questions[i % len(questions)], 1 + i * 7 % 60) for i in range(200)]
    alone = {task: ask(one, task[0], max_tokens=task[1]).choices[0].message.content for task in set(tasks)}
    together = []
    with ThreadPoolExecutor(16) as pool:
        # The first hundred requests create the server's threads and buffers; a machine with more cores has more of
        # them.
        for half in (tasks[:100], tasks[100:]):
            memory = psutil.Process(process.pid).memory_info().rss
            answers = pool.map(lambda task: ask(one, task[0], max_tokens=task[1]), half)
            together += [answer.choices[0].message.content for answer in answers]
    assert together == [alone[task] for task in tasks]
    assert psutil.Process(process.pid).memory_info().rss < 1.05 * memory
    assert process.poll() is None


def test_a_port_in_use(refused, chat_folder):
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        message = refused("serve", chat_folder, "--port", port)
        assert f"Cannot listen on 127.0.0.1:{port}" in message
        assert "--port" in message


def test_options_that_cannot_be(refused, chat_folder, make_engine, tmp_path):
    assert "--log_level is loud" in refused("serve", chat_folder, "--log_level", "loud")
    both = refused("serve", chat_folder, "--compile", "--continuous_batching")
    assert "leave out --compile or --continuous_batching" in both
    # An address of documentation, and a label that is too long for a name: neither waits for a name server.
    for host in ("192.0.2.1", "a" * 70):
        assert f"Cannot listen on {host}:8000" in refused("serve", chat_folder, "--host", host)
    config = ChatGPTConfig(
        vocab_size=300, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, conv_kernel_size=3
    )
    tokenizer = load_tokenizer(str(chat_folder))
    with pytest.raises(ConfigError, match="convolutions or n-grams"):
        Engine("tiny", ChatGPTForCausalLM(config), tokenizer, continuous_batching=True)
    (tmp_path / "no tokenizer").mkdir()
    load_model(chat_folder).save_pretrained(tmp_path / "no tokenizer")
    assert "no tokenizer" in refused("serve", tmp_path / "no tokenizer")
    with pytest.raises(ConfigError, match=r"cannot apply repetition_penalty: .*or give --repetition_penalty 1,"):
        make_engine(continuous_batching=True, repetition_penalty=1.3)


@pytest.mark.e2e
def test_the_models_own_penalty_can_be_turned_off(spawn, client, chat_folder, tmp_path):
    folder = tmp_path / "penalized"
    shutil.copytree(chat_folder, folder)
    file = folder / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "repetition_penalty": 50.0}))
    replies = []
    for model, options in ((chat_folder, ()), (folder, ()), (folder, ("--repetition_penalty", "1"))):
        process, address = spawn("--served_model_name", "tiny", *options, model=model)
        replies.append(ask(client(address), next(iter(KNOWN))).choices[0].message.content)
        process.send_signal(signal.SIGTERM)
    assert replies[0] == replies[2] != replies[1]
