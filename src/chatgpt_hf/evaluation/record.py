"""A saved evaluation: figures with intervals for people, and every example's contribution for comparisons."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from ..files import atomic_folder
from ..parsing import parse_json, read_file
from .figures import AGGREGATES, Figure, Measure, bootstraps

# In a model's folder; it has a folder for each of the model's evaluations.
EVALUATION_FOLDER = "evaluation"
RESULTS_NAME = "results.json"
EXAMPLES_NAME = "examples.jsonl"


@dataclass
class Evaluation:
    """A model's results on some data.

    Attributes:
        task: The name on the command line: `text-classification`, `language-modeling`, `code`, `hellaswag` ...
        data: The source of the examples.
        measures: By name; all are over the same examples, in the same order.
        examples: One for each row of the measures' statistics: the input (`input`, `text`, `prompt` or `question`; `id` if
            the data has one), the output, and the right output (`reference`). Comparisons use the model-independent fields to
            check that two evaluations are of the same examples.
        settings: Everything else that affects the figures: stride, number of shots, seed ...
        command: The command that repeats the evaluation, if it was run from the command line.
        identity: Equal for evaluations of which a newer one replaces an older one; empty if unknown.
    """

    task: str
    data: str
    measures: dict[str, Measure]
    examples: list[dict[str, Any]]
    settings: dict[str, Any] = field(default_factory=dict)
    command: str = ""
    identity: str = ""

    def __post_init__(self) -> None:
        for name, measure in self.measures.items():
            if len(measure.statistics) != len(self.examples):
                raise DataError(
                    f"{name} has {len(measure.statistics)} examples, but the evaluation has {len(self.examples)}."
                )

    def figures(self) -> dict[str, Figure]:
        """Returns every measure's value with its 95 % bootstrap interval."""
        return dict(zip(self.measures, bootstraps(list(self.measures.values())), strict=True))

    def save(self, folder: Path) -> dict[str, Figure]:
        """Writes results.json and examples.jsonl, whole or not at all, and returns the figures."""
        figures = self.figures()
        results = {
            "task": self.task,
            "data": self.data,
            "examples": len(self.examples),
            "settings": self.settings,
            "command": self.command,
            "identity": self.identity,
            "figures": {
                name: {
                    "value": figure.number,
                    "low": None if figure.number is None else figure.low,
                    "high": None if figure.number is None else figure.high,
                    "aggregate": self.measures[name].aggregate,
                    "options": dict(self.measures[name].options),
                    "higher_is_better": self.measures[name].higher_is_better,
                    "signature": self.measures[name].signature,
                }
                for name, figure in figures.items()
            },
        }
        with atomic_folder(folder) as temporary:
            text = json.dumps(results, indent=2, ensure_ascii=False) + "\n"
            (temporary / RESULTS_NAME).write_text(text, encoding="utf-8")
            with (temporary / EXAMPLES_NAME).open("w", encoding="utf-8") as file:
                for index, example in enumerate(self.examples):
                    parts = {name: measure.statistics[index].tolist() for name, measure in self.measures.items()}
                    file.write(json.dumps({**example, "statistics": parts}, ensure_ascii=False) + "\n")
        return figures

    @classmethod
    def load(cls, folder: Path) -> "Evaluation":
        """Reads an evaluation that `save` wrote.

        Raises:
            DataError: If the folder has no evaluation, or an incomplete one.
        """
        try:
            results = parse_json(read_file(folder / RESULTS_NAME))
            lines = read_file(folder / EXAMPLES_NAME).split("\n")
            examples = [parse_json(line) for line in lines if line]
            if len(examples) != results["examples"]:
                raise DataError(
                    f"{folder / EXAMPLES_NAME} has {len(examples)} examples, but {RESULTS_NAME} says {results['examples']}: "
                    "it was cut short or belongs to another run. Evaluate again."
                )
            statistics = [example.pop("statistics") for example in examples]
            figures = results["figures"]
            if unknown := [kept["aggregate"] for kept in figures.values() if kept["aggregate"] not in AGGREGATES]:
                raise DataError(f"{folder} has figures of the unknown kind {unknown[0]}: a newer release wrote them.")
            measures = {
                name: Measure(
                    kept["aggregate"],
                    np.array([parts[name] for parts in statistics], dtype=float),
                    _of_type(bool, kept, "higher_is_better"),
                    _of_type(dict, kept, "options"),
                    _of_type(str, kept, "signature", ""),
                )
                for name, kept in figures.items()
            }
            for measure in measures.values():
                # Fails if options or statistics do not belong to the aggregate.
                _ = measure.value
            return cls(
                _of_type(str, results, "task"),
                _of_type(str, results, "data"),
                measures,
                examples,
                _of_type(dict, results, "settings"),
                _of_type(str, results, "command", ""),
                _of_type(str, results, "identity", ""),
            )
        except (OSError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise DataError(f"{folder} has no evaluation that `chatgpt-hf evaluate` wrote: {error!r}") from error


def _of_type(kind: type, values: dict[str, Any], name: str, *default: Any) -> Any:
    """Returns an entry of a file, if it has this type."""
    value = values.get(name, *default) if default else values[name]
    if not isinstance(value, kind):
        raise TypeError(f"{name} is {value!r:.80}")
    return value
