"""Reads dataclasses from source files without importing the packages that they are in.

Importing `TrainingArguments` takes seconds of torch and transformers. Its fields stand in the source: this module parses the
files with `ast` and evaluates only those expressions that a name needs, following imports and base classes from file to file.
The result is a real dataclass with the same fields, defaults, types and help texts, but without methods. What it cannot read
raises `Unreadable`; callers then import the class itself. The tests hold the result equal to the imported classes.
"""

import ast
import builtins
import sys
import types
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from enum import Enum
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# The package whose functions may be called: `ArchitectureArguments` is made by one.
OWN = "chatgpt_hf"
DATACLASS_DECORATORS = {"dataclass", "strict"}


class Unreadable(Exception):
    """An expression that cannot be evaluated without importing the package."""


class Unknown:
    """In the place of a type or a default that could not be read."""


class _Names(ast.NodeVisitor):
    """The names that code takes from outside of itself."""

    def __init__(self, node: ast.AST) -> None:
        self.loaded: set[str] = set()
        self.bound: set[str] = set()
        self.visit(node)
        self.free = self.loaded - self.bound

    def visit_Name(self, node: ast.Name) -> None:
        (self.loaded if isinstance(node.ctx, ast.Load) else self.bound).add(node.id)

    def visit_arg(self, node: ast.arg) -> None:
        self.bound.add(node.arg)


class Module:
    """One source file; `module.value(name)` is what the name means in it."""

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self.path = path
        self.package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        self._nodes: dict[str, ast.stmt] = {}
        self._values: dict[str, Any] = {}
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in _unconditional_last(tree.body):
            for bound in _bound_names(node):
                self._nodes[bound] = node

    def definition(self, name: str) -> tuple["Module", ast.stmt]:
        """The module and statement that define a name, through any number of imports."""
        node = self._nodes.get(name)
        if node is None:
            raise Unreadable(f"{self.path} does not define {name}")
        if not isinstance(node, ast.ImportFrom):
            return self, node
        original = next(alias.name for alias in node.names if (alias.asname or alias.name) == name)
        return self._imported(node).definition(original)

    def value(self, name: str) -> Any:
        """The class, function or value that a name stands for."""
        if name not in self._values:
            self._values[name] = self._read(name)
        return self._values[name]

    def _read(self, name: str) -> Any:
        node = self._nodes.get(name)
        if isinstance(node, ast.ImportFrom) and not node.level and _in_standard_library(node.module or ""):
            original = next(alias.name for alias in node.names if (alias.asname or alias.name) == name)
            return getattr(import_module(node.module or ""), original)
        if isinstance(node, ast.ImportFrom):
            original = next(alias.name for alias in node.names if (alias.asname or alias.name) == name)
            return self._imported(node).value(original)
        if isinstance(node, ast.Import) and all(_in_standard_library(alias.name) for alias in node.names):
            original = next(alias.name for alias in node.names if (alias.asname or alias.name) == name)
            return import_module(original)
        if isinstance(node, ast.ClassDef):
            return self._make_class(node)
        if isinstance(node, ast.FunctionDef) and self.name.partition(".")[0] == OWN:
            return self._make_function(node)
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            return self.evaluate(node.value)
        raise Unreadable(f"{self.path}: {name}")

    def _imported(self, node: ast.ImportFrom) -> "Module":
        if not node.level:
            return load(node.module or "")
        parts = self.package.split(".")
        base = parts[: len(parts) - node.level + 1]
        return load(".".join([*base, *([node.module] if node.module else [])]))

    def evaluate(self, node: ast.expr, scope: Mapping[str, ast.expr | None] | None = None) -> Any:
        """The value of an expression; `scope` are the names of the class around it, None where one is ambiguous."""
        try:
            if isinstance(node, ast.Constant):
                return node.value
            expression = compile(ast.Expression(node), str(self.path), "eval")
            return eval(expression, self._namespace(node, scope or {}))
        except Unreadable:
            raise
        except Exception as error:
            raise Unreadable(f"{self.path}, line {node.lineno}: {error}") from error

    def _namespace(self, node: ast.AST, scope: Mapping[str, ast.expr | None]) -> dict[str, Any]:
        found = {}
        for name in _Names(node).free:
            if name in scope:
                inner = scope[name]
                if inner is None:
                    raise Unreadable(f"{self.path}: {name} depends on the machine")
                found[name] = self.evaluate(inner, scope)
            elif name in self._nodes:
                found[name] = self.value(name)
            elif not hasattr(builtins, name):
                raise Unreadable(f"{self.path}: {name}")
        return found

    def _make_function(self, node: ast.FunctionDef) -> Any:
        plain = ast.FunctionDef(name=node.name, args=node.args, body=node.body, decorator_list=[])
        namespace = self._namespace(node, {})
        code = ast.fix_missing_locations(ast.Module([ast.copy_location(plain, node)], []))
        exec(compile(code, str(self.path), "exec"), namespace)
        return namespace[node.name]

    def _make_class(self, node: ast.ClassDef) -> type:
        bases = tuple(self.evaluate(base) for base in node.bases)
        scope = _class_scope(node)
        annotations: dict[str, Any] = {}
        body: dict[str, Any] = {
            "__module__": self.name,
            "__doc__": ast.get_docstring(node),
            "__annotations__": annotations,
        }
        if any(isinstance(base, type) and issubclass(base, Enum) for base in bases):
            body |= {name: self.evaluate(value, scope) for name, value in scope.items() if value is not None}
        elif decorated := DATACLASS_DECORATORS & {_decorator_name(item) for item in node.decorator_list}:
            for item in node.body:
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                    annotations[item.target.id] = self._annotation(item.annotation, scope)
                    if item.value is not None:
                        body[item.target.id] = self._default(item.value, scope)
        else:
            decorated = set()
        made = types.new_class(node.name, bases, exec_body=lambda namespace: _fill(namespace, body))
        if body.get("__annotations__") and decorated:
            own = self.name.partition(".")[0] == OWN and not any(is_dataclass(base) for base in bases)
            made = dataclass(init=own, repr=False, eq=False, match_args=False)(made)
        return made

    def _annotation(self, node: ast.expr, scope: Mapping[str, ast.expr | None]) -> Any:
        try:
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                node = ast.parse(node.value, mode="eval").body
            return self.evaluate(node, scope)
        except (Unreadable, SyntaxError):
            return Unknown

    def _default(self, node: ast.expr, scope: Mapping[str, ast.expr | None]) -> Any:
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "field"):
            try:
                return self.evaluate(node, scope)
            except Unreadable:
                return Unknown
        given: dict[str, Any] = {}
        for keyword in node.keywords:
            if keyword.arg == "metadata":
                given["metadata"] = self._metadata(keyword.value, scope)
            elif keyword.arg in ("default", "default_factory"):
                try:
                    given[keyword.arg] = self.evaluate(keyword.value, scope)
                except Unreadable:
                    given["default"] = Unknown
            elif keyword.arg == "init":
                given["init"] = self.evaluate(keyword.value, scope)
        return field(**given)

    def _metadata(self, node: ast.expr, scope: Mapping[str, ast.expr | None]) -> dict[str, Any]:
        if not isinstance(node, ast.Dict):
            return dict(self.evaluate(node, scope))
        found = {}
        for key, value in zip(node.keys, node.values, strict=True):
            if not isinstance(key, ast.Constant):
                raise Unreadable(f"{self.path}, line {node.lineno}: metadata")
            try:
                found[str(key.value)] = self.evaluate(value, scope)
            except Unreadable:
                # `choices` that transformers computes: left to the real parser. Help texts must be there.
                if key.value == "help":
                    found["help"] = Unknown
        return found


