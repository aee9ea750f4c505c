"""A program and its test exchange values. Both ends run in this process, in two threads."""

import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import json
import math
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, NoReturn

import pytest

from chatgpt_hf.evaluation.sandbox.channel import LARGEST, Channel, RemoteOfProgram


@dataclasses.dataclass
class Point:
    """Stands for a class that the prompt defines."""

    x: Any
    y: Any = None


class Pair(NamedTuple):
    one: Any
    two: Any


class Colour(enum.Enum):
    RED = 1


class Slots:
    __slots__ = ("a",)


class Refused(ValueError):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")
        self.one = one


KNOWN = {kind.__name__: kind for kind in (Point, Pair, Colour, Slots, Refused)}
# To the channel, these classes are those of `__main__`.
for kind in KNOWN.values():
    kind.__module__ = "__main__"


class Failed(BaseException):
    """An end of the channel would have ended its process."""


def fail(reason: str) -> NoReturn:
    raise Failed(reason)


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    """The judge's end and the program's."""
    (program_reads, judge_writes), (judge_reads, program_writes) = os.pipe(), os.pipe()
    judge = Channel(judge_reads, judge_writes, dict(KNOWN), judges=True, fail=fail)
    program = Channel(program_reads, program_writes, dict(KNOWN), judges=False, fail=fail)
    judge.known = program.known = set(KNOWN)
    yield judge, program
    for descriptor in (program_reads, judge_writes, judge_reads, program_writes):
        os.close(descriptor)


@pytest.fixture
def remote(ends: tuple[Channel, Channel]) -> Iterator[Callable[[Any], Any]]:
    """Returns what the judge gets for a function of the program."""
    judge, program = ends

    def serve() -> None:
        try:
            while (message := program.receive()) != ["end"]:
                program.serve(message)
        except Failed as error:
            program.send(["failed", str(error)])

    thread = threading.Thread(target=serve)
    thread.start()
    yield lambda function: RemoteOfProgram(judge, program.export(function))
    judge.send(["end"])
    thread.join()


DATA = [
    *[None, True, False, 0, -1, 2**62, 2**63, -(2**63), 0.1, -0.0, math.inf, -math.inf, 1e-320, 1 + 2j],
    *["", "a'\"\\\n\0", "é中🙂", "\ud800", b"", b"\0\xff", bytearray(b"ab"), range(3), range(10, -2, -3)],
    *[[], (), set(), frozenset(), {}, [1, [2, (3, [4])]], (1,), {1, "a", (2, 3)}, frozenset({frozenset()})],
    *[{1: 2, "1": 3, (1, 2): [4], None: {}}, {"list": ["set"], "dict": {}}, ["list"], ["seen", 0], [["int", "0x1"]]],
    *[collections.Counter("abca"), collections.OrderedDict(b=1, a=2), collections.deque([1, 2], 3)],
    *[decimal.Decimal("1.10"), fractions.Fraction(1, 3), datetime.date(2026, 1, 2), datetime.timedelta(1, 2)],
    *[datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC), int, str, dict],
    *[Point(1, [Point(2)]), Pair(1, [2]), Colour.RED, [Colour.RED] * 2],
]


@pytest.mark.parametrize("value", DATA, ids=range(len(DATA)))
def test_data_arrives_as_it_is(value: Any, remote: Callable[[Any], Any]) -> None:
    seen: list[Any] = []

    def echo(argument: Any, *, named: Any) -> Any:
        seen.append((argument, named))
        return argument

    result = remote(echo)(value, named=value)
    for each in (result, *seen[0]):
        assert type(each) is type(value)
        assert each == value
        assert str(each) == str(value) or isinstance(value, (set, frozenset))


def test_more_data(remote: Callable[[Any], Any]) -> None:
    assert remote(lambda value: value + 1)(10**5000) == 10**5000 + 1
    assert math.isnan(remote(lambda: math.nan)())
    counted = collections.defaultdict(list, a=[1])
    found = remote(lambda value: value)(counted)
    assert (found, found["b"]) == (counted, [])
    slots = Slots()
    slots.a = 5
    assert remote(lambda value: value)(slots).a == 5


def test_containers_that_are_shared_or_hold_themselves(remote: Callable[[Any], Any]) -> None:
    row = [0]
    found = remote(lambda value: value)([row, row])
    assert found[0] is found[1]
    loop: list[Any] = []
    loop.append(loop)
    found = remote(lambda: loop)()
    assert found[0] is found
    assert remote(lambda value: value)(row) is row


