"""Text of a model or a stranger on a terminal: it cannot control it, is never markup, and stays readable."""

import contextlib
import io
import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset

import chatgpt_hf_cli
from chatgpt_hf.data.conversations import show_masks
from chatgpt_hf.errors import DataError
from chatgpt_hf.preview import Preview
from chatgpt_hf.terminal import visible
from chatgpt_hf_cli import _recipe, _terminal
from chatgpt_hf_cli.chat import answer
from chatgpt_hf_cli.data import show
from chatgpt_hf_cli.evaluate import print_figures

Cli = Callable[..., Any]
OnTerminal = Callable[..., str]

ATTACKS = {
    "writes the clipboard": "\x1b]52;c;cm0gLXJmIH4=\x07",
    "writes the clipboard, ended by ST": "\x1b]52;c;cm0gLXJmIH4=\x1b\\",
    "writes the clipboard, in 8 bits": "\x9d52;c;cm0gLXJmIH4=\x9c",
    "sets the title": "\x1b]0;root\x07",
    "links elsewhere": "\x1b]8;;https://evil.example\x1b\\bank\x1b]8;;\x1b\\",
    "clears the screen": "\x1b[2J\x1b[H",
    "overwrites the line above": "\x1b[1A\x1b[2Kyou> yes",
    "hides text": "\x1b[8mhidden\x1b[0m",
    "recolors, in 8 bits": "\x9b31m",
    "asks the terminal to type": "\x1b[6n\x1b[c\x05",
    "device control": "\x1bP$q\x1b\\",
    "application command": "\x1b_Gf=100;\x1b\\",
    "privacy message": "\x9ehello\x9c",
    "resets": "\x1bc",
    "other character set": "\x0e\x1b(0lqk\x0f",
    "mouse reports": "\x1b[?1000h",
    "alternate screen": "\x1b[?1049h",
    "cut between tokens": "\x1b" + "]" + "5" + "2;c;eA==" + "\x07",
    "bell": "\x07",
    "backspaces": "no\b\byes",
    "carriage return": "rm -rf ~\rls      ",
    "vertical tab and form feed": "a\x0bb\x0cc",
    "null and delete": "a\x00b\x7f",
    "next line and reverse index": "a\x85b\x8dc",
    "overridden order": "file\u202egnp.exe",
    "overridden order, left to right": "\u202dabc\u202c",
    "embeddings": "\u202aabc\u202b",
    "isolates": "\u2066a\u2067b\u2068c\u2069",
    "half a surrogate pair": "a\ud83d",
    "substitute and escape alone": "\x1a\x1b",
}
READABLE = [
    "é ñ e\u0301",
    "👩‍👩‍👧‍👦 👍🏽 🏴\U000e0067\U000e0062\U000e007f ❤️",
    "笨蛋，你好",
    "שלום \u200f العربية",
    "क्षि ไทย",
    "a\tb\nc",
    "\u00a0\u00ad\u200b",
]
# What rich writes itself: colors and cursor movements.
OF_RICH = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")
FORBIDDEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Calls a function with a terminal as stdout; returns what it wrote there."""
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "200")

    def call(function: Callable[..., None], *arguments: Any) -> str:
        with contextlib.redirect_stdout(Terminal()) as terminal:
            function(*arguments)
        return terminal.getvalue()

    return call


def session() -> Any:
    ending = SimpleNamespace(finish_reason="stop", answer_ids=[1], abstained=False)
    return SimpleNamespace(ending=ending, cut_by=None)


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_no_control_sequence_arrives(attack: str, on_terminal: OnTerminal) -> None:
    assert not FORBIDDEN.search(visible(attack))
    assert visible(attack) == "".join(map(visible, attack))
    drawn = on_terminal(answer, session(), iter(f"before {attack} after"))
    assert attack not in drawn
    assert not FORBIDDEN.search(OF_RICH.sub("", drawn))
    assert "before" in drawn
    assert "after" in drawn


@pytest.mark.parametrize("text", READABLE)
def test_all_letters_stay(text: str) -> None:
    assert visible(text) == text


def test_what_is_replaced_can_be_seen() -> None:
    assert visible("\x1b]52;c;eA==\x07 \x7f \x9b31m \u202e") == "␛]52;c;eA==␇ ␡ �31m �"


def test_markdown_cannot_bring_them_back(on_terminal: OnTerminal) -> None:
    text = "a &#x202e;b &#27;[31m &#155;31m &#x2067; [bank](https://evil.example/%1b]0;x) `&#x202e;`"
    drawn = on_terminal(answer, session(), iter([text]))
    assert "\x1b]" not in drawn
    assert not FORBIDDEN.search(OF_RICH.sub("", drawn))
    assert "https://evil.example" in drawn, "a link shows where it leads"


def test_markup_is_text(on_terminal: OnTerminal) -> None:
    drawn = on_terminal(answer, session(), iter(["[red]danger[/red] [link=https://evil.example]x[/link]"]))
    assert "[red]danger[/red]" in OF_RICH.sub("", drawn)


def test_a_file_gets_what_the_model_wrote(capsys: pytest.CaptureFixture[str]) -> None:
    attack = ATTACKS["writes the clipboard"]
    answer(session(), iter(["a", attack]))
    _terminal.write(attack)
    _terminal.say(attack)
    assert capsys.readouterr().out == f"a{attack}\n{attack}{attack}\n"


def test_lines_for_a_terminal(on_terminal: OnTerminal, capsys: pytest.CaptureFixture[str]) -> None:
    for attack in ATTACKS.values():
        assert not FORBIDDEN.search(on_terminal(_terminal.write, attack))
        assert not FORBIDDEN.search(on_terminal(_terminal.say, attack))
        _terminal.say_aside(attack)
    assert not FORBIDDEN.search(capsys.readouterr().err)


def test_previews_and_masks(capsys: pytest.CaptureFixture[str]) -> None:
    attack = "".join(ATTACKS.values())
    name = f"[red]{attack}[/red] :smiley:"
    show(
        Preview(
            purpose="finetune",
            tables=[{"source": name, "column": name}],
            splits={"train": 1},
            examples=[[(name, True), (name, False)]],
            unit="bytes",
            lengths={"50 %": 1},
            block_size=8,
            longer=None,
            duplicates=0,
            overlap=0,
            scripts={},
            labels={name: 1},
            dropped={name: 1},
            unusable=0,
        )
    )
    rows = Dataset.from_dict({"input_ids": [[1, 2]], "labels": [[-100, 2]]})
    show_masks(rows, SimpleNamespace(decode=lambda *_, **__: name))
    _recipe.print_results({name: name}, name)
    measured = SimpleNamespace(shown=lambda: "1", interval=lambda: "", signature=None)
    print_figures({name: {name: measured}})
    drawn = capsys.readouterr().out
    assert not FORBIDDEN.search(drawn)
    assert drawn.count("[red]") >= 8
    assert ":smiley:" in drawn


@pytest.mark.parametrize("saved", [False, True])
def test_ctrl_c_says_what_is_kept(
    saved: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("chatgpt_hf.training.sft.sft", interrupted)
    if saved:
        (tmp_path / "checkpoint-3").mkdir()
        monkeypatch.setattr("chatgpt_hf.training.run_folder.is_whole_checkpoint", lambda checkpoint: True)
    with pytest.raises(KeyboardInterrupt):
        _recipe.train("chatgpt_hf.training.sft:sft")((SimpleNamespace(output_dir=str(tmp_path)),))
    kept = f"{tmp_path / 'checkpoint-3'} is complete. Add --resume to continue from it."
    assert f"stopped: SIGINT; {kept if saved else 'no checkpoint was saved yet.'}" in capsys.readouterr().err


def test_errors_and_logs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    attack = "".join(ATTACKS.values())

    def fail(_: list[str]) -> None:
        # pytest keeps what is logged, and sends it to another process as UTF-8.
        logging.getLogger("chatgpt_hf.nobody").warning("%s", attack.encode(errors="replace").decode())
        raise DataError(f"the file says {attack}")

    monkeypatch.setattr(chatgpt_hf_cli, "_run", fail)
    with pytest.raises(SystemExit):
        chatgpt_hf_cli.main()
    assert not FORBIDDEN.search(capsys.readouterr().err)
    record = logging.makeLogRecord({"msg": attack})
    assert not FORBIDDEN.search(_terminal.VisibleFormatter().format(record))


def test_a_hostile_file_in_an_error_message(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "\x1b]0;x\x07\u202e.jsonl"
    file.write_text(json.dumps({"\x9b31m\x1b[2J": "\x1b]52;c;eA==\x07"}) + "\n", encoding="utf-8")
    for purpose in ("sft", "pretrain", "finetune"):
        result = cli("data", "preview", file, "--for", purpose)
        # Progress bars return to the beginning of the line.
        assert not FORBIDDEN.search((result.out + result.err).replace("\r", ""))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text('"\\e]0;x\\a\\u202e": 1\n', encoding="utf-8")
    result = cli("pretrain", recipe)
    assert result.code == 2
    assert not FORBIDDEN.search(result.err)
