"""Programs that are after a verdict that they do not deserve: each counts as a failed sample."""

import os
import re
import sys
from dataclasses import replace
from typing import Any

import pytest

from chatgpt_hf.evaluation.code import Problem, judge
from chatgpt_hf.evaluation.sandbox import Outcome, run_program

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="programs are confined on Linux alone")

PATIENCE = 300
# The test imports modules, calls a helper of the prompt, and compares in several ways.
DOUBLE = Problem(
    "Test/0",
    "import math\n\n\ndef half(x):\n    return x / 2\n\n\n"
    'def double(x):\n    """Twice x; a ValueError if x is negative."""\n',
    "double",
    "import copy\nimport random\n\nSECRET = 'needle-7c1f'\n\ndef check(candidate):\n    for n in (3, 10, 0):\n"
    "        assert candidate(n) == 2 * n\n        assert abs(half(candidate(n)) - n) < 1e-6\n"
    "    assert isinstance(candidate(1), int)\n    assert candidate('ab') == 'abab'\n    assert candidate([1]) == [1, 1]\n"
    "    assert list(candidate((1,))) == [1, 1]\n    x = random.randint(1, 9)\n    assert candidate(copy.copy(x)) == 2 * x\n"
    "    try:\n        candidate(-1)\n    except ValueError:\n        pass\n    else:\n        assert False\n",
    "    if not hasattr(x, '__len__') and x < 0:\n        raise ValueError(x)\n    return x * 2\n",
)
WRONG = "AssertionError:$"
NO_SYNTAX = "SyntaxError|IndentationError"
LEFT = "left with exit code 0 before its end"
TRAVEL = "cannot travel|left with exit code|died of SIG"


def completed(completion: str, problem: Problem = DOUBLE) -> Outcome:
    return judge(problem, completion, timeout=PATIENCE)


def test_the_right_program_passes() -> None:
    assert completed(DOUBLE.canonical_solution or "") == Outcome(True, "passed", "")
    assert completed("    return x * 2\n").reason == WRONG.rstrip("$")


# Completions whose end would swallow a test that stands after them in one file, or replace it.
ENDS = {
    "decorator": ("    return 0\n\n@(lambda f: None)", NO_SYNTAX),
    "decorator that replaces": ("    return 0\n\n@(lambda f: lambda *a: None)", NO_SYNTAX),
    "decorator and signature": ("    return 0\n\n@(lambda f: lambda *a: None)\ndef check(c): pass\n", WRONG),
    "its own check": ("    return 0\n\ndef check(candidate):\n    pass\n", WRONG),
    "its own check by name": ("    return 0\n\nimport builtins\nbuiltins.check = check = lambda *a: None\n", WRONG),
    "its own helper": (
        "    return Answer()\n\nclass Answer:\n    pass\n\ndef half(x):\n    return 0\n\nimport builtins\nbuiltins.abs = half\n",
        WRONG,
    ),
    "string of three quotes": ("    return 0\n'''", NO_SYNTAX),
    "docstring of three quotes": ('    return 0\ndef f():\n    """', NO_SYNTAX),
    "string": ("    return 0\nx = '", NO_SYNTAX),
    "string that continues": ("    return 0\nx = '\\", NO_SYNTAX),
    "f-string": ("    return 0\nf'{(", NO_SYNTAX),
    "parenthesis": ("    return 0\nx = (", NO_SYNTAX),
    "bracket": ("    return 0\n[", NO_SYNTAX),
    "brace": ("    return 0\n{", NO_SYNTAX),
    "backslash": ("    return 0\nx = \\", NO_SYNTAX),
    "comment": ("    return 0\n#", WRONG),
    "condition": ("    return 0\nif False:", NO_SYNTAX),
    "condition with a body": ("    return 0\nif False:\n  ", NO_SYNTAX),
    "loop": ("    return 0\nfor _ in ():", NO_SYNTAX),
    "function": ("    return 0\ndef f():", NO_SYNTAX),
    "asynchronous function": ("    return 0\nasync def f():", NO_SYNTAX),
    "class": ("    return 0\nclass A:", NO_SYNTAX),
    "try": ("    return 0\ntry:", NO_SYNTAX),
    "with": ("    return 0\nwith open:", NO_SYNTAX),
    "match": ("    return 0\nmatch 1:\n  case 2:", NO_SYNTAX),
    "lambda": ("    return 0\nf = lambda:", NO_SYNTAX),
    "indented": ("    return 0\n    ", WRONG),
    "form feed": ("    return 0\n\f", WRONG),
    "null byte": ("    return 0\n\0", "SyntaxError|ValueError"),
    "end of file of old": ("    return 0\n\x1a", NO_SYNTAX),
    "half a character": ("    return 0\n'\ud800'", "UnicodeEncodeError|SyntaxError"),
    "future": ("    return 0\nfrom __future__ import annotations\n", NO_SYNTAX),
    "future of operators": ("    return 0\nfrom __future__ import barry_as_FLUFL\n", NO_SYNTAX),
    "encoding": ("    return 0\n# coding: utf-7\n# +AAo-def check(c): pass\n", WRONG),
    "deletion": ("    return 0\ndel double\n", "NameError"),
    "another thing": ("    return 0\ndouble = 5\n", "TypeError: 'int' object is not callable"),
    "nothing": ("    return 0\ndouble = None\n", "TypeError"),
}


