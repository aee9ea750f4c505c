"""Everything that reads files, each with valid files of its kind that mutations.py changes. Used by fuzz.py and test_fuzz.py."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from mutations import ODD, altered, damaged, json_file, json_lines, packed, parquet, table, yaml_file
from valid_rows import (
    ASKED,
    CARD,
    CHATS,
    CHOICES,
    CONLL,
    EXAMPLES,
    HARNESS,
    LETTERED,
    MMLU,
    PREFERENCES,
    PROBLEMS,
    QUESTIONS,
    RECIPE,
    REPORT,
    SAMPLES,
    SHAPES,
    SPANS,
    SQUAD,
    TAGGED,
    TEXTS,
    figures,
)

Files = dict[str, bytes]


class Reader(NamedTuple):
    """Something that reads files.

    Attributes:
        make: Makes files, by their names in a folder, from a source of random choices.
        read: Reads the files in a folder.
    """

    make: Callable[[Random], Files]
    read: Callable[[Path], Any]


def attempt(read: Callable[[Path], Any], folder: Path) -> str | None:
    """Reads a folder of files; returns what the reader says of them, or None if it can use them.

    Any exception that a user may not see is raised.
    """
    from chatgpt_hf.errors import ChatGPTError
    from chatgpt_hf_cli.errors import UsageMistake

    try:
        read(folder)
    except (ChatGPTError, UsageMistake) as error:
        message = str(error)
        assert message.strip(), "the message is empty"
        return message
    return None


def _rows_file(name: str, rows: list[Any]) -> Callable[[Random], Files]:
    """A file of rows, in one format or any, perhaps compressed."""

    def make(random: Random) -> Files:
        suffix = name if name != "any" else random.choice(("json", "jsonl", "csv", "tsv", "parquet"))
        if suffix == "parquet":
            content = parquet(random, rows)
        elif suffix in ("csv", "tsv"):
            content = table(random, rows, "\t" if suffix == "tsv" and random.randrange(4) else None)
        else:
            content = json_lines(random, rows)
        return dict([packed(random, f"train.{suffix}", content)])

    return make


def _text_file(name: str, content: bytes) -> Callable[[Random], Files]:
    return lambda random: dict([packed(random, name, damaged(random, content, times=8))])


def _only(folder: Path) -> str:
    return str(next(iter(sorted(folder.iterdir()))))


def _lines(file: Path) -> list[str]:
    """Texts that are given on a command line or stand in a cell, one in each line of a file."""
    from chatgpt_hf.errors import DataError
    from chatgpt_hf.parsing import read_file

    try:
        return read_file(file).split("\n")
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read: {error}") from error


def _all_rows(folder: Path) -> None:
    from chatgpt_hf.data.json_rows import written_json
    from chatgpt_hf.data.tables import read_rows

    for row in read_rows(Path(_only(folder))):
        written_json(
            {str(name): repr(value) if isinstance(value, bytes) else value for name, value in row.items()}
        ).encode()


def _corpus(folder: Path) -> None:
    from chatgpt_hf.data.corpus import load_corpus, stream_corpus
    from chatgpt_hf.errors import DataError

    fault: DataError | None = None
    try:
        load_corpus(_only(folder), template=None)
    except DataError as error:
        fault = error
    for part in stream_corpus(_only(folder), skip_broken_files=True).values():
        for row in part:
            row["text"].encode()
    if fault is not None:
        raise fault


def _columns(folder: Path) -> None:
    from chatgpt_hf.data.corpus import load_rows

    for _, splits in load_rows(_only(folder)):
        for row in splits["train"]:
            json.dumps(row, default=str)


def _conversations(folder: Path) -> None:
    from chatgpt_hf.data.conversations import read_conversations, tokenize_conversations
    from chatgpt_hf.data.sources import parse_sources

    read = partial(read_conversations, parse_sources(_only(folder)), test_fraction=0.3)
    found = read(skip_invalid=True)
    tokenize_conversations(found.splits["train"], _tokenizer(), skip_invalid=True)
    read(skip_invalid=False)


def _preferences(folder: Path) -> None:
    from chatgpt_hf.data.preference_tokens import tokenize_preferences
    from chatgpt_hf.data.preferences import read_preferences
    from chatgpt_hf.data.sources import parse_sources

    read = partial(read_preferences, parse_sources(_only(folder)), test_fraction=0.3)
    found = read(skip_invalid=True)
    tokenize_preferences(found.splits["train"], _tokenizer(), skip_invalid=True)
    read(skip_invalid=False)


def _task(loader: str, **options: Any) -> Callable[[Path], Any]:
    def read(folder: Path) -> None:
        from importlib import import_module

        module, _, name = loader.partition(":")
        load = getattr(import_module(f"chatgpt_hf.tasks.{module}.rows"), name)
        source = _only(folder)
        load(source, test_fraction=0.3, skip_invalid=True, **options)
        load(source, **options)

    return read


def _sources(folder: Path) -> None:
    from chatgpt_hf.data.sources import fill_template, parse_sources, template_columns

    for text in _lines(folder / "sources.txt"):
        for source in parse_sources([text or "a"]):
            if source.template is not None:
                fill_template(source.template, dict.fromkeys(template_columns(source.template), "x"), "row 1")


def _recipe(folder: Path) -> None:
    from chatgpt_hf.training import arguments
    from chatgpt_hf.training.recipe import parse_recipe, resolve_recipe
    from chatgpt_hf_cli.fields import check_recipe

    names = ("ModelArguments", "ArchitectureArguments", "CorpusArguments", "PretrainArguments")
    types = tuple(f"training.arguments:{name}" for name in names)
    before = dict(os.environ)
    try:
        check_recipe(types, _only(folder), [])
        parsed = parse_recipe(
            [getattr(arguments, name) for name in names], _only(folder), ["--output_dir", str(folder / "out")]
        )
        resolve_recipe(*parsed)
    finally:
        os.environ.clear()
        os.environ.update(before)


@cache
def _tokenizer() -> Any:
    from chatgpt_hf import train_tokenizer

    return train_tokenizer(["a b c", "Hello! Hi?"], vocab_size=270, max_digits=3)


@cache
def tokenizer_files() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        _tokenizer().save_pretrained(folder)
        return {path.name: json.loads(path.read_text()) for path in Path(folder).glob("*.json")}


def _make_tokenizer(random: Random) -> Files:
    files = tokenizer_files()
    changed = random.choice((*files, "both"))
    made = {
        name: json_file(random, value) if changed in (name, "both") else json.dumps(value).encode()
        for name, value in files.items()
    }
    return made


def _load_tokenizer(folder: Path) -> None:
    import gguf

    from chatgpt_hf.chat_templates import encode_chat_prompt
    from chatgpt_hf.errors import ChatGPTError
    from chatgpt_hf.export.gguf_tokenizer import add_tokenizer, check_tokenizer
    from chatgpt_hf.tokenization_chatgpt import encode_prompts, load_tokenizer

    tokenizer = load_tokenizer(folder)
    faults = []
    for use in (
        lambda: encode_prompts(tokenizer, ["Hello 中文 <|im_start|>"]),
        lambda: encode_chat_prompt(tokenizer, [{"role": "user", "content": "Hi"}]),
        lambda: (check_tokenizer(tokenizer), add_tokenizer(gguf.GGUFWriter(None, "x"), tokenizer, len(tokenizer))),
    ):
        try:
            use()
        except ChatGPTError as error:
            faults.append(error)
    if faults:
        raise faults[0]


def _make_gguf(random: Random) -> Files:
    content = b"GGUF" + (3).to_bytes(4, "little") + bytes(64)
    return {
        "model.gguf": damaged(random, content) if random.randrange(4) else b"GGUF",
        "config.json": json_file(random, {"model_type": "chatgpt"}),
    }


def _check_gguf(folder: Path) -> None:
    from chatgpt_hf.checkpoints import check_folder
    from chatgpt_hf.stored import refuse_other_formats

    refuse_other_formats(folder / "model.gguf")
    check_folder(folder)


def _prompts(folder: Path) -> None:
    from chatgpt_hf.inference.prompt_file import read_output, read_prompts

    rows, _ = read_prompts(folder / "prompts.jsonl", _tokenizer(), 64, 16)
    for row in rows:
        json.dumps(row.row, ensure_ascii=False).encode()
    read_output(folder / "output.jsonl", {row.line: row.row for row in rows})


def _make_prompts(random: Random) -> Files:
    prompts = [
        {"prompt": "Once"},
        {"messages": CHATS[0]["messages"][:1], "id": 7},
        {"prompt": "a b", "completion": "c"},
    ]
    answers = [
        {**prompt, "line": line, "completion": "x", "finish_reason": "stop"} for line, prompt in enumerate(prompts, 1)
    ]
    return {"prompts.jsonl": json_lines(random, prompts), "output.jsonl": json_lines(random, answers)}


# What prompts and samples may be worth. Programs are only checked, not run.
_REWARDS = ("exact", "number", "honest", "regex", "json_schema", '{"name": "length", "most": 1}')


def _asked(folder: Path) -> None:
    """Prompts, as `grpo` reads and encodes them."""
    from chatgpt_hf.chat_templates import encode_chat_prompt
    from chatgpt_hf.data.conversations import InvalidRows
    from chatgpt_hf.data.prompts import read_prompts
    from chatgpt_hf.data.sources import parse_sources
    from chatgpt_hf.errors import DataError
    from chatgpt_hf.rewards import check_columns, load_rewards
    from chatgpt_hf.training.resuming import rows_fingerprint

    read = partial(read_prompts, parse_sources(_only(folder)), reserved=("prompt", "completion"))
    rows = read(skip_invalid=True).splits["train"]
    rows_fingerprint(rows)
    invalid = InvalidRows(skip=True)
    for prompt, place in zip(rows["prompt"], rows["place"], strict=True):
        try:
            encode_chat_prompt(_tokenizer(), prompt)
        except DataError as error:
            invalid.add(place, error)
    _each(
        lambda name: check_columns(load_rewards(name), rows.remove_columns("place"), ["", *rows["place"]].__getitem__),
        (*_REWARDS, "python"),
    )
    read(skip_invalid=False)


def _samples(folder: Path) -> None:
    """Answers that `generate --samples` wrote, as `pairs` reads them and a later run continues them."""
    from chatgpt_hf.data.prompts import read_prompts
    from chatgpt_hf.data.sources import parse_sources
    from chatgpt_hf.inference.prompt_file import read_output
    from chatgpt_hf.rewards.loading import load_rewards
    from chatgpt_hf.rewards.pairs import make_rows, write_rows

    file, made = Path(_only(folder)), folder / "made"

    def rank(name: str, kind: str, **options: Any) -> None:
        rows = make_rows(parse_sources(str(file)), load_rewards(name), kind=kind, **options)
        write_rows(rows, made / f"{kind}.jsonl")
        (made / f"{kind}.jsonl").unlink()

    # A file that cannot be read is read once, not for each reward.
    read_prompts(parse_sources(str(file)))
    _each(lambda name: rank(name, "pairs"), _REWARDS)
    _each(lambda name: rank(name, "sft", min_reward=0.5), _REWARDS[:1])
    prompt = {name: SAMPLES[0][name] for name in ("question", "answer", "id", "pattern", "schema")}
    read_output(file, {1: prompt, 2: prompt}, samples=2)


def _each(use: Callable[[str], object], names: Sequence[str]) -> None:
    """Tries all; raises what the first says if none can be used."""
    from chatgpt_hf.errors import ChatGPTError

    faults = []
    for name in names:
        try:
            use(name)
        except ChatGPTError as error:
            faults.append(error)
    if len(faults) == len(names):
        raise faults[0]


def _make_evaluations(random: Random) -> Files:
    files = {}
    for model in ("a", "b"):
        results, examples = figures(), EXAMPLES
        change = random.randrange(4) if model == "a" else 3
        folder = f"{model}/evaluation/x/"
        files[folder + "results.json"] = (
            json_file(random, results) if change in (0, 2) else json.dumps(results).encode()
        )
        files[folder + "examples.jsonl"] = json_lines(random, examples) if change in (1, 2) else b"".join(json.dumps(row).encode() + b"\n" for row in examples)  # fmt: skip
    return files


def _compare(folder: Path) -> None:
    from chatgpt_hf.evaluation.compare import compare_folders

    for comparison in compare_folders([folder / "b", folder / "a"]).values():
        comparison.markdown().encode()
    for comparison in compare_folders([folder / "a", folder / "b"]).values():
        comparison.markdown().encode()


def _make_card(random: Random) -> Files:
    files = {
        "config.json": {"model_type": "chatgpt"},
        "report/report.json": REPORT,
        "evaluation/x/results.json": figures(),
    }
    changed = random.choice((*files, "README.md"))
    made = {
        name: json_file(random, value) if name == changed else json.dumps(value).encode()
        for name, value in files.items()
    }
    return made | ({"README.md": damaged(random, CARD)} if changed == "README.md" else {})


def _card(folder: Path) -> None:
    from chatgpt_hf.reporting.card import make_card

    make_card(folder, "me/x", {"license": "mit"}).encode()
    make_card(folder, "me/x").encode()


def _words(folder: Path) -> None:
    from chatgpt_hf.errors import ContentFiltered
    from chatgpt_hf.moderation.words import WordList

    words = WordList.from_file(folder / "words.txt")
    stream = words.filter()
    try:
        words.check("An ordinary line, with words: badword. 中文 敏感 词")
        for char in "some text badword":
            stream.feed(char)
    except ContentFiltered:
        pass


def _harness(folder: Path) -> None:
    from chatgpt_hf.evaluation.harness_data import write_tasks

    write_tasks(folder, folder / "out")


def _make_harness(random: Random) -> Files:
    files = {name: json_lines(random, rows) for name, rows in HARNESS.items() if random.randrange(2)}
    if random.randrange(2):
        files["mmlu/anatomy_test.csv"] = table(random, MMLU, ",")
        files["mmlu/anatomy_dev.csv"] = table(random, MMLU, ",") if random.randrange(2) else b"x"
    return files


def _problems(folder: Path) -> None:
    from chatgpt_hf.evaluation.code import read_problems

    for problem in read_problems(Path(_only(folder))):
        problem.program("    pass").encode()


def _cache(folder: Path) -> None:
    from chatgpt_hf import cache
    from chatgpt_hf.data.prepare import _read as read_rows

    cache.entries(folder)
    found = read_rows(folder / ("0" * 32), "x")
    if found is not None:
        list(found.rows)
    cache.prune(folder)


def _make_cache(random: Random) -> Files:
    row, model = "0" * 32, "models/" + "1" * 32
    return {
        f"{row}/rows.arrow": damaged(random, b"\xff\xff\xff\xff" + bytes(40)),
        f"{row}/statistics.json": json_file(
            random, {"rows": 1, "bytes": 44, "checksum": 1, "statistics": [], "share_of_positions_used": 1}
        ),
        f"{model}/written.json": json_file(random, {"config.json": 1}),
        f"{model}/config.json": b"{}",
        "texts/" + "2" * 32 + ".jsonl": damaged(random, b'{"text": "a"}\n'),
    }


def _stored(folder: Path) -> None:
    from chatgpt_hf import stored

    stored.quantization_of(folder)
    stored.is_foreign(folder)
    stored.origin_of(folder)
    stored.stored_dtype(folder)
    stored.check_storage(folder)
    stored.check_memory(folder)
    list(stored.stored_tensors(folder))


def _make_stored(random: Random) -> Files:
    config = {
        "model_type": "llama",
        "dtype": "bfloat16",
        "quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128},
    }
    header = json.dumps(altered(random, {"a": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}})).encode()
    weights = len(header).to_bytes(8, "little") + header + b"\0\0"
    index = {"metadata": {}, "weight_map": {"a": "model.safetensors"}}
    return {
        "config.json": json_file(random, config),
        random.choice(("model.safetensors", "model-1.safetensors")): damaged(random, weights)
        if random.randrange(2)
        else weights,
        "model.safetensors.index.json": json_file(random, index),
        "README.md": damaged(random, CARD),
        "report/report.json": json_file(random, REPORT),
    }


def _labels(folder: Path) -> None:
    from chatgpt_hf.tasks.labels import list_of_labels, number_of, read_numbered_names

    for line in _lines(folder / "labels.txt"):
        list_of_labels(line)
        list_of_labels(f"[{line}]")
        number_of(line)
    read_numbered_names(folder / "labels.txt")


def _make_labels(random: Random) -> Files:
    odd = "\n".join(json.dumps(random.choice(ODD)) for _ in range(3))
    return {"labels.txt": damaged(random, f"0\tgood\n1\tbad\n2\t[1, '2']\n{odd}".encode(), times=6)}


def _meta(folder: Path) -> None:
    from chatgpt_hf.conversion.characters import read_character_tokenizer
    from chatgpt_hf.tokenization_chatgpt import encode_prompts

    encode_prompts(read_character_tokenizer(folder / "meta.json"), ["abc é"])


def _chat(folder: Path) -> None:
    from chatgpt_hf.data.messages import check_conversation
    from chatgpt_hf.errors import DataError
    from chatgpt_hf.parsing import parse_json, read_file

    try:
        check_conversation(parse_json(read_file(folder / "chat.json"))["messages"], allow_empty=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(str(error)) from error


def _kept_recipe(folder: Path) -> None:
    from chatgpt_hf.evaluate import _task_arguments

    _task_arguments(str(folder), {"task": "text-classification"})


def _make_abstention(random: Random) -> Files:
    weights = hashlib.sha256(hashlib.sha256(b"weights").digest()).hexdigest()
    template = hashlib.sha256(json.dumps(_tokenizer().chat_template).encode()).hexdigest()
    content = {"format": 1, "threshold": -0.5, "text": "No.", "max_new_tokens": 8, "calibration": {"keep": 0.95}}
    made = json_file(random, {**content, "weights": weights, "chat_template": template})
    return {"abstention.json": made, "model.safetensors": b"weights"}


def _abstention(folder: Path) -> None:
    from chatgpt_hf.inference.abstention import load_abstention

    found = load_abstention(folder, _tokenizer())
    found.text.encode()
    assert found.threshold <= 0 < found.max_new_tokens


READERS: dict[str, Reader] = {
    "csv": Reader(_rows_file("csv", TEXTS), _all_rows),
    "tsv": Reader(_rows_file("tsv", TEXTS), _all_rows),
    "json": Reader(_rows_file("jsonl", [*TEXTS, *CHATS]), _all_rows),
    "parquet": Reader(_rows_file("parquet", [*TEXTS, *CHATS]), _all_rows),
    "text": Reader(_text_file("a.md", "# Über\n\nA text.\r\n中文\n".encode() * 3), _corpus),
    "corpus": Reader(_rows_file("any", TEXTS), _corpus),
    "columns": Reader(_rows_file("any", [*TEXTS, *SPANS]), _columns),
    "sources": Reader(lambda random: {"sources.txt": json_lines(random, [{"source": "a", "template": "{a}\n{b}", "weight": 2}] * 3)}, _sources),
    "conversations": Reader(lambda random: _rows_file("any", random.choice(SHAPES))(random), _conversations),
    "preferences": Reader(lambda random: _rows_file("any", random.choice(PREFERENCES))(random), _preferences),
    "text-classification": Reader(_rows_file("any", TEXTS), _task("text_classification:load_labelled")),
    "token-classification": Reader(lambda random: _rows_file("jsonl", random.choice((TAGGED, SPANS)))(random), _task("token_classification:load_tagged")),
    "conll": Reader(_text_file("train.conll", CONLL), _task("token_classification:load_tagged")),
    "multiple-choice": Reader(lambda random: _rows_file("any", random.choice((CHOICES, LETTERED)))(random), _task("multiple_choice:load_choices")),
    "question-answering": Reader(lambda random: {"a.json": json_file(random, SQUAD)} if random.randrange(2) else _rows_file("any", QUESTIONS)(random), _task("question_answering:load_squad")),
    "generation": Reader(_rows_file("any", [{"prompt": "1+1=", "completion": "2"}] * 3), _task("generation:load_pairs")),
    "recipe": Reader(lambda random: {"a.yaml": yaml_file(random, RECIPE)}, _recipe),
    "kept-recipe": Reader(lambda random: {"recipe.yaml": yaml_file(random, RECIPE)}, _kept_recipe),
    "prompts": Reader(_make_prompts, _prompts),
    "asked": Reader(lambda random: _rows_file("any", random.choice(ASKED))(random), _asked),
    "samples": Reader(lambda random: _rows_file(random.choice(("jsonl", "jsonl", "any")), SAMPLES)(random), _samples),
    "tokenizer": Reader(_make_tokenizer, _load_tokenizer),
    "characters": Reader(lambda random: {"meta.json": json_file(random, {"stoi": {"a": 0, "b": 1}, "itos": {"0": "a", "1": "b"}})}, _meta),
    "gguf": Reader(_make_gguf, _check_gguf),
    "evaluations": Reader(_make_evaluations, _compare),
    "card": Reader(_make_card, _card),
    "words": Reader(lambda random: {"words.txt": damaged(random, "# list\nbadword\n敏感 词\nbad*\n*word\n".encode(), times=8)}, _words),
    "harness": Reader(_make_harness, _harness),
    "problems": Reader(lambda random: dict([packed(random, "p.jsonl", json_lines(random, PROBLEMS))]), _problems),
    "cache": Reader(_make_cache, _cache),
    "stored": Reader(_make_stored, _stored),
    "labels": Reader(_make_labels, _labels),
    "abstention": Reader(_make_abstention, _abstention),
    "chat": Reader(lambda random: {"chat.json": json_file(random, CHATS[0])}, _chat),
}  # fmt: skip


def write(folder: Path, files: Files) -> None:
    """Replaces the content of a folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def try_one(name: str, seed: object, folder: Path) -> str | None:
    """Makes the input of a seed and reads it; see `attempt`."""
    reader = READERS[name]
    write(folder, reader.make(Random(f"{name} {seed}")))
    return attempt(reader.read, folder)
