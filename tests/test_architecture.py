"""The floors of docs/architecture.md: a module imports nothing from a floor above its own."""

import ast
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

import chatgpt_hf

PACKAGE = Path(chatgpt_hf.__file__).parent
# Highest first; a module belongs to the longest entry that its path starts with.
FLOORS = [
    ("quickstart", "explain", "evaluate", "preview", "environment"),
    ("answering",),
    ("ui/", "serving/"),
    ("web/",),
    ("moderation/",),
    ("training/",),
    ("inference/",),
    ("tasks/",),
    ("hub/",),
    ("reporting/",),
    ("training/run_folder",),
    ("rewards/",),
    ("interpretability/", "export/"),
    ("evaluation/",),
    ("data/",),
    ("conversion/",),
    ("checkpoints",),
    ("chat_templates",),
    ("bounded_templates",),
    ("assistant_turns",),
    ("tokenization_chatgpt",),
    ("tokenizer_folders",),
    ("text_encoding",),
    ("registration",),
    ("conversion/families/",),
    ("model/",),
    ("untrusted",),
    ("untrusted_tokenizers",),
    ("generation_settings",),
    ("stored",),
    ("cache",),
    ("files",),
    ("terminal",),
    ("extras",),
    ("parsing",),
    ("errors",),
    ("_moved",),
]
NAMES = [prefix for prefixes in FLOORS for prefix in prefixes]
# Without two modules that import from above: the package's own `__init__`, whose public names come from every layer, and that
# of model/, which also loads the readers of foreign checkpoints.
MODULES = sorted(
    path for path in PACKAGE.rglob("*.py") if path not in (PACKAGE / "__init__.py", PACKAGE / "model" / "__init__.py")
)


def floor(module: str) -> int:
    name = room(module)
    return next(index for index, names in enumerate(FLOORS) if name in names)


def nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """As `ast.walk`, without what is there for type checkers alone."""
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            yield node
            yield from nodes(node)


def imported_modules(path: Path) -> set[str]:
    """Paths, relative to the package, of the package's modules that a file imports, inside functions too."""
    found = set()
    for node in nodes(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom):
            continue
        parts = node.module.split(".") if node.module else []
        if node.level:
            target = path.parents[node.level - 1].joinpath(*parts)
        elif parts[0] == PACKAGE.name:
            target = PACKAGE.joinpath(*parts[1:])
        else:
            continue
        for name in (target, *(target / alias.name for alias in node.names)):
            file = name / "__init__.py" if name.is_dir() else name.with_suffix(".py")
            if file.is_file() and file != PACKAGE / "__init__.py":
                found.add(file.relative_to(PACKAGE).with_suffix("").as_posix())
    return found


def room(module: str) -> str:
    """The line of docs/architecture.md that a module belongs to."""
    found = [name for name in NAMES if module == name or (name.endswith("/") and module.startswith(name))]
    assert found, f"{module} stands on no floor of docs/architecture.md"
    return max(found, key=len)


def imports_between_floors() -> set[tuple[str, str]]:
    """Who imports whom, by the lines of docs/architecture.md."""
    own = {path: path.relative_to(PACKAGE).with_suffix("").as_posix() for path in MODULES}
    pairs = {(room(own[path]), room(imported)) for path in MODULES for imported in imported_modules(path)}
    return {(above, below) for above, below in pairs if above != below}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_point_downwards(path: Path) -> None:
    own = path.relative_to(PACKAGE).with_suffix("").as_posix()
    for imported in imported_modules(path):
        if room(imported) != room(own):
            assert floor(imported) > floor(own), f"{own} imports {imported} from a floor above or beside it"


def test_the_floors_are_those_of_the_page() -> None:
    page = PACKAGE.parents[1] / "docs" / "architecture.md"
    if not page.is_file():
        pytest.skip("docs/ is not beside an installed package")
    block = page.read_text(encoding="utf-8").split("```")[1]
    lines = [line.split()[0].removesuffix(".py") for line in block.strip().splitlines()]
    assert lines == NAMES


def test_the_picture_is_of_these_imports() -> None:
    script = PACKAGE.parents[1] / "docs" / "images" / "floors.py"
    if not script.is_file():
        pytest.skip("docs/ is not beside an installed package")
    spec = spec_from_file_location("floors", script)
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(floors := module_from_spec(spec))
    drawn = floors.picture(NAMES, imports_between_floors())
    assert floors.FILE.read_text(encoding="utf-8") == drawn, "make format draws it again"


def test_files_that_travel_to_the_hub_stand_alone() -> None:
    """What lies beside saved weights finds only its neighbours there."""
    modules = [path for path in MODULES if path.parent == PACKAGE / "model"]
    assert len(modules) > 4
    for path in modules:
        assert all(name.startswith("model/") for name in imported_modules(path)), path
