"""The embedded corpus: real English text from every Python installation, so nothing has to be downloaded.

`builtin:python-docs` contains the language reference (`pydoc_data.topics`) and the docstrings of the standard library;
`builtin:python-qa` contains short conversations made from the same docstrings. Pure-Python modules are read from their
source with `ast` and never imported; C modules are imported, from a fixed list of those that are always built.
The result depends only on the Python release and platform.

Both corpora are split by a hash of the public name of the top-level definition (`json.dumps`, `builtins.str`). The
methods of a class go with the class and a question goes with its docstring, so neither corpus trains on text that the
other holds out. Text that occurs verbatim in both parts is removed from the held-out part.
"""

import ast
import functools
import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
import sysconfig
import types
import warnings
from collections.abc import Iterable, Iterator
from importlib.machinery import ExtensionFileLoader
from pathlib import Path
from typing import Any, NamedTuple

from ...errors import DataError

HELD_OUT_SHARE = 0.1
MIN_DOCUMENT = 40
# A repeated paragraph shorter than this ("For example:") is an idiom; a longer one is a copy.
MIN_COPY = 60

# Tests, data tables, vendored or interactive programs: little prose, or prose about themselves.
_SKIPPED = re.compile(r"__main__|antigravity|encodings|ensurepip|idlelib|lib2to3|pydoc_data|tests?|this|turtledemo")
# A fixed list, so that optional extensions (curses, readline, gdbm) do not make two builds of one release differ.
_NATIVE = re.findall(
    r"\S+",
    """array atexit binascii builtins cmath errno faulthandler gc itertools marshal math mmap nt posix select sys time
    unicodedata zlib _bisect _bz2 _codecs _collections _contextvars _csv _datetime _decimal _functools _heapq _io
    _locale _lzma _operator _queue _random _signal _socket _stat _struct _tracemalloc _weakref""",
)
# Modules that a newcomer asks about; only the documents cover the rest of the library.
_QA_MODULES = re.findall(
    r"\S+",
    """abc argparse array ast asyncio base64 binascii bisect builtins bz2 calendar cmath codecs collections
    collections.abc concurrent.futures configparser contextlib contextvars copy csv dataclasses datetime decimal
    difflib enum fnmatch fractions functools gc getpass glob gzip hashlib heapq hmac html html.parser http.client
    http.server importlib inspect io ipaddress itertools json keyword locale logging lzma marshal math mimetypes mmap
    multiprocessing operator os os.path pathlib pickle platform pprint queue random re reprlib secrets select
    selectors shelve shlex shutil signal socket sqlite3 stat statistics string struct subprocess sys sysconfig tarfile
    tempfile textwrap threading time timeit tokenize traceback tracemalloc types typing unicodedata unittest
    unittest.mock urllib.parse urllib.request uuid warnings wave weakref webbrowser xml.etree.ElementTree zipfile zlib
    zoneinfo""",
)
_RENAMED = {"posixpath": "os.path", "genericpath": "os.path", "_collections_abc": "collections.abc"}
# How people say a name: str.join instead of builtins.str.join; the functions of random are methods of one instance.
_SPOKEN = (("builtins.", ""), ("random.Random.", "random."))

