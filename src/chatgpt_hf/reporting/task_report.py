"""Writes the report of a model for a task: what it gets right and wrong, as pictures and Markdown."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..evaluation.figures import Figure, measured_with
from ..evaluation.metrics import measures
from ..evaluation.record import Evaluation
from ..extras import needed_by
from ..files import atomic_folder
from .card import markdown_table
from .report import FOLDER_NAME

PAGE_NAME = "evaluation.md"
WORST = 20
# A larger confusion matrix is unreadable.
MOST_CLASSES = 30


def write_task_report(
    folder: Path, evaluations: Mapping[str, Evaluation], baselines: Mapping[str, Evaluation]
) -> None:
    """Writes `report/evaluation.md` into the run's folder; for classes, with a table of them and a confusion matrix.

    Args:
        evaluations: The model's evaluations by name; the page shows errors of the first.
        baselines: Evaluations of simple baselines on the same rows, by name.
    """
    with atomic_folder(folder) as temporary:
        target = temporary / FOLDER_NAME
        target.mkdir()
        first, *others = evaluations
        evaluation = evaluations[first]
        parts = [f"# {evaluation.task} on {evaluation.data}", f"{len(evaluation.examples):,} rows. {_INTERVALS}"]
        parts.append(markdown_table(figure_rows({"this model": evaluation, **baselines})))
        parts += signatures(evaluation)
        for name in others:
            other = evaluations[name]
            parts += [f"## {name.capitalize()}", f"{len(other.examples):,} rows."]
            parts.append(markdown_table(figure_rows({"this model": other})))
        labels = evaluation.settings.get("labels")
        if labels and isinstance(evaluation.examples[0].get("reference"), str):
            parts += ["## Classes", markdown_table(class_rows(evaluation, labels))]
            if len(labels) <= MOST_CLASSES:
                plot_confusion(evaluation, labels, target / "confusion.png")
                parts.append("![Confusion matrix: true classes in rows, predicted ones in columns](confusion.png)")
        parts += [f"## {WORST} errors worth reading", *worst_examples(evaluation)]
        (target / PAGE_NAME).write_text("\n\n".join(parts) + "\n", encoding="utf-8")


_INTERVALS = "In brackets: 95 % confidence intervals (bootstrap over rows)."


def figure_rows(evaluations: Mapping[str, Evaluation]) -> list[dict[str, Any]]:
    """Returns a row for each evaluation, with every figure and its interval."""
    return [
        {"": name, **{figure: shown(value) for figure, value in evaluation.figures().items()}}
        for name, evaluation in evaluations.items()
    ]


def shown(figure: Figure) -> str:
    """Formats a figure like `0.812 [0.786, 0.838]`."""
    return figure.shown() if math.isnan(figure.value) else f"{figure.shown()} [{figure.low:.4g}, {figure.high:.4g}]"


def signatures(evaluation: Evaluation) -> list[str]:
    """Returns a paragraph that says how texts were read for each figure, or nothing if no figure depends on it."""
    lines = measured_with({name: measure.signature for name, measure in evaluation.measures.items()})
    return ["How texts were read:\n\n" + "\n".join(f"- `{line}`" for line in lines)] if lines else []


def class_rows(evaluation: Evaluation, labels: list[str]) -> list[dict[str, Any]]:
    """Returns precision, recall and F1 of each class."""
    said, true = ([example[side] for example in evaluation.examples] for side in ("prediction", "reference"))
    found = measures("f1", said, true, average=None)
    rows = []
    for label in labels:
        figure = found.get(f"f1_{label}")
        right, predicted, there = (0, 0, 0) if figure is None else figure.statistics.sum(0)
        rows.append(
            {
                "class": label,
                "rows": int(there),
                "precision": right / predicted if predicted else 0.0,
                "recall": right / there if there else 0.0,
                "F1": 0.0 if figure is None else figure.value,
            }
        )
    return rows


def worst_examples(evaluation: Evaluation) -> list[str]:
    """Returns the rows that the model got wrong, the surest first if predictions have scores."""
    wrong = [example for example in evaluation.examples if example.get("prediction") != example.get("reference")]
    sure = "score" in (wrong[0] if wrong else {})
    wrong.sort(key=lambda example: example.get("score", 0.0), reverse=sure)
    return [_quoted(example) for example in wrong[:WORST]] or ["There are no errors."]


def _quoted(example: Mapping[str, Any]) -> str:
    lines = []
    for name, value in example.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        lines.append(f"{name}: {text if len(text) <= 600 else text[:600] + ' ...'}")
    return "```text\n" + "\n".join(lines).replace("```", "'''") + "\n```"


def plot_confusion(evaluation: Evaluation, labels: list[str], file: Path) -> None:
    """Draws how often each true class (rows) was predicted as each class (columns)."""
    # No pyplot: it would pick a window system and keep the figure alive.
    with needed_by("A plot"):
        from matplotlib.figure import Figure as Picture

    places = {label: index for index, label in enumerate(labels)}
    counts = np.zeros((len(labels), len(labels)), dtype=int)
    for example in evaluation.examples:
        counts[places[example["reference"]], places[example["prediction"]]] += 1
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    size = 3 + 0.5 * len(labels)
    picture = Picture(figsize=(size, size), layout="constrained")
    axes = picture.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="true", title=f"accuracy {evaluation.measures['accuracy'].value:.3f}")
    axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right")
    axes.set_yticks(range(len(labels)), labels)
    for row, column in np.ndindex(counts.shape):
        axes.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=8,
                  color="white" if shares[row, column] > 0.5 else "black")  # fmt: skip
    picture.savefig(file, dpi=120)
