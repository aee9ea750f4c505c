"""The scripts in benchmarks/ start, and the speed benchmark measures what it says, in its smallest run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = sorted(path.name for path in FOLDER.glob("*.py"))


def run(script: str, *options: object) -> str:
    result = subprocess.run(
        [sys.executable, str(FOLDER / script), *map(str, options)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=600,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_explains_itself(script: str) -> None:
    assert run(script, "--help").startswith(f"usage: {script}")


@pytest.mark.slow
def test_the_smallest_comparison(tmp_path: Path) -> None:
    arms = ["gpt2/eager/float32", "ours/eager/float32", "ours-loop/eager/float32", "ours-callbacks/eager/float32"]
    file = tmp_path / "figures.json"
    shown = run("train_speed.py", "--device", "cpu", "--rounds", 2, "--steps", 1, "--json", file, "--arms", *arms)
    figures = json.loads(file.read_text())
    assert list(figures["results"]) == arms
    for arm, result in figures["results"].items():
        assert arm in shown
        assert len(result["cpu"]) == len(result["wall"]) == 2
        assert min(result["cpu"]) > 0
        assert result["peak"] > 0
        assert 0 < result["share_of_peak"] < 1
    assert "ours/eager/float32            / ours-loop/eager/float32" in shown
    assert figures["settings"]["threads"] == "1"