# Each name gets one wording per kind, chosen by the hash of "<kind>:<name>"; a call wording includes its answer.
_PURPOSE = {
    "module": ("What is the {} module?", "What is the {} module for?", "Tell me about the {} module."),
    "class": ("What is {}?", "What is {} for?", "Can you explain {}?"),
    "attribute": ("What is {}?", "What does {} hold?", "Can you explain {}?"),
    "function": ("What does {} do?", "What is {} for?", "Can you explain {}?"),
}
_CALLS = (
    ("How do I call {}?", "Call it as {}."),
    ("What are the parameters of {}?", "The signature is {}."),
    ("What arguments does {} take?", "It is called as {}."),
)
_ABOUT = "I am a small GPT, trained from scratch on Python's own documentation."
_CAN = "I can tell you what a function, class or module of Python does and how it is called."
_CHAT = (
    ("hello", "Hello!", f"Hello! {_CAN}"),
    ("hi", "Hi", "Hi! Which part of Python would you like to know about?"),
    ("how", "How are you?", "I am well, thank you. What would you like to know about Python?"),
    ("who", "Who are you?", _ABOUT),
    ("what", "What are you?", _ABOUT),
    ("human", "Are you a human?", f"No. {_ABOUT}"),
    ("trained", "What were you trained on?", "On the documentation that every Python installation carries."),
    ("can", "What can you do?", _CAN),
    ("help", "Can you help me?", f"Yes. {_CAN}"),
    ("everything", "Do you know everything?", "No. I am small, I know only some of Python, and I can be wrong."),
    ("thanks", "Thanks!", "You are welcome!"),
    ("bye", "Goodbye!", "Goodbye!"),
)

_Rows = list[dict[str, Any]]
_Function = (ast.FunctionDef, ast.AsyncFunctionDef)


class _Unit(NamedTuple):
    """One docstring: `member` is "" for the definition itself, else the name of a method or attribute."""

    member: str
    kind: str
    signature: str
    doc: str


class _Module(NamedTuple):
    """The documentation of one module; `exported` is None if `__all__` is missing or computed."""

    doc: str
    entries: dict[str, tuple[_Unit, ...]]
    exported: frozenset[str] | None = None
    imports: tuple[tuple[str, str, str], ...] = ()


def _clean(doc: Any) -> str:
    if not isinstance(doc, str):
        return ""
    doc = re.sub(r"\bat 0x[0-9a-fA-F]+", "at 0x...", inspect.cleandoc(doc))
    return re.sub(r"[ \t]+$", "", doc, flags=re.MULTILINE).strip()