def _unconditional_last(statements: list[ast.stmt], conditional: bool = False) -> Iterator[ast.stmt]:
    """The statements of a module, those inside `if`, `try` and `with` first, so that the others win. A value that is assigned
    under a condition is left out: it depends on the machine."""
    for node in statements:
        if isinstance(node, ast.If | ast.Try | ast.With):
            yield from _unconditional_last(node.body, True)
    for node in statements:
        if not isinstance(node, ast.If | ast.Try | ast.With) and not (conditional and isinstance(node, ast.Assign)):
            yield node


def _bound_names(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return [node.name]
    if isinstance(node, ast.Import | ast.ImportFrom):
        return [alias.asname or alias.name for alias in node.names]
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return [node.target.id]
    return []


def _class_scope(node: ast.ClassDef) -> dict[str, ast.expr | None]:
    scope: dict[str, ast.expr | None] = {}
    for item in node.body:
        if isinstance(item, ast.Assign | ast.AnnAssign):
            scope |= dict.fromkeys(_bound_names(item), item.value)
        elif isinstance(item, ast.If | ast.Try):
            # Assigned on some machines only.
            scope |= {
                name: None for inner in ast.walk(item) if isinstance(inner, ast.stmt) for name in _bound_names(inner)
            }
    return scope


def _fill(namespace: Any, body: Mapping[str, Any]) -> None:
    # One at a time: the namespace of an Enum takes no `update`.
    for name, value in body.items():
        namespace[name] = value


def _decorator_name(node: ast.expr) -> str:
    node = node.func if isinstance(node, ast.Call) else node
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _in_standard_library(name: str) -> bool:
    return name.partition(".")[0] in sys.stdlib_module_names


@cache
def load(name: str) -> Module:
    """The source of a module by its dotted name. Only the top-level package is looked for; nothing is imported."""
    top, *rest = name.split(".")
    spec = find_spec(top)
    if spec is None or not spec.submodule_search_locations:
        raise Unreadable(f"{top} is not installed")
    path = Path(spec.submodule_search_locations[0], *rest)
    for file in (path / "__init__.py", path.with_suffix(".py")):
        if file.is_file():
            return Module(name, file)
    raise Unreadable(f"{name} has no source file")


def read_dataclass(module: str, name: str) -> type:
    """A dataclass with the fields of the one that the module defines.

    Raises:
        Unreadable: When a field's type, default or help text depends on code that only an import runs.
    """
    found = load(module).value(name)
    for item in fields(found):
        default = item.default if item.default_factory is MISSING else None
        if Unknown in (item.type, default, item.metadata.get("help")):
            raise Unreadable(f"{module}.{name}: {item.name}")
    return found
