"""`chatgpt-hf chat`: one message, a piped conversation, and the commands in it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chatgpt_hf import ChatSession
from chatgpt_hf.data.conversations import load_conversations
from chatgpt_hf.data.sources import parse_sources
from chatgpt_hf_cli.chat import hard_breaks

Cli = Callable[..., Any]
ANSWER = "I am a tiny model,\nmade for a test."


def test_one_message(cli: Cli, chat_folder: Path) -> None:
    result = cli("chat", chat_folder, "--prompt", "Who are you?")
    assert (result.code, result.out) == (0, ANSWER + "\n")
    assert cli("chat", chat_folder, "--prompt", "Smile", "--temperature", "0").out == "😀👍🏽 yes 🎉\n"
    assert cli("chat", chat_folder, "--prompt", "Who are you?", "--max_new_tokens", "3").out != ANSWER + "\n"


@pytest.mark.parametrize("prompt", ["", " \n\t"])
def test_an_empty_message_is_refused(refused: Callable[..., str], chat_folder: Path, prompt: str) -> None:
    assert refused("chat", chat_folder, "--prompt", prompt).startswith("--prompt is empty: give the message")


def test_the_seed_decides(cli: Cli, chat_folder: Path) -> None:
    def say(seed: int) -> str:
        options = ["--temperature", "8", "--max_new_tokens", "20"]
        return cli("chat", chat_folder, "--prompt", "Hello!", *options, "--seed", seed).out

    assert say(1) == say(1) != say(2)


def test_a_piped_conversation(cli: Cli, chat_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "new" / "said.json"
    lines = ["Hello!", "", "/reset", "Smile", f"/save {file}", "/what", "/quit", "never read"]
    result = cli("chat", chat_folder, "--system", "你好", stdin="\n".join(lines) + "\n")
    assert result.code == 0
    first, second = result.out.splitlines()
    # The answers are those of a session with the same history, and nothing else is on stdout.
    session = ChatSession.from_pretrained(chat_folder, system_prompt="你好")
    assert first == session.reply("Hello!")
    session.reset()
    assert second == session.reply("Smile")
    assert json.loads(file.read_text(encoding="utf-8")) == {"messages": session.messages}
    assert result.err.count("/reset starts a new conversation") == 2, "help at the start, and for an unknown command"
    assert "New conversation." in result.err
    assert str(file) in result.err


def test_what_was_saved_can_be_learned_from(cli: Cli, chat_folder: Path, tmp_path: Path) -> None:
    cli("chat", chat_folder, "--max_new_tokens", "30", stdin=f"你好\nSmile\n/save {tmp_path / 'said.json'}\n")
    rows = load_conversations(parse_sources(str(tmp_path / "said.json")))["train"]
    assert [message["role"] for message in rows["messages"][0]] == ["user", "assistant"] * 2
    assert rows["messages"][0][0]["content"] == "你好"


def test_mistakes_do_not_end_the_conversation(cli: Cli, chat_folder: Path, tmp_path: Path) -> None:
    lines = ["long " * 300, f"/save {tmp_path}", "Hello!"]
    result = cli("chat", chat_folder, stdin="\n".join(lines))
    assert (result.code, result.out) == (0, "Hi! How are you?\n")
    assert "shorten the message, or lower max_new_tokens" in result.err
    assert str(tmp_path) in result.err
    assert list(tmp_path.iterdir()) == []


def test_commands(cli: Cli, chat_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "said.json"
    lines = [
        "Hello!",
        f"/save {file}",
        "/reset",
        "Smile",
        f"/load {file}",
        "/regenerate",
        "/set temperature 0",
        "/system 你好",
    ]
    lines += [
        "/set max_new_tokens 3",
        "Who are you?",
        "/set warmth 3",
        "/set temperature",
        "/load nowhere.json",
        "/regenerate",
    ]
    result = cli("chat", chat_folder, "--temperature", "0", stdin="\n".join(lines) + "\n")
    hello, smile, again, *short = result.out.split("\n")[:5]
    assert (result.code, hello, smile, again) == (0, "Hi! How are you?", "😀👍🏽 yes 🎉", "Hi! How are you?")
    assert ANSWER.startswith(short[0])
    assert short[0] == short[1] != ANSWER
    for words in (
        "2 messages loaded",
        "with this system prompt",
        "max_new_tokens is now 3",
        "'warmth' is not a generation",
    ):
        assert words in result.err
    assert "/set needs a name and a value" in result.err
    assert "nowhere.json does not contain a conversation" in result.err


def test_a_message_of_several_lines(cli: Cli, chat_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "said.json"
    cli("chat", chat_folder, "--max_new_tokens", "3", stdin=f"one\\\ntwo \\\nthree\n/save {file}\n")
    assert json.loads(file.read_text())["messages"][0]["content"] == "one\ntwo \nthree"


def test_stopping_an_answer(cli: Cli, chat_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C stops one answer; the conversation goes on with what was said."""
    whole = ChatSession.stream

    def interrupted(self: ChatSession, text: str) -> Any:
        pieces = whole(self, text)
        if text != "Count to five.":
            yield from pieces
            return
        yield next(pieces)
        pieces.close()
        raise KeyboardInterrupt

    monkeypatch.setattr(ChatSession, "stream", interrupted)
    result = cli("chat", chat_folder, stdin="Count to five.\n/reset\nHello!\n")
    assert (result.code, result.out) == (0, "1,  [stopped]\nHi! How are you?\n")