@pytest.mark.parametrize(
    "start", ["# coding: rot13\n", "# -*- coding: utf-7 -*-\n", "\ufeff", "from __future__ import barry_as_FLUFL\n"]
)
def test_beginnings(start: str) -> None:
    """Nothing at the beginning of a program changes how its test is read."""
    test = "def check(candidate):\n    assert candidate(1) != 1\n    assert candidate(2) == 4\n"
    wrong = run_program(f"{start}def f(x):\n    return 1\n", entry_point="f", test=test, timeout=PATIENCE)
    assert not wrong.passed
    assert re.search(f"{WRONG}|SyntaxError", wrong.reason)


# Bodies of `double`, and code after it: what a program tries when its test calls it, or before.
ANSWER = """    return 0

import os, struct, json
def say(*messages):
    for f in range(3, 64):
        try:
            for m in messages:
                data = json.dumps(m).encode()
                os.write(f, len(data).to_bytes(8, 'big') + data)
        except OSError:
            pass
"""
EVERYWHERE = "    import os\n    for f in range(64):\n        try: os.write(f, b'{}')\n        except OSError: pass\n    os._exit(0)\n"
CHANNEL = "    import gc\n    for c in gc.get_objects():\n        if type(c).__name__ == 'Channel':\n"
PROGRAMS = {
    # Leaving
    "exit": ("    import sys; sys.exit(0)", "SystemExit: 0"),
    "exit at once": ("    return 0\n\nimport sys; sys.exit(0)", "SystemExit: 0"),
    "SystemExit": ("    raise SystemExit", "SystemExit:"),
    "hard exit": ("    import os; os._exit(0)", LEFT),
    "hard exit at once": ("    return 0\n\nimport os; os._exit(0)", LEFT),
    "KeyboardInterrupt": ("    raise KeyboardInterrupt", "KeyboardInterrupt"),
    "GeneratorExit": ("    raise GeneratorExit", "GeneratorExit"),
    "StopIteration": ("    raise StopIteration", "StopIteration"),
    "exit in a thread": (
        "    import os, threading\n    threading.Thread(target=os._exit, args=(0,)).start()\n    while 1: pass",
        LEFT,
    ),
    "exit later": ("    return 0\n\nimport atexit, os; atexit.register(os._exit, 0)", WRONG),
    "death": ("    import os; os.kill(os.getpid(), 15)", "died of SIGTERM"),
    "exit instead of the expected error": ("    if x == -1:\n        import os; os._exit(0)\n    return x * 2", LEFT),
    "exit when an object goes": (
        "    class D:\n        def __del__(self):\n            import os; os._exit(0)\n    D()\n    return 0",
        LEFT,
    ),
    # Saying so
    "print": ("    print('passed'); return 0", WRONG),
    "say so": (EVERYWHERE.format("passed"), TRAVEL),
    "say ready again": (EVERYWHERE.format("ready 1 \\npassed"), TRAVEL),
    "an error named passed": ("    raise type('passed', (Exception,), {})", "^passed:$"),
    "a failure named passed": (ANSWER + "say(['failed', 'passed'])", "process failed: passed"),
    "answers before the questions": (ANSWER + "say(*[['return', 6, []]] * 9)", "TypeError|AssertionError|" + TRAVEL),
    "answers and an exit": (
        ANSWER + "say(*[['return', 6, []]] * 9); os._exit(0)",
        "TypeError|AssertionError|" + TRAVEL,
    ),
    "an answer that is not data": (ANSWER + "say(['return', ['class', 'builtins.eval'], []])", TRAVEL),
    "a change of what is not there": (ANSWER + "say(['return', 0, [[7, [1]]]])", TRAVEL),
    "a question to the judge": (ANSWER + "say(['call', 0, ['tuple'], ['dict']])", TRAVEL),
    "a size without end": (
        ANSWER + "for f in range(3, 20):\n try: os.write(f, b'\\xff' * 8)\n except OSError: pass",
        TRAVEL,
    ),
    "depth without end": ("    a = []\n    for _ in range(100000): a = [a]\n    return a", "RecursionError|SIGSEGV"),
    # Looking around
    "frames": (
        "    import sys\n    f = sys._getframe()\n    while f:\n        f.f_globals['PASSED'] = f.f_locals['result'] = 6\n        f = f.f_back\n"
        "    return 0",
        WRONG,
    ),
    "frames of an error": (
        "    try: 1 / 0\n    except Exception as e:\n        f = e.__traceback__.tb_frame.f_back\n        f.f_locals['self'].judges = True\n"
        "    return 0",
        WRONG,
    ),
    "the channel": (f"{CHANNEL}            c.ask('call', 0, 1)\n    return 0", TRAVEL),
    "the channel's other operations": (
        f"{CHANNEL}            c.ask('attribute', 0, '__globals__')\n    return 0",
        TRAVEL,
    ),
    "the channel's code": (
        f"{CHANNEL}            f = type(c)._encode\n            g = lambda self, value, table: 6\n            f.__code__ = g.__code__\n    return 0",
        "AssertionError|TypeError|" + TRAVEL,
    ),
    "bytecode": (
        "    f = lambda: x\n    try: return (lambda: 0).__code__.replace(co_code=bytes([100, 255] * 50 + [83, 0]), co_consts=())\n"
        "    finally: exec((lambda: 0).__code__.replace(co_code=bytes([151, 0, 100, 200, 83, 0])))",
        "AssertionError|died of SIG|SystemError|TypeError|Error",
    ),
    "raw memory": (
        "    import ctypes\n    ctypes.c_long.from_address(id(2) + 24).value = 6\n    return 0",
        "AssertionError|died of SIG|" + TRAVEL,
    ),
    "raw memory through C modules": (
        "    import sys, _ctypes, _struct, _json\n    for m in list(sys.modules.values()):\n"
        "        if 'passed' in str(getattr(m, 'PASSED', '')):\n            m.PASSED = ''\n    return 0",
        WRONG,
    ),
    "types changed in memory": (
        "    import gc\n    gc.get_referents(int.__dict__)[0]['__eq__'] = lambda a, b: True\n    return 0",
        f"{WRONG}|died of SIG",
    ),
    "the interpreter's tests": ("    import _testcapi\n    return 0", f"{WRONG}|ModuleNotFoundError"),
    "another interpreter": ("    import _xxsubinterpreters as i\n    i.create()\n    return 0", f"{WRONG}|Error"),
    "the judge's memory": ("    import os\n    open(f'/proc/{os.getppid()}/mem', 'r+b')", "PermissionError"),
    "the judge's files": ("    import os\n    os.listdir(f'/proc/{os.getppid()}/fd')", "PermissionError"),
    "signals to the judge": ("    import os\n    os.kill(os.getppid(), 10)", "PermissionError"),
    "hooks": (
        "    import sys, threading\n    sys.settrace(lambda *a: None); sys.setprofile(lambda *a: None)\n"
        "    sys.excepthook = sys.unraisablehook = threading.excepthook = lambda *a: None\n"
        "    sys.addaudithook(lambda *a: None)\n    return 0",
        WRONG,
    ),
    # Changing what the test uses
    "builtins": (
        "    import builtins\n    builtins.AssertionError = type('E', (BaseException,), {})\n"
        "    builtins.abs = builtins.isinstance = builtins.list = lambda *a: 0\n    return 0",
        f"{WRONG}|left with exit code 1",
    ),
    "modules": (
        "    return 0\n\nimport sys\nfor name in ('random', 'copy', 'math'): sys.modules[name] = None\n",
        WRONG,
    ),
    "files that Python reads": (
        "    return 0\n\nfor name in ('random.py', 'copy.py', 'sitecustomize.py', 'usercustomize.py', 'a.pth', 'random.pyc', "
        "'pyvenv.cfg', 'python311._pth'):\n    with open(name, 'w') as f: f.write('import os; os._exit(0)')\n"
        "import sys; sys.path.insert(0, '.')\n",
        WRONG,
    ),
    "environment": (
        "    return 0\n\nimport os\nos.environ.update(PYTHONPATH='.', PYTHONSTARTUP='a.py', PYTHONINSPECT='1', PYTHONHASHSEED='1')\n",
        WRONG,
    ),
    "standard output": ("    import os\n    os.set_blocking(1, False); os.close(2)\n    return 0", WRONG),
    "threads that stay": (
        "    import threading, time\n    threading.Thread(target=time.sleep, args=(10**6,)).start()\n    return 0",
        WRONG,
    ),
    # Answers that lie
    "equal to all": (
        "    class E:\n        __eq__ = lambda s, o: True\n        __ne__ = lambda s, o: False\n    return E()",
        WRONG,
    ),
    "number that is equal to all": (
        "    class E(int):\n        __eq__ = lambda s, o: True\n        __hash__ = lambda s: 0\n        __sub__ = __truediv__ = lambda s, o: s\n"
        "        __abs__ = lambda s: s\n        __lt__ = lambda s, o: True\n    return E(7)",
        WRONG,
    ),
    "float that is equal to all": ("    class E(float):\n        __eq__ = lambda s, o: True\n    return E(7)", WRONG),
    "text that is equal to all": ("    class E(str):\n        __eq__ = lambda s, o: True\n    return E('7')", WRONG),
    "list that is equal to all": ("    class E(list):\n        __eq__ = lambda s, o: True\n    return E([7])", WRONG),
    "tuple that is equal to all": (
        "    class E(tuple):\n        __eq__ = lambda s, o: True\n    return E([7])",
        WRONG,
    ),
    "dictionary that is equal to all": (
        "    class E(dict):\n        __eq__ = lambda s, o: True\n    return E()",
        WRONG,
    ),
    "any": ("    from unittest.mock import ANY\n    return ANY", WRONG),
    "mock": ("    from unittest.mock import MagicMock\n    return MagicMock(__eq__=lambda s, o: True)", WRONG),
    "type that claims instances": (
        "    class M(type):\n        __eq__ = lambda s, o: True\n        __hash__ = lambda s: 0\n        __instancecheck__ = lambda s, o: True\n"
        "    return M('E', (), {})",
        WRONG,
    ),
    "a class that it is not": (
        "    class E:\n        __class__ = int\n        __eq__ = lambda s, o: True\n        __index__ = lambda s: 6\n    return E()",
        f"{WRONG}|TypeError",
    ),
    "a copy that lies": (
        "    import decimal\n    class E(decimal.Decimal):\n        __reduce_ex__ = lambda s, p: (eval, ('1',))\n        __eq__ = lambda s, o: True\n"
        "    return E(0)",
        WRONG,
    ),
    "a name that lies": (
        "    class E:\n        __eq__ = lambda s, o: True\n    E.__module__, E.__qualname__ = 'decimal', 'Decimal'\n    return E()",
        f"{WRONG}|KeyError|{TRAVEL}",
    ),
    "function": ("    return lambda *a: 6", WRONG),
    "generator without end": ("    def g():\n        while 1: yield 6\n    return g()", WRONG),
    "coroutine": ("    async def f(): return 6\n    return f()", WRONG),
    "NotImplemented": ("    return NotImplemented", WRONG),
    "no number": ("    return float('nan')", WRONG),
    "list in itself": ("    a = []\n    a.append(a)\n    return a", f"{WRONG}|RecursionError"),
    "an error as the answer": ("    return ValueError(6)", WRONG),
    "another error of this name": (
        "    class ValueError(Exception): pass\n    if x == -1: raise ValueError(x)\n    return x * 2",
        "^ValueError: -1",
    ),
    "an error of every kind": (
        "    class M(type):\n        __instancecheck__ = __subclasscheck__ = lambda *a: True\n"
        "    class E(BaseException, metaclass=M): pass\n    if x == -1: raise E(x)\n    return x * 2",
        "^E: -1",
    ),
    "very large": ("    return 'x' * (1 << 24)", "larger than 16 MiB"),
    "very large number": ("    return 1 << (1 << 24)", WRONG),
    "memory": ("    return [bytearray(1 << 30)]", "MemoryError"),
    "recursion": ("    return double(x)", "RecursionError"),
    "reading": ("    return input()", "EOFError"),
    "output without end": ("    while 1: print('x' * 999)", "printed too much"),
}


