"""The table of docs/ecosystem.md, made of the tests that are marked `works_with`.

`pytest -m works_with --ecosystem=docs/ecosystem.md` writes it when every marked test has passed. Run as a script, the file
renews the line numbers of the links, which move whenever a test file is edited, and nothing else.
"""

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "ecosystem.md"
MARKER = "works_with"
BEGIN, END = "<!-- table -->", "<!-- /table -->"
HEADER = "| library | what was run | versions | where | test |\n|---|---|---|---|---|\n"


@dataclass(frozen=True)
class Row:
    """One marker on one test.

    Attributes:
        versions: Distributions whose releases the row names; `name==release` for one that was read and not installed.
    """

    file: str
    test: str
    line: int
    library: str
    what: str
    versions: tuple[str, ...] = ()
    where: str = "CPU"

    @property
    def link(self) -> str:
        return f"[{self.test}](../{self.file}#L{self.line})"

    def text(self, releases: str) -> str:
        return f"| {self.library} | {self.what} | {releases} | {self.where} | {self.link} |\n"


def read_rows(root: Path = ROOT) -> list[Row]:
    """All rows, read from the test files' text: nothing is imported, so it takes no time."""
    rows: list[Row] = []
    for path in sorted((root / "tests").rglob("test_*.py")):
        text = path.read_text(encoding="utf-8")
        if f"mark.{MARKER}(" not in text:
            continue
        file = path.relative_to(root).as_posix()
        body = ast.parse(text).body
        constants = {
            ast.unparse(target): node.value for node in body if isinstance(node, ast.Assign) for target in node.targets
        }
        for function in body:
            if isinstance(function, ast.FunctionDef):
                rows += [
                    Row(file, function.name, function.lineno, **given)
                    for given in _markers(function.decorator_list, constants)
                ]
    return sorted(rows, key=lambda row: (row.library.lower(), row.file, row.line, row.what))


def _markers(decorators: list[ast.expr], constants: dict[str, ast.expr]) -> Iterator[dict[str, Any]]:
    """What each marker was given, written out or by the name of a constant of the module."""
    for decorator in decorators:
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == f"pytest.mark.{MARKER}":
            given = dict(zip(("library", "what", "versions", "where"), decorator.args, strict=False))
            given |= {str(word.arg): word.value for word in decorator.keywords}
            yield {name: ast.literal_eval(constants.get(ast.unparse(value), value)) for name, value in given.items()}


def installed(name: str) -> str:
    """`peft 0.21.2`, of what is installed, without the local part (`+cpu`)."""
    distribution, _, release = name.partition("==")
    return f"{distribution} {release or version(distribution).partition('+')[0]}"


def render(rows: list[Row], release: Callable[[str], str] = installed) -> str:
    """The table; `release` gives a distribution's name with its release."""
    return HEADER + "".join(row.text(", ".join(map(release, row.versions))) for row in rows)


def split_page(page: str) -> tuple[str, str, str]:
    """What stands before the table, the table, and what stands after it."""
    before, begin, rest = page.partition(f"{BEGIN}\n")
    table, end, after = rest.partition(END)
    assert begin, f"The page has no {BEGIN}."
    assert end, f"The page has no {END}."
    return before + begin, table, end + after


def write_table(file: Path, table: str) -> None:
    before, _, after = split_page(file.read_text(encoding="utf-8"))
    file.write_text(before + table + after, encoding="utf-8")


def renew_lines(table: str, rows: list[Row]) -> str:
    """The table with the line that each linked test begins at now."""
    lines = {(row.file, row.test): row.line for row in rows}

    def renewed(link: re.Match[str]) -> str:
        test, file, line = link.groups()
        return f"[{test}](../{file}#L{lines.get((file, test), line)})"

    return re.sub(r"\[(\w+)\]\(\.\./([\w/.]+)#L(\d+)\)", renewed, table)


class EcosystemTable:
    """Follows a run, in xdist's main process the reports of all workers, and writes the table at its end."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.outcomes: dict[tuple[str, str], set[str]] = {}
        self.marked: set[tuple[str, str]] = set()
        self.message = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        file, _, name = report.nodeid.partition("::")
        test = (file, name.partition("[")[0])
        if MARKER in report.keywords:
            self.marked.add(test)
        if report.when == "call" or not report.passed:
            self.outcomes.setdefault(test, set()).add(report.outcome)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        rows = read_rows()
        unproven = {
            f"{row.file}::{row.test} ({', '.join(sorted(outcomes)) or 'not run'})"
            for row in rows
            if (outcomes := self.outcomes.get((row.file, row.test), set())) != {"passed"}
        }
        # One of a class or by `pytestmark`, for instance: it would have no row.
        unread = self.marked - {(row.file, row.test) for row in rows}
        unproven |= {f"{file}::{test} (marked otherwise than by a decorator of a function)" for file, test in unread}
        if unproven:
            self.message = f"{self.file} was not written: {'; '.join(sorted(unproven))}"
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        else:
            write_table(self.file, render(rows))
            self.message = f"{self.file}: {len(rows)} rows"

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        terminalreporter.write_line(self.message)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--ecosystem",
        metavar="FILE",
        help="write the table of what works with what into this page, if every test marked works_with passed",
    )


def pytest_configure(config: pytest.Config) -> None:
    # Workers of xdist get the options too; only the main process sees all reports.
    if config.getoption("--ecosystem") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(EcosystemTable(Path(config.getoption("--ecosystem")).resolve()))


if __name__ == "__main__":
    write_table(PAGE, renew_lines(split_page(PAGE.read_text(encoding="utf-8"))[1], read_rows()))
