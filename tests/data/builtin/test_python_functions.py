"""Functions of the standard library as prompt and completion are whole, documented, and never on both sides."""

import ast
import json
import os
import subprocess
import sys
import sysconfig

import pytest

from chatgpt_hf.data.builtin import load_builtin
from chatgpt_hf.data.builtin import python_functions as functions
from chatgpt_hf.errors import DataError


def test_prompt_and_completion_are_a_function() -> None:
    corpus = load_builtin("builtin:python-functions")
    assert list(corpus) == ["train", "test"]
    assert corpus["train"].column_names == ["name", "prompt", "completion"]
    assert len(corpus["train"]) > 1500
    assert 0.05 < len(corpus["test"]) / len(corpus["train"]) < 0.2
    for row in [*corpus["train"], *corpus["test"]]:
        (function,) = ast.parse(row["prompt"] + row["completion"]).body
        assert isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
        assert row["name"].endswith(f".{function.name}")
        # The prompt is only the signature and the docstring.
        (stub,) = ast.parse(row["prompt"]).body
        assert [type(node) for node in stub.body] == [ast.Expr]
        assert len(ast.get_docstring(stub)) >= 15
        assert row["completion"].startswith((" ", "#", "\n"))


def test_a_function_is_as_it_is_written() -> None:
    corpus = load_builtin("builtin:python-functions")
    (row,) = (row for part in corpus.values() for row in part if row["name"] == "bisect.bisect_left")
    assert row["prompt"].startswith("def bisect_left(a, x, lo=0, hi=None, *, key=None):\n")
    assert row["prompt"].endswith('"""\n')
    assert "    # Note, the comparison uses" in row["completion"]
    assert row["completion"].endswith("    return lo\n")


def test_nothing_held_out_is_in_training() -> None:
    corpus = load_builtin("builtin:python-functions")
    for column in ("prompt", "completion"):
        train, test = ({" ".join(text.split()) for text in corpus[side][column]} for side in ("train", "test"))
        assert not train & test
    # A class is on one side.
    sides = [{row["name"].rsplit(".", 1)[0] for row in corpus[side] if ".Fraction." in row["name"]} for side in corpus]
    assert sorted(map(len, sides)) == [0, 1]


@pytest.mark.slow
def test_another_process_builds_the_same() -> None:
    code = "import json; from chatgpt_hf.data.builtin.python_functions import build; print(json.dumps(build()))"
    built = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    corpus = load_builtin("builtin:python-functions")
    assert json.loads(built) == [corpus[side].to_list() for side in ("train", "test")]


def test_a_python_without_its_source(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(DataError, match="source of the standard library"):
        functions.build()
