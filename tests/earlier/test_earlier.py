"""Model folders, checkpoints and recipes that version 0.1.0 made: each loads, resumes, and gives what it gave then.

`make.py` made what is stored, and says with `--check` how far today's figures are from those: by nothing at all, on the
machine they were made on. The tests leave room for rounding: another CPU, or another release of torch, adds the same
numbers in another order, and six steps of training carry the last digit a little further up.
"""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from .artefacts import STORED, differences, read_expected, rebuild_all, write_data
from .observations import (
    CAUSAL,
    COMMANDS,
    HEADS,
    RUNS,
    final_weights,
    in_a_chat,
    measured,
    merged,
    resolved,
    resume,
    through_auto_classes,
    through_our_loader,
    through_our_pipelines,
    through_pipelines,
    token_ids,
    upstream_defaults,
)

# For a base model that was made with this package, a default that was a value and is now chosen by the base.
MEANS_THE_SAME = [("test_fraction", 0.0, None)]
EXPECTED = read_expected()
RECIPES = json.loads((STORED / "recipes.json").read_text(encoding="utf-8"))


def assert_same(found: Any, expected: Any, *, rtol: float = 1e-4, atol: float = 1e-5) -> None:
    for place, one, other in differences(found, expected):
        if isinstance(other, torch.Tensor):
            torch.testing.assert_close(one, other, rtol=rtol, atol=atol, msg=lambda text, at=place: f"{at}: {text}")
        elif isinstance(other, float) and not math.isnan(other):
            assert one == pytest.approx(other, rel=rtol, abs=atol), place
        else:
            assert one == other or (one != one and other != other), (place, one, other)


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every artefact as the earlier state left it."""
    root = tmp_path_factory.mktemp("earlier")
    write_data(root)
    rebuild_all(root)
    return root


def test_what_is_stored_is_text_and_arrays() -> None:
    files = [file for file in STORED.rglob("*") if file.is_file() and file.suffix != ".safetensors"]
    assert len(files) > 50
    for file in files:
        file.read_bytes().decode()
    assert sum(file.stat().st_size for file in STORED.rglob("*") if file.is_file()) < 800_000


@pytest.mark.parametrize("folder", [folder for folder in EXPECTED["models"] if (STORED / folder).is_dir()])
def test_a_model_loads(folder: str, earlier: Path) -> None:
    if folder != "trained/adapter":
        assert_same(through_auto_classes(earlier, folder), EXPECTED["models"][folder], rtol=1e-5)
    assert_same(through_our_loader(earlier, folder), EXPECTED["models"][folder], rtol=1e-5)


def test_a_gpt2_folder_loads_as_ours(earlier: Path) -> None:
    name = "models/gpt2 as ours"
    assert_same(through_our_loader(earlier, name), EXPECTED["models"][name], rtol=1e-5)


def test_an_adapter_is_merged(earlier: Path) -> None:
    assert_same(merged(earlier, "trained/adapter"), EXPECTED["merged"]["trained/adapter"], rtol=1e-5)


def test_pipelines(earlier: Path) -> None:
    assert_same(through_pipelines(earlier), EXPECTED["pipelines"])


def test_our_pipelines(earlier: Path) -> None:
    found = through_our_pipelines(earlier)
    assert found.keys() == {"models/answers", "models/translation", "models/summarization"}
    assert_same(found, {folder: EXPECTED["pipelines"][folder] for folder in found})


def test_chats(earlier: Path) -> None:
    assert in_a_chat(earlier) == EXPECTED["chat"]


def test_records_of_evaluations_and_a_task_measured_again(earlier: Path) -> None:
    assert_same(measured(earlier), EXPECTED["measured"])


def test_tokenizers(earlier: Path) -> None:
    assert token_ids(earlier) == EXPECTED["tokens"]


@pytest.mark.parametrize("folder", RUNS)
def test_a_run_resumes(folder: str, earlier: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(earlier, root)
    weights = final_weights(root, folder)
    found = resume(root, folder)
    _, first, last = RUNS[folder]
    assert {entry["step"] for entry in found["logs"]} == set(range(first + 1, last + 1))
    expected = EXPECTED["resumed"][folder]
    # Runs report more figures today.
    found["results"] = {name: found["results"][name] for name in expected["results"]}
    assert_same(found, expected)
    assert_same(final_weights(root, folder), weights)


def assert_same_fields(command: str, found: dict[str, Any], differs: dict[str, Any]) -> None:
    """Every field, but for defaults that transformers or TRL themselves have changed since."""
    expected = RECIPES["defaults"][command] | differs
    before, now = RECIPES["upstream"][command], upstream_defaults(command)
    changed = {}
    for name, value in expected.items():
        theirs = name in before and value == before[name]
        if theirs and (name not in now or found[name] == now[name]):
            continue
        if (name, value, found[name]) in MEANS_THE_SAME:
            continue
        if found[name] != value:
            changed[name] = (value, found[name])
    assert changed == {}


@pytest.mark.parametrize("command", COMMANDS)
def test_defaults(command: str) -> None:
    assert_same_fields(command, resolved(command), {})


@pytest.mark.parametrize("case", RECIPES["resolved"], ids=lambda case: f"{case['recipe']} {case['overrides']}"[:60])
def test_a_recipe_resolves(case: dict[str, Any], tmp_path: Path) -> None:
    file = None
    if case["recipe"] is not None:
        file = tmp_path / f"{case['recipe']}.yaml"
        file.write_text(RECIPES["texts"][case["recipe"]], encoding="utf-8")
    assert_same_fields(case["command"], resolved(case["command"], file, case["overrides"]), case["differs"])


@pytest.mark.parametrize("folder", RECIPES["runs"])
def test_the_recipe_that_a_run_wrote(folder: str, earlier: Path) -> None:
    about = RECIPES["runs"][folder]
    found = resolved(about["command"], earlier / folder / "recipe.yaml")
    assert_same_fields(about["command"], found, about["differs"])


def test_all_are_looked_at() -> None:
    assert set(EXPECTED["models"]) == {*CAUSAL, *HEADS, "models/gpt2 as ours"}
