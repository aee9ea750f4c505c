"""Local rows as tasks of the harness: their prompts equal those of its own tasks; broken rows are rejected."""

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval")
from datasets import Dataset, DatasetDict
from lm_eval import tasks as harness_tasks
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from chatgpt_hf.errors import ConfigError, DataError
from chatgpt_hf.evaluation.harness_data import BENCHMARKS, check_names, write_tasks

LETTERS = ["A", "B", "C", "D"]
ARC_CHOICES = ["safety goggles", "breathing mask", "rubber gloves", "lead apron"]
FAUCET = ["The toilet filled with water.", "Water flowed from the spout."]
# By benchmark: the harness' own file, a row as the Hub has it, and the same row as local files have it.
ROWS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "hellaswag": (
        "hellaswag/hellaswag.yaml",
        {
            "activity_label": "Roof shingle removal",
            "ctx_a": "A man is sitting on a roof.",
            "ctx_b": "he",
            "endings": ["is using wrap.", "starts pulling up roofing on a roof."],
            "label": "1",
        },
        {
            "ctx": "Roof shingle removal: A man is sitting on a roof. he",
            "endings": ["is using wrap.", "starts pulling up roofing on a roof."],
            "label": 1,
        },
    ),
    "lambada_openai": (
        "lambada/lambada_openai.yaml",
        {"text": 'A guardian angel.\n\n"Figured," he said. I don\'t care about signs'},
        {"text": 'A guardian angel.\n\n"Figured," he said. I don\'t care about signs'},
    ),
    "arc_easy": (
        "arc/arc_easy.yaml",
        {"question": "What keeps mold out?", "choices": {"text": ARC_CHOICES, "label": LETTERS}, "answerKey": "B"},
        {"query": "Question: What keeps mold out?", "choices": ARC_CHOICES, "gold": 1},
    ),
    "arc_challenge": (
        "arc/arc_challenge.yaml",
        {"question": "What keeps mold out?", "choices": {"text": ARC_CHOICES, "label": LETTERS}, "answerKey": "D"},
        {"query": "Question: What keeps mold out?", "choices": ARC_CHOICES, "gold": 3},
    ),
    "piqa": (
        "piqa/piqa.yaml",
        {"goal": "dresser", "sol1": "replace drawer with bobby pin", "sol2": 'finish, it\'s "woodgrain"', "label": 1},
        {
            "query": "Question: dresser\n",
            "choices": ["replace drawer with bobby pin", 'finish, it\'s "woodgrain"'],
            "gold": 1,
        },
    ),
    "winogrande": (
        "winogrande/default.yaml",
        {
            "sentence": "Sarah was a much better surgeon than Maria so _ always got the easier cases.",
            "option1": "Sarah",
            "option2": "Maria",
            "answer": "2",
        },
        {
            "context_options": [
                "Sarah was a much better surgeon than Maria so Sarah",
                "Sarah was a much better surgeon than Maria so Maria",
            ],
            "continuation": "always got the easier cases.",
            "gold": 1,
        },
    ),
    "boolq": (
        "super_glue/boolq/default.yaml",
        {"passage": "All biomass goes through steps.", "question": "does ethanol take more energy", "label": 0},
        {
            "query": "Passage: All biomass goes through steps.\nQuestion: does ethanol take more energy?",
            "choices": ["no", "yes"],
            "gold": 0,
        },
    ),
    "openbookqa": (
        "openbookqa/openbookqa.yaml",
        {
            "question_stem": "There is most likely going to be fog around:",
            "choices": {"text": ["a marsh", "a tundra", "the plains", "a desert"], "label": LETTERS},
            "answerKey": "A",
        },
        {
            "query": "There is most likely going to be fog around:",
            "choices": ["a marsh", "a tundra", "the plains", "a desert"],
            "gold": 0,
        },
    ),
    "copa": (
        "super_glue/copa/default.yaml",
        {
            "premise": "The man turned on the faucet.",
            "question": "effect",
            "choice1": FAUCET[0],
            "choice2": FAUCET[1],
            "label": 1,
        },
        {
            "query": "The man turned on the faucet, therefore",
            "choices": ["the toilet filled with water.", "water flowed from the spout."],
            "gold": 1,
        },
    ),
    "mmlu_anatomy": (
        "mmlu/default/mmlu_anatomy.yaml",
        {"question": "Which is it? ", "choices": ["None", "0.50", "a, b", 'the "third"'], "answer": 2},
        {"question": "Which is it? ", "choices": ["None", "0.50", "a, b", 'the "third"'], "answer": 2},
    ),
}
MMLU_HEADER = "question,choice0,choice1,choice2,choice3,answer\n"
MMLU_ROW = 'Which is it? ,None,0.50,"a, b","the ""third""",2\n'


