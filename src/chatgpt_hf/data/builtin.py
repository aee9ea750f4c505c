"""The embedded corpus: real English that every Python installation carries, so nothing has to be downloaded.

`builtin:python-docs` holds the language reference (`pydoc_data.topics`) and the docstrings of the standard library;
`builtin:python-qa` holds short conversations made from the same docstrings. Pure-Python modules are read from their
source with `ast` and never imported; C modules are imported, from a fixed list of those that are always built.
Everything is a function of the Python release and platform alone.

Both corpora are split by a hash of the public name of the top-level definition (`json.dumps`, `builtins.str`): the
methods of a class follow the class and a question follows its docstring, so neither corpus has in its training part
what the other holds out. What occurs word for word in both parts is removed from the held-out one.
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

from datasets import Dataset, DatasetDict

from chatgpt_hf.errors import DataError

BUILTIN_CORPORA: tuple[str, ...] = ("builtin:python-docs", "builtin:python-qa")

HELD_OUT_SHARE = 0.1
MIN_DOCUMENT = 40
# A repeated paragraph shorter than this ("For example:") is idiom, a longer one is a copy.
MIN_COPY = 60

# Tests, data tables, vendored or interactive programs: little prose, or prose about themselves.
_SKIPPED = frozenset(
    "__main__ antigravity encodings ensurepip idlelib lib2to3 pydoc_data test tests this turtledemo".split()
)
# A fixed list, so that optional extensions (curses, readline, gdbm) do not make two builds of one release differ.
_NATIVE = frozenset(
    """array atexit binascii builtins cmath errno faulthandler gc itertools marshal math mmap select sys time
    unicodedata zlib nt posix _abc _asyncio _bisect _bz2 _codecs _collections _contextvars _csv _datetime _decimal
    _elementtree _functools _heapq _io _json _locale _lzma _operator _pickle _queue _random _signal _socket _stat
    _statistics _struct _symtable _thread _tracemalloc _weakref _zoneinfo""".split()
)
_RENAMED = {"posixpath": "os.path", "genericpath": "os.path"}
# How people say a name: str.join rather than builtins.str.join; the functions of random are methods of one instance.
_SPOKEN = (("builtins.", ""), ("random.Random.", "random."))

# Modules a newcomer asks about; the rest of the library is left to the documents.
_QA_MODULES = frozenset(
    """abc argparse array ast asyncio base64 binascii bisect builtins bz2 calendar cmath codecs collections
    collections.abc concurrent.futures configparser contextlib contextvars copy csv dataclasses datetime decimal
    difflib email.message enum fnmatch fractions ftplib functools gc getpass glob gzip hashlib heapq hmac html
    html.parser http.client http.cookies http.server imaplib importlib importlib.metadata importlib.resources inspect
    io ipaddress itertools json keyword linecache locale logging logging.handlers lzma marshal math mimetypes mmap
    multiprocessing multiprocessing.pool numbers operator os os.path pathlib pdb pickle pkgutil platform pprint
    queue random re reprlib runpy sched secrets select selectors shelve shlex shutil signal smtplib socket
    socketserver sqlite3 ssl stat statistics string struct subprocess symtable sys sysconfig tarfile tempfile textwrap
    threading time timeit tokenize trace traceback tracemalloc turtle types typing unicodedata unittest unittest.mock
    urllib.parse urllib.request urllib.robotparser uuid venv warnings wave weakref webbrowser wsgiref.simple_server
    xml.dom.minidom xml.etree.ElementTree xmlrpc.client zipapp zipfile zipimport zlib zoneinfo""".split()
)

# Every name gets one wording of each kind, chosen by the hash of "<kind>:<name>"; a signature's wording brings its answer.
_QUESTIONS = {
    "module": ("What is the {} module?", "What is the {} module for?", "Tell me about the {} module."),
    "class": ("What is {}?", "What is {} for?", "Can you explain {}?"),
    "function": ("What does {} do?", "What is {} for?", "Can you explain {}?"),
    "attribute": ("What is {}?", "What does {} hold?", "Can you explain {}?"),
}
_SIGNATURES = (
    ("How do I call {}?", "Call it as {}."),
    ("What are the parameters of {}?", "The signature is {}."),
    ("What arguments does {} take?", "It is called as {}."),
)

_ABOUT = "I am a small GPT, trained from scratch on Python's own documentation."
_CAN = "I can tell you what a function, class or module of Python does and how it is called."
_CHAT = (
    ("hello", "Hello!", f"Hello! {_CAN}"),
    ("hi", "Hi", "Hi! Which part of Python would you like to know about?"),
    ("morning", "Good morning!", "Good morning! What would you like to know about Python?"),
    ("how", "How are you?", "I am well, thank you. What would you like to know about Python?"),
    ("who", "Who are you?", _ABOUT),
    ("what", "What are you?", _ABOUT),
    ("name", "What is your name?", f"I have no name. {_ABOUT}"),
    ("human", "Are you a human?", f"No. {_ABOUT}"),
    ("trained", "What were you trained on?", "On the documentation that every Python installation carries."),
    ("can", "What can you do?", _CAN),
    ("help", "Can you help me?", f"Yes. {_CAN}"),
    ("ask", "What should I ask you?", "Ask me what a name does, for example: What does json.dumps do?"),
    ("cannot", "Do you know everything?", "No. I am small, I know only some of Python, and I can be wrong."),
    ("thanks", "Thanks!", "You are welcome!"),
    ("thank", "Thank you.", "You are welcome!"),
    ("bye", "Goodbye!", "Goodbye!"),
)


class _Unit(NamedTuple):
    """One docstring: `member` is "" for the definition itself, else the name of a method or attribute."""

    member: str
    kind: str
    signature: str
    doc: str


_Entry = tuple[_Unit, ...]


class _Module(NamedTuple):
    """What one module says of itself; `exported` is None where `__all__` is missing or computed."""

    doc: str
    entries: dict[str, _Entry]
    exported: frozenset[str] | None
    imports: tuple[tuple[str, str, str], ...]


def _clean(doc: Any) -> str:
    if not isinstance(doc, str):
        return ""
    doc = re.sub(r"\bat 0x[0-9a-fA-F]+", "at 0x...", inspect.cleandoc(doc))
    return "\n".join(line.rstrip() for line in doc.splitlines()).strip()


def _fraction(text: str) -> float:
    """Maps a text to [0, 1), the same in every process, unlike `hash`."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest(), "big") / 2**48


