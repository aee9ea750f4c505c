"""Folders with a model in them: read with the errors a user can act on, written whole or not at all."""

import errno
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import ADAPTER_CONFIG_NAME, CONFIG_NAME, GENERATION_CONFIG_NAME

from .errors import (
    ChatGPTError,
    CheckpointError,
    ConfigError,
    ConversionError,
    MissingWeights,
    OutputError,
    TokenizerError,
)
from .extras import EXTRAS, needed_by, require
from .tokenization_chatgpt import load_tokenizer

# A run folder is ours when its resolved recipe lies in it.
RECIPE_NAME = "recipe.yaml"
# What the rows of a run are made of; beside the checkpoints, whose positions in a stream mean nothing for other rows.
DATA_NAME = "data.json"
TRAINER_STATE_NAME = "trainer_state.json"
# Beside an adapter: some weights of its base.
BASE_SAMPLE_NAME = "base_sample.json"
_SAVING_PREFIX = ".saving-"


def load_model(
    name_or_path: str | Path,
    model_class: Any = AutoModelForCausalLM,
    *,
    new_modules: Collection[str] = (),
    **kwargs: Any,
) -> PreTrainedModel:
    """`model_class.from_pretrained`, refusing what transformers would only warn of.

    Args:
        name_or_path: A model folder, or a Hub id; or a folder with an adapter of PEFT's, which is put onto its base model.
        model_class: An Auto class or a model class. `ChatGPTForCausalLM` also reads GPT-2 checkpoints.
        new_modules: Modules that start anew where the checkpoint has none or one of another shape, as the head of a task.
        **kwargs: For `from_pretrained`.

    Raises:
        CheckpointError: When there is no model, or weights are missing, mis-shaped or cut short.
        ConfigError: When config.json contradicts itself, or names an unknown family.
    """
    folder = Path(name_or_path)
    if (folder / ADAPTER_CONFIG_NAME).is_file() and not (folder / CONFIG_NAME).is_file():
        return _load_adapter(folder, model_class, new_modules=new_modules, **kwargs)
    named_as_path = folder.is_absolute() or str(name_or_path).startswith((".", "~")) or len(folder.parts) > 2
    if named_as_path and not folder.exists():
        raise CheckpointError(f"There is no folder {folder}; name one that `save_pretrained` wrote, or a Hub id.")
    if folder.is_file():
        raise CheckpointError(f"{folder} is a file; name the folder that holds {CONFIG_NAME} and the weights.")
    if folder.is_dir() and not (folder / CONFIG_NAME).is_file():
        raise CheckpointError(
            f"{folder} holds no model: {CONFIG_NAME} is missing. Name a folder that `save_pretrained` wrote."
        )
    if folder.is_dir():
        family = read_json(folder / CONFIG_NAME).get("model_type")
        if family is not None and family not in CONFIG_MAPPING:
            # transformers would ask whether to run the folder's code, which every folder of ours has.
            raise ConfigError(
                f"{folder / CONFIG_NAME} cannot be used: neither transformers nor this package knows its model_type "
                f"{family!r}, and code that lies in a folder is not run."
            )
        config_class: Any = getattr(model_class, "config_class", None) or AutoConfig
        try:
            config_class.from_pretrained(folder)
        except OSError as error:
            raise CheckpointError(f"{folder / CONFIG_NAME} cannot be read: {error}") from error
        except (ValueError, TypeError, StrictDataclassError) as error:
            raise ConfigError(f"{folder / CONFIG_NAME} cannot be used: {error}") from error
    for file in sorted(folder.glob("*.safetensors")):
        check_safetensors(file)
    try:
        # Mis-shaped weights come back with their names, where transformers' own error is a table on the log.
        model, report = model_class.from_pretrained(
            name_or_path, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
        )
    except ImportError as error:
        # How transformers says that a quantized folder needs a package.
        require(
            f"The quantized model {name_or_path}", *(name for name in EXTRAS["quantize"] if name in str(error).lower())
        )
        raise CheckpointError(f"{name_or_path} cannot be loaded: {' '.join(str(error).split())}") from error
    except (OSError, ValueError, KeyError, RuntimeError, StrictDataclassError) as error:
        # What transformers says has several lines.
        raise CheckpointError(
            f"No model could be loaded from {name_or_path}: {' '.join(str(error).split())} "
            "Name a folder that `save_pretrained` wrote, or the id of a model on the Hub."
        ) from error
    mismatched = sorted(key for key in report["mismatched_keys"] if key[0].partition(".")[0] not in new_modules)
    if mismatched:
        name, stored, expected = mismatched[0]
        raise CheckpointError(
            f"{name_or_path}: the weight {name} has the shape {tuple(stored)}, {CONFIG_NAME} asks for "
            f"{tuple(expected)} ({len(mismatched)} such weights). The two files do not belong together."
        )
    if missing := sorted(key for key in report["missing_keys"] if key.partition(".")[0] not in new_modules):
        raise MissingWeights(
            f"{name_or_path}: {len(missing)} weights are missing, {', '.join(missing[:3])} among them. "
            "The checkpoint is incomplete: save or copy it again.",
            missing,
        )
    return model


