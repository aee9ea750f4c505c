"""Compares evaluations of several models on the same examples: which model is better, and could it be chance?"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from typing import Any, NamedTuple

import numpy as np

from ..errors import DataError
from ..extras import needed_by
from ..files import atomic_folder, read_json
from .figures import Difference, Figure, Measure, measured_with, paired_differences
from .record import EVALUATION_FOLDER, EXAMPLES_NAME, RESULTS_NAME, Evaluation

# Model-independent fields of an example, which show that two evaluations saw the same examples.
_GIVEN = ("id", "input", "text", "prompt", "question", "reference")
PAGE_NAME = "compare.md"
PLOT_NAME = "compare.png"
SIGNIFICANT = 0.05


class Compared(NamedTuple):
    """A model's figure, and its difference from the first model's.

    Attributes:
        difference: None for the first model; its p-value is not adjusted.
        p_value: The p-value, adjusted for all comparisons in the table.
    """

    figure: Figure
    difference: Difference | None = None
    p_value: float | None = None

    @property
    def significant(self) -> bool:
        return self.p_value is not None and self.p_value < SIGNIFICANT


@dataclass(frozen=True)
class Comparison:
    """The result of `compare`.

    Attributes:
        figures: By figure, then by model, starting with the first model.
        higher_is_better: By figure.
        notes: Remarks for the reader: how texts were read, different settings, figures that some models lack or that were
            measured in different ways.
    """

    task: str
    data: str
    examples: int
    figures: dict[str, dict[str, Compared]]
    higher_is_better: dict[str, bool]
    notes: list[str]

    def rows(self) -> list[list[str]]:
        """Returns the table with its header: a row for each figure and model; a significant difference has a star."""
        rows = [["figure", "model", "value", "95 % interval", "difference to the first", "95 % interval", "p"]]
        for name, models in self.figures.items():
            title = name if self.higher_is_better[name] else f"{name} (lower is better)"
            for model, (figure, difference, p_value) in models.items():
                cells = [title, model, figure.shown(), figure.interval()]
                if difference is None or p_value is None:
                    cells += ["", "", ""]
                else:
                    star = " *" if models[model].significant else ""
                    cells += [
                        f"{difference.value:+.3g}",
                        f"{difference.low:.4g} to {difference.high:.4g}",
                        f"{p_value:.2g}{star}",
                    ]
                rows.append(cells)
        return rows

    def markdown(self, title: str | None = None) -> str:
        """Returns a section of a page, with the table and the notes."""
        head, *rows = (" | ".join(cell.replace("|", "\\|") for cell in row) for row in self.rows())
        table = "\n".join(f"| {row} |" for row in (head, " | ".join(["---"] * 7), *rows))
        about = f"{self.task} on {self.data}, {self.examples:,} examples."
        return "\n\n".join([f"## {title or self.task}", about, table, *self.notes])


def compare(evaluations: Mapping[str, Evaluation]) -> Comparison:
    """Compares each model with the first, figure by figure, by the paired bootstrap over examples.

    p-values are adjusted by Holm's method (Holm 1979, A Simple Sequentially Rejective Multiple Test Procedure) for all
    comparisons together, except of figures to which every example contributes the same for both models.

    Args:
        evaluations: Two or more, by model name.

    Raises:
        DataError: If they have different tasks, data or examples, or no figure in common that was measured in the same way;
            the message names the difference.
    """
    if len(evaluations) < 2:
        raise DataError(f"A comparison needs at least two evaluations, but has {len(evaluations)}.")
    (first_name, first), *others = evaluations.items()
    for name, other in others:
        _check_same(first_name, first, name, other)
    shared = [name for name in first.measures if all(name in other.measures for _, other in others)]
    if not shared:
        have = "; ".join(f"{name}: {', '.join(evaluation.measures)}" for name, evaluation in evaluations.items())
        raise DataError(f"The evaluations have no figure in common ({have}).")
    differing = {name: why for name in shared if (why := _differently(evaluations, name))}
    shared = [name for name in shared if name not in differing]
    if not shared:
        raise DataError(f"The evaluations have no figure that can be compared. {' '.join(differing.values())}")
    differences = {
        (figure, name): difference
        for name, other in others
        for figure, difference in zip(
            shared,
            paired_differences(*([of.measures[figure] for figure in shared] for of in (first, other))),
            strict=True,
        )
    }
    # A figure with the same contributions everywhere, such as one of the data only, is no chance to err.
    tested = [
        (figure, name)
        for figure, name in differences
        if not np.array_equal(first.measures[figure].statistics, evaluations[name].measures[figure].statistics)
    ]
    adjusted = dict.fromkeys(differences, 1.0)
    adjusted |= zip(tested, holm([differences[key].p_value for key in tested]), strict=True)
    values = {name: evaluation.figures() for name, evaluation in evaluations.items()}
    return Comparison(
        task=first.task,
        data=first.data,
        examples=len(first.examples),
        figures={
            figure: {
                name: Compared(values[name][figure], differences.get((figure, name)), adjusted.get((figure, name)))
                for name in evaluations
            }
            for figure in shared
        },
        higher_is_better={figure: first.measures[figure].higher_is_better for figure in shared},
        notes=[*_measured_with(first, shared), *differing.values(), *_notes(evaluations, [*shared, *differing])],
    )


def compare_folders(folders: Sequence[Path]) -> dict[str, Comparison]:
    """Compares evaluations that `chatgpt-hf evaluate` wrote; returns the comparisons by evaluation name.

    Args:
        folders: Folders of one evaluation each, with any names, or of models with evaluations in `evaluation/`, or
            those that `chatgpt-hf evaluate --out` was given. Then all evaluations that they have in common are compared.

    Raises:
        DataError: If a folder is given twice or has no evaluation, or the models have no evaluation in common.
    """
    places = [folder.resolve() for folder in folders]
    if twice := [folder for folder, place in zip(folders, places, strict=True) if places.count(place) > 1]:
        raise DataError(f"{twice[0]} is given twice: name the folders of different models.")
    if all(map(_is_evaluation, folders)):
        single = {str(folder): Evaluation.load(folder) for folder in folders}
        return {evaluation.task: compare(single) for evaluation in list(single.values())[:1]}
    found = {str(folder): _evaluations_in(folder) for folder in folders}
    shared = _shared(list(found.values()))
    if not shared:
        have = "; ".join(f"{folder}: {', '.join(named)}" for folder, named in found.items())
        raise DataError(f"The folders have no evaluation in common ({have}). Evaluate each on the same data.")
    return {
        name: compare({folder: Evaluation.load(path) for folder, path in zip(found, paths, strict=True)})
        for name, paths in shared.items()
    }


def _shared(models: list[dict[str, Path]]) -> dict[str, list[Path]]:
    """The evaluations that all models have, one path per model, by their name in the first.

    They belong together by their identity, because two files of the same name get different names in the order in which
    they are evaluated. Evaluations without one, or with other settings, belong together by name.
    """
    identities = [{name: read_json(path / RESULTS_NAME).get("identity") for name, path in m.items()} for m in models]
    shared = {}
    for name, identity in identities[0].items():
        paths = []
        for named, known in zip(models, identities, strict=True):
            same = [other for other, of_other in known.items() if identity and of_other == identity] or [name]
            paths += [named[same[0]]] if same[0] in named else []
        if len(paths) == len(models):
            shared[name] = paths
    return shared


def _is_evaluation(folder: Path) -> bool:
    # A run's folder has a results.json too.
    return (folder / EXAMPLES_NAME).is_file()


def _evaluations_in(folder: Path) -> dict[str, Path]:
    if _is_evaluation(folder):
        return {folder.resolve().name: folder}
    # The second kind is what `chatgpt-hf evaluate --out` was given.
    found = next(
        filter(None, (sorted(folder.glob(f"{place}*/{EXAMPLES_NAME}")) for place in (f"{EVALUATION_FOLDER}/", ""))), []
    )
    named = {path.parent.name: path.parent for path in found}
    if not named:
        raise DataError(
            f"{folder} has no evaluation ({RESULTS_NAME} with {EXAMPLES_NAME}), and none in {EVALUATION_FOLDER}/: run "
            f"`chatgpt-hf evaluate {folder}` first."
        )
    return named


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusts p-values for multiple comparisons (Holm 1979); keeps their order."""
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def write(comparisons: Mapping[str, Comparison], folder: Path) -> None:
    """Writes compare.md and compare.png, both or neither.

    Args:
        comparisons: By evaluation name.
    """
    page = [
        "# Comparison",
        *(comparison.markdown(title) for title, comparison in comparisons.items()),
        f"![Each model's figures with their intervals]({PLOT_NAME})",
        "Intervals are 95 % percentile bootstrap intervals over examples. Differences are paired: both models are resampled with "
        "the same examples. p is two-sided, by the paired bootstrap, and adjusted by Holm's method for all comparisons of a "
        f"table; a star marks p < {SIGNIFICANT}.",
    ]
    with atomic_folder(folder) as temporary:
        (temporary / PAGE_NAME).write_text("\n\n".join(page) + "\n", encoding="utf-8")
        plot(comparisons, temporary / PLOT_NAME)


