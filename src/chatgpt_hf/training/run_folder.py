"""The folder of a training run: the files in it, which runs may go into it, and its checkpoints."""

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors import safe_open
from transformers import PreTrainedModel
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..checkpoints import check_safetensors
from ..errors import CheckpointError, OutputError
from ..files import SAVING_PREFIX, clear_disk_errors, read_json

# A run folder is ours when its resolved recipe lies in it.
RECIPE_NAME = "recipe.yaml"
# What the rows of a run are made of; beside the checkpoints, whose positions in a stream mean nothing for other rows.
DATA_NAME = "data.json"
RESULTS_NAME = "results.json"
TRAINER_STATE_NAME = "trainer_state.json"


def check_output_dir(output_dir: str | Path, *, resume: bool = False) -> Path:
    """The folder of a run, looked at and not touched: new, empty, with nothing but runs in it, or to go on with.

    Raises:
        OutputError: When it is a file, holds what is not ours, or holds a run that was not asked to go on.
    """
    folder = Path(output_dir)
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            raise OutputError(f"--output_dir {folder} cannot be: {path} is a file. Name another folder.")
    # The quickstart's base model lies inside the folder of its chat model.
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    found = [path for path in found if not path.name.startswith(SAVING_PREFIX)]
    content = [path.name for path in found if not (path / RECIPE_NAME).is_file()]
    if content and RECIPE_NAME not in content:
        raise OutputError(
            f"--output_dir {folder} is not empty and not a run of ours (it holds {', '.join(content[:3])} and no "
            f"{RECIPE_NAME}). Nothing was written; name another folder."
        )
    if content and not resume:
        raise OutputError(
            f"--output_dir {folder} already holds a run. Add --resume_from_checkpoint true (or --resume) to go on with "
            "it, or name another folder."
        )
    return folder


def prepare_output_dir(output_dir: str | Path, *, resume: bool = False) -> Path:
    """Makes the folder of a run, or takes the one that is there when `check_output_dir` lets it."""
    folder = check_output_dir(output_dir, resume=resume)
    with clear_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    # What a process that was killed while it wrote left behind.
    for path in folder.glob(f"{SAVING_PREFIX}*"):
        shutil.rmtree(path, ignore_errors=True)
    return folder


def last_whole_checkpoint(folder: Path) -> Path | None:
    """The newest `checkpoint-*` that was written to its end, or None; one that a crash cut short is passed over."""
    found = [path for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.name.rsplit("-", 1)[1].isdigit()]
    newest_first = sorted(found, key=lambda path: int(path.name.rsplit("-", 1)[1]), reverse=True)
    return next(filter(is_whole_checkpoint, newest_first), None)


def is_whole_checkpoint(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end.

    `Trainer` writes trainer_state.json last, so one whose state can be read, and whose weights have their full length,
    is whole; in a run on a stream each process' position must be there too.
    """
    try:
        TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        for file in checkpoint.glob("*.safetensors"):
            check_safetensors(file)
        for rank in range(_processes_on_a_stream(checkpoint.parent)):
            json.loads(_data_state_file(checkpoint, rank).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, CheckpointError):
        return False
    # FSDP and DeepSpeed write their shards into folders; the model's code lies beside its weights.
    return any(("model" in path.name and path.suffix != ".py") or path.is_dir() for path in checkpoint.iterdir())


def write_data_state(checkpoint: Path, state: dict[str, Any], rank: int, processes: int) -> None:
    """Keeps the position of one process in its stream."""
    content = json.dumps({"processes": processes, "state": state})
    _data_state_file(checkpoint, rank).write_text(content, encoding="utf-8")


def read_data_state(checkpoint: Path, rank: int, processes: int) -> dict[str, Any]:
    """The position of one process in its stream, as `write_data_state` kept it.

    Raises:
        CheckpointError: When it is missing or cut short, or the run had another number of processes.
    """
    file = _data_state_file(checkpoint, rank)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{file} cannot be read ({error}): the checkpoint does not say where its run was in the stream. Take an "
            "earlier one."
        ) from error
    if content["processes"] != processes:
        raise CheckpointError(
            f"{checkpoint} is of a run of {content['processes']} processes on a stream, each with a part of it, and this "
            f"run has {processes}: start {content['processes']}."
        )
    return content["state"]


def read_data_record(folder: Path) -> dict[str, Any]:
    """What `data.json` in the folder of a run says of its rows; empty where there is none."""
    return read_json(folder / DATA_NAME)


def _data_state_file(checkpoint: Path, rank: int) -> Path:
    return checkpoint / f"data_state_{rank}.json"


def _processes_on_a_stream(folder: Path) -> int:
    stream = read_data_record(folder).get("stream")
    return stream["processes"] if stream else 0


def check_checkpoint_fits(checkpoint: Path, model: PreTrainedModel) -> None:
    """Raises `CheckpointError` where a checkpoint's weights are not the model's, by name and shape."""
    stored: dict[str, tuple[int, ...]] = {}
    # An adapter's weights fit a model that has adapters, and PEFT sees to it.
    for file in checkpoint.glob("model*.safetensors"):
        with safe_open(file, framework="pt") as weights:
            stored |= {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    state = model.state_dict()
    # Of tied weights only one is stored.
    there = {state[name].data_ptr() for name in stored if name in state}
    own = {
        name: tuple(weight.shape) for name, weight in state.items() if name in stored or weight.data_ptr() not in there
    }
    if stored and own != stored:
        name = min(name for name in own.keys() | stored.keys() if own.get(name) != stored.get(name))
        raise CheckpointError(
            f"{checkpoint} does not belong to this run: its {name} is {stored.get(name, 'missing')}, the model's "
            f"{own.get(name, 'missing')}. Go on with the recipe that the run was begun with, or name another folder."
        )
