"""The documentation: it builds without a warning and without a network, its links lead somewhere, and what it quotes is so."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

import chatgpt_hf

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.rglob("*.md")), *sorted(ROOT.glob("*.md"))]
# Jinja, which becomes the README of a model.
PAGES.remove(ROOT / "model_card.md")
FENCE = re.compile(r"^ *```.*?^ *```", flags=re.DOTALL | re.MULTILINE)


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def links(page: Path) -> Iterator[str]:
    """Links and pictures to files of the repository, outside code."""
    text = re.sub(r"`[^`\n]*`", "", FENCE.sub("", page.read_text(encoding="utf-8")))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not urlsplit(target).scheme:
            yield target


@cache
def anchors(page: Path) -> set[str]:
    """What GitHub and mkdocs make of headings."""
    titles = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text(encoding="utf-8")), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for link in links(page):
        path, anchor = unquote(urlsplit(link).path), urlsplit(link).fragment
        target = (page.parent / path).resolve() if path else page
        inside = target.is_relative_to(ROOT) and target.exists()
        if anchor and inside:
            line = re.fullmatch(r"L(\d+)", anchor)
            lines = target.read_text(encoding="utf-8").count("\n")
            inside = int(line[1]) <= lines if line else anchor in anchors(target)
        if not inside:
            broken.append(link)
    assert not broken


def code_blocks(file: str) -> list[str]:
    return FENCE.findall((ROOT / file).read_text(encoding="utf-8"))


def test_the_chinese_readme_has_the_same_code_and_pictures() -> None:
    assert code_blocks("README.zh-CN.md") == code_blocks("README.md")
    chinese, english = (set(links(ROOT / file)) for file in ("README.zh-CN.md", "README.md"))
    assert english - {"README.zh-CN.md"} == chinese - {"README.md"}
    assert "README.zh-CN.md" in english
    assert "README.md" in chinese


def table_column(page: Path, heading: str) -> list[str]:
    """The first column of the first table below a heading."""
    lines = page.read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2].splitlines()
    rows = [line for line in lines[: next(i for i, line in enumerate(lines) if line.startswith("## "))] if "|" in line]
    return [row.split("|")[1].strip() for row in rows[2:]]


@pytest.mark.parametrize(("readme", "heading"), [("README.md", "Works with"), ("README.zh-CN.md", "能与哪些库配合")])
def test_the_libraries_of_the_readmes_are_those_that_are_tested(readme: str, heading: str) -> None:
    named = [library for cell in table_column(ROOT / readme, heading) for library in cell.split(", ")]
    tested = re.findall(r"^\| (?!library)([^|-][^|]*) \|", (DOCS / "ecosystem.md").read_text(), flags=re.MULTILINE)
    assert sorted(named) == sorted(set(tested))


def test_the_tests_that_the_questions_name_are_there() -> None:
    named = re.findall(r"\[(test_\w+)\]\(([^)]+)\)", (DOCS / "faq.md").read_text(encoding="utf-8"))
    assert len(named) > 20
    missing = [test for test, file in named if f"def {test}(" not in (DOCS / file).read_text(encoding="utf-8")]
    assert not missing


def test_the_messages_that_the_questions_quote_are_the_packages() -> None:
    said = []
    for file in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                said.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                said.append(
                    "".join(
                        str(getattr(part, "value", "…")) if isinstance(part, ast.Constant) else "…"
                        for part in node.values
                    )
                )
    quoted = re.findall(r"```text\n(.*?)\n```", (DOCS / "faq.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(quoted) > 5
    for message in quoted:
        parts = [part for part in message.split("…") if part.strip()]
        assert any(all(part in whole for part in parts) for whole in said), message


def test_the_example_card_has_the_sections_of_the_template() -> None:
    example = (DOCS / "model-card-example.md").read_text(encoding="utf-8")
    template = (ROOT / "model_card.md").read_text(encoding="utf-8")
    found = re.findall(r"^## .*$", example, flags=re.MULTILINE)
    # It is of a chat model, for which no section is left out.
    assert found == re.findall(r"^## .*$", template, flags=re.MULTILINE)
    assert "kWh" in example
    assert "| that mean over men's professions" in example


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs", reason="needs the docs extra")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    assert "WARNING" not in result.stderr
    return folder


@pytest.mark.slow
def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe)[^>]*\ssrc=\"?([^\">\s]+)", text)
        loaded += re.findall(r"<link(?![^>]*rel=\"?canonical)[^>]*\shref=\"?([^\">\s]+)", text)
        assert loaded
        assert not [address for address in loaded if urlsplit(address).netloc], page
    for sheet in (site / "assets" / "stylesheets").glob("*.css"):
        assert not re.findall(r"url\(\"?https?:|@import", sheet.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_the_reference_has_every_public_name(site: Path) -> None:
    reference = "".join(page.read_text(encoding="utf-8") for page in (site / "reference").glob("*.html"))
    for public, module in chatgpt_hf._EXPORTS.items():
        assert f'id="chatgpt_hf.{module}.{public}"' in reference, public
    # Docstrings are rendered and not quoted: their sections are tables or lists.
    assert "Raises:</span>" in reference
    assert "<code>Raises:" not in reference


@pytest.mark.slow
def test_pages_fit_a_phone_and_ask_nobody(site: Path, browser: Any) -> None:
    tab = browser.new_page(viewport={"width": 390, "height": 844})
    asked: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    for page in ("index.html", "claims.html", "faq.html", "reference/training.html"):
        tab.goto((site / page).as_uri())
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390, page
    tab.close()
    assert all(url.startswith(("file:", "data:", "blob:")) for url in asked)