def plot(comparisons: Mapping[str, Comparison], file: Path) -> None:
    """Draws a panel for each figure: each model's value and interval, with a line at the first model's value."""
    # No pyplot: it would pick a window system and keep the figure alive.
    with needed_by("A plot"):
        from matplotlib.figure import Figure as Picture

    panels = [
        (f"{title}: {name}" if len(comparisons) > 1 else name, comparison.higher_is_better[name], models)
        for title, comparison in comparisons.items()
        for name, models in comparison.figures.items()
    ]
    heights = [0.7 + 0.35 * len(models) for _, _, models in panels]
    picture = Picture(figsize=(8, sum(heights)), layout="constrained")
    grid = picture.subplots(len(panels), squeeze=False, height_ratios=heights)[:, 0]
    for axes, (title, higher_is_better, models) in zip(grid, panels, strict=True):
        values = [compared.figure for compared in models.values()]
        places = range(len(models))
        axes.axvline(values[0].value, color="0.7", linewidth=1)
        for place, figure in zip(places, values, strict=True):
            axes.plot([figure.low, figure.high], [place, place], color=f"C{place}", linewidth=2)
            axes.plot(figure.value, place, "o", color=f"C{place}")
        axes.set_yticks(places, ["\n".join(wrap(name, 36)) for name in models], fontsize=8)
        axes.set_ylim(len(models) - 0.5, -0.5)
        axes.set_title(title if higher_is_better else f"{title} (lower is better)", fontsize=10, loc="left")
        axes.grid(axis="x", alpha=0.3)
    picture.savefig(file, dpi=120)


