"""Model folders: read with errors that say what is wrong, written whole or not at all."""

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from chatgpt_hf import ChatGPTForCausalLM, load_model
from chatgpt_hf.checkpoints import load_for_inference
from chatgpt_hf.errors import CheckpointError, ConfigError, OutputError
from chatgpt_hf.files import atomic_folder, clear_disk_errors, write_atomically
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
    """Every file of a folder, hidden ones too, byte for byte."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def folder(base_folder: Path, tmp_path: Path) -> Path:
    """A model folder that a test may break."""
    return Path(shutil.copytree(base_folder, tmp_path / "model"))


def edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


# Reading


def test_a_whole_model_loads(folder: Path) -> None:
    for model_class in (AutoModelForCausalLM, ChatGPTForCausalLM):
        model = load_model(folder, model_class)
        assert type(model) is ChatGPTForCausalLM
        weights = load_file(folder / "model.safetensors")
        assert all(torch.equal(model.state_dict()[name], weight) for name, weight in weights.items())
    assert load_model(str(folder), dtype=torch.float16).dtype == torch.float16


def test_gpt2_folders_load_as_theirs_and_as_ours(tmp_path: Path) -> None:
    GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=16, n_embd=16, n_layer=1, n_head=2)).save_pretrained(
        tmp_path
    )
    theirs, ours = load_model(tmp_path).eval(), load_model(tmp_path, ChatGPTForCausalLM).eval()
    assert type(theirs) is GPT2LMHeadModel
    assert type(ours) is ChatGPTForCausalLM
    ids = torch.arange(10)[None]
    torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, rtol=0, atol=1e-5)


def test_missing_weights_are_named(folder: Path) -> None:
    edit_weights(folder, lambda weights: weights.pop("model.norm.weight"))
    with pytest.raises(CheckpointError, match=r"1 weights are missing, model.norm.weight among them"):
        load_model(folder)


def test_misshaped_weights_are_named(folder: Path) -> None:
    edit_weights(folder, lambda weights: weights.update({"model.norm.weight": torch.ones(7)}))
    with pytest.raises(CheckpointError, match=r"model.norm.weight has the shape \(7,\), config.json asks for \(64,\)"):
        load_model(folder)


@pytest.mark.parametrize("kept", [0, 5, 1000, -1])
def test_truncated_weights_are_named(folder: Path, kept: int) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"model.safetensors is no whole safetensors file"):
        load_model(folder)


def test_weights_that_are_not_there(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"No model could be loaded from .*model.safetensors"):
        load_model(folder)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"num_attention_heads": 3}, "num_attention_heads"),
        ({"hidden_act": "nonsense"}, "hidden_act"),
        ({"position_embedding_type": "relative"}, "position_embedding_type"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"vocab_size": -1}, "vocab_size"),
        ({"num_attention_heads": None}, "num_attention_heads"),
        ({"model_type": "chatgtp"}, "chatgtp"),
        ({"sliding_window": 8}, "sliding_window"),
    ],
)
def test_a_config_that_contradicts_itself_is_named(folder: Path, changes: dict[str, Any], field: str) -> None:
    edit_config(folder, **changes)
    with pytest.raises(ConfigError, match=rf"(?s)config.json cannot be used: .*{field}"):
        load_model(folder)


def test_a_config_that_does_not_belong_to_the_weights(folder: Path) -> None:
    edit_config(folder, hidden_size=32, head_dim=32, intermediate_size=128)
    with pytest.raises(CheckpointError, match=r"asks for .* such weights\). The two files do not belong together"):
        load_model(folder)


def test_code_of_a_folder_is_not_run(tmp_path: Path) -> None:
    config = {
        "model_type": "theirs",
        "auto_map": {name: f"theirs.{name}" for name in ("AutoConfig", "AutoModelForCausalLM")},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    trace = tmp_path / "was-run"
    (tmp_path / "theirs.py").write_text(f"open({str(trace)!r}, 'w')\nAutoConfig = AutoModelForCausalLM = object\n")
    with pytest.raises(ConfigError, match="model_type 'theirs', and code that lies in a folder is not run"):
        load_model(tmp_path)
    assert not trace.exists()


def test_a_config_that_is_no_json(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "chatgpt",')
    with pytest.raises(CheckpointError, match=r"config.json"):
        load_model(folder)


def test_folders_without_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match=r"holds no model: config.json is missing"):
        load_model(tmp_path)
    with pytest.raises(CheckpointError, match=r"There is no folder .*nothing"):
        load_model(tmp_path / "nothing")
    monkeypatch.chdir(tmp_path)
    for name in ("./nothing", "runs/mine/checkpoint-10"):
        with pytest.raises(CheckpointError, match="There is no folder"):
            load_model(name)
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"is a file; name the folder"):
        load_model(tmp_path / "file")
    # This may be an id of the Hub, and the Hub cannot be asked.
    with pytest.raises(CheckpointError, match=r"No model could be loaded from nobody/nothing: .*"):
        load_model("nobody/nothing")


# Writing


def test_files_are_replaced_together(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    with atomic_folder(folder) as temporary:
        (temporary / "sub").mkdir()
        (temporary / "a").write_text("1")
        (temporary / "sub" / "b").write_text("2")
        assert not (folder / "a").exists()
    with atomic_folder(folder) as temporary:
        (temporary / "a").write_text("new")
    assert contents(folder) == {"a": b"new", "sub/b": b"2"}


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left")])
def test_a_failure_leaves_the_old_files(tmp_path: Path, error: BaseException) -> None:
    (tmp_path / "a").write_text("old")

    def write(file: Path) -> None:
        file.write_text("half")
        raise error

    expected = OutputError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected):
        write_atomically(tmp_path / "a", write)

    def write_two() -> None:
        with atomic_folder(tmp_path) as temporary:
            (temporary / "new").write_text("half")
            write(temporary / "a")

    with pytest.raises(expected):
        write_two()
    assert contents(tmp_path) == {"a": b"old"}


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EFBIG, "File too large"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        PermissionError(errno.EACCES, "Permission denied"),
        RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
        Exception("SafetensorError: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_refused_write_names_the_folder_and_the_remedy(error: Exception) -> None:
    message = r"Could not write to runs/x: .*free some space, or name a folder"
    with pytest.raises(OutputError, match=message), clear_disk_errors(Path("runs/x")):
        raise error


@pytest.mark.parametrize(
    "error", [ValueError("of ours"), FileNotFoundError(errno.ENOENT, "gone"), OutputError("mine")]
)
def test_other_errors_pass(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, clear_disk_errors(Path("runs/x")):
        raise error
    assert caught.value is error


# A run's folder


def test_which_folders_a_run_may_have(tmp_path: Path) -> None:
    for name in ("new", "new/deep", "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        assert check_output_dir(tmp_path / name) == tmp_path / name
    assert not (tmp_path / "new").exists()
    assert prepare_output_dir(tmp_path / "new").is_dir()

    ours = tmp_path / "ours"
    ours.mkdir()
    (ours / RECIPE_NAME).write_text("{}")
    with pytest.raises(OutputError, match=r"already holds a run. Add --resume_from_checkpoint true"):
        check_output_dir(ours)
    check_output_dir(ours, resume=True)
    # A folder with nothing but runs in it, such as the quickstart's, whose base model lies inside.
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

    # Each of these is what a process that was killed while saving can leave behind.
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


def test_inference_is_where_the_accelerator_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_for_inference(folder).device.type == (
        torch.accelerator.current_accelerator().type if torch.accelerator.is_available() else "cpu"
    )
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("meta"))
    model = load_for_inference(folder)
    assert model.device.type == "meta"
    assert not model.training
