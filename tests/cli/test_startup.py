"""Help and usage errors come without importing the library, torch or transformers, and are readable at 80 columns."""

import ast
import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from typer.main import get_command

import chatgpt_hf
import chatgpt_hf_cli
from chatgpt_hf.conversion.families import FAMILIES
from chatgpt_hf.export.export import FORMATS, OUTTYPES
from chatgpt_hf.inference.quantization import QUANTIZATIONS
from chatgpt_hf.preview import PURPOSES
from chatgpt_hf.training.arguments import ModelArguments
from chatgpt_hf_cli import _choices, fields, make_app, static

CLI = Path(chatgpt_hf_cli.__file__).parent
LIBRARY = Path(chatgpt_hf.__file__).parent
HEAVY = ["accelerate", "chatgpt_hf", "datasets", "numpy", "pandas", "torch", "transformers", "trl"]
RECIPE_COMMANDS = ["prepare", "pretrain", "sft", "dpo", "reward", "grpo", "distill", "finetune", "plan"]

# Runs command lines in one process, and says after each which packages have been imported.
PROBE = """
import contextlib, io, json, sys
from chatgpt_hf_cli import main
for arguments in json.load(sys.stdin):
    sys.argv = ["chatgpt-hf", *arguments]
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
    found = sorted({name.partition(".")[0] for name in sys.modules})
    print(json.dumps({"code": code, "out": out.getvalue(), "err": err.getvalue(), "modules": found}))
"""