def _check_same(first_name: str, first: Evaluation, name: str, other: Evaluation) -> None:
    for what in ("task", "data"):
        a, b = getattr(first, what), getattr(other, what)
        if a != b:
            raise DataError(
                f"{first_name} and {name} cannot be compared: the {what} is {a} for the first and {b} for the second. "
                "Evaluate both on the same."
            )
    if len(first.examples) != len(other.examples):
        raise DataError(
            f"{first_name} and {name} cannot be compared: the first has {len(first.examples)} examples, the second "
            f"{len(other.examples)}. Evaluate both on the same."
        )
    for number, (a, b) in enumerate(zip(first.examples, other.examples, strict=True), start=1):
        for key in _GIVEN:
            if a.get(key) != b.get(key):
                raise DataError(
                    f"{first_name} and {name} cannot be compared: the {key} of example {number} is {_short(a.get(key))} for the "
                    f"first and {_short(b.get(key))} for the second. Evaluate both on the same data, in the same order."
                )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _differently(evaluations: Mapping[str, Evaluation], name: str) -> str | None:
    """Says why a figure cannot be compared: it was measured in different ways, or has no number for some model."""
    measures = {model: evaluation.measures[name] for model, evaluation in evaluations.items()}
    said = {model: _how(measure) for model, measure in measures.items()}
    if len(set(said.values())) > 1:
        ways, models = " and ".join(said.values()), " and ".join(said)
        return f"{name} is not compared: it was measured by {ways} for {models}. Evaluate again in the same way."
    if empty := [model for model, measure in measures.items() if math.isnan(measure.value)]:
        return (
            f"{name} is not compared: it has no number for {', '.join(empty)}, whose texts have nothing it can read."
        )
    return None


def _measured_with(evaluation: Evaluation, shared: Sequence[str]) -> list[str]:
    lines = measured_with({name: evaluation.measures[name].signature for name in shared})
    return [f"How texts were read: {'; '.join(lines)}."] if lines else []


def _how(measure: Measure) -> str:
    # Releases of sacrebleu give the same figures; only what was asked of them matters.
    parts = [part for part in measure.signature.split("|") if part and not part.startswith("version:")]
    options = [f"{key}={value}" for key, value in sorted(measure.options.items())]
    return " ".join([measure.aggregate, *options, *parts])


def _notes(evaluations: Mapping[str, Evaluation], shared: Sequence[str]) -> list[str]:
    notes = []
    settings = sorted({key for evaluation in evaluations.values() for key in evaluation.settings})
    for key in settings:
        values = {name: evaluation.settings.get(key) for name, evaluation in evaluations.items()}
        if len({repr(value) for value in values.values()}) > 1:
            said = ", ".join(f"{value} for {name}" for name, value in values.items())
            notes.append(f"The setting {key} differs: {said}.")
    measures = [evaluation.measures for evaluation in evaluations.values()]
    if only := sorted({name for found in measures for name in found} - set(shared)):
        notes.append(f"Some models lack: {', '.join(only)}.")
    for figure in shared:
        tokens = {
            found[figure].statistics[:, 1].sum() for found in measures if found[figure].aggregate == "perplexity"
        }
        if len(tokens) > 1:
            notes.append(
                f"{figure} is per token, but the models' tokenizers split the text into different numbers of tokens: "
                "compare bits per byte instead."
            )
    return notes