def write_rows(folder: Path, name: str, rows: list[Any]) -> Path:
    """Writes a data folder with one benchmark."""
    if name.startswith("mmlu"):
        (folder / "mmlu").mkdir(exist_ok=True)
        for split in ("dev", "test"):
            (folder / "mmlu" / f"anatomy_{split}.csv").write_text(MMLU_HEADER + MMLU_ROW * len(rows), encoding="utf-8")
        return folder / "mmlu" / "anatomy_test.csv"
    file = folder / f"{'openbook_qa' if name == 'openbookqa' else name}_part.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def load_local(folder: Path, *names: str) -> dict[str, Any]:
    return TaskManager(include_path=folder, include_defaults=False).load(list(names))["tasks"]


def asked(task: Any, shots: int = 0) -> tuple[list[tuple[str, str]], int]:
    """Returns the requests for a task's first row, and the right answer."""
    task.set_fewshot_seed(0)
    doc = task.eval_docs[0]
    context = task.fewshot_context(doc, num_fewshot=shots)
    requests = task.construct_requests(doc, context, metadata=(None, 0, 1))
    requests = requests if isinstance(requests, list) else [requests]
    target = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    if task.OUTPUT_TYPE == "multiple_choice" and isinstance(target, str):
        target = int(target) if target.isdigit() else task.doc_to_choice(doc).index(target)
    return [request.arguments for request in requests], target


@pytest.mark.parametrize("shots", [0, 1])
@pytest.mark.parametrize("name", ROWS)
def test_the_prompts_are_those_of_the_harness_own_tasks(name: str, shots: int, tmp_path: Path) -> None:
    own_file, on_the_hub, here = ROWS[name]
    config = load_yaml(Path(harness_tasks.__file__).parent / own_file, resolve_func=True)
    config.pop("tag", None)
    # Two rows that differ only in an unused column: the asked row is never its own shot.
    rows = Dataset.from_list([{**on_the_hub, "id": number} for number in range(2)])
    rows = DatasetDict(dict.fromkeys(("train", "validation", "test", "dev"), rows))
    own = ConfigurableTask(config={**config, "custom_dataset": lambda **_: rows})

    data, written = tmp_path / "data", tmp_path / "tasks"
    data.mkdir()
    write_rows(data, name, [{**here, "id": number} for number in range(2)])
    assert name in write_tasks(data, written)
    task = load_local(written, name)[name]
    assert asked(task, shots) == asked(own, shots)
    assert task.OUTPUT_TYPE == own.OUTPUT_TYPE
    assert {m["metric"] for m in task.config.metric_list} == {m["metric"] for m in own.config.metric_list}
    assert task.VERSION == own.VERSION


@pytest.mark.parametrize(
    "context", ["Whole: One sentence. Then Another.", "No stop: a man is in Rome", "Odd: He cheers! he"]
)
def test_a_context_of_hellaswag_without_an_unfinished_sentence_is_left_as_it_is(context: str, tmp_path: Path) -> None:
    write_rows(tmp_path, "hellaswag", [{**ROWS["hellaswag"][2], "ctx": context}])
    write_tasks(tmp_path, tmp_path / "tasks")
    ((prompt, _), _), _ = asked(load_local(tmp_path / "tasks", "hellaswag")["hellaswag"])
    assert prompt == context


def test_all_that_lies_in_the_shared_folder_is_found(shared_data: Path, tmp_path: Path) -> None:
    names = write_tasks(shared_data / "eval", tmp_path)
    subjects = {name for name in names if name.startswith("mmlu_")}
    assert set(names) - subjects == set(BENCHMARKS)
    assert len(subjects) == 8
    loaded = load_local(tmp_path, "mmlu", "lambada_openai")
    assert set(loaded) == subjects | {"lambada_openai"}
    assert len(loaded["lambada_openai"].eval_docs) == 2500
    assert len(loaded["mmlu_anatomy"].eval_docs) == 135


def test_only_what_is_named_is_read(tmp_path: Path) -> None:
    write_rows(tmp_path, "piqa", ["broken"])
    write_rows(tmp_path, "copa", [ROWS["copa"][2]])
    assert write_tasks(tmp_path, tmp_path / "tasks", ["copa"]) == ["copa"]
    with pytest.raises(DataError, match=r"piqa_part.jsonl, line 1: is not a JSON object"):
        write_tasks(tmp_path, tmp_path / "tasks")