def fraction(text: str) -> float:
    """Maps a text to [0, 1); unlike `hash`, it gives the same value in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest(), "big") / 2**48


def _normal(text: str) -> str:
    return " ".join(text.lower().split())


def _statements(body: Iterable[Any]) -> Iterator[ast.stmt]:
    """Yields the statements of a module, including those inside platform tests and import fallbacks."""
    for node in body:
        if isinstance(node, (ast.If, ast.Try, ast.ExceptHandler)):
            for block in ("body", "handlers", "orelse", "finalbody"):
                yield from _statements(getattr(node, block, ()))
        else:
            yield node


def _source_signature(spec: ast.arguments, bound: bool) -> str:
    for argument in filter(None, (*spec.posonlyargs, *spec.args, *spec.kwonlyargs, spec.vararg, spec.kwarg)):
        argument.annotation = None
    if bound:
        del (spec.posonlyargs or spec.args)[:1]
    return f"({ast.unparse(spec)})"


def _source_entry(node: Any) -> tuple[_Unit, ...]:
    """Reads a top-level function, or a class with its methods; returns `()` if nothing is documented."""
    doc = _clean(ast.get_docstring(node))
    if isinstance(node, _Function):
        return (_Unit("", "function", _source_signature(node.args, bound=False), doc),) if doc else ()
    members: dict[str, _Unit] = {}
    signature = ""
    for child in _statements(node.body):
        if not isinstance(child, _Function):
            continue
        decorators = {ast.unparse(decorator).split(".")[-1] for decorator in child.decorator_list}
        kind = "attribute" if decorators & {"property", "cached_property", "abstractproperty"} else "function"
        shape = "" if kind == "attribute" else _source_signature(child.args, bound="staticmethod" not in decorators)
        signature = shape if child.name == "__init__" else signature
        said = _clean(ast.get_docstring(child))
        if said and (child.name == "__init__" or not child.name.startswith("_")):
            members.setdefault(child.name, _Unit(child.name, kind, shape, said))
    ordered = (members[name] for name in sorted(members))
    return (_Unit("", "class", signature, doc), *ordered) if doc or members else ()


def _source_module(name: str, path: Path) -> _Module:
    source = path.read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tree = ast.parse(source)
    package = name.split(".") if path.stem == "__init__" else name.split(".")[:-1]
    entries: dict[str, tuple[_Unit, ...]] = {}
    imports: list[tuple[str, str, str]] = []
    exported = None
    for node in _statements(tree.body):
        if isinstance(node, (*_Function, ast.ClassDef)):
            if entry := entries.get(node.name) or _source_entry(node):
                entries[node.name] = entry
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            target = ".".join([*base, *filter(None, [node.module])])
            imports += [(target, alias.name, alias.asname or alias.name) for alias in node.names]
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            # If __all__ is computed or extended, every public name counts as exported.
            constant = isinstance(node.value, (ast.List, ast.Tuple)) and source.count(b"\n__all__") == 1
            exported = frozenset(ast.literal_eval(node.value)) if constant else None
    return _Module(_clean(ast.get_docstring(tree)), entries, exported, tuple(imports))


def source_paths() -> Iterator[tuple[str, Path]]:
    """Yields the standard library's modules and files, including private ones, from which public ones re-export.

    Raises:
        DataError: If this Python has no library source.
    """
    root = Path(sysconfig.get_path("stdlib"))
    if not (root / "json").is_dir():
        raise DataError(
            f"the built-in corpora are read from the source of the standard library, but {root} has none; "
            "use a regular Python installation, or name a text file as the corpus"
        )
    for top in sorted(sys.stdlib_module_names):
        paths = [root / f"{top}.py"] if (root / f"{top}.py").is_file() else (root / top).rglob("*.py")
        for path in sorted(paths):
            parts = path.relative_to(root).with_suffix("").parts
            if not any(map(_SKIPPED.fullmatch, parts)):
                yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def _source_modules() -> dict[str, _Module]:
    return {name: _source_module(name, path) for name, path in source_paths()}


def _native_entry(obj: Any, kind: str) -> tuple[_Unit, ...]:
    # Unlike inspect.signature, the textual signature keeps sys.maxsize as a name, the same on every machine.
    signature = " ".join((getattr(obj, "__text_signature__", None) or "").split())
    signature = "" if "<" in signature else re.sub(r"^\(\$\w+(, /)?(, )?", "(", signature)
    members = []
    for name in sorted(vars(obj)) if kind == "class" else ():
        member = getattr(obj, name, None)
        is_attribute = inspect.isgetsetdescriptor(member) or inspect.ismemberdescriptor(member)
        if not name.startswith("_") and not isinstance(member, type) and (callable(member) or is_attribute):
            units = _native_entry(member, "attribute" if is_attribute else "function")
            members += [unit._replace(member=name) for unit in units]
    doc = _clean(obj.__doc__)
    return (_Unit("", kind, signature, doc), *members) if doc or members else ()


@functools.cache
def _native_module(name: str) -> _Module:
    spec = importlib.util.find_spec(name) if name in _NATIVE else None
    if spec is None or not (spec.origin == "built-in" or isinstance(spec.loader, ExtensionFileLoader)):
        return _Module("", {})
    module = importlib.import_module(name)
    entries = {}
    for key, value in sorted(vars(module).items()):
        # Test runners and debuggers replace sys.excepthook and the like; the original stays under the dunder name.
        obj = vars(module).get(f"__{key}__", value)
        if key.startswith("_") or not isinstance(obj, (type, types.BuiltinFunctionType)):
            continue
        # A second name for one object (IOError) would only repeat the first.
        if obj.__name__ == key and (entry := _native_entry(obj, "class" if isinstance(obj, type) else "function")):
            entries[key] = entry
    return _Module(_clean(module.__doc__), entries)


def _namespace(name: str, sources: dict[str, _Module]) -> dict[str, tuple[str, tuple[_Unit, ...]]]:
    """Maps the names that a module offers to the module that defines them and their documentation.

    An imported name counts only if it comes from the module's private, C or inner modules: `json.JSONEncoder` from
    `json.encoder`, `functools.partial` from `_functools`, `os.listdir` from `posix`; not `chain` from `itertools`.
    """
    module = sources.get(name) or _native_module(name)
    found = {key: (name, entry) for key, entry in module.entries.items()}
    for target, key, local in module.imports:
        inner = target.startswith(f"{name}.")
        owned = inner or key == "*" or target == f"_{name}" or local in (module.exported or ())
        if target == name or not owned or not (inner or target.startswith("_") or target in ("nt", "posix")):
            continue
        offered = _namespace(target, sources)
        if key == "*":
            exported = (sources.get(target) or _native_module(target)).exported or offered
            found = {each: offered[each] for each in offered if each in exported} | found
        elif key in offered:
            found.setdefault(local, offered[key])
    return {key: found[key] for key in found if not key.startswith("_")}


@functools.cache
def _definitions() -> list[tuple[bool, str, str, bool, tuple[_Unit, ...]]]:
    """Lists all documentation as (held out, public name, module, exported, docstrings), training part first."""
    from pydoc_data.topics import topics

    sources = _source_modules()
    found: dict[str, tuple[str, bool, tuple[_Unit, ...]]] = {}
    for key in topics:
        found[f"topics.{key}"] = ("", True, (_Unit("", "topic", "", _clean(topics[key])),))
    public = {name for name in {*sources, *_NATIVE} - {"nt", "posix"} if not re.search(r"(^|\.)_", name)} | {*_RENAMED}
    claimed = set()
    # People use the shortest path to a definition: asyncio.gather, not asyncio.tasks.gather.
    for name in sorted(public, key=lambda name: (name.count("."), name)):
        module = sources.get(name) or _native_module(name)
        spoken = _RENAMED.get(name, name)
        if module.doc:
            found.setdefault(spoken, (spoken, True, (_Unit("", "module", "", module.doc),)))
        for key, (origin, entry) in _namespace(name, sources).items():
            if (origin, key) not in claimed:
                claimed.add((origin, key))
                is_exported = module.exported is None or key in module.exported
                found.setdefault(f"{spoken}.{key}", (spoken, is_exported, entry))
    return sorted((fraction(name) < HELD_OUT_SHARE, name, *about) for name, about in found.items())


def build_docs() -> tuple[_Rows, _Rows]:
    """Writes one document per definition, without docstrings and paragraphs of earlier documents."""
    rows: tuple[_Rows, _Rows] = ([], [])
    seen: set[str] = set()
    for held_out, name, _, _, entry in _definitions():
        blocks, length = [], 0
        for unit in entry:
            if _normal(unit.doc) in seen and (held_out or len(unit.doc) >= MIN_COPY):
                continue
            paragraphs = [p for p in unit.doc.split("\n\n") if len(p) < MIN_COPY or _normal(p) not in seen]
            seen.update(map(_normal, (unit.doc, *paragraphs)))
            dotted = f"{name}.{unit.member}" if unit.member else name
            # A language topic starts with its own title.
            if paragraphs and unit.kind != "topic":
                blocks.append(f"{'class ' if unit.kind == 'class' else ''}{dotted}{unit.signature}")
            blocks += filter(None, paragraphs)
            length += sum(map(len, paragraphs))
        if length >= MIN_DOCUMENT:
            rows[held_out].append({"name": name, "text": "\n\n".join(blocks)})
    return rows


def _summary(doc: str) -> str:
    """Tidies the first sentence of a docstring: 15 to 200 characters with a full stop, or "" if it says nothing."""
    # C docstrings start with their signatures: "D.pop(k[,d]) -> v, remove specified key and return its value."
    said = ""
    while not said and (match := re.match(r"[\w.]+\(.*?\)(?=\s*(?:->|--|:|\n|$))[ \t]*(->|--|:|)[ \t]*(.*)\n*", doc)):
        result, _, action = match[2].partition(", ")
        is_result = match[1] == "->" and (not action or len(result.split()) > 2)
        said = (f"Return {match[2]}" if len(match[2].split()) > 2 else "") if is_result else (action or match[2])
        doc = f"{said}\n{doc[match.end() :]}" if said else doc[match.end() :]
    paragraph = re.sub(r"^[\w.]+\.py\s*-+\s*", "", doc).split("\n\n")[0]
    if re.search(r"(?m)^\s*([-*+=~#|] ?|\d+\.\s|>>>|\.\. |:param|@)|::$|[{}\\|$]|={3}|-{3}", paragraph):
        return ""
    text = re.sub(r":[\w:]+:`~?([^`<]+)[^`]*`|`+([^`]+)`+", lambda m: m[1] or m[2], " ".join(paragraph.split()))
    text = re.sub(r"(?<!\w)\*(\w+)\*(?!\w)", r"\1", text)
    text = re.split(r"(?<!\be\.g)(?<!\bi\.e)(?<!\betc)(?<!\bvs)[.!?] +(?=[A-Z]|\w+\()", text, maxsplit=1)[0].rstrip(
        " .!"
    )
    useless = (
        r"(initialize self|see|internal|private|helper|same as|alias|todo|xxx|like)\b|.*(deprecated|->|[:,;?(]$|\.\)$)"
    )
    if not 14 <= len(text) <= 199 or re.match(rf"(?i)[^a-z]|\S+ \S+$|{useless}", text):
        return ""
    return f"{text[0].upper()}{text[1:]}." if text.split()[0].islower() else f"{text}."


def documented_names() -> set[str]:
    """Every documented name, with those of methods, as the documentation writes it and as people say it."""
    return {
        spoken
        for _, top, _, _, entry in _definitions()
        for unit in entry
        for name in [f"{top}.{unit.member}" if unit.member else top]
        for spoken in (name, _spoken(name))
    }


def question_wordings() -> tuple[str, ...]:
    """The questions that `builtin:python-qa` asks about functions, classes and attributes, each once; `{}` is the name."""
    purposes = (wording for kind in ("function", "class", "attribute") for wording in _PURPOSE[kind])
    return tuple(dict.fromkeys([*purposes, *(wording for wording, _ in _CALLS)]))


def _spoken(name: str) -> str:
    for prefix, spoken in _SPOKEN:
        name = spoken + name.removeprefix(prefix) if name.startswith(prefix) else name
    return name


def build_qa() -> tuple[_Rows, _Rows]:
    """Asks what each documented name is for and, if its signature says something, how to call it."""
    asked = {question: (False, f"chat.{name}", answer) for name, question, answer in _CHAT}
    told: set[str] = set()
    for held_out, top, module, is_exported, entry in _definitions():
        for unit in entry:
            summary = _summary(unit.doc)
            copied = held_out and told & {_normal(summary), _normal(unit.doc)}
            if not held_out:
                told.update(map(_normal, (summary, unit.doc, *unit.doc.split("\n\n"))))
            if not summary or copied or unit.member.startswith("_") or not is_exported or module not in _QA_MODULES:
                continue
            name = _spoken(f"{top}.{unit.member}" if unit.member else top)
            wordings = _PURPOSE[unit.kind]
            question = wordings[int(fraction(f"purpose:{name}") * len(wordings))]
            asked.setdefault(question.format(name), (held_out, name, summary))
            call = f"{name}{unit.signature}"
            if re.sub(r"[()*,/\s]|\b(args|kwargs|kwds|kw|kwarg)\b", "", unit.signature) and len(call) <= 160:
                question, answer = _CALLS[int(fraction(f"call:{name}") * len(_CALLS))]
                asked.setdefault(question.format(name), (held_out, name, answer.format(call)))
    rows: tuple[_Rows, _Rows] = ([], [])
    for question, (held_out, name, answer) in asked.items():
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        rows[held_out].append({"name": name, "messages": messages})
    return rows
