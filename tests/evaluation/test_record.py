"""Evaluations on disk: a saved evaluation loads unchanged, an incomplete one is rejected."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chatgpt_hf.errors import DataError, OutputError
from chatgpt_hf.evaluation.figures import Measure
from chatgpt_hf.evaluation.metrics import measures
from chatgpt_hf.evaluation.record import EXAMPLES_NAME, RESULTS_NAME, Evaluation


@pytest.fixture
def evaluation() -> Evaluation:
    said, right = ["a cat sat here", "我喜欢\u2028你", "x"], ["the cat sat here", "我喜欢你", "y"]
    found = {
        **measures("bleu", said, right, smooth_method="floor", smooth_value=0.3),
        **measures("ter", said, right),
        "nll": Measure("perplexity", np.array([[0.1 + 0.2, 3], [1e-9, 1], [2.5, 7]]), False),
    }
    examples = [{"input": a, "prediction": a, "reference": b} for a, b in zip(said, right, strict=True)]
    return Evaluation("translation", "pairs.tsv", found, examples, {"seed": 1})


def test_round_trip(evaluation: Evaluation, tmp_path: Path) -> None:
    figures = evaluation.save(tmp_path / "new" / "folder")
    again = Evaluation.load(tmp_path / "new" / "folder")
    assert (again.task, again.data, again.settings) == ("translation", "pairs.tsv", {"seed": 1})
    assert again.examples == evaluation.examples
    for name, measure in evaluation.measures.items():
        kept = again.measures[name]
        assert (kept.statistics == measure.statistics).all()
        assert (kept.aggregate, kept.options) == (measure.aggregate, measure.options)
        assert kept.higher_is_better == measure.higher_is_better == (name == "bleu")
    # To the last bit, including intervals.
    assert again.figures() == figures == evaluation.figures()


def test_results_are_for_people_too(evaluation: Evaluation, tmp_path: Path) -> None:
    evaluation.save(tmp_path)
    results = json.loads((tmp_path / RESULTS_NAME).read_text(encoding="utf-8"))
    bleu = results["figures"]["bleu"]
    assert results["examples"] == 3
    assert bleu["low"] <= bleu["value"] == evaluation.measures["bleu"].value <= bleu["high"]
    assert "我喜欢" in (tmp_path / EXAMPLES_NAME).read_text(encoding="utf-8")


@pytest.mark.slow
def test_loads_in_a_fresh_process(evaluation: Evaluation, tmp_path: Path) -> None:
    """An evaluation with any metric loads without other imports first."""
    evaluation.save(tmp_path)
    program = """
import sys
from pathlib import Path
from chatgpt_hf.evaluation.record import Evaluation
assert "evaluate" not in sys.modules and "sacrebleu" not in sys.modules
print(Evaluation.load(Path(sys.argv[1])).measures["bleu"].value)
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=900, check=True)
    assert float(result.stdout) == evaluation.measures["bleu"].value


def edited(folder: Path, **changes: Any) -> None:
    file = folder / RESULTS_NAME
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **changes}), encoding="utf-8")


def test_cut_short(evaluation: Evaluation, tmp_path: Path) -> None:
    evaluation.save(tmp_path)
    for name in (RESULTS_NAME, EXAMPLES_NAME):
        whole = (tmp_path / name).read_bytes()
        for length in (0, len(whole) // 2, len(whole) - 4):
            (tmp_path / name).write_bytes(whole[:length])
            with pytest.raises(DataError, match=str(tmp_path)):
                Evaluation.load(tmp_path)
        (tmp_path / name).write_bytes(whole)
    lines = (tmp_path / EXAMPLES_NAME).read_text(encoding="utf-8").split("\n")
    (tmp_path / EXAMPLES_NAME).write_text("\n".join(lines[:2]), encoding="utf-8")
    with pytest.raises(DataError, match=r"has 2 examples, but results\.json says 3: it was cut short"):
        Evaluation.load(tmp_path)


def test_not_an_evaluation(evaluation: Evaluation, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no evaluation"):
        Evaluation.load(tmp_path / "nothing")
    evaluation.save(tmp_path)
    (tmp_path / RESULTS_NAME).write_text("[1]", encoding="utf-8")
    with pytest.raises(DataError, match="has no evaluation"):
        Evaluation.load(tmp_path)
    # Like a run's results.json.
    (tmp_path / RESULTS_NAME).write_text('{"held_out_loss": 1}', encoding="utf-8")
    with pytest.raises(DataError, match="has no evaluation"):
        Evaluation.load(tmp_path)


def test_an_unknown_aggregate(evaluation: Evaluation, tmp_path: Path) -> None:
    evaluation.save(tmp_path)
    edited(tmp_path, figures={"bleu": {"aggregate": "bleu2", "higher_is_better": True, "options": {}}})
    with pytest.raises(DataError, match="unknown kind bleu2: a newer release wrote them"):
        Evaluation.load(tmp_path)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        *((("settings",), value) for value in (["seed"], [{"seed": 1}], None)),
        *((("figures", "bleu", "options"), value) for value in ([None], {"smooth_value": "x"}, {"unknown": 1})),
        *((("figures", "bleu", "signature"), value) for value in (True, ["tok:13a"])),
        *(((name,), 1) for name in ("task", "data", "command", "identity", "figures", "examples")),
        (("figures", "bleu", "higher_is_better"), "yes"),
    ],
)
def test_fields_of_another_type(evaluation: Evaluation, tmp_path: Path, path: tuple[str, ...], value: Any) -> None:
    evaluation.save(tmp_path)
    results = json.loads((tmp_path / RESULTS_NAME).read_text(encoding="utf-8"))
    *parents, last = path
    changed = results
    for parent in parents:
        changed = changed[parent]
    changed[last] = value
    (tmp_path / RESULTS_NAME).write_text(json.dumps(results), encoding="utf-8")
    with pytest.raises(DataError, match=r"has no evaluation|has 3 examples"):
        Evaluation.load(tmp_path)


def test_measures_of_other_examples() -> None:
    with pytest.raises(DataError, match="right has 2 examples, but the evaluation has 1"):
        Evaluation("a", "b", {"right": Measure("mean", np.ones((2, 2)))}, [{}])


def test_a_failed_save_leaves_the_old_one(evaluation: Evaluation, tmp_path: Path) -> None:
    evaluation.save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    evaluation.examples[2] = {"input": {1, 2}}
    with pytest.raises(TypeError):
        evaluation.save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    (tmp_path / "file").touch()
    with pytest.raises((OutputError, FileExistsError, NotADirectoryError)):
        evaluation.save(tmp_path / "file")
