"""The floors of docs/architecture.md: a module imports nothing from a floor above its own."""

import ast
from pathlib import Path

import pytest

import chatgpt_hf

PACKAGE = Path(chatgpt_hf.__file__).parent
# Highest first; a module belongs to the first entry that its path starts with.
FLOORS = [
    ("cli/",),
    ("quickstart", "measure", "explain"),
    ("ui/", "serving/"),
    ("moderation/",),
    ("training/", "inference/"),
    ("hub/",),
    ("report", "task_report"),
    ("interpretability/",),
    ("evaluation/",),
    ("data/",),
    ("conversion/merge",),
    ("export/", "quantization"),
    ("conversion/convert",),
    ("card",),
    ("checkpoints",),
    ("tokenization_chatgpt",),
    ("pipelines",),
    ("spans",),
    ("registration",),
    ("conversion/",),
    ("modeling_chatgpt",),
    ("local_context_chatgpt",),
    ("loss_chatgpt",),
    ("configuration_chatgpt",),
    ("errors",),
]
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py" or path.parent.name == "cli")


def floor(module: str) -> int:
    for index, prefixes in enumerate(FLOORS):
        if module.startswith(prefixes):
            return index
    raise AssertionError(f"{module} stands on no floor of docs/architecture.md")


def imported_modules(path: Path) -> set[str]:
    """Paths, relative to the package, of the package's modules that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        base = path.parents[node.level - 1]
        target = base.joinpath(*(node.module or "").split("."))
        names = [target] if node.module else []
        names += [target / alias.name for alias in node.names]
        found |= {name.relative_to(PACKAGE).as_posix() for name in names if name.with_suffix(".py").is_file()}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_point_downwards(path: Path) -> None:
    own = path.relative_to(PACKAGE).with_suffix("").as_posix()
    for imported in imported_modules(path):
        if Path(imported).parent == Path(own).parent:
            continue
        assert floor(imported) > floor(own), f"{own} imports {imported} from a floor above or beside it"


def test_the_floors_are_those_of_the_page() -> None:
    page = PACKAGE.parents[1] / "docs" / "architecture.md"
    if not page.is_file():
        pytest.skip("docs/ is not beside an installed package")
    block = page.read_text(encoding="utf-8").split("```")[1]
    lines = [line.split()[0].removesuffix(".py") for line in block.strip().splitlines()]
    assert lines == [prefix for prefixes in FLOORS for prefix in prefixes]


def test_remote_code_files_stand_alone() -> None:
    travelling = {"configuration_chatgpt", "loss_chatgpt", "local_context_chatgpt", "modeling_chatgpt"}
    for name in travelling:
        assert imported_modules(PACKAGE / f"{name}.py") <= travelling