def refuse_adapter(name_or_path: str | Path) -> None:
    """Raises `ConversionError` for a folder with an adapter and no model."""
    folder = Path(name_or_path)
    if (folder / ADAPTER_CONFIG_NAME).is_file() and not (folder / CONFIG_NAME).is_file():
        raise ConversionError(
            f"{folder} holds an adapter: make one model of it and its base with chatgpt-hf merge first."
        )


def load_for_inference(name_or_path: str | Path, model_class: Any = AutoModelForCausalLM) -> PreTrainedModel:
    """`load_model` onto the machine's accelerator, where it has one."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    placed = {"device_map": accelerator.type} if accelerator is not None else {}
    return load_model(name_or_path, model_class, **placed).eval()


def check_safetensors(file: Path) -> None:
    """Raises `CheckpointError` where a safetensors file is cut short or is none."""
    try:
        with safe_open(file, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{file} is no whole safetensors file ({error}): it was cut short while it was written or copied. "
            "Take an earlier checkpoint, or save or copy it again."
        ) from error


def _load_adapter(folder: Path, model_class: Any, **kwargs: Any) -> Any:
    """The `PeftModel` of an adapter and its base, with rows for the tokens that the adapter's tokenizer has more."""
    with needed_by(f"The adapter {folder}"):
        from peft import PeftModel

    try:
        base = json.loads((folder / ADAPTER_CONFIG_NAME).read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / ADAPTER_CONFIG_NAME} cannot be read: {error}") from error
    for file in sorted(folder.glob("*.safetensors")):
        check_safetensors(file)
    try:
        model = load_model(base, model_class, **kwargs)
    except CheckpointError as error:
        raise CheckpointError(f"The base model of the adapter {folder} cannot be loaded. {error}") from error
    sample = sample_of(model)
    if (folder / "tokenizer.json").is_file():
        extend_vocabulary(model, len(load_tokenizer(folder)))
    if (folder / GENERATION_CONFIG_NAME).is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    try:
        with warnings.catch_warnings():
            # PEFT only warns of weights that it does not find.
            warnings.filterwarnings("error", message="Found missing adapter keys")
            adapted = PeftModel.from_pretrained(model, str(folder))
    except (OSError, ValueError, RuntimeError, UserWarning, KeyError) as error:
        raise CheckpointError(
            f"The adapter {folder} does not fit its base model {base}: {str(error).strip()[:300]}. Is {base} still the model "
            "that it was trained on?"
        ) from error
    if (folder / BASE_SAMPLE_NAME).is_file():
        trained_on = json.loads((folder / BASE_SAMPLE_NAME).read_text(encoding="utf-8"))
        # Room for a base that is loaded in another precision.
        if not np.allclose(sample, trained_on, rtol=0.02, atol=1e-3):
            raise CheckpointError(
                f"The adapter {folder} was trained on another model than {base} is now, though its shape is the same: put "
                "the base model back that it was trained on."
            )
    return adapted