BROKEN = {
    "no JSON": ("arc_easy", '{"query": ', "is broken JSON"),
    "a list": ("arc_easy", "[1]", "is not a JSON object"),
    "no question": ("arc_easy", {"choices": ["a", "b"], "gold": 0}, "needs text in 'query'"),
    "an empty question": ("piqa", {"query": " ", "choices": ["a", "b"], "gold": 0}, "needs text in 'query'"),
    "one option": ("boolq", {"query": "q", "choices": ["a"], "gold": 0}, "two or more texts in 'choices'"),
    "an option that is no text": ("copa", {"query": "q", "choices": ["a", 2], "gold": 0}, "something other than text"),
    "an empty option": ("openbookqa", {"query": "q", "choices": ["a", ""], "gold": 0}, "something other than text"),
    "gold out of range": ("arc_challenge", {"query": "q", "choices": ["a", "b"], "gold": 2}, "0 to 1, in 'gold'"),
    "gold as a word": ("hellaswag", {"ctx": "c", "endings": ["a", "b"], "label": "1"}, "0 to 1, in 'label'"),
    "no continuation": ("winogrande", {"context_options": ["a", "b"], "gold": 0}, "needs text in 'continuation'"),
    "one word": ("lambada_openai", {"text": "word"}, "needs two or more words, .* in 'text'"),
    "nothing after the space": ("lambada_openai", {"text": "two words "}, "without a final space, in 'text'"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_row_is_named_by_file_and_line(case: str, tmp_path: Path) -> None:
    name, row, message = BROKEN[case]
    file = write_rows(tmp_path, name, [ROWS[name][2]])
    with file.open("a", encoding="utf-8") as stream:
        stream.write("\n" + (row if isinstance(row, str) else json.dumps(row)) + "\n")
    with pytest.raises(DataError, match=message) as error:
        write_tasks(tmp_path, tmp_path / "tasks", [name])
    assert f"{file}, line 3: " in str(error.value)
    assert not (tmp_path / "tasks").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (MMLU_ROW, "line 1: must name the columns: question,choice0"),
        (MMLU_HEADER + '"Two\nlines?",a,b,c,d,0\nq,a,b,c,d\n', "line 4: does not have the 6 columns"),
        (MMLU_HEADER + "q,a,b,c,d,0,more\n", "line 2: does not have the 6 columns"),
        (MMLU_HEADER + "q,a,b,c,d,D\n", "line 2: needs 0, 1, 2 or 3 in 'answer', but has 'D'"),
        (MMLU_HEADER + 'q,a,b,c,"d"x,1\n', "line 2: is broken CSV"),
        (MMLU_HEADER, "has no rows"),
        ("", "line 1: must name the columns"),
    ],
)
def test_a_broken_file_of_mmlu_is_named(content: str, message: str, tmp_path: Path) -> None:
    file = write_rows(tmp_path, "mmlu", [0])
    file.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message) as error:
        write_tasks(tmp_path, tmp_path / "tasks", ["mmlu"])
    assert str(file) in str(error.value)


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"There is no folder .*absent"):
        write_tasks(tmp_path / "absent", tmp_path / "tasks")
    with pytest.raises(DataError, match=r"has no benchmark files"):
        write_tasks(tmp_path, tmp_path / "tasks")
    with pytest.raises(DataError, match=r"hellaswag\.jsonl is missing"):
        write_tasks(tmp_path, tmp_path / "tasks", ["hellaswag"])
    with pytest.raises(DataError, match=r"mmlu/SUBJECT_test\.csv is missing"):
        write_tasks(tmp_path, tmp_path / "tasks", ["mmlu"])
    test_file = write_rows(tmp_path, "mmlu", [0])
    with pytest.raises(DataError, match=r"mmlu/virology_test\.csv is missing"):
        write_tasks(tmp_path, tmp_path / "tasks", ["mmlu_virology"])
    (test_file.parent / "anatomy_dev.csv").unlink()
    with pytest.raises(DataError, match=r"anatomy_dev\.csv is missing"):
        write_tasks(tmp_path, tmp_path / "tasks", ["mmlu"])
    (tmp_path / "copa_a.jsonl").touch()
    with pytest.raises(DataError, match=r"copa_a\.jsonl has no rows"):
        write_tasks(tmp_path, tmp_path / "tasks", ["copa"])
    (tmp_path / "copa_a.jsonl").write_bytes(b'{"query": "caf\xe9"}\n')
    with pytest.raises(DataError, match=r"copa_a\.jsonl is not UTF-8.*line 1"):
        write_tasks(tmp_path, tmp_path / "tasks", ["copa"])
    (tmp_path / "copa_b.jsonl").touch()
    with pytest.raises(DataError, match=r"has copa_a\.jsonl, copa_b\.jsonl: keep only the one"):
        write_tasks(tmp_path, tmp_path / "tasks", ["copa"])


def test_names_that_are_unknown_are_refused_with_those_that_are_known() -> None:
    with pytest.raises(ConfigError, match=r"no benchmark 'helaswag'; known are hellaswag, lambada_openai, .* mmlu"):
        check_names(["piqa", "helaswag"])
    with pytest.raises(ConfigError, match="No benchmark is named"):
        check_names([])
    with pytest.raises(ConfigError, match="mmlu_anatomy is part of mmlu"):
        check_names(["mmlu_anatomy", "mmlu"])