def test_changes_of_arguments(remote: Callable[[Any], Any]) -> None:
    def change(
        values: list[Any], names: dict[str, Any], kinds: set[int], raw: bytearray, point: Point, queue: Any
    ) -> None:
        values[0][1] = 5
        values.append(values[0])
        names.clear()
        names["new"] = [values]
        kinds |= {7}
        raw += b"c"
        point.x = point
        queue.popleft()

    values, names, kinds, raw, point = [[1, 2], 3], {"old": 1}, {1}, bytearray(b"ab"), Point(1)
    queue, row = collections.deque([1, 2]), values[0]
    remote(change)(values, names, kinds, raw, point, queue)
    assert values == [[1, 5], 3, [1, 5]]
    assert values[0] is values[2] is row
    assert names["new"][0] is values
    assert (kinds, raw, list(queue)) == ({1, 7}, bytearray(b"abc"), [2])
    assert point.x is point


def test_arguments_change_also_if_the_call_fails(remote: Callable[[Any], Any]) -> None:
    def work(values: list[int]) -> None:
        values.pop()
        raise KeyError("k")

    values = [1, 2]
    with pytest.raises(KeyError, match="k"):
        remote(work)(values)
    assert values == [1]


class Odd(ZeroDivisionError):
    pass


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("a", 1), ValueError),
        (FileNotFoundError(2, "No such file", "a"), FileNotFoundError),
        (UnicodeDecodeError("utf-8", b"a", 0, 1, "bad"), UnicodeDecodeError),
        (json.JSONDecodeError("bad", "doc", 1), json.JSONDecodeError),
        (StopIteration(3), StopIteration),
        (SystemExit(0), SystemExit),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (ExceptionGroup("several", [ValueError("a")]), ExceptionGroup),
        (Refused(1, 2), Refused),
        (Odd("a"), ZeroDivisionError),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_exceptions(error: BaseException, expected: type[BaseException], remote: Callable[[Any], Any]) -> None:
    def work() -> None:
        raise error

    with pytest.raises(expected) as found:
        remote(work)()
    assert type(found.value).__name__ == type(error).__name__
    assert str(found.value) == str(error)
    if isinstance(error, Refused):
        assert found.value.one == 1  # type: ignore[attr-defined]


def test_an_exception_with_a_built_in_name_is_not_that_one(remote: Callable[[Any], Any]) -> None:
    def work() -> None:
        raise type("ValueError", (Exception,), {"__module__": "__main__"})("a")

    with pytest.raises(Exception, match="a") as found:
        remote(work)()
    assert not isinstance(found.value, ValueError)
    assert type(found.value).__name__ == "ValueError"


def test_functions_and_iterators_of_the_program(remote: Callable[[Any], Any]) -> None:
    adder = remote(lambda a: lambda b: a + b)(3)
    assert adder(4) == 7
    numbers = remote(lambda: (n * n for n in range(4)))()
    assert next(numbers) == 0
    assert list(numbers) == [1, 4, 9]
    assert sorted(remote(lambda: {"b": 1, "a": 2}.keys())()) == ["a", "b"]


def test_objects_of_the_program(remote: Callable[[Any], Any]) -> None:
    class Stack:
        def __init__(self) -> None:
            self.items: list[int] = []

        def push(self, item: int) -> "Stack":
            self.items.append(item)
            return self

        def __len__(self) -> int:
            return len(self.items)

        def __getitem__(self, index: int) -> int:
            return self.items[index]

        def __str__(self) -> str:
            return "<" + ",".join(map(str, self.items)) + ">"

    stack = remote(Stack)()
    assert not stack
    assert stack.push(1).push(2) == stack
    assert (len(stack), stack[1], str(stack), stack.items) == (2, 2, "<1,2>", [1, 2])
    with pytest.raises(AttributeError, match="no attribute 'pop'"):
        stack.pop  # noqa: B018
    with pytest.raises(AttributeError, match="cannot read the attribute"):
        stack._hidden  # noqa: B018


