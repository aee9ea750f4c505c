"""Writes tasks for lm-evaluation-harness that read benchmarks from local files instead of the Hub."""

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..data.encodings import encoding_by_mark
from ..data.files import has_content, open_bytes
from ..errors import ConfigError, DataError
from ..files import atomic_folder
from ..parsing import parse_json

_TEMPLATES = Path(__file__).parent / "harness_tasks"
_MMLU_COLUMNS = ["question", "choice0", "choice1", "choice2", "choice3", "answer"]


@dataclass(frozen=True)
class _Shape:
    """The columns of a benchmark's rows: texts, and for multiple choice the options and the number of the right one."""

    texts: tuple[str, ...]
    options: str | None = None
    gold: str | None = None

    def fault(self, row: Any) -> str | None:
        """Returns what is wrong with a row, or None if it is valid."""
        if not isinstance(row, dict):
            return "is not a JSON object"
        for name in self.texts:
            if not isinstance(row.get(name), str) or not row[name].strip():
                return f"needs text in {name!r}"
        if self.options is None or self.gold is None:
            # In LAMBADA, the model guesses the word after the last space.
            context, _, word = row[self.texts[0]].rpartition(" ")
            return (
                None if context and word else f"needs two or more words, without a final space, in {self.texts[0]!r}"
            )
        options, gold = row.get(self.options), row.get(self.gold)
        if not isinstance(options, list) or len(options) < 2:
            return f"needs a list of two or more texts in {self.options!r}"
        if not all(isinstance(option, str) and option.strip() for option in options):
            return f"has something other than text in {self.options!r}"
        if type(gold) is not int or not 0 <= gold < len(options):
            return f"needs the number of the right one of {self.options!r}, 0 to {len(options) - 1}, in {self.gold!r}"
        return None


_CHOICE = _Shape(("query",), "choices", "gold")
# By the harness' names: the beginning of the file's name, and its columns. MMLU's files are in a separate folder.
_FILES = {
    "hellaswag": ("hellaswag", _Shape(("ctx",), "endings", "label")),
    "lambada_openai": ("lambada", _Shape(("text",))),
    "arc_easy": ("arc_easy", _CHOICE),
    "arc_challenge": ("arc_challenge", _CHOICE),
    "piqa": ("piqa", _CHOICE),
    "winogrande": ("winogrande", _Shape(("continuation",), "context_options", "gold")),
    "boolq": ("boolq", _CHOICE),
    "openbookqa": ("openbook", _CHOICE),
    "copa": ("copa", _CHOICE),
}
BENCHMARKS = (*_FILES, "mmlu")


def check_names(names: Sequence[str]) -> None:
    """Raises `ConfigError` for a name that is neither in `BENCHMARKS` nor of the form `mmlu_SUBJECT`."""
    if not names:
        raise ConfigError(f"No benchmark is named; known are {', '.join(BENCHMARKS)}.")
    for name in names:
        if name not in BENCHMARKS and not name.startswith("mmlu_"):
            raise ConfigError(
                f"There is no benchmark {name!r}; known are {', '.join(BENCHMARKS)}, and mmlu_SUBJECT, like mmlu_anatomy."
            )
        if name.startswith("mmlu_") and "mmlu" in names:
            raise ConfigError(f"{name} is part of mmlu, which is named as well: name only one of the two.")


def write_tasks(data_folder: str | Path, folder: str | Path, tasks: Sequence[str] | None = None) -> list[str]:
    """Writes task files for lm-evaluation-harness that read local data, under the names of the harness's tasks.

    `lm_eval --include_path FOLDER --tasks hellaswag,mmlu ...` then runs the same as `evaluate_benchmarks`. A comment at the
    top of each file says how it differs from the harness' own task. The tasks read the data in place; only MMLU's rows are
    rewritten, because a CSV reader that guesses types turns "None" into a missing value and 0.50 into 0.5.

    Args:
        data_folder: Has a file for each benchmark: `hellaswag*.jsonl`, `lambada*.jsonl`, `arc_easy*.jsonl`,
            `arc_challenge*.jsonl`, `piqa*.jsonl`, `winogrande*.jsonl`, `boolq*.jsonl`, `openbook*.jsonl`, `copa*.jsonl` with
            the rows of mosaicml/llm-foundry (for HellaSwag: ctx, endings, label); and MMLU in `mmlu/SUBJECT_dev.csv` and
            `mmlu/SUBJECT_test.csv` with the columns question, choice0 ... choice3, answer.
        folder: The folder to write; the tasks work only while it stays there.
        tasks: Names in `BENCHMARKS`, or `mmlu_SUBJECT`; None for all tasks with files.

    Returns:
        The names of the tasks, including groups.

    Raises:
        ConfigError: If a name is unknown.
        DataError: If a file is missing, or a row is broken.
    """
    source, target = Path(data_folder).expanduser(), Path(folder).expanduser().resolve()
    if not source.is_dir():
        raise DataError(f"There is no folder {source}: name one with files like hellaswag.jsonl and mmlu/.")
    if tasks is not None:
        check_names(tasks)
    # Not the usual cache, which is no use for local files; here the cached rows are deleted with the tasks.
    common = {"cache_dir": str(target / "cache")}
    files: dict[str, str] = {}
    for name, (stem, shape) in _FILES.items():
        if tasks is not None and name not in tasks:
            continue
        file = _only_file(source, stem, required=tasks is not None)
        if file is not None:
            _check_rows(file, shape)
            files[f"{name}.yaml"] = _task(name, {**common, "data_files": {"test": str(file.resolve())}})
    subjects: list[str] = []
    if tasks is None or any(name.startswith("mmlu") for name in tasks):
        subjects = sorted(file.name.removesuffix("_test.csv") for file in source.glob("mmlu/*_test.csv"))
        missing = [name for name in tasks or () if name.startswith("mmlu_") and name[5:] not in subjects]
        if missing or (tasks is not None and not subjects):
            raise DataError(f"{source / 'mmlu' / (missing[0][5:] if missing else 'SUBJECT')}_test.csv is missing.")
    for subject in subjects:
        data_files = {}
        for split in ("test", "dev"):
            rows = _mmlu_rows(source / "mmlu" / f"{subject}_{split}.csv")
            data_files[split] = str(target / f"mmlu_{subject}_{split}.jsonl")
            files[Path(data_files[split]).name] = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        topic = subject.replace("_", " ")
        description = f"The following are multiple choice questions (with answers) about {topic}.\n\n"
        own = {"task": f"mmlu_{subject}", "task_alias": subject, "description": description}
        files[f"mmlu_{subject}.yaml"] = _task("mmlu_subject", {**common, "data_files": data_files}, **own)
    if subjects:
        files["mmlu.yaml"] = _template("mmlu", task=[f"mmlu_{subject}" for subject in subjects])
    if not files:
        raise DataError(f"{source} has no benchmark files, such as hellaswag.jsonl or mmlu/anatomy_test.csv.")
    with atomic_folder(target) as temporary:
        for file_name, content in files.items():
            (temporary / file_name).write_text(content, encoding="utf-8")
    return [name.removesuffix(".yaml") for name in files if name.endswith(".yaml")]


