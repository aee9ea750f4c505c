"""The conversation of a program and its judge: calls, with their arguments and results as data.

The judge runs a test and calls the program's functions; the program's process answers. Values travel as JSON, so nothing
that the program sends is code:

- Data arrives as a copy of the same type: None, bool, int, float, complex, str, bytes, bytearray, range, list, tuple, set,
  frozenset, dict, exceptions, instances of the classes that the problem's prompt defines and of the standard library's
  `_STANDARD`. Instances of other subclasses of these types arrive as the type itself, without their methods.
- Lists and other containers that a call changes in place change for the caller too, also inside one another.
- All else stays where it is, and the other side gets a `Remote`. The judge can call it, iterate over it, and read its public
  attributes; `==` compares no contents, so an object that claims to equal everything equals only itself. The program can call
  functions and iterate over iterators that the test gave it, and do nothing else with the judge.

This module runs in the sandbox, so it imports only the standard library.
"""

import builtins
import copyreg
import json
import operator
import os
import sys
from collections import deque
from collections.abc import Callable
from typing import Any, NoReturn

LARGEST = 1 << 24  # Bytes of one message.
_CHUNK = 1 << 16
_WORD = 1 << 63
_STANDARD = {
    *(f"collections.{name}" for name in ("Counter", "OrderedDict", "defaultdict", "deque")),
    *(f"datetime.{name}" for name in ("date", "datetime", "time", "timedelta", "timezone")),
    *("decimal.Decimal", "fractions.Fraction"),
}
# Each type of data, and how to make one of a subclass' instance without that class' methods.
_DATA: dict[type, Callable[[Any], Any]] = {
    bool: bool,
    int: int.__int__,
    float: float.__float__,
    complex: complex,
    str: str.__str__,
    bytes: bytes,
    bytearray: bytearray,
    range: range,
    list: list,
    tuple: tuple,
    set: set,
    frozenset: frozenset,
    dict: dict,
}
_TYPES = {kind.__name__: kind for kind in _DATA}
_MUTABLE = (list, set, dict, bytearray)
_TO_JSON = json.JSONEncoder(check_circular=False, separators=(",", ":")).encode
# What one side may ask the other to do with an object.
_OPERATIONS: dict[str, Callable[..., Any]] = {
    "call": operator.call,
    "iter": iter,
    "next": next,
    "len": len,
    "bool": bool,
    "str": str,
    "repr": repr,
    "item": operator.getitem,
    "attribute": getattr,
}
_OF_THE_PROGRAM = frozenset({"call", "iter", "next"})


class _Table:
    """Numbers the containers of one call, in the order in which both sides meet them."""

    def __init__(self) -> None:
        self.objects: list[Any] = []
        self.numbers: dict[int, int] = {}

    def add(self, value: Any) -> None:
        self.numbers[id(value)] = len(self.objects)
        self.objects.append(value)


class Remote:
    """An object of the other process that can be called and iterated over."""

    def __init__(self, channel: "Channel", number: int) -> None:
        self._channel, self._number = channel, number

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._channel.ask("call", self._number, *args, **kwargs)

    def __iter__(self) -> Any:
        return self._channel.ask("iter", self._number)

    def __next__(self) -> Any:
        return self._channel.ask("next", self._number)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Remote) and other._number == self._number

    def __hash__(self) -> int:
        return hash(self._number)


class RemoteOfProgram(Remote):
    """An object of the program, with what else a test may use of it."""

    def __len__(self) -> int:
        return int(self._channel.ask("len", self._number))

    def __bool__(self) -> bool:
        return bool(self._channel.ask("bool", self._number))

    def __str__(self) -> str:
        return str(self._channel.ask("str", self._number))

    def __repr__(self) -> str:
        return str(self._channel.ask("repr", self._number))

    def __getitem__(self, key: Any) -> Any:
        return self._channel.ask("item", self._number, key)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"A test cannot read the attribute {name!r} of an object of the program.")
        return self._channel.ask("attribute", self._number, name)


