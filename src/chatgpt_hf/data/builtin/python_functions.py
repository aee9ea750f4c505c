"""`builtin:python-functions`: functions of the standard library; signature and docstring prompt for the body.

The format is HumanEval's (Chen et al. 2021): the prompt ends with the docstring and its line feed, and prompt and
completion together are a whole function. Methods are written like functions, without the indentation of their class.
The split uses a hash of the qualified name of the top-level definition, so the methods of a class are on one side.
Text that occurs verbatim in the training part is left out of the held-out part.
"""

import ast
import textwrap
import tokenize
import warnings
from collections.abc import Iterator

from .python_docs import HELD_OUT_SHARE, fraction, source_paths

# In characters: a docstring seldom describes longer functions.
_LONGEST_PROMPT = 1500
_LONGEST_BODY = 1500
_SHORTEST_DOC = 15


def build() -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Returns the training and held-out rows: `name`, and `prompt` and `completion`, which together are a function.

    Raises:
        DataError: If this Python has no library source.
    """
    train: dict[tuple[str, str], str] = {}
    test: dict[tuple[str, str], str] = {}
    for module, path in source_paths():
        with tokenize.open(path) as stream:
            source = stream.read()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
        # Not `splitlines`: it also splits at form feeds, which do not end a line in Python.
        lines = source.split("\n")
        for top, name, node in _functions(tree):
            if pair := _pair(node, lines):
                held_out = fraction(f"{module}.{top}") < HELD_OUT_SHARE
                (test if held_out else train).setdefault(pair, f"{module}.{name}")
    learned = {_normal(text) for pair in train for text in pair}
    kept = {pair: name for pair, name in test.items() if not learned & {_normal(text) for text in pair}}
    rows = [
        [{"name": name, "prompt": prompt, "completion": completion} for (prompt, completion), name in part.items()]
        for part in (train, kept)
    ]
    return rows[0], rows[1]


def _functions(tree: ast.Module) -> Iterator[tuple[str, str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Yields the top-level name, the qualified name and the node of each function and method with a docstring."""
    for node in tree.body:
        inner = node.body if isinstance(node, ast.ClassDef) else ()
        for child in (node, *inner):
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)) and ast.get_docstring(child):
                top = getattr(node, "name", child.name)
                yield top, child.name if child is node else f"{top}.{child.name}", child


def _pair(node: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> tuple[str, str] | None:
    """Splits a function into prompt and completion; None if it does nothing, is long, or cannot be split by lines."""
    docstring, *body = node.body
    said = ast.get_docstring(node) or ""
    if not body or len(said) < _SHORTEST_DOC or not docstring.end_lineno or not node.end_lineno:
        return None
    if body[0].lineno <= docstring.end_lineno or (len(body) == 1 and isinstance(body[0], (ast.Pass, ast.Raise))):
        return None
    text = textwrap.dedent("\n".join(lines[node.lineno - 1 : node.end_lineno]) + "\n")
    cut = docstring.end_lineno - node.lineno + 1
    written = text.split("\n")
    prompt, completion = "\n".join(written[:cut]) + "\n", "\n".join(written[cut:])
    if len(prompt) > _LONGEST_PROMPT or len(completion) > _LONGEST_BODY or not text.startswith(("def ", "async def ")):
        return None
    try:
        (parsed,) = ast.parse(text).body
    except SyntaxError:
        return None
    # Removing the indentation changes a string that has several lines.
    if ast.dump(parsed) != ast.dump(_without_decorators(node)):
        return None
    return prompt, completion


def _without_decorators(node: ast.FunctionDef | ast.AsyncFunctionDef) -> ast.AST:
    node.decorator_list = []
    return node


def _normal(text: str) -> str:
    return " ".join(text.split())
