"""The folder of a training run: the files in it, which runs may go into it, and its checkpoints."""

import json
import shutil
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..checkpoints import check_safetensors
from ..errors import CheckpointError, OutputError
from ..files import SAVING_PREFIX, clear_disk_errors, read_json
from ..stored import read_header

# A folder that contains a resolved recipe is a run of ours.
RECIPE_NAME = "recipe.yaml"
# Fingerprints of the run's data: a checkpoint's position in a stream means nothing for other data.
DATA_NAME = "data.json"
RESULTS_NAME = "results.json"
TRAINER_STATE_NAME = "trainer_state.json"


def check_output_dir(output_dir: str | Path, *, resume: bool = False) -> Path:
    """Returns the folder if a run may use it: it is new, empty, contains only other runs, or the run to resume.

    Changes nothing.

    Raises:
        OutputError: If it is a file, contains other files, or contains a run and `resume` is false.
    """
    folder = Path(output_dir)
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            raise OutputError(f"--output_dir {folder} cannot be created: {path} is a file. Name another folder.")
    # The quickstart puts its base model inside the chat model's folder.
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    found = [path for path in found if not path.name.startswith(SAVING_PREFIX)]
    content = [path.name for path in found if not (path / RECIPE_NAME).is_file()]
    if content and RECIPE_NAME not in content:
        raise OutputError(
            f"--output_dir {folder} is not empty and not a run of ours (it contains {', '.join(content[:3])} and no "
            f"{RECIPE_NAME}). Nothing was written; name another folder."
        )
    if content and not resume:
        raise OutputError(
            f"--output_dir {folder} already contains a run. Add --resume (or --resume_from_checkpoint true) to continue "
            "it, or name another folder."
        )
    return folder


def prepare_output_dir(output_dir: str | Path, *, resume: bool = False) -> Path:
    """Creates the folder of a run, or reuses an existing one if `check_output_dir` allows it."""
    folder = check_output_dir(output_dir, resume=resume)
    with clear_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    # Left behind by a process that was killed while it wrote.
    for path in folder.glob(f"{SAVING_PREFIX}*"):
        shutil.rmtree(path, ignore_errors=True)
    return folder


def last_whole_checkpoint(folder: Path) -> Path | None:
    """The newest complete `checkpoint-*`, or None. Incomplete ones, left by a crash, are skipped."""
    found = [path for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.name.rsplit("-", 1)[1].isdigit()]
    newest_first = sorted(found, key=lambda path: int(path.name.rsplit("-", 1)[1]), reverse=True)
    return next(filter(is_whole_checkpoint, newest_first), None)


def is_whole_checkpoint(checkpoint: Path) -> bool:
    """True if a checkpoint is complete.

    `Trainer` writes trainer_state.json last, so a checkpoint is complete if that file can be read and the weights have
    their full length. In a run on a stream, every process' position must be there too.
    """
    try:
        TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        for file in checkpoint.glob("*.safetensors"):
            check_safetensors(file)
        for rank in range(_processes_on_a_stream(checkpoint.parent)):
            json.loads(_data_state_file(checkpoint, rank).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, CheckpointError):
        return False
    # FSDP and DeepSpeed write shards into folders; modeling_*.py next to the weights is not a weight file.
    return any(("model" in path.name and path.suffix != ".py") or path.is_dir() for path in checkpoint.iterdir())


def write_data_state(checkpoint: Path, state: dict[str, Any], rank: int, processes: int) -> None:
    """Saves the position of one process in its stream."""
    content = json.dumps({"processes": processes, "state": state})
    _data_state_file(checkpoint, rank).write_text(content, encoding="utf-8")


def read_data_state(checkpoint: Path, rank: int, processes: int) -> dict[str, Any]:
    """The position of one process in its stream, as saved by `write_data_state`.

    Raises:
        CheckpointError: If it is missing or truncated, or the run had another number of processes.
    """
    file = _data_state_file(checkpoint, rank)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{file} cannot be read ({error}): without it the position in the stream is unknown. Use an "
            "earlier checkpoint."
        ) from error
    if content["processes"] != processes:
        raise CheckpointError(
            f"{checkpoint} was written by {content['processes']} processes that shared a stream, but this run has "
            f"{processes}: start {content['processes']}."
        )
    return content["state"]


def read_data_record(folder: Path) -> dict[str, Any]:
    """The content of a run's `data.json`; empty if there is none."""
    return read_json(folder / DATA_NAME)


def _data_state_file(checkpoint: Path, rank: int) -> Path:
    return checkpoint / f"data_state_{rank}.json"


def _processes_on_a_stream(folder: Path) -> int:
    stream = read_data_record(folder).get("stream")
    return stream["processes"] if stream else 0


def check_checkpoint_fits(checkpoint: Path, model: PreTrainedModel) -> None:
    """Raises `CheckpointError` if names or shapes of a checkpoint's weights differ from the model's."""
    stored: dict[str, tuple[int, ...]] = {}
    # PEFT itself checks the weights of adapters.
    for file in checkpoint.glob("model*.safetensors"):
        stored |= {name: shape for name, _, shape in read_header(file)}
    state = model.state_dict()
    # Only one of several tied weights is stored.
    there = {state[name].data_ptr() for name in stored if name in state}
    own = {
        name: tuple(weight.shape) for name, weight in state.items() if name in stored or weight.data_ptr() not in there
    }
    if stored and own != stored:
        name = min(name for name in own.keys() | stored.keys() if own.get(name) != stored.get(name))
        raise CheckpointError(
            f"{checkpoint} does not belong to this run: its {name} is {stored.get(name, 'missing')}, the model's "
            f"{own.get(name, 'missing')}. Resume with the recipe that the run was started with, or name another folder."
        )