@pytest.mark.parametrize(("completion", "reason"), [*ENDS.values(), *PROGRAMS.values()], ids=[*ENDS, *PROGRAMS])
def test_the_program_fails(completion: str, reason: str) -> None:
    outcome = completed(completion)
    assert not outcome.passed
    assert re.search(reason, outcome.reason), outcome


@pytest.mark.parametrize(
    "body",
    [
        "    while 1: pass",
        "    import time; time.sleep(10**6)",
        # Of what follows, the judge waits for the end.
        "    import itertools\n    return itertools.count()",
        "    class E:\n        def __iter__(s): return s\n        def __next__(s): return 6\n    return E()",
        "    import os\n    os.kill(os.getpid(), 19)",
    ],
    ids=["loop", "sleep", "iterator", "object", "stopped"],
)
def test_answers_without_end(body: str) -> None:
    problem = replace(DOUBLE, test="def check(candidate):\n    assert list(candidate(3)) == [3, 3]\n")
    outcome = judge(problem, body, timeout=0.5)
    assert not outcome.passed
    assert re.search("timed out|MemoryError|SIGKILL", outcome.reason), outcome


def test_the_test_is_not_in_the_program_s_memory() -> None:
    """A program that copies all its memory through a pipe finds its own text there, and nothing of the test."""
    body = """    import ctypes, os
    straw = 'straw-93ab'
    libc = ctypes.CDLL(None, use_errno=True)
    libc.sbrk.restype = ctypes.c_void_p
    libc.write.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
    r, w = os.pipe()
    found = set()
    near = {id(straw) >> 22 << 22, id(ctypes) >> 22 << 22, id(os) >> 22 << 22, (libc.sbrk(0) >> 12 << 12) - (4 << 20)}
    for begin in near:
        for page in range(begin - (8 << 20), begin + (8 << 20), 4096):
            if libc.write(w, page, 4096) == 4096:
                data = os.read(r, 4096)
                for word in (b'needle-', b'straw-'):
                    found |= {word + each[:4] for each in data.split(word)[1:]}
    print(sorted(found))
"""
    outcome = completed(body)
    assert not outcome.passed
    assert "straw-93ab" in outcome.output
    assert "needle-7c1f" not in outcome.output


