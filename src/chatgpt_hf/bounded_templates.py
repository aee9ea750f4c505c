"""A limit on the work of a chat template: Jinja's sandbox keeps code out, but lets a template take any time and memory.

Steps are counted, not seconds, so a slow machine refuses nothing that a fast one renders. A single operation that would build
a huge text or number is refused before it starts, because nothing can end it afterwards.

transformers takes no environment from its callers, so its class is replaced in the whole process, from the first budget on.
It is not put back, because other threads may be about to compile templates. Outside of a budget the new class limits nothing.
"""

import functools
import re
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, ValuesView
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from jinja2 import nodes
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer
from transformers.utils import chat_template_utils

from .errors import TemplateTimeout

# A pass through a loop is a step, a call or filter is ten. Templates of known models take some hundred for each message, and
# this many take about a second.
MOST_STEPS = 5_000_000
_STEPS_OF_A_CALL = 10
# Characters, or entries of a list: more than any model reads.
LARGEST = 10_000_000
# Copying this many characters takes about as long as a step.
_CHARACTERS_PER_STEP = 100
# Of a number: Python's arithmetic has no limit.
_MOST_BITS = 10_000
# Of a width or another number that a text operation gets.
_LARGEST_NUMBER = 1_000_000
_WIDTH = re.compile(r"%[^%a-zA-Z]*\d{7}|:[^{}]*\d{7}")
# Widths that come as arguments.
_VARIABLE_WIDTH = re.compile(r"%[^%a-zA-Z]*\*|\{[^{}]*\{")
# Text operations and filters that get a width or a number of items to make.
_WITH_NUMBERS = (
    "tojson",
    "center",
    "ljust",
    "rjust",
    "zfill",
    "expandtabs",
    "indent",
    "batch",
    "slice",
    "round",
    "truncate",
    "wordwrap",
)
# Filters that turn whatever they get into text, or compare it.
_DEEP = (
    *(
        "string",
        "tojson",
        "pprint",
        "join",
        "escape",
        "e",
        "forceescape",
        "urlize",
        "urlencode",
        "xmlattr",
        "format",
        "replace",
    ),
    *("unique", "sort", "dictsort", "sum", "min", "max", "groupby"),
)
# Tests that compare; `select` and `reject` use them too.
_COMPARING = (
    *("eq", "equalto", "==", "ne", "!=", "in"),
    *("gt", "greaterthan", ">", "ge", ">=", "lt", "lessthan", "<", "le", "<="),
)
# Filters of texts, and methods that search from the end, whose time grows with the product of two lengths.
_QUADRATIC = ("striptags", "urlize", "wordwrap")
_FROM_THE_END = ("rfind", "rindex", "rsplit", "rpartition")
_COMPARISONS_PER_STEP = 10_000
# What contains values. Templates make no others: the sandbox lets them change none, and hides sets.
_CONTAINERS = (list, tuple, dict, KeysView, ValuesView, ItemsView)


@dataclass
class _Budget:
    steps: int = 0

    def spend(self, steps: int) -> None:
        self.steps += steps
        if self.steps > MOST_STEPS:
            raise TemplateTimeout(f"the chat template was not done after {MOST_STEPS:,} steps: does it loop for ever?")


_BUDGET: ContextVar[_Budget] = ContextVar("budget of a chat template")


class _Counted(str):
    """The text of a template; transformers' cache of compiled templates tells it from the same text of somebody else."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Counted) and str.__eq__(self, other)

    __hash__ = str.__hash__


def counted(template: str) -> str:
    """A template's text, for rendering in a budget: the same text may have been compiled without counters before."""
    return _Counted(template)


@contextmanager
def budget() -> Iterator[None]:
    """Limits the steps of the templates (see `counted`) that this thread renders in the block."""
    # transformers renders with whatever class has this name, and has no other place for a limit.
    chat_template_utils.ImmutableSandboxedEnvironment = BoundedEnvironment
    token = _BUDGET.set(_Budget())
    try:
        yield
    finally:
        _BUDGET.reset(token)


def _spend(steps: int) -> None:
    found = _BUDGET.get(None)
    if found is not None:
        found.spend(steps)