def _task(template: str, dataset_kwargs: dict[str, Any], **fields: Any) -> str:
    return _template(template, **fields, dataset_path="json", dataset_kwargs=dataset_kwargs)


def _template(name: str, **fields: Any) -> str:
    """Returns the text of a file in `harness_tasks`, including its comment, with more fields."""
    added = yaml.safe_dump(fields, allow_unicode=True, sort_keys=False)
    return (_TEMPLATES / f"{name}.yaml").read_text(encoding="utf-8") + added


def _only_file(folder: Path, stem: str, *, required: bool) -> Path | None:
    found = sorted(folder.glob(f"{stem}*.jsonl"))
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise DataError(f"{folder} has {names}: keep only the one to use.")
    if not found and required:
        raise DataError(f"{folder / stem}.jsonl is missing (the name may continue before the extension).")
    return found[0] if found else None


def _check_rows(file: Path, shape: _Shape) -> None:
    def rows(text: Iterator[str]) -> Iterator[tuple[int, str | None]]:
        for number, line in enumerate(text, start=1):
            if line.strip():
                try:
                    yield number, shape.fault(parse_json(line))
                except json.JSONDecodeError as error:
                    yield number, f"is broken JSON: {error.msg}"
                except ValueError as error:
                    yield number, f"cannot be used: {error}"

    _read(file, rows)


def _mmlu_rows(file: Path) -> list[dict[str, Any]]:
    """Reads one CSV file; returns rows with the columns of the harness' own data set, `cais/mmlu`."""
    found: list[dict[str, Any]] = []

    def rows(text: Iterator[str]) -> Iterator[tuple[int, str | None]]:
        reader = csv.DictReader(text, strict=True)
        try:
            if reader.fieldnames is None or not set(_MMLU_COLUMNS) <= set(reader.fieldnames):
                yield 1, f"must name the columns: {','.join(_MMLU_COLUMNS)}"
            for row in reader:
                values = [row.get(name) for name in _MMLU_COLUMNS]
                if None in row or not all(values):
                    yield reader.line_num, f"does not have the {len(_MMLU_COLUMNS)} columns"
                elif row["answer"] not in ("0", "1", "2", "3"):
                    yield reader.line_num, f"needs 0, 1, 2 or 3 in 'answer', but has {row['answer']!r}"
                found.append({"question": row["question"], "choices": values[1:5], "answer": int(row["answer"])})
                yield reader.line_num, None
        except csv.Error as error:
            yield reader.reader.line_num, f"is broken CSV: {error}"

    _read(file, rows)
    return found


def _read(file: Path, rows: Callable[[Iterator[str]], Iterator[tuple[int, str | None]]]) -> None:
    """Reads a file's rows; `rows` yields each row's line number and fault.

    Raises:
        DataError: At the first fault; or if the file is missing, is not UTF-8, or has no rows.
    """
    if not file.is_file():
        raise DataError(f"{file} is missing.")
    has_content(file)
    with open_bytes(file) as stream:
        if encoding_by_mark(stream.read(4)) is not None:
            raise DataError(f"{file} begins with a byte order mark, which the harness does not read: save it without.")
    count = 0
    with io.TextIOWrapper(open_bytes(file), encoding="utf-8", newline="") as text:
        for number, fault in rows(text):
            if fault:
                raise DataError(f"{file}, line {number}: {fault}.")
            count += 1
    if not count:
        raise DataError(f"{file} has no rows.")