def test_functions_and_iterators_of_the_test(remote: Callable[[Any], Any]) -> None:
    apply = remote(lambda function, values: [function(value) for value in values])
    assert apply(lambda value: value + 1, [1, 2]) == [2, 3]
    assert apply(str, (n for n in range(3))) == ["0", "1", "2"]
    assert apply(max, iter([[1, 2]])) == [2]

    def refuse(value: int) -> None:
        raise LookupError(f"not {value}")

    with pytest.raises(LookupError, match="not 1"):
        apply(refuse, [1])
    function = math.floor
    assert remote(lambda value: value)(function) is function


def test_the_judge_does_nothing_else_for_the_program(ends: tuple[Channel, Channel]) -> None:
    judge, _program = ends
    number = judge.export(lambda: 1)
    for operation in ("attribute", "str", "len", "item", "exec"):
        with pytest.raises(Failed, match=f"the program asks for '{operation}'"):
            judge.serve([operation, number, ["tuple", "__globals__"], ["dict"]])
    for target in (number + 1, -1, "0", True, None):
        with pytest.raises(Failed):
            judge.serve(["call", target, ["tuple"], ["dict"]])


def test_built_in_functions_of_the_test_are_called_by_the_program(ends: tuple[Channel, Channel]) -> None:
    judge, program = ends
    for function in (eval, exec, getattr, open, __import__, type, object):
        program.send(["return", None, []])
        judge.ask("call", 0, function)
        assert program.receive()[2] == ["tuple", ["class", f"builtins.{function.__name__}"]]
    assert judge._exported == []


MALFORMED = [
    *[{}, {"a": 1}, [], ["list", {}], ["nothing"], [1], [[]], ["int", "zz"], ["int", 5], ["seen", 9], ["yours", 0]],
    *[["set", ["list"]], ["dict", 1], ["dict", ["list"], 1], ["bytes", "z"], ["complex", "a"], ["range", "a", 1, 1]],
    *[["class", "builtins.eval"], ["class", "builtins.type"], ["class", "os.system"], ["class", "__main__.fail"]],
    *[
        ["error", [], ["tuple"], ["dict"]],
        ["error", [["builtins", "ValueError"]], 5, ["dict"]],
        ["error", ["a"], ["tuple"], ["dict"]],
        ["error", 5],
    ],
    *[["object", "subprocess.Popen", True, ["tuple", "true"], None, ["list"], ["list"]]],
    *[["object", "builtins.eval", True, ["tuple", "1"], None, ["list"], ["list"]]],
    *[
        [
            "object",
            "__main__.Slots",
            False,
            ["tuple"],
            ["dict", "__class__", ["class", "builtins.int"]],
            ["list"],
            ["list"],
        ]
    ],
    *[["object", "__main__.Point", False, ["tuple"], ["list"], ["list", 1], ["list"]]],
]


@pytest.mark.parametrize("node", MALFORMED, ids=lambda node: json.dumps(node)[:40])
def test_what_is_not_data_ends_the_judge(node: Any, ends: tuple[Channel, Channel]) -> None:
    """No test can take it for an exception of the program."""
    judge, program = ends
    program.send(["return", node, []])
    with pytest.raises(Failed, match="cannot travel"):
        judge.ask("call", 0)


@pytest.mark.parametrize(
    "sent",
    [
        b"\xff" * 8,
        (LARGEST + 1).to_bytes(8, "big"),
        (3).to_bytes(8, "big") + b"\xff\xfe\xfd",
        (2).to_bytes(8, "big") + b"{}",
        (4).to_bytes(8, "big") + b"null",
        (200_000).to_bytes(8, "big") + b"[" * 50_000,
        *(
            len(text).to_bytes(8, "big") + text
            for text in (b'["return"]', b'["return",1,[[0,[1]]]]', b'["raise",1,[]]')
        ),
        *(len(text).to_bytes(8, "big") + text for text in (b'["call",0,5,5]', b"[[],1,2]", b'["return",1,2,3]')),
        (5002).to_bytes(8, "big") + b"[" + b"1" * 5000 + b"]",
    ],
    ids=range(13),
)
def test_what_is_not_a_message_ends_the_judge(sent: bytes, ends: tuple[Channel, Channel]) -> None:
    judge, program = ends
    os.write(program._writing, sent)
    os.set_blocking(judge._reading, False)
    with pytest.raises(Failed):
        judge.ask("call", 0)


def test_what_the_test_cannot_give(ends: tuple[Channel, Channel]) -> None:
    judge, _program = ends
    with pytest.raises(Failed, match=r"the test gives the program a \w+, which is neither data nor a function"):
        judge.ask("call", 0, threading.Lock())