def _check_size(size: int) -> None:
    if _BUDGET.get(None) is None:
        return
    if size > LARGEST:
        raise TemplateTimeout(
            f"the chat template builds a text or list of {size:,} characters or entries, which is too large"
        )
    _spend(size // _CHARACTERS_PER_STEP)


def _size(value: Any) -> int:
    return len(value) if isinstance(value, (str, bytes, list, tuple)) else 0


def _deep_size(value: Any, known: dict[int, int]) -> int:
    """Characters and entries in a value, counted as often as it is contained: lists that share parts are small in memory only."""
    if not isinstance(value, _CONTAINERS):
        if isinstance(value, Namespace):
            raise TemplateTimeout(
                "the chat template puts a namespace into a list, a namespace or text, where it could grow"
            )
        return _size(value)
    if id(value) not in known:
        _spend(1 + len(value) // 4)
        pairs = value.items() if isinstance(value, dict) else value
        parts = (part for pair in pairs for part in pair) if isinstance(value, (dict, ItemsView)) else value
        known[id(value)] = len(value) + sum(_deep_size(part, known) for part in parts)
    return known[id(value)]


def _nested(value: Any) -> int:
    """The deep size of a value.

    Raises:
        TemplateTimeout: If it is too large: whatever happens to the value then takes a bounded time.
    """
    if _BUDGET.get(None) is None:
        return 0
    try:
        size = _deep_size(value, {})
    except RecursionError:
        raise TemplateTimeout("the chat template nests lists too deep, which makes them too large") from None
    if size > LARGEST:
        raise TemplateTimeout("the chat template builds a list of lists that is too large")
    return size


def _check_deep(*values: Any) -> None:
    """Checks values before they become text, or are compared."""
    for value in values:
        _check_size(_nested(value))


def _measured(value: Any) -> Any:
    """Returns a value that an operation has made."""
    _check_size(_size(value))
    if isinstance(value, _CONTAINERS):
        _nested(value)
    return value


class _BoundedNamespace(Namespace):
    """A namespace whose values are checked: loops build large ones from them."""

    def __init__(self, /, *arguments: Any, **values: Any) -> None:
        for value in (*arguments, *values.values()):
            _nested(value)
        super().__init__(*arguments, **values)

    def __setitem__(self, name: str, value: Any) -> None:
        _nested(value)
        super().__setitem__(name, value)


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox of chat templates, with these limits."""

    intercepted_binops = frozenset({"*", "**", "+", "%"})

    def compile(self, source: Any, *arguments: Any, **options: Any) -> Any:
        """Compiles a template in which loops, concatenations and output are counted."""
        if isinstance(source, str):
            # Its authors' filters are there by now.
            self.filters = {name: _bounded(name, function) for name, function in self.filters.items()}
            # A loop of one function call, with any numbers.
            self.globals.pop("lipsum", None)
            self.globals["namespace"] = _BoundedNamespace
            self.tests |= {name: _comparing(self.tests[name]) for name in _COMPARING}
            source = _Counting().visit(self.parse(source))
            source.set_environment(self)
        return super().compile(source, *arguments, **options)

    def counted(self, items: Iterable[Any], steps: int) -> Iterator[Any]:
        """The items of a loop, each of which takes steps."""
        for item in items:
            _spend(steps)
            yield item

    def joined(self, *values: Any) -> str:
        """Concatenates like `~`."""
        _check_deep(*values)
        texts = [str(value) for value in values]
        _check_size(sum(map(len, texts)))
        return "".join(texts)

    def shown(self, value: Any) -> Any:
        """Returns a value that is printed."""
        _check_deep(value)
        return value

    def compared(self, value: Any) -> Any:
        """Returns a value that is compared, or the key of an entry."""
        if isinstance(value, (str, *_CONTAINERS)):
            _check_deep(value)
        return value

    def built(self, value: Any) -> Any:
        """Returns a list, tuple, dictionary or part of one, or of a text, that a template has made."""
        return _measured(value)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Returns `obj[argument]` for a template."""
        # It is hashed, and if there is no such entry, the message shows it.
        return super().getitem(obj, self.compared(argument) if isinstance(argument, tuple) else argument)

    def call(self, context: Any, obj: Any, /, *arguments: Any, **options: Any) -> Any:
        """Calls a function or method for a template."""
        # The sandbox wraps `str.format`.
        owner = getattr(getattr(obj, "__wrapped__", obj), "__self__", None)
        if owner is self:
            return obj(*arguments)
        _spend(_STEPS_OF_A_CALL)
        if isinstance(owner, (str, *_CONTAINERS)):
            _check_deep(owner)
        # What a macro does is counted itself.
        if not isinstance(obj, Macro):
            # Jinja adds the variables of the loop and the block, under names with an underscore.
            _check_deep(*arguments, *(value for name, value in options.items() if not name.startswith("_")))
        if isinstance(owner, str):
            _check_text_operation(obj.__name__, [owner, *arguments], options)
        return _measured(super().call(context, obj, *arguments, **options))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Computes `left operator right`, if the result is not too large."""
        if operator == "*":
            for one, other in ((left, right), (right, left)):
                if isinstance(other, int):
                    _check_size(_size(one) * max(other, 0))
        elif operator == "+":
            _check_size(_size(left) + _size(right))
        elif operator == "%" and isinstance(left, str):
            _check_deep(right)
            _check_text_operation("format", [left, *(right if isinstance(right, tuple) else (right,))], {})
        if isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * abs(right) if operator == "**" else left.bit_length() + right.bit_length()
            if bits > _MOST_BITS and _BUDGET.get(None) is not None:
                raise TemplateTimeout(f"the chat template computes a number of {bits:,} bits, which is too large")
        return _measured(super().call_binop(context, operator, left, right))


def _comparing(test: Any) -> Callable[..., bool]:
    """A test whose arguments are checked."""

    @functools.wraps(test)
    def bounded(*values: Any) -> bool:
        _check_deep(*values)
        return test(*values)

    return bounded


def _bounded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter whose arguments and result are checked."""
    # Of some filters the first argument is the context.
    first = int(hasattr(function, "jinja_pass_arg"))

    @functools.wraps(function)
    def bounded(*arguments: Any, **options: Any) -> Any:
        _spend(_STEPS_OF_A_CALL)
        if name in _DEEP:
            _check_deep(*arguments[first:])
        if name == "join" and not isinstance(arguments[first], (str, list, tuple)):
            arguments = (*arguments[:first], list(arguments[first]), *arguments[first + 1 :])
        _check_text_operation(name, list(arguments[first:]), options)
        return _measured(function(*arguments, **options))

    return bounded


def _check_text_operation(name: str, arguments: list[Any], options: dict[str, Any]) -> None:
    """Raises before a method of a text, or a filter, builds more than `LARGEST`.

    Args:
        arguments: The text itself, and then what the operation gets.
    """
    text, *others = arguments
    others += options.values()
    widths = name in _WITH_NUMBERS or (
        name in ("format", "format_map") and isinstance(text, str) and _VARIABLE_WIDTH.search(text)
    )
    for number in others if widths else ():
        if isinstance(number, int) and abs(number) > _LARGEST_NUMBER:
            _check_size(abs(number) + LARGEST)
    sizes = [_size(other) for other in others]
    if name in _QUADRATIC:
        _spend(_size(text) ** 2 // _COMPARISONS_PER_STEP)
    elif name in _FROM_THE_END:
        _spend(_size(text) * max(sizes, default=0) // _COMPARISONS_PER_STEP)
    elif name == "sum":
        # Lists are added one after the other, each time into a new one.
        added = text if isinstance(text, (list, tuple)) else ()
        _spend(len(added) * sum(map(_size, added)) // _COMPARISONS_PER_STEP)
    if name == "join":
        separator, items = (
            (text, others[0])
            if isinstance(text, str) and others and not isinstance(others[0], str)
            else (
                others[0] if others else "",
                text,
            )
        )
        if isinstance(items, (list, tuple)):
            _check_size(sum(map(_size, items)) + len(items) * _size(separator))
    elif not isinstance(text, str):
        return
    elif name == "replace" and len(others) >= 2 and isinstance(others[0], str):
        _check_size(text.count(others[0]) * sizes[1])
    elif name in ("expandtabs", "indent"):
        width = max([other if isinstance(other, int) else _size(other) for other in others], default=8)
        _check_size((text.count("\t") + text.count("\n") + 1) * max(width, 0))
    elif name in ("format", "format_map"):
        if _WIDTH.search(text):
            _check_size(LARGEST + 1)
        _check_size((text.count("%") + text.count("{")) * sum(sizes))


class _Counting(NodeTransformer):
    """Puts the environment's counters around what a template repeats, joins and prints."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        printed = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        node.iter = _call("counted", [node.iter, nodes.Const(1 + printed // _CHARACTERS_PER_STEP)], node)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:
        self.generic_visit(node)
        return _call("joined", node.nodes, node)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Compare:
        self.generic_visit(node)
        part: Any
        for part in (node, *node.ops):
            if not isinstance(part.expr, nodes.Const):
                part.expr = _call("compared", [part.expr], node)
        return node

    def visit_List(self, node: nodes.List) -> nodes.Expr:
        self.generic_visit(node)
        return _built(node, node.items)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Expr:
        self.generic_visit(node)
        return _built(node, node.items) if node.ctx == "load" else node

    def visit_Dict(self, node: nodes.Dict) -> nodes.Expr:
        self.generic_visit(node)
        for pair in node.items:
            if not isinstance(pair.key, nodes.Const):
                pair.key = _call("compared", [pair.key], node)
        return _built(node, [part for pair in node.items for part in (pair.key, pair.value)])

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Expr:
        self.generic_visit(node)
        return _call("built", [node], node) if isinstance(node.arg, nodes.Slice) else node

    def visit_Output(self, node: nodes.Output) -> nodes.Node:
        self.generic_visit(node)
        node.nodes = [
            part if isinstance(part, (nodes.TemplateData, nodes.Const)) else _call("shown", [part], node)
            for part in node.nodes
        ]
        return node


def _built(node: nodes.Expr, parts: list[nodes.Expr]) -> nodes.Expr:
    """A list, tuple or dictionary that is checked, if it has parts that are not written in the template."""
    return node if all(isinstance(part, nodes.Const) for part in parts) else _call("built", [node], node)


def _call(name: str, arguments: list[Any], node: nodes.Node) -> nodes.Call:
    call = nodes.Call(nodes.EnvironmentAttribute(name), arguments, [], None, None)
    call.set_lineno(node.lineno)
    return call
