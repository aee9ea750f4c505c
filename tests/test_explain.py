"""`chatgpt-hf explain`, and `/explain` in the chat."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chatgpt_hf import ChatSession, load_for_generation, load_tokenizer
from chatgpt_hf.checkpoints import load_for_inference
from chatgpt_hf.errors import ConfigError
from chatgpt_hf.explain import explain_last_answer
from chatgpt_hf.inference.cpu import packed_linear as kernels
from chatgpt_hf.inference.quantization import quantize_folder
from chatgpt_hf.interpretability.explanation import PARTS

pytest.importorskip("captum", reason="needs captum: pip install 'chatgpt-hf[explain]'")


def answer_on(file: Path) -> str:
    (target,) = re.findall(r"<q>(.*?)</q>", file.read_text(encoding="utf-8"), flags=re.DOTALL)
    return target


def test_the_command(cli: Callable[..., Any], chat_folder: Path, corpus_file: Path, tmp_path: Path) -> None:
    page = tmp_path / "new" / "report.html"
    result = cli("explain", chat_folder, "--text", "A cat looks at it.", "--out", page, "--corpus", corpus_file)
    assert (result.code, result.out) == (0, f"Written to {page}\n")
    for stage in ("Surprise", "Attention", "Logit lens", "Tuned lens", "Ablation"):
        assert f"{stage}\n" in result.err
    content = page.read_text(encoding="utf-8")
    assert "cat" in content
    assert str(corpus_file) in content
    # Explaining again gives the same page.
    again = tmp_path / "again.html"
    assert (
        cli("explain", chat_folder, "--text", "A cat looks at it.", "--out", again, "--corpus", corpus_file).code == 0
    )
    assert again.read_bytes() == page.read_bytes()
    result = cli("explain", chat_folder, "--prompt", "Hello!", "--out", page, "--corpus", corpus_file)
    assert result.code == 0
    assert "Hi! How are you?" in answer_on(page)


def test_parts_that_are_left_out(cli: Callable[..., Any], chat_folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    command = ("explain", chat_folder, "--text", "A cat.", "--out", page)
    # Nothing that is left needs the corpus.
    result = cli(*command, "--corpus", "nowhere", "--without", "ablation,tuned_lens", "--without", "attribution")
    assert result.code == 0, result.err
    said = result.err.splitlines()
    (budget,) = [line for line in said if line.startswith("This takes about ")]
    assert said.index(budget) < said.index("Surprise")
    assert [line for line in said if line in ("Attention", "Logit lens", "The heads", "Tuned lens", "Ablation")] == [
        "Attention",
        "Logit lens",
        "The heads",
    ]
    content = page.read_text(encoding="utf-8")
    assert "Left out as asked: attribution, tuned lens, ablation." in content
    for name, there in (
        ("lens", True),
        ("attention", True),
        ("heads", True),
        ("attribution", False),
        ("ablation", False),
    ):
        assert (f'id="{name}"' in content) == there
    result = cli(*command, "--without", ",".join(PARTS))
    assert result.code == 0, result.err
    content = page.read_text(encoding="utf-8")
    assert 'id="surprise"' in content
    assert not [
        name for name in ("lens", "attention", "heads", "attribution", "ablation") if f'id="{name}"' in content
    ]


def test_a_part_that_does_not_exist(refused: Callable[..., str], tmp_path: Path) -> None:
    message = refused(
        "explain", tmp_path / "none", "--text", "a", "--out", tmp_path / "a.html", "--without", "ablations"
    )
    assert "There is no part 'ablations' to leave out; choose from attention, lens, attribution" in message


def test_mistakes(refused: Callable[..., str], chat_folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    options = ["--out", page]
    assert "--text or --prompt" in refused("explain", chat_folder, *options)
    assert "--text or --prompt" in refused("explain", chat_folder, *options, "--text", "a", "--prompt", "b")
    assert "empty" in refused("explain", chat_folder, *options, "--text", "")
    assert "the model's context is 128" in refused("explain", chat_folder, *options, "--text", "word " * 200)
    assert "nowhere" in refused("explain", chat_folder, *options, "--text", "a", "--corpus", tmp_path / "nowhere")
    assert "is a folder" in refused("explain", chat_folder, "--out", tmp_path, "--text", "a")
    assert "name a file" in refused("explain", chat_folder, "--out", "", "--text", "a")
    for out in ("/proc/page.html", "/proc/new/page.html", tmp_path / f"{'x' * 300}.html"):
        # The error comes before any computation.
        assert f"cannot be written to {out}" in refused("explain", tmp_path / "none", "--out", out, "--text", "a")
    for option in ("--text", "--prompt"):
        assert f"{option} is not text: its character 2" in refused("explain", chat_folder, *options, option, "a\udcff")
    assert "no folder" in refused("explain", tmp_path / "none", *options, "--text", "a")
    base = shutil.copytree(chat_folder, tmp_path / "base")
    (base / "chat_template.jinja").unlink()
    assert "no chat template" in refused("explain", base, *options, "--prompt", "Hello!")
    assert not page.exists()


def test_in_the_chat(
    cli: Callable[..., Any], chat_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = ["/explain", "Hello!", "/explain", "/reset", "Smile", "/explain smile.html", "/save said.json"]
    lines += ["/reset", "Hello!", "/load said.json", "/explain", "/reset", "/explain"]
    result = cli("chat", chat_folder, stdin="\n".join(lines))
    assert result.code == 0
    assert result.err.count("error: The model has not answered in this session") == 3
    assert str(tmp_path / "explanation.html") in result.err
    assert "Hi! How are you?" in answer_on(tmp_path / "explanation.html")
    assert "😀👍🏽" in answer_on(tmp_path / "smile.html")
    # The tuned lens needs other texts, which would take time.
    smile = (tmp_path / "smile.html").read_text(encoding="utf-8")
    for absent in ('id="ablation"', "Removed parts", "tuned lens"):
        assert absent not in smile
    assert "Integrated gradients" in smile


def test_what_moderation_held_back_is_not_shown(chat_folder: Path, tmp_path: Path) -> None:
    from chatgpt_hf.moderation.words import WordList

    session = ChatSession.from_pretrained(chat_folder, moderation=WordList(["are"]))
    assert "are" not in session.reply("Hello!")
    with pytest.raises(ConfigError, match="Moderation"):
        explain_last_answer(session, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()
    session.reply("Smile")
    assert explain_last_answer(session, tmp_path / "page.html").is_file()


def test_a_quantized_model_is_refused(
    refused: Callable[..., str], cli: Callable[..., Any], chat_folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("torchao", reason="needs torchao: pip install 'chatgpt-hf[quantize]'")
    folder = tmp_path / "int8"
    quantize_folder(chat_folder, folder, "int8")
    page = tmp_path / "page.html"
    assert "int8 is quantized" in refused("explain", folder, "--out", page, "--text", "a")
    result = cli("chat", folder, stdin=f"Hello!\n/explain {page}\nHello!\n")
    assert result.code == 0
    assert "int8 is quantized" in result.err
    session = ChatSession(load_for_inference(str(folder)), load_tokenizer(chat_folder))
    session.reply("Hello!")
    with pytest.raises(ConfigError, match="The session's model is quantized"):
        explain_last_answer(session, page)
    assert not page.exists()


def test_the_answer_that_is_explained_is_the_one_that_is_shown(chat_folder: Path, tmp_path: Path) -> None:
    session = ChatSession.from_pretrained(chat_folder)
    answer = session.reply("Hello!")
    file = tmp_path / "said.json"
    messages = [{"role": "user", "content": "Another question"}, {"role": "assistant", "content": answer}]
    file.write_text(json.dumps({"messages": messages}), encoding="utf-8")
    session.load(file)
    with pytest.raises(ConfigError, match="The model has not answered in this session"):
        explain_last_answer(session, tmp_path / "page.html")
    assert session.reply("Smile")
    assert explain_last_answer(session, tmp_path / "page.html").is_file()
    session.reset()
    with pytest.raises(ConfigError, match="The model has not answered in this session"):
        explain_last_answer(session, tmp_path / "page.html")


def test_a_packed_model_that_was_handed_over(
    chat_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "SMALLEST", 0)
    session = ChatSession(load_for_generation(chat_folder), load_tokenizer(chat_folder))
    session.reply("Hello!")
    with pytest.raises(ConfigError, match="gives no gradients"):
        explain_last_answer(session, tmp_path / "page.html")