class Channel:
    """One end of the conversation.

    Args:
        reading: The descriptor to read from.
        writing: The descriptor to write to.
        names: The namespace of `__main__`, where classes are looked up.
        judges: This is the judge's end, which trusts nothing that arrives.
        fail: Ends this process with a reason; the reason is empty if the other side has closed its end.
    """

    def __init__(
        self, reading: int, writing: int, names: dict[str, Any], *, judges: bool, fail: Callable[[str], NoReturn]
    ) -> None:
        self.judges, self.names, self.fail = judges, names, fail
        self.known: set[str] = set()  # Names in `names` of classes whose instances are data.
        self._reading, self._writing = reading, writing
        self._buffer = bytearray()
        self._exported: list[Any] = []
        self._numbers: dict[int, int] = {}

    def export(self, value: Any) -> int:
        """Returns the number by which the other side can use an object of this one."""
        number = self._numbers.setdefault(id(value), len(self._exported))
        if number == len(self._exported):
            self._exported.append(value)
        return number

    def ask(self, operation: str, target: int, /, *args: Any, **kwargs: Any) -> Any:
        """Lets the other side perform an operation on one of its objects; returns or raises what that does."""
        table = _Table()
        try:
            self.send([operation, target, self._encode(args, table), self._encode(kwargs, table)])
            while (message := self.receive())[0] not in ("return", "raise"):
                self.serve(message)
            how, found, changes = message
            result = self._decode(found, table)
            for number, content in changes:
                _replace(table.objects[number], [self._decode(each, table) for each in content])
            if how == "raise" and not isinstance(result, BaseException):
                raise TypeError("what was raised is not an exception")
        except BaseException as error:
            # A test that expects an exception must not take this one for it.
            self.fail(f"A value cannot travel between the program and its test: {_described(error)}")
        if how == "raise":
            raise result
        return result

    def serve(self, message: list[Any]) -> None:
        """Performs what the other side asks for, and answers."""
        try:
            if message[0] == "failed":
                self.fail(f"The program's process failed: {message[1]}")
            operation, target, sent, options = message
            if self.judges and operation not in _OF_THE_PROGRAM:
                raise ValueError(f"the program asks for {operation!r:.40}")
            if type(target) is not int or target < 0:
                raise ValueError("an object has no number")
            table = _Table()
            subject, perform = self._exported[target], _OPERATIONS[operation]
            args, kwargs = self._decode(sent, table), self._decode(options, table)
            before = [_content(each) for each in table.objects]
            try:
                how, result = "return", perform(subject, *args, **kwargs)
            except BaseException as error:
                how, result = "raise", error
            contents = enumerate(map(_content, table.objects[: len(before)]))
            changed = [(number, content) for number, content in contents if not _same(content, before[number])]
            answer = [how, self._encode(result, table)]
            self.send([*answer, [[number, [self._encode(x, table) for x in content]] for number, content in changed]])
        except BaseException as error:
            self.fail(f"A value cannot travel between the program and its test: {_described(error)}")

    def send(self, message: list[Any]) -> None:
        """Sends one message."""
        data = _TO_JSON(message).encode("ascii")
        if len(data) > LARGEST:
            raise ValueError(f"it is larger than {LARGEST >> 20} MiB")
        data = len(data).to_bytes(8, "big") + data
        try:
            while data:
                data = data[os.write(self._writing, data) :]
        except OSError:
            self.fail("")

    def receive(self) -> list[Any]:
        """Returns the next message."""
        size = int.from_bytes(self._take(8), "big")
        if size > LARGEST:
            raise ValueError(f"it is larger than {LARGEST >> 20} MiB")
        message = json.loads(self._take(size).decode("ascii"))
        if type(message) is not list or not message:
            raise ValueError("it is not a message")
        return message

    def _take(self, size: int) -> bytes:
        while len(self._buffer) < size:
            try:
                chunk = os.read(self._reading, _CHUNK)
            except OSError:
                chunk = b""
            if not chunk:
                self.fail("")
            self._buffer += chunk
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken

    def _encode(self, value: Any, table: _Table) -> Any:
        kind = type(value)
        if value is None or kind is str or kind is bool or kind is float:
            return value
        if kind is int:
            return value if -_WORD < value < _WORD else ["int", hex(value)]
        if (number := table.numbers.get(id(value))) is not None:
            return ["seen", number]
        if isinstance(value, Remote):
            return ["yours", value._number]
        if kind in _DATA:
            return self._encode_data(value, kind, table)
        if isinstance(value, type):
            return self._encode_class(value)
        if isinstance(value, BaseException):
            classes = [[each.__module__, each.__qualname__] for each in kind.__mro__[:-1]]
            # Only so does an error of the system name its file.
            args = OSError.__reduce__(value)[1] if isinstance(value, OSError) else value.args
            return ["error", classes, self._encode(args, table), self._encode({**vars(value)}, table)]
        if self._is_known(name := f"{kind.__module__}.{kind.__qualname__}", kind):
            return self._encode_object(value, name, table)
        for base in _DATA:
            if isinstance(value, base):
                return self._encode_data(value, base, table)
        if self.judges and not callable(value) and not hasattr(kind, "__next__"):
            raise TypeError(f"the test gives the program a {kind.__qualname__}, which is neither data nor a function")
        return self._encode_builtin(value) or ["mine", self.export(value)]

    def _encode_data(self, value: Any, base: type, table: _Table) -> Any:
        if base in _MUTABLE:
            table.add(value)
        if type(value) is not base:
            value = _DATA[base](value)
        if base in (list, tuple, set, frozenset):
            return [base.__name__, *[self._encode(each, table) for each in value]]
        if base is dict:
            return ["dict", *[self._encode(each, table) for pair in value.items() for each in pair]]
        if base in (bytes, bytearray):
            return [base.__name__, value.hex()]
        if base is complex:
            return ["complex", value.real, value.imag]
        if base is range:
            return ["range", *[self._encode(each, table) for each in (value.start, value.stop, value.step)]]
        return self._encode(value, table)

    def _encode_class(self, value: type) -> list[Any]:
        if _TYPES.get(value.__name__) is value:
            return ["class", f"builtins.{value.__name__}"]
        if self._is_known(name := f"{value.__module__}.{value.__qualname__}", value):
            return ["class", name]
        return self._encode_builtin(value) or ["mine", self.export(value)]

    def _encode_builtin(self, value: Any) -> list[Any] | None:
        """A built-in function of the test, such as `max` or `eval`, is the program's own: the judge never calls it for it."""
        name = getattr(value, "__name__", "") if self.judges else ""
        return ["class", f"builtins.{name}"] if isinstance(name, str) and vars(builtins).get(name) is value else None

    def _encode_object(self, value: Any, name: str, table: _Table) -> list[Any]:
        table.add(value)
        make, args, state, items, pairs = (*value.__reduce_ex__(2), None, None, None)[:5]
        if make is copyreg.__newobj__:  # type: ignore[attr-defined]
            args = args[1:]
        elif make is not type(value):
            raise TypeError(f"{name} cannot be copied")
        parts = (make is type(value), args, state, list(items or ()), list(pairs or ()))
        return ["object", name, *[self._encode(part, table) for part in parts]]

    def _is_known(self, name: str, kind: type) -> bool:
        module, _, rest = name.rpartition(".")
        if module == "__main__":
            return rest in self.known and self.names.get(rest) is kind
        return name in _STANDARD and vars(sys.modules[module]).get(rest) is kind

    def _class(self, name: str) -> Any:
        module, _, rest = name.rpartition(".")
        if module == "builtins":
            return _TYPES[rest] if self.judges else getattr(builtins, rest)
        if module == "__main__" and rest in self.known:
            return self.names[rest]
        if name in _STANDARD:
            return getattr(__import__(module), rest)
        raise ValueError(f"no class {name:.80}")

    def _decode(self, node: Any, table: _Table) -> Any:
        if type(node) is not list:
            if type(node) is dict:
                raise ValueError("it is not data")
            return node
        tag, *rest = node
        if tag in ("list", "set", "dict"):
            made: Any = _TYPES[tag]()
            table.add(made)
            values = [self._decode(each, table) for each in rest]
            _replace(made, values)
            return made
        if tag in ("tuple", "frozenset"):
            return _TYPES[tag]([self._decode(each, table) for each in rest])
        if tag == "int":
            return int(rest[0], 16)
        if tag == "seen":
            return table.objects[rest[0]]
        if tag == "complex":
            return complex(*rest)
        if tag == "range":
            return range(*[self._decode(each, table) for each in rest])
        if tag == "bytes":
            return bytes.fromhex(rest[0])
        if tag == "bytearray":
            table.add(made := bytearray.fromhex(rest[0]))
            return made
        if tag == "mine":
            return (RemoteOfProgram if self.judges else Remote)(self, rest[0])
        if tag == "yours":
            return self._exported[rest[0]]
        if tag == "class":
            return self._class(rest[0])
        if tag == "error":
            return self._decode_error(rest, table)
        if tag == "object":
            return self._decode_object(rest, table)
        raise ValueError("it is not data")

    def _decode_error(self, node: list[Any], table: _Table) -> BaseException:
        """Makes an exception of the first class that is known here, under the original name."""
        classes, args, state = node
        found: type = Exception
        for module, name in classes:
            names = self.names if module == "__main__" else getattr(sys.modules.get(module), "__dict__", {})
            kind = names.get(name)
            if isinstance(kind, type) and issubclass(kind, BaseException):
                found = kind
                break
        own = classes[0][1].rpartition(".")[2]
        if found.__name__ != own:
            found = type(own, (found,), {})
        args, state = self._decode(args, table), self._decode(state, table)
        # Other classes than the built-in ones may take other arguments than they keep.
        made: BaseException = found(*args) if found.__module__ == "builtins" else found.__new__(found, *args)
        vars(made).update(state)
        return made

    def _decode_object(self, node: list[Any], table: _Table) -> Any:
        """Makes an instance of a known class as `copy` does."""
        name, call, args, *rest = node
        kind = self._class(name)
        number = len(table.objects)
        table.objects.append(None)
        args = self._decode(args, table)
        made = kind(*args) if call else kind.__new__(kind, *args)
        table.objects[number], table.numbers[id(made)] = made, number
        state, items, pairs = (self._decode(part, table) for part in rest)
        attributes, slots = state if isinstance(state, tuple) else (state, None)
        for key, each in {**(attributes or {}), **(slots or {})}.items():
            if key.startswith("__"):
                raise ValueError(f"the attribute {key:.40} cannot travel")
            object.__setattr__(made, key, each)
        for each in items:
            made.append(each)
        for key, each in pairs:
            made[key] = each
        return made


def _content(value: Any) -> list[Any]:
    """Returns what a call may have changed in a container."""
    if isinstance(value, dict):
        return [each for pair in value.items() for each in pair]
    if isinstance(value, (list, set, bytearray, deque)):
        return list(value)
    return [each for pair in getattr(value, "__dict__", {}).items() for each in pair]


def _same(one: list[Any], other: list[Any]) -> bool:
    return len(one) == len(other) and all(map(operator.is_, one, other))


def _replace(value: Any, content: list[Any]) -> None:
    """Gives a container the content that `_content` would return."""
    if isinstance(value, (list, bytearray)):
        value[:] = content
    elif isinstance(value, deque):
        value.clear()
        value.extend(content)
    elif isinstance(value, set):
        value.clear()
        value.update(content)
    else:
        names = value if isinstance(value, dict) else vars(value)
        names.clear()
        names.update(zip(content[::2], content[1::2], strict=True))


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:300]
