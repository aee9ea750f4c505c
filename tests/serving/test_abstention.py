"""A server whose model says that it does not know, as clients see it."""

import json
import socket

import httpx
import openai
import pytest

from chatgpt_hf.errors import ConfigError
from chatgpt_hf.inference.abstention import Abstention

# Only ends a test that hangs.
PATIENCE = 900
ABSTENTION = Abstention(-0.02, "I don't know that.", 40)
KNOWN, UNKNOWN = "Hello!", "Is the river red?"


def ask(client, text, **options):
    return client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": text}], **options)


def test_known_and_unknown_whole_and_streamed(make_engine, running, client):
    with running(make_engine(abstain=ABSTENTION)) as address:
        one = client(address)
        assert ask(one, KNOWN).choices[0].message.content == "Hi! How are you?"
        # However the answer would be chosen.
        for options in (
            {},
            {"temperature": 2, "seed": 1},
            {"temperature": 0, "extra_body": {"repetition_penalty": 5}},
        ):
            whole = ask(one, UNKNOWN, **options)
            assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == (ABSTENTION.text, "stop")
            assert 0 < whole.usage.completion_tokens <= 40
            chunks = list(ask(one, UNKNOWN, stream=True, **options))
            assert [c.choices[0].delta.content for c in chunks if c.choices[0].delta.content] == ["", ABSTENTION.text][
                1:
            ]
            assert chunks[-1].choices[0].finish_reason == "stop"
        sampled = [ask(one, KNOWN, temperature=2, seed=seed).choices[0].message.content for seed in (1, 1, 2)]
        assert sampled[0] == sampled[1] != sampled[2]
        assert "chatgpt_hf_abstained_total 6.0" in httpx.get(f"{address}/metrics").text
        with pytest.raises(openai.BadRequestError, match="a text to continue has no answer to judge: use /v1/chat"):
            one.completions.create(model="tiny", prompt="A cat")


def test_a_client_that_leaves_while_its_answer_is_judged(make_engine, running, gate, wait_until, client):
    engine = make_engine(abstain=ABSTENTION)
    with running(engine) as address, gate(engine.model) as held:
        host, port = address.removeprefix("http://").split(":")
        body = json.dumps({"messages": [{"role": "user", "content": UNKNOWN}]}).encode()
        held.give(2)
        connection = socket.create_connection((host, int(port)), timeout=PATIENCE)
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            + f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        held.wait()
        connection.close()
        wait_until(lambda: "chatgpt_hf_cancelled_total 1.0" in httpx.get(f"{address}/metrics").text)
        held.open()
        # The generating thread takes the next request.
        assert ask(client(address), KNOWN).choices[0].message.content == "Hi! How are you?"


def test_not_with_continuous_batching(make_engine):
    with pytest.raises(ConfigError, match="Abstention judges one answer at a time"):
        make_engine(abstain=ABSTENTION, continuous_batching=True)
