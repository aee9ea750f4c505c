"""All metrics: they load without a network, give one number whichever way they are asked, and refuse what they must."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import evaluate
import pytest

from chatgpt_hf.errors import ConfigError, DataError
from chatgpt_hf.evaluation import metrics
from chatgpt_hf.evaluation.metrics import METRICS, load_metric, measures

FOLDER = Path(metrics.__file__).parent
TEXTS = {"predictions": ["a cat sat", "我喜欢猫"], "references": ["the cat sat down", "我喜欢小猫"]}
LABELS = {"predictions": [0, 1, 1], "references": [0, 1, 0]}
TAGS = {"predictions": [["B-PER", "O"], ["O"]], "references": [["B-PER", "I-PER"], ["O"]]}
INPUTS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("bleu", "chrf", "ter", "rouge", "exact_match", "token_f1"), TEXTS),
    "accuracy": LABELS,
    "f1": LABELS,
    "seqeval": TAGS,
    "diversity": {"predictions": TEXTS["predictions"]},
}


def test_every_file_is_a_metric() -> None:
    assert sorted(METRICS) == sorted(path.stem for path in FOLDER.glob("[!_]*.py") if path.stem != "base")
    assert INPUTS.keys() == set(METRICS)


@pytest.mark.parametrize("name", METRICS)
def test_by_path_and_by_name(name: str) -> None:
    by_path = evaluate.load(str(FOLDER / f"{name}.py"))
    assert isinstance(by_path, evaluate.Metric)
    assert by_path.name == name
    assert by_path.description
    found = by_path.compute(**INPUTS[name])
    assert found == load_metric(name).compute(**INPUTS[name])
    # Kept in batches, and one by one.
    other = load_metric(name)
    for index in range(len(INPUTS[name]["predictions"])):
        other.add_batch(**{column: values[index : index + 1] for column, values in INPUTS[name].items()})
    assert other.compute() == found


@pytest.mark.works_with("evaluate", "our metrics as modules, loaded by path without a network", ("evaluate",))
@pytest.mark.slow
def test_by_path_in_a_process_that_is_offline(tmp_path: Path) -> None:
    """Without a proxy, a name server or a cache to fall back on."""
    program = """
import socket, sys
def refuse(*args, **kwargs): raise AssertionError("it wants the network")
socket.socket.connect = socket.getaddrinfo = refuse
import evaluate
print(sorted(evaluate.load(path).name for path in sys.argv[1:]))
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    for name in ("HF_EVALUATE_CACHE", "HF_MODULES_CACHE"):
        environment.pop(name, None)
    files = [str(FOLDER / f"{name}.py") for name in METRICS]
    command = [sys.executable, "-c", program, *files]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=True)
    assert result.stdout.strip() == str(sorted(METRICS))


def tatoeba(folder: Path, column: int) -> list[str]:
    lines = (folder / "translation" / "tatoeba_eng_cmn_a.tsv").read_text(encoding="utf-8").splitlines()
    return [line.split("\t")[column] for line in lines[2000:2120]]


def sst2(folder: Path) -> tuple[list[int], list[int]]:
    lines = (folder / "classification" / "sst2_dev.tsv").read_text(encoding="utf-8").splitlines()
    true = [int(line.rsplit("\t", 1)[1]) for line in lines]
    return [int("not" in line) for line in lines], true


def shifted_tags(folder: Path) -> tuple[list[list[str]], list[list[str]]]:
    """True tags, and those with every seventh gone."""
    blocks = (folder / "ner" / "wnut17_dev.conll").read_text(encoding="utf-8").split("\n\n")[:400]
    true = [[line.split("\t")[1] for line in block.splitlines() if "\t" in line] for block in blocks]
    true = [tags for tags in true if tags]
    return [["O" if index % 7 == 6 else tag for index, tag in enumerate(tags)] for tags in true], true


def real(name: str, folder: Path) -> tuple[Any, Any]:
    if name in ("accuracy", "f1"):
        return sst2(folder)
    if name == "seqeval":
        return shifted_tags(folder)
    if name == "diversity":
        return (folder / "corpus" / "zh" / "西游记.txt").read_text(encoding="utf-8").splitlines()[100:200], None
    # Every third sentence as it is, the others against the next, which begins alike more often than not.
    texts = tatoeba(folder, 1 if name == "rouge" else 0)
    return texts, [texts[(index + (index % 3 > 0)) % len(texts)] for index in range(len(texts))]


