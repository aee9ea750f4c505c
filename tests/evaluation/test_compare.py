"""Comparisons: figures, differences and p-values; rejected comparisons; the page and the picture."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from chatgpt_hf.errors import DataError
from chatgpt_hf.evaluation.compare import Comparison, compare, compare_folders, holm, write
from chatgpt_hf.evaluation.figures import Measure, bootstrap, paired_difference
from chatgpt_hf.evaluation.metrics import measures
from chatgpt_hf.evaluation.record import Evaluation


def evaluate(right: float, shared_data: Path, seed: int = 0, **settings: Any) -> Evaluation:
    """Simulates a classifier of SST-2 that is right with the given probability, and its scores."""
    lines = (shared_data / "classification" / "sst2_dev.tsv").read_text(encoding="utf-8").splitlines()
    texts, true = zip(*(line.rsplit("\t", 1) for line in lines), strict=True)
    labels = np.array(true, dtype=int)
    sure = np.random.default_rng(seed).random(len(labels)) < right
    said = np.where(sure, labels, 1 - labels).tolist()
    found = {
        **measures("accuracy", said, labels.tolist()),
        "macro_f1": measures("f1", said, labels.tolist(), average="macro")["f1"],
        "loss": Measure("mean", np.stack([np.where(sure, 0.1, 2), np.ones(len(labels))], axis=1), False),
    }
    examples = [
        {"input": text, "prediction": label, "reference": int(reference)}
        for text, label, reference in zip(texts, said, labels, strict=True)
    ]
    return Evaluation("text-classification", "sst2_dev.tsv", found, examples, settings)


@pytest.fixture(scope="module")
def evaluations(shared_data: Path) -> dict[str, Evaluation]:
    return {
        "base": evaluate(0.8, shared_data),
        "twin": evaluate(0.8, shared_data, seed=1),
        "better": evaluate(0.86, shared_data, seed=2),
    }


@pytest.fixture(scope="module")
def comparison(evaluations: dict[str, Evaluation]) -> Comparison:
    return compare(evaluations)


def test_figures_and_differences(evaluations: dict[str, Evaluation], comparison: Comparison) -> None:
    assert list(comparison.figures) == ["accuracy", "macro_f1", "loss"]
    for figure, models in comparison.figures.items():
        assert list(models) == ["base", "twin", "better"]
        assert models["base"].difference is models["base"].p_value is None
        for name, compared in models.items():
            assert compared.figure == bootstrap(evaluations[name].measures[figure])
            if name != "base":
                pair = [evaluations[of].measures[figure] for of in ("base", name)]
                assert compared.difference == paired_difference(*pair)
                assert compared.difference.p_value <= compared.p_value <= 1


def test_significance(comparison: Comparison) -> None:
    for figure, models in comparison.figures.items():
        assert models["better"].significant, figure
        assert not models["twin"].significant, figure
    assert comparison.figures["loss"]["better"].difference.high < 0
    assert comparison.figures["accuracy"]["better"].difference.low > 0


@pytest.mark.parametrize("p_values", [[0.01, 0.04, 0.03], [0.5], [0.9, 0.6, 0.001, 0.001], []])
def test_holm(p_values: list[float]) -> None:
    """An adjusted p-value is the largest so far, in the order of the p-values."""
    expected = [
        max(
            min(1, (len(p_values) - sum(other < smaller for other in p_values)) * smaller)
            for smaller in p_values
            if smaller <= p
        )
        for p in p_values
    ]
    assert holm(p_values) == pytest.approx(expected)


def test_holm_lies_between_none_and_bonferroni() -> None:
    p_values = stats.uniform.rvs(size=20, random_state=0) ** 3
    adjusted = np.array(holm(list(p_values)))
    assert (adjusted >= p_values).all()
    assert (adjusted <= np.minimum(1, 20 * p_values) + 1e-12).all()


def test_a_figure_of_the_data_only_costs_no_significance(evaluations: dict[str, Evaluation]) -> None:
    plain = compare(evaluations).figures["accuracy"]["better"].p_value
    lengths = Measure("mean", np.random.default_rng(3).random((len(evaluations["base"].examples), 2)))
    more = {
        name: replace(found, measures={**found.measures, "length_accuracy": lengths})
        for name, found in evaluations.items()
    }
    compared = compare(more)
    assert compared.figures["accuracy"]["better"].p_value == plain
    assert compared.figures["length_accuracy"]["better"].difference == (0, 0, 0, 1)
    assert compared.figures["length_accuracy"]["better"].p_value == 1


def test_page(comparison: Comparison) -> None:
    page = comparison.markdown("SST-2")
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 9
    assert all(row.count("|") == 8 for row in rows)
    assert rows[0].startswith("| figure | model | value | 95 % interval | difference to the first |")
    assert page.startswith("## SST-2\n\ntext-classification on sst2_dev.tsv, 872 examples.")
    better = comparison.figures["accuracy"]["better"]
    (row,) = (row for row in rows if row.startswith("| accuracy | better |"))
    assert f"| {better.figure.value:.4g} |" in row
    assert f"| {better.difference.value:+.3g} |" in row
    assert row.endswith("* |")
    assert "| loss (lower is better) | twin |" in page


def test_files(evaluations: dict[str, Evaluation], comparison: Comparison, tmp_path: Path) -> None:
    long = compare(
        {"runs/" + "a-model-with-a-name-that-goes-on-" * 3: evaluations["base"], "mødel|b": evaluations["twin"]}
    )
    write({"one": comparison, "two": long}, tmp_path / "out")
    page = (tmp_path / "out" / "compare.md").read_text(encoding="utf-8")
    assert "## one" in page
    assert "## two" in page
    assert "mødel\\|b" in page
    assert "(compare.png)" in page
    assert (tmp_path / "out" / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["compare.md", "compare.png"]


def without_last(evaluation: Evaluation) -> Evaluation:
    shorter = {name: replace(found, statistics=found.statistics[:-1]) for name, found in evaluation.measures.items()}
    return replace(evaluation, measures=shorter, examples=evaluation.examples[:-1])


def changed(evaluation: Evaluation, number: int, **values: Any) -> Evaluation:
    examples = list(evaluation.examples)
    examples[number - 1] = {**examples[number - 1], **values}
    return replace(evaluation, examples=examples)


def test_what_cannot_be_compared(evaluations: dict[str, Evaluation]) -> None:
    base = evaluations["base"]
    others = {
        "the task is text-classification for the first and code for the second": replace(base, task="code"),
        "the data is sst2_dev.tsv for the first and x for the second": replace(base, data="x"),
        "the first has 872 examples, the second 871": without_last(base),
        "the input of example 7 is .* for the first and 'else' for the second": changed(base, 7, input="else"),
        "the reference of example 2 is 0 for the first and 5 for the second": changed(base, 2, reference=5),
        "no figure in common": replace(base, measures={"f1": base.measures["loss"]}),
        "mean and perplexity": replace(
            base, measures={"loss": replace(base.measures["loss"], aggregate="perplexity")}
        ),
    }
    for message, other in others.items():
        with pytest.raises(DataError, match=message):
            compare({"a": base, "b": other})
    with pytest.raises(DataError, match="needs at least two evaluations, but has 1"):
        compare({"a": base})
    # The models' outputs may differ.
    assert compare({"a": base, "b": changed(base, 2, prediction="x", score=3)}).figures


def test_notes(shared_data: Path) -> None:
    a = evaluate(0.8, shared_data, stride=64, shots=0)
    b = evaluate(0.8, shared_data, seed=1, stride=128, shots=0)
    del b.measures["macro_f1"]
    for evaluation, tokens in ((a, 10), (b, 12)):
        counts = np.full((len(evaluation.examples), 2), tokens)
        evaluation.measures["perplexity"] = Measure("perplexity", counts, False)
    stride, missing, tokens = compare({"a": a, "b": b}).notes
    assert stride == "The setting stride differs: 64 for a, 128 for b."
    assert missing == "Some models lack: macro_f1."
    assert "perplexity is per token" in tokens


def test_folders(evaluations: dict[str, Evaluation], tmp_path: Path) -> None:
    a, b, c = (tmp_path / name for name in "abc")
    for folder, name in ((a, "base"), (b, "better")):
        evaluations[name].save(folder / "evaluation" / "sst2")
        evaluations[name].save(folder / "evaluation" / "again")
        # Written by the run itself.
        (folder / "results.json").write_text("{}", encoding="utf-8")
    evaluations["twin"].save(a / "evaluation" / "alone")
    evaluations["twin"].save(c / "sst2")
    models = compare_folders([a, b])
    assert list(models) == ["again", "sst2"]
    assert models["sst2"].figures.keys() == {"accuracy", "macro_f1", "loss"}
    assert list(models["sst2"].figures["loss"]) == [str(a), str(b)]
    (single,) = compare_folders([a / "evaluation" / "sst2", b / "evaluation" / "again"]).items()
    assert single[0] == "text-classification"
    assert single[1].figures["accuracy"][str(b / "evaluation" / "again")].significant
    assert list(compare_folders([a, c / "sst2"])) == ["sst2"]
    # What `evaluate --out` was given.
    assert list(compare_folders([a, c])) == ["sst2"]
    for folders, message in {
        (a, tmp_path / "a/../a"): "is given twice",
        (a, c / "none"): f"{c / 'none'} has no evaluation",
        (b, a / "evaluation" / "alone"): "have no evaluation in common",
    }.items():
        with pytest.raises(DataError, match=message):
            compare_folders(list(folders))


def texts(said: list[str], right: list[str], **options: Any) -> Evaluation:
    found = {**measures("bleu", said, right, **options), **measures("chrf", said, right)}
    examples = [{"input": str(index), "reference": text} for index, text in enumerate(right)]
    return Evaluation("translation", "pairs.tsv", found, examples)


def test_figures_that_were_measured_in_different_ways() -> None:
    """They are left out, and the page says so; nothing else is compared in silence either."""
    right = ["我喜欢猫", "他昨天来了", "the cat sat on the mat"]
    a, b = texts(right, right, tokenize="char"), texts(right[::-1], right)
    found = compare({"a": a, "b": b})
    assert list(found.figures) == ["chrf"]
    how, differing = found.notes
    assert how.startswith("How texts were read: chrf: nrefs:1|case:mixed|eff:yes|nc:6|")
    assert differing.startswith(
        "bleu is not compared: it was measured by bleu effective_order=True nrefs:1 case:mixed"
    )
    assert "tok:char" in differing
    assert "tok:zh" in differing
    # A record of before, which does not say how; another release of sacrebleu.
    old = replace(a.measures["bleu"], signature="")
    only = [replace(one, measures={"bleu": measure}) for one, measure in ((a, a.measures["bleu"]), (b, old))]
    with pytest.raises(DataError, match=r"no figure that can be compared\. bleu is not compared"):
        compare({"a": only[0], "b": only[1]})
    newer = replace(a.measures["bleu"], signature=a.measures["bleu"].signature.replace("version:", "version:9."))
    assert compare({"a": only[0], "b": replace(a, measures={"bleu": newer})}).figures


def test_figures_without_a_number() -> None:
    right = ["one two", "three four"]
    examples = [{"input": text} for text in right]
    a, b = (
        Evaluation("text-generation", "x", measures("diversity", said), examples)
        for said in (right, ["one", "a b c d e"])
    )
    found = compare({"a": a, "b": b})
    assert "rep_2" in found.figures
    assert "rep_4" not in found.figures
    assert "rep_4 is not compared: it has no number for a, whose texts have nothing it can read." in found.notes