def test_a_test_that_catches_everything_cannot_be_survived() -> None:
    test = "def check(candidate):\n    try:\n        candidate(1)\n    except BaseException:\n        pass\n"
    problem = replace(DOUBLE, test=test)
    assert completed("    raise ValueError", problem).passed
    deep = "    a = []\n    for _ in range(5000): a = [a]\n    return a"
    for body in ("    import os; os._exit(0)", "    import os; os.abort()", deep, "    return 'x' * (1 << 24)"):
        assert not completed(body, problem).passed


CALLED_BACK = """
def check(candidate):
    values = [3, 1, 2]
    assert candidate(lambda value: -value, values) is None
    assert values == [3, 2, 1]
"""


def test_functions_of_the_test(tmp_path: Any) -> None:
    problem = Problem("Test/1", "def order(key, values):\n", "order", CALLED_BACK)
    assert completed("    values.sort(key=key)\n", problem).passed
    assert completed("    values.sort()\n", problem).reason == WRONG.rstrip("$")
    attributes = "    key.__globals__['values'] = 0; key.__code__\n"
    assert completed(attributes, problem).reason.startswith("AttributeError")
    assert os.listdir(tmp_path) == []


def test_a_broken_test_or_prompt_passes_nothing() -> None:
    for problem in (
        replace(DOUBLE, test="def check(c:"),
        replace(DOUBLE, test=""),
        replace(DOUBLE, test="import os; os._exit(0)"),
    ):
        assert not completed(DOUBLE.canonical_solution or "", problem).passed
