"""What is stored in the notebooks: they read well without a run, and hold nothing of the machine that made them.

nbmake runs them (`make test`, `make notebooks`).
"""

import re
from pathlib import Path

import nbformat
import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
INDEX = (FOLDER / "README.md").read_text(encoding="utf-8")

each = pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)

# The first folder of a path that only one machine has.
MACHINE_PATH = re.compile(r"(?<![\w./])/(?:home|root|work|tmp|usr|opt|var|mnt|srv|data|Users|private)/|\b[A-Z]:\\\w")


def text_of(output: nbformat.NotebookNode) -> str:
    """What of a cell's output is read as text; pictures are not."""
    if output.output_type == "stream":
        return str(output.text)
    return "\n".join(str(value) for kind, value in output.get("data", {}).items() if kind.startswith("text/"))


@each
def test_stored_outputs(file: Path) -> None:
    notebook = nbformat.read(file, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    # Run once, from top to bottom.
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert not [output for output in outputs if "\r" in text_of(output)], "a progress bar"
    # A notebook ends with what it measured, and asserts what it claims.
    assert code[-1].outputs
    assert any("assert " in cell.source for cell in code)
    assert file.stat().st_size < 300_000


@each
def test_nothing_of_the_machine(file: Path) -> None:
    notebook = nbformat.read(file, as_version=4)
    for cell in notebook.cells:
        for text in (cell.source, *map(text_of, cell.get("outputs", []))):
            assert not (found := MACHINE_PATH.search(text)), text[max(0, found.start() - 50) : found.end() + 50]


def test_the_pattern_finds_paths() -> None:
    assert MACHINE_PATH.search("saved to '/home/me/model'")
    assert MACHINE_PATH.search(r"in C:\Users")
    assert not MACHINE_PATH.search("corpus/zh_poems/ or https://github.com/home/x, and/or")


def test_index() -> None:
    linked = re.findall(r"\]\((\d\d-[\w-]+\.ipynb)\)", INDEX)
    assert linked == [file.name for file in NOTEBOOKS]


@each
def test_links(file: Path) -> None:
    notebook = nbformat.read(file, as_version=4)
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", text):
        assert (FOLDER / target).exists(), target
