"""The table in docs/ecosystem.md says what the marked tests say, without running them."""

import re
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest_plugins = "pytester"

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\[(\w+)\]\(\.\./([\w/.]+)#L(\d+)\)")


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> ModuleType:
    return request.config.pluginmanager.get_plugin("ecosystem_table")


@pytest.fixture(scope="module")
def pinned() -> dict[str, str]:
    """Releases in constraints.txt, by names as package indexes compare them."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    return {re.sub(r"[-_.]+", "-", name).lower(): release for name, release in pins.items()}


def find_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def test_every_marked_test_has_its_row_and_every_row_its_test(table: ModuleType) -> None:
    _, written, _ = table.split_page(table.PAGE.read_text(encoding="utf-8"))
    rows = table.read_rows()
    assert len(rows) > 30
    expected = table.render(rows, release=str)
    # Without the releases, which are another test's, and which an environment of other releases may differ in.
    shape = [re.sub(r" \| [^|]* \| ([^|]* \| \[)", r" | \1", line) for line in expected.splitlines()]
    found = [re.sub(r" \| [^|]* \| ([^|]* \| \[)", r" | \1", line) for line in written.splitlines()]
    assert found == shape, "`make ecosystem` writes the table; `make format` renews the lines of its links"


def test_every_link_leads_to_its_test(table: ModuleType) -> None:
    links = LINK.findall(table.PAGE.read_text(encoding="utf-8"))
    assert len(links) == len(table.read_rows())
    for test, file, line in links:
        assert (ROOT / file).read_text(encoding="utf-8").splitlines()[int(line) - 1].startswith(f"def {test}("), file


def test_versions_are_those_that_are_pinned(table: ModuleType, pinned: dict[str, str]) -> None:
    for row in table.read_rows():
        assert row.versions, row
        for name in row.versions:
            # Not every package is installed everywhere: llama-cpp-python compiles for minutes.
            if "==" not in name and (installed := find_version(name)) is not None:
                assert pinned[name.replace("_", "-").lower()] == installed.partition("+")[0], name
    _, written, _ = table.split_page(table.PAGE.read_text(encoding="utf-8"))
    for line in written.splitlines()[2:]:
        for name, release in (cell.split() for cell in line.split(" | ")[2].split(", ")):
            assert name == "vllm" or pinned[name.replace("_", "-").lower()] == release, line


def test_every_library_has_a_row(table: ModuleType) -> None:
    libraries = {row.library for row in table.read_rows()}
    wanted = {"PEFT", "TRL", "accelerate", "datasets", "lm-eval", "transformers", "sentence-transformers", "Optuna"}
    assert libraries >= {*wanted, "TensorBoard", "vLLM", "huggingface_hub"}


FILES = {
    "pytest.ini": "[pytest]\nmarkers = works_with: a row\n",
    "docs/page.md": "Before.\n<!-- table -->\nold\n<!-- /table -->\nAfter.\n",
    "tests/test_a.py": """import pytest


@pytest.mark.works_with("A", "one", ("pytest",))
def test_one():
    pass


def test_unmarked():
    assert False
""",
    "tests/deep/test_b.py": """import pytest

WHERE = "nowhere"


@pytest.mark.works_with("B", "two", versions=("b==1",), where=WHERE)
@pytest.mark.parametrize("x", [1, 2])
def test_two(x):
    pass
""",
}
FAULTS = """

@pytest.mark.works_with("C", "three", ("pytest",))
@pytest.mark.parametrize("x", [1, 2])
def test_three(x):
    assert x == 1


class TestFour:
    @pytest.mark.works_with("D", "four", ("pytest",))
    def test_four(self):
        pass
"""


@pytest.fixture
def run(
    table: ModuleType, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[pytest.RunResult, str]]:
    """Runs the tests of a small repository with the plugin; the result and the page after it."""
    files = {**FILES, "tests/ecosystem_table.py": Path(table.__file__).read_text(encoding="utf-8")}
    for name, text in files.items():
        (pytester.path / name).parent.mkdir(exist_ok=True, parents=True)
        (pytester.path / name).write_text(text, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(pytester.path / "tests"))
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    page = pytester.path / "docs" / "page.md"

    def run(*arguments: str) -> tuple[pytest.RunResult, str]:
        options = ["-p", "ecosystem_table", "-m", "works_with", f"--ecosystem={page}", *arguments]
        return pytester.runpytest_subprocess(*options, "tests"), page.read_text(encoding="utf-8")

    return run


def test_a_run_that_passed_is_written(table: ModuleType, run: Callable[..., Any], pytester: pytest.Pytester) -> None:
    result, text = run("-n", "2")
    assert result.ret == 0
    assert text == (
        f"Before.\n<!-- table -->\n{table.HEADER}"
        f"| A | one | pytest {version('pytest')} | CPU | [test_one](../tests/test_a.py#L5) |\n"
        "| B | two | b 1 | nowhere | [test_two](../tests/deep/test_b.py#L8) |\n<!-- /table -->\nAfter.\n"
    )
    moved = text.replace("#L5", "#L1")
    assert table.renew_lines(moved, table.read_rows(pytester.path)) == text


def test_a_run_that_did_not_is_not(run: Callable[..., Any], pytester: pytest.Pytester) -> None:
    with (pytester.path / "tests" / "deep" / "test_b.py").open("a", encoding="utf-8") as file:
        file.write(FAULTS)
    result, text = run("--deselect", "tests/test_a.py::test_one")
    assert result.ret == 1
    assert text == FILES["docs/page.md"]
    (message,) = (line for line in result.outlines if "was not written" in line)
    assert "tests/test_a.py::test_one (not run)" in message
    assert "tests/deep/test_b.py::test_three (failed, passed)" in message
    assert "tests/deep/test_b.py::TestFour::test_four (marked otherwise" in message
    assert "test_two" not in message