def _held_out(name: str) -> bool:
    return _fraction(name) < HELD_OUT_SHARE


def _normal(text: str) -> str:
    return " ".join(text.lower().split())


def _statements(body: Iterable[Any]) -> Iterator[ast.stmt]:
    """Yields the statements of a module, those behind platform tests and import fallbacks included."""
    for node in body:
        if isinstance(node, (ast.If, ast.Try, ast.ExceptHandler)):
            for block in ("body", "handlers", "orelse", "finalbody"):
                yield from _statements(getattr(node, block, ()))
        else:
            yield node


def _source_signature(node: ast.FunctionDef | ast.AsyncFunctionDef, bound: bool) -> str:
    spec = node.args
    for argument in (*spec.posonlyargs, *spec.args, *spec.kwonlyargs, spec.vararg, spec.kwarg):
        if argument is not None:
            argument.annotation = None
    if bound:
        (spec.posonlyargs or spec.args or [None]).pop(0)
    return f"({ast.unparse(spec)})"


def _source_entry(node: ast.stmt) -> _Entry:
    """Reads a top-level function or class; `()` where there is nothing documented."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        doc = _clean(ast.get_docstring(node))
        return (_Unit("", "function", _source_signature(node, bound=False), doc),) if doc else ()
    members: dict[str, _Unit] = {}
    signature = ""
    for child in _statements(node.body):
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        decorators = {ast.unparse(decorator).split(".")[-1] for decorator in child.decorator_list}
        is_attribute = bool(decorators & {"property", "cached_property", "abstractproperty", "DynamicClassAttribute"})
        shape = "" if is_attribute else _source_signature(child, bound="staticmethod" not in decorators)
        if child.name == "__init__":
            signature = shape
        doc = _clean(ast.get_docstring(child))
        if doc and (not child.name.startswith("_") or child.name == "__init__"):
            kind = "attribute" if is_attribute else "function"
            members.setdefault(child.name, _Unit(child.name, kind, shape, doc))
    own = _Unit("", "class", signature, _clean(ast.get_docstring(node)))
    return (own, *(members[name] for name in sorted(members))) if own.doc or members else ()


def _source_module(name: str, path: Path) -> _Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tree = ast.parse(path.read_bytes())
    package = name if path.stem == "__init__" else name.rpartition(".")[0]
    entries: dict[str, _Entry] = {}
    exported: set[str] | None = None
    computed = False
    imports = []
    for node in _statements(tree.body):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            if node.name not in entries and (entry := _source_entry(node)):
                entries[node.name] = entry
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            target = ".".join([*base, *filter(None, [node.module])])
            imports += [(target, alias.name, alias.asname or alias.name) for alias in node.names]
        elif "__all__" in ast.unparse(node).split("=")[0]:
            try:
                exported = (exported or set()) | set(ast.literal_eval(getattr(node, "value", None)))
            except (ValueError, TypeError):
                computed = True
    all_names = None if computed or exported is None else frozenset(exported)
    return _Module(_clean(ast.get_docstring(tree)), entries, all_names, tuple(imports))


def _source_modules() -> dict[str, _Module]:
    """Parses the standard library, private modules included: public ones re-export from them.

    Raises:
        DataError: If this Python carries no library source (a zipped or stripped installation).
    """
    root = Path(sysconfig.get_path("stdlib"))
    modules = {}
    for top in sorted(sys.stdlib_module_names - _SKIPPED):
        paths = [root / f"{top}.py"] if (root / f"{top}.py").is_file() else (root / top).rglob("*.py")
        for path in sorted(paths):
            parts = path.relative_to(root).with_suffix("").parts
            if not _SKIPPED.intersection(parts):
                name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
                modules[name] = _source_module(name, path)
    if "json" not in modules:
        raise DataError(
            f"the built-in corpora are read from the source of the standard library, and {root} has none; "
            "use a regular Python installation, or name a text file as the corpus"
        )
    return modules


def _native_entry(obj: Any, kind: str) -> _Entry:
    # The textual signature, unlike inspect.signature, keeps sys.maxsize as a name: the same on every machine.
    signature = getattr(obj, "__text_signature__", None) or ""
    signature = re.sub(r"^\(\$\w+(, /)?(, )?", "(", signature)
    own = _Unit("", kind, "" if "<" in signature else signature, _clean(obj.__doc__))
    members = []
    for name in sorted(vars(obj)) if kind == "class" else ():
        member = getattr(obj, name, None)
        is_attribute = inspect.isgetsetdescriptor(member) or inspect.ismemberdescriptor(member)
        if name.startswith("_") or isinstance(member, type) or not (callable(member) or is_attribute):
            continue
        unit = _native_entry(member, "attribute" if is_attribute else "function")
        members += [unit[0]._replace(member=name)] if unit else []
    return (own, *members) if own.doc or members else ()


@functools.cache
def _native_module(name: str) -> _Module:
    spec = importlib.util.find_spec(name) if name in _NATIVE else None
    if spec is None or not (spec.origin == "built-in" or isinstance(spec.loader, ExtensionFileLoader)):
        return _Module("", {}, None, ())
    module = importlib.import_module(name)
    entries = {}
    for key in dir(module):
        # Test runners and debuggers replace sys.excepthook and its like; the original stays under the dunder name.
        obj = getattr(module, f"__{key}__", getattr(module, key))
        # A second name for one object (IOError) would only repeat the first.
        if not key.startswith("_") and getattr(obj, "__name__", None) == key:
            if isinstance(obj, (type, types.BuiltinFunctionType)):
                entries[key] = _native_entry(obj, "class" if isinstance(obj, type) else "function")
    return _Module(_clean(module.__doc__), entries, None, ())


def _namespace(name: str, sources: dict[str, _Module]) -> dict[str, tuple[str, _Entry]]:
    """Maps the names a module offers to the module that defines them and their documentation.

    What a module imports is its own only if it comes from its own private, C or inner modules: `json.JSONEncoder` from
    `json.encoder`, `functools.partial` from `_functools`, `os.listdir` from `posix`; not `chain` from `itertools`.
    """
    if name not in sources:
        return {key: (name, entry) for key, entry in _native_module(name).entries.items() if entry}
    module = sources[name]
    found = {key: (name, entry) for key, entry in module.entries.items()}
    for target, key, local in module.imports:
        inner = target.startswith(f"{name}.")
        if target == name or not (inner or target.startswith("_") or target in ("nt", "posix")):
            continue
        if not (inner or key == "*" or target == f"_{name}" or local in (module.exported or ())):
            continue
        offered = _namespace(target, sources)
        if key == "*":
            exported = sources[target].exported if target in sources else None
            for each in offered:
                if each in exported if exported is not None else not each.startswith("_"):
                    found.setdefault(each, offered[each])
        elif key in offered:
            found.setdefault(local, offered[key])
    return found


@functools.cache
def _definitions() -> dict[str, tuple[str, bool, _Entry]]:
    """Collects everything documented: public name -> (public module, whether it is exported, units), sorted by name."""
    sources = _source_modules()
    public = [
        name
        for name in sorted({*sources, *(_NATIVE & sys.stdlib_module_names) - {"nt", "posix"}})
        if not any(part.startswith("_") for part in name.split("."))
    ]
    found: dict[str, tuple[str, bool, _Entry]] = {}
    claimed = set()
    # The shortest path to a definition is the one people use: asyncio.gather, not asyncio.tasks.gather.
    for name in sorted(public, key=lambda name: (name.count("."), name)):
        module = sources.get(name) or _native_module(name)
        spoken = _RENAMED.get(name, name)
        if module.doc:
            found.setdefault(spoken, (spoken, True, (_Unit("", "module", "", module.doc),)))
        for key, (origin, entry) in _namespace(name, sources).items():
            if not key.startswith("_") and (origin, key) not in claimed:
                claimed.add((origin, key))
                is_exported = module.exported is None or key in module.exported
                found.setdefault(f"{spoken}.{key}", (spoken, is_exported, entry))
    for kind in (re.Pattern, re.Match):
        found.setdefault(f"re.{kind.__name__}", ("re", True, _native_entry(kind, "class")))
    return dict(sorted(found.items()))


def _topics() -> dict[str, _Entry]:
    from pydoc_data.topics import topics

    return {f"topics.{name}": (_Unit("", "topic", "", _clean(topics[name])),) for name in sorted(topics)}


def _without_copies(entry: _Entry, seen: set[str], held_out: bool) -> _Entry:
    """Drops the docstrings and paragraphs that are in `seen`, then adds what is left to it."""
    kept = []
    for unit in entry:
        if _normal(unit.doc) in seen and (held_out or len(unit.doc) >= MIN_COPY):
            continue
        paragraphs = [p for p in unit.doc.split("\n\n") if len(_normal(p)) < MIN_COPY or _normal(p) not in seen]
        seen.update(map(_normal, (unit.doc, *paragraphs)))
        if paragraphs:
            kept.append(unit._replace(doc="\n\n".join(paragraphs)))
    return tuple(kept)


def _document(name: str, entry: _Entry) -> str:
    blocks = []
    for unit in entry:
        dotted = f"{name}.{unit.member}" if unit.member else name
        heading = f"class {dotted}{unit.signature}" if unit.kind == "class" else f"{dotted}{unit.signature}"
        # A language topic opens with its own title.
        blocks += [unit.doc] if unit.kind == "topic" else [heading, unit.doc]
    return "\n\n".join(filter(None, blocks))


def _build_docs() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    entries = {name: entry for name, (_, _, entry) in _definitions().items()} | _topics()
    rows: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    seen: set[str] = set()
    for held_out in (False, True):
        for name in sorted(name for name in entries if _held_out(name) == held_out):
            kept = _without_copies(entries[name], seen, held_out)
            if sum(len(unit.doc) for unit in kept) >= MIN_DOCUMENT:
                rows[held_out].append({"name": name, "text": _document(name, kept)})
    return rows


def _summary(doc: str) -> str:
    """Makes the first sentence of a docstring tidy: "" where it says nothing, else 15 to 200 characters and a stop."""
    # C docstrings open with their signatures: "D.pop(k[,d]) -> v, remove specified key and return its value."
    while match := re.match(r"[\w.]+\(.*?\)(?=\s*(?:->|--|:|\n|$))[ \t]*(->|--|:|)[ \t]*(.*)\n*", doc):
        said = match[2]
        if match[1] == "->":
            result, comma, action = said.partition(", ")
            said = action if comma and len(result.split()) <= 2 else f"Return {said}" if len(said.split()) > 2 else ""
        doc = doc[match.end() :]
        if said:
            doc = f"{said}\n{doc}"
            break
    paragraph = doc.split("\n\n")[0]
    if re.search(r"^\s*([-*+=~#|] ?|\d+\.\s|>>>|\.\. |:param|@)|::$|[{}\\|]|\$|={3}|-{3}", paragraph, re.MULTILINE):
        return ""
    text = re.sub(r":[\w:]+:`~?([^`<]+)[^`]*`|`+([^`]+)`+", lambda m: m[1] or m[2], " ".join(paragraph.split()))
    text = re.split(r"(?<!\be\.g)(?<!\bi\.e)(?<!\betc)(?<!\bvs)[.!?] +(?=[A-Z])", text, maxsplit=1)[0].rstrip(" .!")
    useless = r"initialize self|see |deprecated|internal|private|helper|same as |alias |todo|xxx|not implemented|like "
    if not 14 <= len(text) <= 199 or len(text.split()) < 3 or not text[0].isalpha() or text[-1] in ":,;?(":
        return ""
    if re.match(useless, text, re.IGNORECASE) or "help(type" in text or "->" in text or "deprecated" in text.lower():
        return ""
    return f"{text[0].upper()}{text[1:]}." if text.split()[0].islower() else f"{text}."


def _row(name: str, question: str, answer: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"name": name, "messages": messages}


def _unit_rows(name: str, unit: _Unit, summary: str) -> Iterator[dict[str, Any]]:
    """Yields what is asked about one docstring: what it does and, where that says something, how it is called."""
    wordings = _QUESTIONS[unit.kind]
    yield _row(name, wordings[int(_fraction(f"what:{name}") * len(wordings))].format(name), summary)
    call = f"{name}{unit.signature}"
    if re.sub(r"[()*,/\s]|\b(args|kwargs|kwds|kw|kwarg)\b", "", unit.signature) and len(call) <= 160:
        question, answer = _SIGNATURES[int(_fraction(f"call:{name}") * len(_SIGNATURES))]
        yield _row(name, question.format(name), answer.format(call))


def _build_qa() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    train = [_row(f"chat.{name}", question, answer) for name, question, answer in _CHAT]
    rows: tuple[list[dict[str, Any]], list[dict[str, Any]]] = (train, [])
    asked = {question for _, question, _ in _CHAT}
    # Everything the training documents say, whether or not it is asked about.
    told = {
        _normal(text)
        for name, (_, _, entry) in _definitions().items()
        if not _held_out(name)
        for unit in entry
        for text in (unit.doc, _summary(unit.doc))
    }
    for held_out in (False, True):
        for top, (module, is_exported, entry) in _definitions().items():
            if _held_out(top) != held_out or module not in _QA_MODULES or not is_exported:
                continue
            for unit in entry:
                name = f"{top}.{unit.member}" if unit.member else top
                for prefix, spoken in _SPOKEN:
                    name = spoken + name.removeprefix(prefix) if name.startswith(prefix) else name
                summary = "" if unit.member.startswith("_") else _summary(unit.doc)
                if not summary or held_out and {_normal(summary), _normal(unit.doc)} & told:
                    continue
                for row in _unit_rows(name, unit, summary):
                    if row["messages"][0]["content"] not in asked:
                        asked.add(row["messages"][0]["content"])
                        rows[held_out].append(row)
    return rows


@functools.cache
def load_builtin(name: str) -> DatasetDict:
    """Builds one of the embedded corpora; it takes seconds the first time and is remembered.

    Args:
        name: `"builtin:python-docs"` (columns `name`, `text`: one topic, module docstring, function or whole class) or
            `"builtin:python-qa"` (columns `name`, `messages`: one question of the user, one answer of the assistant).

    Returns:
        The splits `train` and `test`, in a fixed order; `test` is held out.

    Raises:
        DataError: If the name is not one of `BUILTIN_CORPORA`, or this Python carries no library source.
    """
    if name not in BUILTIN_CORPORA:
        raise DataError(f"there is no built-in corpus {name!r}; the known ones are {', '.join(BUILTIN_CORPORA)}")
    train, test = _build_docs() if name == "builtin:python-docs" else _build_qa()
    return DatasetDict({"train": Dataset.from_list(train), "test": Dataset.from_list(test)})