def walk(command: Any, name: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command with its name, groups included."""
    yield name, command
    for part, inner in getattr(command, "commands", {}).items():
        yield from walk(inner, (*name, part))


COMMANDS = dict(walk(get_command(make_app())))
MISTAKES = [
    (["quikstart"], "No such command quikstart. Did you mean quickstart?"),
    (["tokenizer"], "Missing command: give one of train, show."),
    (
        ["data", "preview", "a.csv", "--for", "sftt"],
        "--for sftt is unknown; choose from sft, dpo, pretrain, finetune.",
    ),
    (["--versoin"], "Unknown argument --versoin. Did you mean --version?"),
    (["chat"], "Missing argument MODEL: Folder or Hub id of a chat model."),
    (
        ["chat", "/no/such/folder"],
        "There is no folder /no/such/folder; name one that `save_pretrained` wrote, or a Hub id.",
    ),
    (["chat", "m", "--quantize", "int7"], "--quantize int7 is unknown; choose from int8, int8-weight-only, int4."),
    (["quantize", "m", "o", "--to", "int7"], "--to int7 is unknown; choose from int8, int8-weight-only, int4."),
    (["convert", "m", "o", "--to", "gpt3"], "--to gpt3 is unknown; choose from chatgpt, gpt2, llama"),
    (["export", "m", "--format", "onx"], "--format onx is unknown; choose from onnx, openvino"),
    (["export", "m", "--format", "gguf", "--outtype", "q1"], "--outtype q1 is unknown; choose from f32"),
    (["sft", "--model_name_or_path", "./none"], "There is no folder none; name one that `save_pretrained` wrote"),
    (["env", "--older_than", "3"], "--older_than needs --prune."),
    (["serve", "m", "--prt", "80"], "Unknown argument --prt. Did you mean --port?"),
    (["serve", "m", "--port"], "Option --port requires an argument."),
    (["serve", "m", "--port", "http"], "--port: "),
    (["serve", "m", "--log_level", "loud"], "--log_level is loud; use debug, info, warning, error or critical."),
    (
        ["ui", "m", "--moderation_labels", "toxic"],
        "--moderation_labels are labels of a model: name the model with --moderation.",
    ),
    (["generate", "m", "--prompts", "p.jsonl"], "--prompts needs --output: the .jsonl file for the answers."),
    (["generate", "m", "--prompts", "none.jsonl", "--output", "o"], "--prompts: there is no file none.jsonl."),
    (["generate", "m", "--samples", "2"], "--samples needs --prompts: the .jsonl file with the prompts."),
    (["generate", "m", "--samples", "none"], "--samples: "),
    (["pairs", "a.jsonl"], "--rewards is missing: name what answers are worth, such as exact."),
    (["pairs", "a.jsonl", "--rewards", "exact"], "--output is missing: name the .jsonl file to write."),
    (["pairs", "a.jsonl", "--to", "dpo"], "--to dpo is unknown; choose from pairs, sft."),
    (["generate", "m", "more"], "Got unexpected extra argument"),
    (
        ["evaluate", "m"],
        "Give one of --corpus, --dataset, --code, --benchmarks, --preferences, --prompts, --answers, --bias to",
    ),
    (
        ["evaluate", "m", "--corpsu", "x"],
        "Unknown argument --corpsu: fields of a task need --dataset. Did you mean --corpus?",
    ),
    (["evaluate", "m", "--dataset", "x", "--taks", "y"], "Unknown argument --taks. Did you mean --task?"),
    (["sft", "--lerning_rate", "1e-3"], "Unknown argument --lerning_rate. Did you mean --learning_rate?"),
    (["pretrain", "--learning_rate", "abc"], "--learning_rate: invalid float value: 'abc'."),
    (["finetune", "--bf16", "maybe"], "--bf16: Truthy value expected: got maybe but expected one of"),
    (["finetune", "--task", "guess"], "--task: invalid choice: 'guess' (choose from"),
    (["plan", "--depth"], "--depth: expected one argument."),
    (["plan", "--config", "x.yaml"], "Unknown argument --config: name the recipe itself, before the other arguments."),
    (["sft", "sft-quickstrat"], "There is no recipe sft-quickstrat: it is not a file, and the package ships"),
    (["sft", "broken.yaml"], "broken.yaml is not YAML: while parsing a flow"),
    (["sft", "field.yaml"], "field.yaml sets the unknown field 'blok_size'. Did you mean --block_size?"),
    (["sft", "type.yaml"], "type.yaml: block_size: invalid int value: 'wide'."),
]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, ...], dict[str, Any]]:
    """What each command line answers in a fresh process that runs them all."""
    folder = tmp_path_factory.mktemp("recipes")
    (folder / "broken.yaml").write_text("a: [1")
    (folder / "field.yaml").write_text("blok_size: 3")
    (folder / "type.yaml").write_text("block_size: wide")
    lines = [["--help"], ["--version"], []]
    lines += [[*name, "--help"] for name in COMMANDS if name]
    lines += [arguments for arguments, _ in MISTAKES]
    done = subprocess.run(
        [sys.executable, "-c", PROBE],
        input=json.dumps(lines),
        capture_output=True,
        text=True,
        cwd=folder,
        env={"COLUMNS": "80", "PATH": "", "PYTHONPATH": str(CLI.parent)},
    )
    assert done.returncode == 0, done.stderr
    return {tuple(line): json.loads(answer) for line, answer in zip(lines, done.stdout.splitlines(), strict=True)}


Answers = dict[tuple[str, ...], dict[str, Any]]


def test_nothing_heavy_is_imported(answers: Answers) -> None:
    for line, answer in answers.items():
        assert not set(HEAVY) & set(answer["modules"]), line


def test_the_version(answers: Answers) -> None:
    assert answers[("--version",)]["out"] == f"{chatgpt_hf.__version__}\n"


def test_no_command_is_the_help(answers: Answers) -> None:
    assert answers[()]["out"] == answers[("--help",)]["out"]


@pytest.mark.parametrize(
    ("arguments", "message"), MISTAKES, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_a_mistake_is_one_line(arguments: list[str], message: str, answers: Answers) -> None:
    answer = answers[tuple(arguments)]
    assert (answer["code"], answer["out"]) == (2, "")
    assert answer["err"].startswith(f"error: {message}")
    assert answer["err"].count("\n") == 1


@pytest.mark.parametrize("name", COMMANDS, ids=lambda name: " ".join(name) or "chatgpt-hf")
def test_help_fits_and_has_no_holes(name: tuple[str, ...], answers: Answers) -> None:
    answer = answers[(*name, "--help")]
    assert (answer["code"], answer["err"]) == (0, "")
    text = answer["out"]
    assert text.startswith(f"Usage: {' '.join(('chatgpt-hf', *name))} ")
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    command = COMMANDS[name]
    assert command.help
    if name:
        assert f"\n  chatgpt-hf {' '.join(name)} " in text.partition("Examples:")[2]
    for item in command.params:
        assert item.help, item.name
        assert all(option in text for option in item.opts if option.startswith("-"))
        assert item.name.upper() in text or item.param_type_name == "option"


@pytest.mark.parametrize("name", RECIPE_COMMANDS)
def test_help_has_every_field(name: str, answers: Answers) -> None:
    # Words of the help, to find texts that are broken over lines.
    text = " ".join(answers[(name, "--help")]["out"].split())
    for kind in fields.imported_types(getattr(chatgpt_hf_cli, name).TYPES):
        for item in dataclasses.fields(kind):
            # Of a link, its text.
            words = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", item.metadata["help"].replace("%%", "%"))
            first = words.partition(". ")[0]
            assert f"--{item.name} {' '.join(first.split())}" in text


def imports(path: Path, inside_functions: bool) -> set[str]:
    """Modules that a file imports, by their absolute names; a leading dot marks relative ones."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = ast.walk(tree) if inside_functions else iter(tree.body)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("." * node.level + (node.module or ""))
    return {name.partition(".")[0] or name for name in found}


def test_the_library_does_not_know_the_command_line() -> None:
    # All but `python -m chatgpt_hf`, which is a name of the command line.
    for path in set(LIBRARY.rglob("*.py")) - {LIBRARY / "__main__.py"}:
        assert "chatgpt_hf_cli" not in imports(path, inside_functions=True), path


def test_the_command_line_imports_the_library_in_functions_only() -> None:
    for path in CLI.rglob("*.py"):
        assert not set(HEAVY) & imports(path, inside_functions=False), path


def test_the_choices_are_those_of_the_library() -> None:
    assert ("chatgpt", *FAMILIES) == _choices.CONVERSION_TARGETS
    assert set(_choices.DTYPES) == set(get_args(get_args(ModelArguments.__annotations__["save_dtype"])[0]))
    assert _choices.EXPORT_FORMATS == FORMATS
    assert _choices.GGUF_TYPES == OUTTYPES
    assert tuple(QUANTIZATIONS) == _choices.QUANTIZATIONS
    assert PURPOSES == _choices.PREVIEW_PURPOSES


def test_the_reader_of_recipes_stands_alone() -> None:
    names = imports(LIBRARY / "training" / "recipe_fields.py", inside_functions=True)
    assert names <= {*sys.stdlib_module_names, "yaml"}


# What `static` cannot read


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Writes a package with one file, and returns its name."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(text: str) -> str:
        name = f"written_{len(list(tmp_path.iterdir()))}"
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"import os\nfrom dataclasses import dataclass, field\n{text}")
        return name

    return write


