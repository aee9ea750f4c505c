"""`chatgpt-hf compare`."""

from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from chatgpt_hf.errors import DataError
from chatgpt_hf.evaluation.figures import Measure
from chatgpt_hf.evaluation.record import Evaluation
from chatgpt_hf_cli import compare


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer()
    app.callback()(lambda: None)
    compare.register(app, "Evaluate")
    return app


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    folders = [tmp_path / "first", tmp_path / "second [b]"]
    right = np.random.default_rng(0).random(300)
    for folder, share in zip(folders, (0.5, 0.7), strict=True):
        parts = np.stack([right < share, np.ones(300)], axis=1).astype(int)
        examples = [{"input": index, "prediction": int(part)} for index, part in enumerate(parts[:, 0])]
        Evaluation("boolq", "boolq.jsonl", {"accuracy": Measure("mean", parts)}, examples).save(
            folder / "evaluation" / "boolq"
        )
    return folders


def test_a_table_a_page_and_a_picture(app: typer.Typer, models: list[Path], tmp_path: Path) -> None:
    arguments = ["compare", *map(str, models), "--out", str(tmp_path / "out")]
    result = CliRunner(env={"COLUMNS": "400"}).invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    (row,) = (line for line in result.output.splitlines() if "second [b]" in line and "accuracy" in line)
    assert row.rstrip().endswith("*")
    assert str(tmp_path / "out" / "compare.md") in result.output
    page = (tmp_path / "out" / "compare.md").read_text(encoding="utf-8")
    assert "boolq on boolq.jsonl, 300 examples." in page
    assert (tmp_path / "out" / "compare.png").stat().st_size > 5000


def test_nothing_is_written_when_they_differ(app: typer.Typer, models: list[Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no evaluation"):
        CliRunner().invoke(
            app, ["compare", str(models[0]), str(tmp_path), "--out", str(tmp_path / "out")], catch_exceptions=False
        )
    assert not (tmp_path / "out").exists()
