"""The folder of a run: which folders may be used, and which checkpoints are complete."""

import json
import shutil
from pathlib import Path

import pytest

from chatgpt_hf.errors import OutputError
from chatgpt_hf.training.run_folder import (
    DATA_NAME,
    RECIPE_NAME,
    check_output_dir,
    is_whole_checkpoint,
    last_whole_checkpoint,
    prepare_output_dir,
    read_data_state,
    write_data_state,
)


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of every file of a folder, including hidden files."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_which_folders_a_run_may_have(tmp_path: Path) -> None:
    for name in ("new", "new/deep", "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        assert check_output_dir(tmp_path / name) == tmp_path / name
    assert not (tmp_path / "new").exists()
    assert prepare_output_dir(tmp_path / "new").is_dir()

    ours = tmp_path / "ours"
    ours.mkdir()
    (ours / RECIPE_NAME).write_text("{}")
    with pytest.raises(OutputError, match=r"already contains a run. Add --resume"):
        check_output_dir(ours)
    check_output_dir(ours, resume=True)
    # A folder that contains only runs, such as the quickstart's, which contains the base model.
    check_output_dir(tmp_path / "new")
    shutil.copytree(ours, tmp_path / "new" / "base")
    check_output_dir(tmp_path / "new")


@pytest.mark.parametrize("resume", [False, True])
def test_folders_of_others_are_left_alone(tmp_path: Path, resume: bool) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "one.txt").write_text("Dear all")
    before = contents(tmp_path)
    for name in (".", "letters"):
        with pytest.raises(OutputError, match="not empty and not a run of ours"):
            prepare_output_dir(tmp_path / name, resume=resume)
    for name in ("letters/one.txt", "letters/one.txt/run"):
        with pytest.raises(OutputError, match=r"one.txt is a file"):
            prepare_output_dir(tmp_path / name, resume=resume)
    assert contents(tmp_path) == before


def checkpoint(run: Path, step: int, base_folder: Path) -> Path:
    folder = Path(shutil.copytree(base_folder, run / f"checkpoint-{step}"))
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return folder


def test_the_newest_whole_checkpoint(tmp_path: Path, base_folder: Path) -> None:
    assert last_whole_checkpoint(tmp_path) is None
    whole = [checkpoint(tmp_path, step, base_folder) for step in (5, 20, 100)]
    (tmp_path / "checkpoint-best").mkdir()
    assert last_whole_checkpoint(tmp_path) == whole[2]

    # A process that is killed while saving can leave each of these behind.
    weights = whole[2] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert not is_whole_checkpoint(whole[2])
    (whole[1] / "trainer_state.json").write_text('{"global_step": 2')
    assert last_whole_checkpoint(tmp_path) == whole[0]
    (whole[0] / "trainer_state.json").unlink()
    assert last_whole_checkpoint(tmp_path) is None


def test_a_checkpoint_on_a_stream_needs_every_process_position(tmp_path: Path, base_folder: Path) -> None:
    whole = [checkpoint(tmp_path, step, base_folder) for step in (5, 20)]
    (tmp_path / DATA_NAME).write_text(json.dumps({"stream": {"processes": 2, "workers": 0}}))
    assert last_whole_checkpoint(tmp_path) is None
    for folder in whole:
        for rank in range(2):
            write_data_state(folder, {"next": rank}, rank, 2)
    assert last_whole_checkpoint(tmp_path) == whole[1]
    assert read_data_state(whole[1], 1, 2) == {"next": 1}
    (whole[1] / "data_state_1.json").write_text('{"processes": 2')
    assert last_whole_checkpoint(tmp_path) == whole[0]
    (whole[0] / "data_state_1.json").unlink()
    assert last_whole_checkpoint(tmp_path) is None
    (tmp_path / DATA_NAME).write_text(json.dumps({"stream": None}))
    assert last_whole_checkpoint(tmp_path) == whole[1]


def test_what_a_killed_process_left_is_no_content(tmp_path: Path) -> None:
    (tmp_path / ".saving-abc").mkdir()
    (tmp_path / ".saving-abc" / "recipe.yaml").write_text("half")
    check_output_dir(tmp_path)
    assert list(prepare_output_dir(tmp_path).iterdir()) == []


def test_a_checkpoint_without_weights_is_not_whole(tmp_path: Path, base_folder: Path) -> None:
    folder = checkpoint(tmp_path, 1, base_folder)
    (folder / "model.safetensors").unlink()
    assert not is_whole_checkpoint(folder)
    assert not is_whole_checkpoint(tmp_path / "checkpoint-2")