@pytest.mark.parametrize(
    "text",
    [
        "@dataclass\nclass A:\n    x: int = os.getpid() + unknown",
        "@dataclass\nclass A:\n    default = 1\n    if os.name == 'posix':\n        default = 2\n    x: int = default",
        "if os.name == 'posix':\n    D = 1\nelse:\n    D = 2\n@dataclass\nclass A:\n    x: int = D",
        "@dataclass\nclass A:\n    x: int = field(default=1, metadata={'help': words()})",
        "@dataclass\nclass A:\n    x: Missing = 1",
        "def make():\n    return 1\n@dataclass\nclass A:\n    x: int = make()",
        "from torch import nothing\n@dataclass\nclass A(nothing):\n    x: int = 1",
        "@dataclass\nclass B:\n    x: int = 1",
    ],
)
def test_what_cannot_be_read_is_said(text: str, package: Callable[[str], str]) -> None:
    with pytest.raises(static.Unreadable):
        static.read_dataclass(package(text), "A")
    with pytest.raises(static.Unreadable):
        static.read_dataclass("no_such_package", "A")


def test_the_help_then_imports(answers: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(module: str, name: str) -> type:
        raise static.Unreadable(name)

    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(static, "read_dataclass", unreadable)
    # Headings are bold on a terminal only.
    found = fields.fields_help(chatgpt_hf_cli.sft.TYPES).replace("\x1b[1m", "").replace("\x1b[0m", "")
    assert found.strip() in answers[("sft", "--help")]["out"]
    # And the library's parser is the only one that checks.
    fields.check_recipe(chatgpt_hf_cli.sft.TYPES, None, ["--lerning_rate", "1"])