def sample_of(model: PreTrainedModel) -> list[float]:
    """64 of a model's embedding weights, by which an adapter knows its base again: PEFT looks at shapes alone."""
    weights = model.get_input_embeddings().weight.detach().flatten()
    places = torch.linspace(0, weights.numel() - 1, 64, dtype=torch.float64).long()
    return weights[places.to(weights.device)].float().tolist()


def check_tokenizer_fits(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises `TokenizerError` where the tokenizer can give ids that the model's embedding does not have."""
    if len(tokenizer) > model.config.vocab_size:
        raise TokenizerError(
            f"The tokenizer has {len(tokenizer)} tokens and the model's `vocab_size` is {model.config.vocab_size}: "
            "use the tokenizer that the model was trained with, or call `model.resize_token_embeddings(len(tokenizer))`."
        )


@torch.no_grad()
def extend_vocabulary(model: PreTrainedModel, size: int) -> None:
    """Gives a model rows for tokens up to `size`, each the mean of the old, in the embedding and in the head.

    So the model gives the new tokens neither nothing nor everything at first (Hewitt 2021, "Initializing new word
    embeddings for pretrained language models"), and the same rows whenever it is done again.
    """
    before = model.config.vocab_size
    if size <= before:
        return
    model.resize_token_embeddings(size, mean_resizing=False)
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    for weight in {id(layer.weight): layer.weight for layer in layers if layer is not None}.values():
        weight[before:] = weight[:before].mean(dim=0)


def check_new_folder(path: str | Path) -> Path:
    """The folder, which may be written to: there is none yet, or an empty one.

    Raises:
        OutputError: When it holds something, or is a file.
    """
    folder = Path(path)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"{folder} is not an empty folder. Nothing was written; name another one.")
    return folder


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
    found = [path for path in found if not path.name.startswith(_SAVING_PREFIX)]
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
    for path in folder.glob(f"{_SAVING_PREFIX}*"):
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


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is no file.

    Raises:
        CheckpointError: When it cannot be read, or holds something else.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}. Save or copy it again.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} holds no JSON object. Save or copy it again.")
    return content


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


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder whose files replace those of the same names in `folder` when the block ends without an error.

    Raises:
        OutputError: When the disk is full; `folder` is as it was before.
    """
    made = not folder.exists()
    with clear_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=_SAVING_PREFIX, dir=folder))
    try:
        with clear_disk_errors(folder):
            yield temporary
            for path in sorted(temporary.rglob("*")):
                target = folder / path.relative_to(temporary)
                if path.is_dir():
                    target.mkdir(exist_ok=True)
                else:
                    os.replace(path, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if made:
            with suppress(OSError):
                folder.rmdir()


@contextmanager
def clear_disk_errors(folder: Path) -> Iterator[None]:
    """Turns a write that the disk refused into an `OutputError` that names the folder."""
    try:
        yield
    except ChatGPTError:
        raise
    except Exception as error:
        full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        refused = isinstance(error, OSError) and error.errno in (*full, errno.EROFS, errno.EACCES, errno.EPERM)
        # safetensors and torch.save report the same in their own classes.
        texts = (
            "No space left on device",
            "File too large",
            "Disk quota exceeded",
            "PytorchStreamWriter",
            "unexpected pos",
        )
        if not refused and not any(text in str(error) for text in texts):
            raise
        raise OutputError(
            f"Could not write to {folder}: {error}. What was there before is intact; free some space, or name a folder "
            "that can be written to, and run the same command again (add --resume_from_checkpoint true to a training run)."
        ) from error


def write_atomically(file: Path, write: Callable[[Path], object]) -> None:
    """Calls `write` with a temporary name beside `file`, then renames. The old file survives a failure."""
    with atomic_folder(file.parent) as temporary:
        write(temporary / file.name)
