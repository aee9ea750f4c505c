"""Private and fragile names of other packages: every one that the source uses is in `upstream_names.py`, with the reason.

Releases change such names without a word, so a failure after an upgrade is looked for here first.
"""

import ast
import importlib
import inspect
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1] / "src"
PACKAGE = "chatgpt_hf"
# Operators of other namespaces in `torch.ops` have no documentation.
OWN_OPERATORS = "torch.ops.chatgpt_hf"
OPERATOR_NAMESPACES = {"aten", "fbgemm", "mkldnn", "onednn", "prims", "quantized", "quantized_decomposed"}
# Python documents these; the underscore keeps them apart from a named tuple's fields, and from an orderly end.
DOCUMENTED = {"_asdict", "_fields", "_make", "_replace", "os._exit"}
# Tables of transformers' that we change since no function does.
TABLES = re.compile(r"(.+\.)?(MODEL_\w*MAPPING_NAMES|REMOVED_TASKS)")
# Methods of strings that take a piece of one.
PIECES = {"endswith", "removeprefix", "removesuffix", "split", "startswith"}
CHANGES = {"append", "clear", "extend", "insert", "pop", "popitem", "remove", "setdefault", "update"}
UNDERSCORE = re.compile(r"_(?!_)\w+")
DOTTED = re.compile(r"[A-Za-z]\w*(\.\w+)+")


@dataclass(frozen=True)
class Use:
    """A private or fragile name of another package, where it is used.

    Attributes:
        file: Relative to src/chatgpt_hf; for a sibling package relative to src.
        name: With its module where the source says it: `torch._foreach_lerp_`, otherwise alone.
        at_import: Whether importing the file looks it up.
    """

    file: str
    line: int
    name: str
    at_import: bool


@dataclass
class Module:
    """A file of the source.

    Attributes:
        imports: What its names stand for: `nn` for `torch.nn`. Only other packages'.
    """

    file: str
    tree: ast.Module
    imports: dict[str, str] = field(default_factory=dict)


def is_private(name: str) -> bool:
    return UNDERSCORE.fullmatch(name) is not None


def has_private_part(name: str) -> bool:
    return any(map(is_private, name.split(".")))


def is_python(name: str) -> bool:
    return name.partition(".")[0] in sys.stdlib_module_names


def read_source(root: Path = ROOT) -> list[Module]:
    """All files of the source; `root` holds packages."""
    packages = {path.name for path in root.iterdir()}
    modules = []
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        inside = relative.relative_to(PACKAGE) if relative.parts[0] == PACKAGE else relative
        module = Module(inside.as_posix(), ast.parse(path.read_text(encoding="utf-8")))
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ImportFrom) and not node.level and node.module:
                for alias in node.names:
                    module.imports[alias.asname or alias.name] = f"{node.module}.{alias.name}"
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    module.imports[alias.asname or alias.name.partition(".")[0]] = (
                        alias.name if alias.asname else alias.name.partition(".")[0]
                    )
        module.imports = {
            name: target for name, target in module.imports.items() if target.partition(".")[0] not in packages
        }
        _mark_pieces(module.tree)
        modules.append(module)
    return modules


def dotted(node: ast.expr) -> str | None:
    """`a.b.c` of an expression that is nothing else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (before := dotted(node.value)):
        return f"{before}.{node.attr}"
    return None


def full_name(module: Module, node: ast.expr) -> str | None:
    """An expression with the package it comes from, `torch.nn.Module` for `nn.Module`; None where it is not another package's."""
    name = dotted(node)
    if name is None:
        return None
    first, _, rest = name.partition(".")
    target = module.imports.get(first)
    return None if target is None else f"{target}.{rest}" if rest else target


def resolve(name: str) -> Any:
    """The object of a full name."""
    parts = name.split(".")
    if not is_python(name):
        pytest.importorskip(parts[0], reason="a class of ours extends one of it", exc_type=ImportError)
    for length in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            found = getattr(found, part)
        return found
    raise ModuleNotFoundError(name)