@pytest.mark.parametrize("name", METRICS)
def test_compute_and_measures_are_one_number(name: str, shared_data: Path) -> None:
    predictions, references = real(name, shared_data)
    found = measures(name, predictions, references)
    given = (
        {"predictions": predictions} if references is None else {"predictions": predictions, "references": references}
    )
    computed = load_metric(name).compute(**given)
    shared = found.keys() & computed.keys()
    assert shared
    for key in shared:
        assert computed[key] == found[key].value
        assert computed[key] > 0
        assert len(found[key].statistics) == len(predictions)


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    *((name, {"predictions": inputs["predictions"], "references": [inputs["predictions"][0]]}, r"\b{n} predictions and 1 ref")
      for name, inputs in INPUTS.items() if name != "diversity"),
    *((name, {"predictions": [], "references": []}, "0 predictions") for name in METRICS),
    *((name, {"predictions": ["a", None], "references": ["a", "b"]}, "rediction 2 is no text, but None")
      for name in ("bleu", "rouge", "exact_match")),
    ("chrf", {"predictions": ["a", "b"], "references": [["a"], []]}, "rediction 2 has an empty list"),
    ("token_f1", {"predictions": ["a"], "references": [[3]]}, "Reference 1 is no text"),
    ("diversity", {"predictions": ["a", 3]}, "one is 3"),
    ("accuracy", {"predictions": [1, 0.5], "references": [1, 0]}, "Prediction 2 is 0.5, which is no class"),
    ("accuracy", {"predictions": [1, 0], "references": [1, None]}, "Reference 2 is None"),
    ("f1", {"predictions": [1, 0], "references": ["1", "0"]}, "not all of one kind"),
    ("f1", {"predictions": [[1, 0], [1]], "references": [[1, 0], [1, 1]]}, "not all of one kind"),
    ("f1", {"predictions": [0, 1], "references": [2, 1]}, "binary is for two classes, and here are 3"),
    ("f1", {"predictions": ["a", "b"], "references": ["a", "b"]}, "pos_label is 1, which is none of the classes a and b"),
    ("seqeval", {"predictions": [["O"], ["O"]], "references": [["O"], ["O", "O"]]}, "Example 2 has 1 predicted tags and 2"),
    ("seqeval", {"predictions": [["PER"]], "references": [["O"]]}, "Example 1 has the tag 'PER'"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "given", "message"), REFUSED)
def test_bad_input(name: str, given: dict[str, Any], message: str) -> None:
    message = message.replace("{n}", str(len(given["predictions"])))
    with pytest.raises(DataError, match=message):
        measures(name, given["predictions"], given.get("references"))
    if name == "diversity":
        given = {"predictions": given["predictions"]}
    module = load_metric(name)
    with pytest.raises(DataError, match=message):
        module.compute(**given)
    # And goes on as if nothing had been.
    assert module.compute(**INPUTS[name]) == load_metric(name).compute(**INPUTS[name])


def test_no_references() -> None:
    with pytest.raises(DataError, match="2 predictions and 0 references"):
        measures("bleu", ["a", "b"])
    with pytest.raises(DataError, match="2 predictions and 0 references"):
        load_metric("bleu").compute(predictions=["a", "b"])


OPTIONS: list[tuple[str, dict[str, Any], str]] = [
    ("bleu", {"tokenize": "words"}, "BLEU's tokenize is 'words'; it can be none, zh, 13a"),
    ("bleu", {"smooth_method": "add"}, "smooth_method is 'add'"),
    ("bleu", {"reference_length": "mean"}, "reference_length is 'mean'; it can be closest, shortest"),
    ("rouge", {"rouge_types": ["rouge0"]}, "no 'rouge0' in ROUGE"),
    ("f1", {"average": "samples"}, "average is 'samples'"),
    ("seqeval", {"scheme": "BIO"}, "no scheme 'BIO'"),
]


@pytest.mark.parametrize(("name", "options", "message"), OPTIONS)
def test_unknown_options(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        measures(name, **INPUTS[name], **options)


@pytest.mark.parametrize("ask", [load_metric, lambda name: measures(name, ["a"], ["a"])])
def test_unknown_metric(ask: Callable[[str], Any]) -> None:
    with pytest.raises(ConfigError, match="no metric 'meteor'; there are accuracy, bleu"):
        ask("meteor")
