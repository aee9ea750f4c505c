"""`chatgpt-hf env`."""

import json
import os
import platform
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import chatgpt_hf
from chatgpt_hf.extras import EXTRAS
from chatgpt_hf.training.adaptation import _file


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CHATGPT_HF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_bug_report(cli: Callable[..., Any], root: Path) -> None:
    size = _file(["A text."]).stat().st_size
    found = json.loads(cli("env", "--json").out)
    assert found["versions"]["chatgpt-hf"] == chatgpt_hf.__version__
    assert found["versions"]["python"] == platform.python_version()
    for name in ("torch", "transformers", "tokenizers", "datasets", "accelerate", "safetensors", "huggingface_hub"):
        assert found["versions"][name] == metadata.version(name)
    assert {"trl", "peft"} <= set(found["versions"])
    assert found["cores"]["count"] == os.cpu_count()
    assert found["memory"]["total"] > found["memory"]["available"] > 0
    assert set(found["extras"]) == set(EXTRAS)
    own, *others = found["caches"]
    assert (own["path"], own["bytes"]) == (str(root), size)
    assert [each["name"] for each in others] == ["datasets", "hub"]
    assert own["free"] > 0

    text = cli("env").out
    assert f"- chatgpt-hf: {chatgpt_hf.__version__}\n" in text
    assert f"- cache of chatgpt-hf: {root}, {size} bytes, free on its disk: " in text
    assert all(line.startswith("- ") for line in text.splitlines())


def test_what_is_not_installed(cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatgpt_hf.environment.PACKAGES", ("a_package_that_nobody_has",))
    monkeypatch.setattr("chatgpt_hf.environment.missing_packages", lambda extra: ["peft"] if extra == "peft" else [])
    text = cli("env").out
    assert "- a_package_that_nobody_has: not installed\n" in text
    assert "- not in extra peft: peft\n" in text


def test_pruning_says_what_it_removed(cli: Callable[..., Any], root: Path) -> None:
    file = _file(["A text."])
    size = file.stat().st_size
    assert cli("env", "--prune", "--older_than", "1").out == f"Nothing to remove from {root}\n"
    assert file.exists()
    answer = cli("env", "--prune")
    assert answer.code == 0
    assert answer.out == f"{f'{size} bytes':>12}  texts       {file}\nRemoved {size} bytes from {root}\n"
    assert not file.exists()
    _file(["A text."])
    figures = json.loads(cli("env", "--prune", "--json").out)
    assert (figures["cache"], figures["bytes"], figures["in_use"]) == (str(root), size, [])
    assert [each["path"] for each in figures["removed"]] == [str(file)]


def test_what_is_in_use_is_named(cli: Callable[..., Any], root: Path) -> None:
    file = _file(["A text."])
    with chatgpt_hf.cache.in_use(file):
        answer = cli("env", "--prune")
    assert answer.code == 0
    assert answer.out.startswith(f"In use, not removed: {file} (")
    assert file.exists()


def test_mistakes(refused: Callable[..., str], root: Path) -> None:
    assert refused("env", "--older_than", "3") == "--older_than needs --prune.\n"
    assert refused("env", "--prune", "--older_than", "-1").startswith("--older_than is -1: give a number of days")
    assert refused("env", "--prune", "--older_than", "nan").startswith("--older_than is nan")
    root.write_text("")
    assert f"{root} is a file" in refused("env", "--prune")
