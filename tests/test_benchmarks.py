"""The scripts in benchmarks/ start, the speed benchmark measures what it says, and the runner compares, in their smallest runs."""

import importlib
import json
import math
import os
import runpy
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import pytest
import torch

from chatgpt_hf.inference.compiling import missing_compiler

FOLDER = Path(__file__).parents[1] / "benchmarks"
# harness.py is what the scripts share, engines.py belongs to decode.py.
SCRIPTS = sorted({path.name for path in FOLDER.glob("*.py")} - {"harness.py", "engines.py"})


def run(script: str, *options: object) -> str:
    result = subprocess.run(
        [sys.executable, str(FOLDER / script), *map(str, options)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=1800,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_explains_itself(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    monkeypatch.syspath_prepend(FOLDER)
    # Not in a process of its own: a script's imports take seconds.
    with patch.dict(os.environ), pytest.raises(SystemExit, match=r"^0$"):
        runpy.run_path(str(FOLDER / script), run_name="__main__")
    assert capsys.readouterr().out.startswith(f"usage: {script}")


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


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The runner, with a file of ratios of its own."""
    monkeypatch.syspath_prepend(str(FOLDER))
    module = importlib.import_module("bench")
    monkeypatch.setattr(module, "RATIOS", tmp_path / "ratios.json")
    return module


def test_a_ratio_fails_only_below_its_tolerance(bench: ModuleType) -> None:
    stored = {name: bench.Stored(2.0, 0.1, "2026-01-01", "a machine") for name in ("a", "b", "c", "d", "e")}
    rows = bench.compare(stored, {"a": 1.81, "b": 1.79, "c": 2.21, "d": math.nan, "f": 5.0})
    assert [(row.name, row.verdict.split(":")[0], row.failed) for row in rows] == [
        ("a", "holds", False),
        ("b", "FAILED", True),
        ("c", "better", False),
        ("d", "FAILED", True),
        ("e", "FAILED", True),  # not measured
        ("f", "new", False),
    ]


def test_new_figures_keep_tolerances_and_drop_what_is_gone(bench: ModuleType) -> None:
    stored = {name: bench.Stored(2.0, 0.1, "2026-01-01", "a machine") for name in ("a", "gone")}
    renewed = bench.renew(stored, {"a": 3.0, "b": 4.0}, "another")
    assert {name: (entry.ratio, entry.tolerance, entry.machine) for name, entry in renewed.items()} == {
        "a": (3.0, 0.1, "another"),
        "b": (4.0, bench.TOLERANCE, "another"),
    }


def test_every_script_is_in_the_list_and_has_stored_ratios(bench: ModuleType) -> None:
    assert sorted(f"{name}.py" for name in bench.SHORT) == [script for script in SCRIPTS if script != "bench.py"]
    stored = json.loads((FOLDER / "ratios.json").read_text(encoding="utf-8"))
    # Of a GPU nothing is stored: the ratios are a CPU's.
    assert {name.split(": ")[0] for name in stored} == set(bench.SHORT) - {"gpu"}
    assert all(0 <= bench.Stored(**entry).tolerance < 1 for entry in stored.values())


@pytest.mark.slow
def test_the_runner_stores_and_compares_a_real_run(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(bench.SHORT, "batching", "--prompts 2 --rounds 1")
    monkeypatch.setattr(sys, "argv", ["bench.py", "--only", "batching", "--update"])
    bench.RATIOS.write_text("{}")
    bench.main()
    stored = json.loads(bench.RATIOS.read_text())
    assert stored["batching: equal answers"]["ratio"] == 1
    speed = stored["batching: continuous/padded tokens per second"]
    assert speed["ratio"] > 0
    assert "threads" in speed["machine"]

    bench.RATIOS.write_text(json.dumps(stored | {"batching: equal answers": {**speed, "ratio": 2.0}}))
    monkeypatch.setattr(sys, "argv", ["bench.py", "--only", "batching"])
    with pytest.raises(SystemExit, match="1"):
        bench.main()
    output = capsys.readouterr()
    assert "FAILED: below 1.600" in output.out
    assert "batching.py --prompts 2 --rounds 1\n1 of 1: batching is done" in output.err


def test_a_script_without_its_data_is_skipped_and_one_that_breaks_is_not(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CHATGPT_HF_DATA", str(tmp_path / "nowhere"))
    for name in ("data_memory", "pretrain_quality"):
        with pytest.raises(bench.Unmeasured, match="There is no folder") as raised:
            bench.run(name)
        assert raised.value.skipped
    monkeypatch.setitem(bench.SHORT, "pretrain_quality", "--suite nowhere")
    with pytest.raises(bench.Unmeasured, match="invalid choice: 'nowhere'") as raised:
        bench.run("pretrain_quality")
    assert not raised.value.skipped


@pytest.mark.slow
def test_decoding_by_every_means(tmp_path: Path) -> None:
    arms = ["plain float32", "ours float32", "ours int8", "ours int4"]
    if missing_compiler(torch.device("cpu")) is None:
        arms.append("compiled float32")
    file, plot = tmp_path / "figures.json", tmp_path / "plot.png"
    options = ("--tiny", "--tokens", 4, "--rounds", 1, "--json", file, "--plot", plot, "--profile", "--arms", *arms)
    shown = run("decode.py", *options)
    content = json.loads(file.read_text())
    assert list(content["figures"]) == ["stock float32", *arms]
    for arm, figures in content["figures"].items():
        assert f"| {arm} |" in shown
        assert 0 < figures["share_of_floor"] < 1
        assert 0 < figures["peak_mb"] < figures["allowed_mb"]
        if arm.endswith("float32"):
            assert figures["same"] == [True] * 4
    assert content["ratios"]["ours int8, batch 8"] > 0
    assert "ours int8: milliseconds a token" in shown
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.skipif(
    missing_compiler(torch.device("cpu")) is not None, reason="this machine has no C++ compiler for torch.compile"
)
def test_the_script_for_a_gpu_on_a_cpu(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    arms = ["stock bfloat16", "ours bfloat16", "ours bfloat16 compiled"]
    options = ("--device", "cpu", "--tiny", "--tokens", 4, "--rounds", 1, "--json", file, "--arms", *arms)
    shown = run("gpu.py", *options)
    content = json.loads(file.read_text())
    assert list(content["figures"]) == arms
    assert "| ours bfloat16 compiled |" in shown
    assert all(ratio > 0 for ratio in content["ratios"].values())


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu(bench: ModuleType) -> None:
    with pytest.raises(bench.Unmeasured, match="There is no GPU here") as raised:
        bench.run("gpu")
    assert raised.value.skipped