@cache
def members(name: str) -> frozenset[str]:
    """The private names that a class of another package and its bases have, those of their instances included."""
    kind = resolve(name)
    found: set[str] = set()
    for base in inspect.getmro(kind) if isinstance(kind, type) else ():
        if base.__module__ in ("abc", "builtins", "typing"):
            continue
        found |= {*vars(base), *vars(base).get("__annotations__", {})}
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        except (OSError, TypeError):
            continue
        found |= {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and dotted(node.value) == "self"
        }
    return frozenset(filter(is_private, found))


class Source:
    """The source, and whose its private names are."""

    def __init__(self, modules: list[Module]) -> None:
        self.modules = modules
        self.classes: dict[str, list[tuple[Module, ast.ClassDef]]] = {}
        for module in modules:
            for node in ast.walk(module.tree):
                if isinstance(node, ast.ClassDef):
                    self.classes.setdefault(node.name, []).append((module, node))
        self.own: set[str] = set()
        self.overridden: set[str] = set()
        for module in modules:
            self._collect(module, module.tree, frozenset())

    def _collect(self, module: Module, node: ast.AST, upstream: frozenset[str]) -> None:
        """Sorts what is defined below a node into names of ours, and upstream's that a class of ours has anew."""
        for child in ast.iter_child_nodes(node):
            inherited = self.inherited(module, child) if isinstance(child, ast.ClassDef) else upstream
            for name in _defined(child):
                if is_private(name):
                    (self.overridden if name in upstream else self.own).add(name)
            self._collect(module, child, inherited)

    def inherited(self, module: Module, kind: ast.ClassDef, seen: tuple[str, ...] = ()) -> frozenset[str]:
        """Private names that a class of ours has from bases of other packages, if it uses any private names."""
        found: frozenset[str] = frozenset()
        if not seen and not any(map(is_private, _mentioned(kind))):
            return found
        for base in kind.bases:
            base = base.value if isinstance(base, ast.Subscript) else base
            name = full_name(module, base)
            if name is not None:
                found |= members(name)
                continue
            short = (dotted(base) or "").rpartition(".")[2]
            for other, parent in self.classes.get(short, []) if short not in seen else []:
                found |= self.inherited(other, parent, (*seen, short))
        return found

    def is_ours(self, name: str) -> bool:
        """Whether a private name on an object of which nothing else is known is one of ours."""
        return name in self.own and name not in self.overridden

    def uses(self) -> Iterator[Use]:
        """All private and fragile names."""
        for module in self.modules:
            for node, name, at_import in self._in(module, module.tree, frozenset(), True):
                yield Use(module.file, node.lineno, name, at_import)

    def _in(
        self, module: Module, node: ast.AST, upstream: frozenset[str], at_import: bool
    ) -> Iterator[tuple[Any, str, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
                continue
            if isinstance(node, ast.ClassDef):
                # What stands in a class of ours under a name of upstream's waits there until upstream asks for it.
                yield from ((child, name, False) for name in _defined(child) if name in upstream)
            for name in {*self._names(module, child, upstream), *_changes(module, child)}:
                if name not in DOCUMENTED:
                    yield child, name, at_import
            if isinstance(child, ast.Attribute) and full_name(module, child) is not None:
                continue
            inherited = self.inherited(module, child) if isinstance(child, ast.ClassDef) else upstream
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                # Defaults and decorators are evaluated with the definition.
                body = child.body if isinstance(child.body, list) else [child.body]
                for part in ast.iter_child_nodes(child):
                    holder = ast.Expression(body=part)
                    yield from self._in(module, holder, inherited, at_import and part not in body)
            else:
                yield from self._in(module, child, inherited, at_import)

    def _names(self, module: Module, node: ast.AST, upstream: frozenset[str]) -> Iterator[str]:
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [module.imports.get(alias.asname or alias.name.partition(".")[0]) for alias in node.names]
            if isinstance(node, ast.Import):
                names = [alias.name for alias, name in zip(node.names, names, strict=True) if name is not None]
            yield from (name for name in names if name is not None and _is_fragile(name))
        elif isinstance(node, ast.Attribute):
            name = full_name(module, node)
            if name is not None:
                if _is_fragile(name):
                    yield name
            elif is_private(node.attr):
                own_object = dotted(node.value) in ("self", "cls") or ast.unparse(node.value) == "super()"
                ours = node.attr in self.own and node.attr not in upstream if own_object else self.is_ours(node.attr)
                if not ours:
                    yield node.attr
        elif isinstance(node, ast.keyword) and node.arg and is_private(node.arg) and not self.is_ours(node.arg):
            yield node.arg
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and not getattr(node, "is_piece", False):
            text = node.value
            if is_python(text):
                return
            operator = text.partition(".")[0] in OPERATOR_NAMESPACES
            if not self.is_ours(text) and (
                is_private(text) or (DOTTED.fullmatch(text) and (operator or has_private_part(text)))
            ):
                yield text


def _defined(node: ast.AST) -> Iterator[str]:
    """Names that a statement gives a meaning: of a definition, a variable, an attribute of `self`."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
    targets = (
        node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    )
    for target in targets:
        for part in ast.walk(target):
            if isinstance(part, ast.Name):
                yield part.id
            elif isinstance(part, ast.Attribute) and dotted(part.value) == "self":
                yield part.attr


def _mentioned(node: ast.AST) -> Iterator[str]:
    """Attributes in a piece of source, and what it defines."""
    for part in ast.walk(node):
        yield from [part.attr] if isinstance(part, ast.Attribute) else _defined(part)


def _is_fragile(name: str) -> bool:
    """Whether a full name has a private part, or is an operator or a table that nobody documents."""
    if name.startswith("torch.ops."):
        return not f"{name}.".startswith(f"{OWN_OPERATORS}.")
    return has_private_part(name) or TABLES.fullmatch(name) is not None


def _mark_pieces(tree: ast.AST) -> None:
    """Marks strings that are only a part of a name, such as a suffix."""
    for node in ast.walk(tree):
        pieces: list[ast.expr] = []
        if isinstance(node, ast.BinOp):
            pieces = [node.left, node.right]
        elif isinstance(node, ast.JoinedStr):
            pieces = node.values
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in PIECES:
            pieces = node.args
        for piece in pieces:
            piece.is_piece = True  # type: ignore[attr-defined]


def _changes(module: Module, node: ast.AST) -> Iterator[str]:
    """What a statement changes in another package: attributes of its modules and classes, and its tables."""
    targets = node.targets if isinstance(node, ast.Assign | ast.Delete) else []
    if isinstance(node, ast.AugAssign | ast.AnnAssign):
        targets = [node.target]
    objects = [target.value for target in targets if isinstance(target, ast.Attribute)]
    tables = [target.value for target in targets if isinstance(target, ast.Subscript)]
    if isinstance(node, ast.Call):
        if dotted(node.func) in ("setattr", "delattr"):
            objects = [node.args[0]]
        elif isinstance(node.func, ast.Attribute) and node.func.attr in CHANGES:
            tables = [node.func.value]
    # A function may have the name of a dictionary's method, as `numpy.append`; tables are written in capitals.
    names = [full_name(module, each) for each in objects]
    names += [name for each in tables if (name := full_name(module, each)) and name.rpartition(".")[2].isupper()]
    yield from (name for name in names if name is not None and not is_python(name))
    loaded = isinstance(node, ast.Subscript) and full_name(module, node.value) == "sys.modules"
    if loaded and isinstance(node.slice, ast.Constant) and not re.fullmatch("__.*__", str(node.slice.value)):
        yield f"sys.modules[{node.slice.value!r}]"


@pytest.fixture(scope="module")
def allowed() -> set[tuple[str, str]]:
    """File and name of everything on the list."""
    spec = spec_from_file_location("upstream_names", Path(__file__).with_name("upstream_names.py"))
    assert spec is not None
    assert spec.loader is not None
    names = module_from_spec(spec)
    spec.loader.exec_module(names)
    extension_points = {(file, name) for file, found in names.EXTENSION_POINTS.items() for name in found.split()}
    return extension_points | {(file, name) for file, found in names.PRIVATE.items() for name in found}


@pytest.fixture(scope="module")
def uses() -> list[Use]:
    return list(Source(read_source()).uses())


def test_every_private_or_fragile_name_is_listed_with_a_reason(uses: list[Use], allowed: set[tuple[str, str]]) -> None:
    unlisted = sorted({f"{use.file}:{use.line} {use.name}" for use in uses if (use.file, use.name) not in allowed})
    assert not unlisted, (
        "Private or fragile names of other packages, which any release may change. Take the public way, or add file, name and "
        "the reason why there is none to tests/upstream_names.py:\n" + "\n".join(unlisted)
    )
    found = {(use.file, use.name) for use in uses}
    stale = sorted(f"{file} {name}" for file, name in allowed - found)
    assert not stale, "No longer used; take them off the list in tests/upstream_names.py:\n" + "\n".join(stale)


def test_nothing_private_is_looked_up_by_an_import(uses: list[Use]) -> None:
    # Registering the model is what importing it is for, and needs transformers' tables.
    early = [
        f"{use.file}:{use.line} {use.name}"
        for use in uses
        if use.at_import and not TABLES.fullmatch(use.name) and not use.name.startswith("sys.modules")
    ]
    assert not early, (
        "Importing these files fails with a release that lacks the name. Look it up in the function that needs it:\n"
        + "\n".join(early)
    )


def test_the_package_imports_with_a_pytorch_without_undocumented_operators() -> None:
    program = f"""
        import sys, torch, transformers

        class Ops:
            def __getattr__(self, name):
                # torch and torchao look some up themselves.
                ours = sys._getframe(1).f_globals["__name__"].startswith("{PACKAGE}")
                if ours and name in {OPERATOR_NAMESPACES}:
                    raise AttributeError(name)
                return getattr(ops, name)

        ops, torch.ops = torch.ops, Ops()
        import chatgpt_hf
        print(chatgpt_hf.use_cpu_kernels.__name__)
    """
    ran = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=False)
    assert ran.stdout == "use_cpu_kernels\n", ran.stderr


# What the reader of the source has to see, and what it must not take for another package's.
SAMPLE = """
import sys
import torch, transformers, numpy as np
from torch import nn
from torch._dynamo import reset
from transformers.trainer import Trainer, _private
from transformers.pipelines import REMOVED_TASKS as removed
from .ours import _helper

EAGER = torch.ops.quantized.linear
_constant = torch.ops.chatgpt_hf.packed_linear

class Ours(Trainer):
    _mine: int = 1
    _train_batch_size = 2

    def _save_checkpoint(self, default=torch._C):
        self._count = self._mine + self._count + self.args._n_gpu
        super()._save_checkpoint()
        return getattr(self.model, "_hf_hook"), f"{self}_suffix", "x".endswith("_end"), {}.get("_mine")

class Layer(nn.Module):
    def forward(self, pair):
        self._buffers.clear()
        pair._replace(a=1)
        np.append([], 1)
        torch.compile(_secret=True)
        lookup("mkldnn._linear")

def patch():
    transformers.Trainer = Ours
    setattr(transformers, "x", 1)
    sys.modules["torch"].x = 1
    removed.pop("x")
    lambda: torch._lazy
"""


def test_the_reader_tells_ours_from_theirs(tmp_path: Path) -> None:
    (tmp_path / PACKAGE).mkdir()
    (tmp_path / PACKAGE / "sample.py").write_text(SAMPLE)
    (tmp_path / "sibling").mkdir()
    (tmp_path / "sibling" / "__init__.py").write_text(
        f"from {PACKAGE}.sample import _constant\nimport torch._inductor\n"
    )
    found = {(use.file, use.name, use.at_import) for use in Source(read_source(tmp_path)).uses()}
    early = "torch._dynamo.reset transformers.trainer._private torch.ops.quantized.linear torch._C"
    late = "_train_batch_size _save_checkpoint _n_gpu _hf_hook _buffers _secret mkldnn._linear torch._lazy"
    late += " transformers sys.modules['torch'] transformers.pipelines.REMOVED_TASKS"
    assert found == {
        ("sibling/__init__.py", "torch._inductor", True),
        ("sample.py", "transformers.pipelines.REMOVED_TASKS", True),
        *(("sample.py", name, True) for name in early.split()),
        *(("sample.py", name, False) for name in late.split()),
    }
