"""Runs of trainings whose trainers can be looked at, and the check that a resumed one ends like one that was never stopped."""

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from chatgpt_hf.errors import CheckpointError
from chatgpt_hf.training.arguments import parse_recipe

RESUME = ("--resume_from_checkpoint", "true")


class Watched:
    """A run that keeps its trainer and its figures; to be listed before a `Run` among the bases."""

    trainer: Any
    figures: dict[str, Any]

    def make_trainer(self) -> Any:
        self.trainer = super().make_trainer()  # type: ignore[misc]
        return self.trainer

    def execute(self) -> dict[str, Any]:
        self.figures = super().execute()  # type: ignore[misc]
        return self.figures

    def logged(self, name: str = "loss") -> list[float]:
        return [entry[name] for entry in self.trainer.state.log_history if name in entry]


@dataclass(frozen=True)
class Training:
    """A kind of training.

    Attributes:
        types: Of its arguments.
        kind: A `Watched` of it.
    """

    types: tuple[type, ...]
    kind: Any

    def prepared(self, options: Sequence[str], folder: Path, *more: object) -> Any:
        """A run that has not begun."""
        return self.kind(*parse_recipe(self.types, None, [*options, "--output_dir", str(folder), *map(str, more)]))

    def run(self, options: Sequence[str], folder: Path, *more: object) -> Any:
        watched = self.prepared(options, folder, *more)
        watched.execute()
        return watched

    def start(self, options: Sequence[str], folder: Path, *more: object) -> Any:
        """A run up to its first step."""
        watched = self.prepared(options, folder, *more)
        watched.check()
        watched.prepare()
        watched.make_trainer()
        return watched

    def check_resumed(
        self,
        options: Sequence[str],
        folder: Path,
        *more: object,
        last: int,
        after: Sequence[int],
        figures: Sequence[str] = ("loss",),
        file: str = "model.safetensors",
    ) -> Any:
        """Asserts that runs which resume after some steps give the same figures and weights to the bit; returns one of them.

        Args:
            folder: For `whole`, a run that is never stopped, and `part1` for one that resumes after step 1.
            last: The last step.
            after: The steps.
            figures: Names in the log.
            file: The weights.
        """
        more = (*more, "--max_steps", last, "--save_strategy", "steps", "--save_steps", 1)
        whole = self.run(options, folder / "whole", *more)
        for step in after:
            part = Path(shutil.copytree(folder / "whole", folder / f"part{step}"))
            for later in range(step + 1, last + 1):
                shutil.rmtree(part / f"checkpoint-{later}")
            (part / file).unlink()
            resumed = self.run(options, part, *more, *RESUME)
            assert whole.logged(figures[0])
            for name in figures:
                assert resumed.logged(name) == whole.logged(name)
            assert (part / file).read_bytes() == (folder / "whole" / file).read_bytes()
        return resumed

    def check_unchanged(
        self, options: Sequence[str], folder: Path, changes: Iterable[tuple[Sequence[object], str]]
    ) -> None:
        """Asserts that a run does not resume with other options.

        Args:
            changes: Options, and a pattern of what the refusal says.
        """
        for change, words in changes:
            with pytest.raises(CheckpointError, match=words):
                self.run(options, folder, *RESUME, *change)