def test_a_cut_answer_says_how_to_lengthen_it(cli: Cli, chat_folder: Path) -> None:
    question = ("chat", chat_folder, "--temperature", "0", "--prompt", "Who are you?")
    whole, cut = cli(*question), cli(*question, "--max_new_tokens", "3")
    assert "The answer was cut" not in whole.err
    assert "The answer was cut after 3 tokens: --max_new_tokens 6 allows longer ones.\n" in cut.err
    talk = cli(*question[:4], stdin="/set max_new_tokens 4\nWho are you?\n/set max_new_tokens 8\nSmile\n")
    assert talk.err.count("The answer was cut after 4 tokens: /set max_new_tokens 8 allows longer ones.\n") == 1


def test_moderation(cli: Cli, chat_folder: Path, tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("tiny model\nrascal*\n", encoding="utf-8")
    options = ["--moderation", words, "--temperature", "0"]
    result = cli("chat", chat_folder, *options, stdin="You r-a-s-c-a-l-s\nHello!\n/reset\nWho are you?\n")
    assert (result.code, result.out) == (0, "Hi! How are you?\nI am a \n")
    assert "error: Moderation blocked the message: it contains a listed word." in result.err
    assert result.err.count("Moderation ended the answer.") == 1
    one = cli("chat", chat_folder, *options, "--prompt", "Who are you?")
    assert (one.code, one.out) == (0, "I am a \n")
    assert "Moderation ended the answer." in one.err
    assert cli("chat", chat_folder, *options, "--prompt", "Rascals!").code == 2


def test_moderation_that_cannot_be(refused: Callable[..., str], chat_folder: Path, tmp_path: Path) -> None:
    assert "cannot be read" in refused("chat", chat_folder, "--moderation", tmp_path / "nowhere.txt")
    assert "with a trained head" in refused(
        "chat", chat_folder, "--moderation", chat_folder, "--moderation_labels", "LABEL_0"
    )
    assert "name the model with --moderation" in refused("chat", chat_folder, "--moderation_labels", "toxic")


def test_bad_words_and_watermark(cli: Cli, chat_folder: Path, refused: Callable[..., str]) -> None:
    options = ["--prompt", "Who are you?", "--temperature", "0"]
    assert "tiny" not in cli("chat", chat_folder, *options, "--bad_words", "model,tiny", "--bad_words", "test").out
    assert cli("chat", chat_folder, *options, "--watermark").code == 0
    assert cli("generate", chat_folder, "--max_new_tokens", "5", "--bad_words", "cat", "--watermark").code == 0


def test_line_breaks_stay_and_code_is_left_alone() -> None:
    assert hard_breaks("one\ntwo\n\nthree") == "one  \ntwo\n\nthree"
    code = "```python\nfor x in y:\n    print(x)\n```"
    assert hard_breaks(f"a\nb\n\n{code}\n\nc\nd") == f"a  \nb\n\n{code}\n\nc  \nd"
    # A block that is still being written.
    assert hard_breaks("```python\nfor x in y:\n    pri") == "```python\nfor x in y:\n    pri"


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_on_a_terminal(chat_folder: Path) -> None:
    """Typed at a real terminal: the answer is drawn there, Ctrl-C at the prompt ends the program in good order."""
    import pty

    controller, terminal = pty.openpty()
    command = [sys.executable, "-c", "from chatgpt_hf_cli import main; main()", "chat", str(chat_folder)]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, stdin=terminal, stdout=terminal, stderr=terminal, env=environment, start_new_session=True
    )
    os.close(terminal)
    seen = ""

    def until(words: str) -> None:
        nonlocal seen
        while words not in seen:
            seen += os.read(controller, 4096).decode("utf-8", "replace")
        seen = seen[seen.index(words) + len(words) :]

    try:
        until("you> ")
        os.write(controller, b"Who are you?\n")
        until("I am a tiny model,")
        until("made for a test.")
        until("you> ")
        os.write(controller, "你好\n".encode())
        until("我是一个小模型。")
        until("you> ")
        os.write(controller, b"/quit\n")
        assert process.wait(900) == 0
    finally:
        process.kill()
        os.close(controller)
