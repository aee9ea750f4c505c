"""Models loaded from folders, with errors that a user can act on."""

import json
import logging
import warnings
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch.distributed.tensor import DTensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import ADAPTER_CONFIG_NAME, CONFIG_NAME, GENERATION_CONFIG_NAME

from ._moved import names_of
from .errors import (
    CheckpointError,
    ConfigError,
    ConversionError,
    MissingWeights,
    TokenizerError,
    one_line,
)
from .extras import EXTRAS, needed_by, require
from .generation_settings import check_applied
from .stored import (
    base_of,
    base_places,
    check_memory,
    check_storage,
    config_of,
    is_adapter,
    pickle_message,
    pickled_weights,
    quantization_of,
    quantized_message,
    read_header,
    refuse_other_formats,
    safetensors_files,
)
from .text_encoding import clear_errors
from .tokenization_chatgpt import IM_END, load_tokenizer
from .untrusted import (
    check_adapter_patterns,
    check_adapter_sizes,
    check_files,
    check_layers,
    check_sizes,
    refuse_foreign_code,
)

# Atomic writing and the folders of runs were here in release 0.1.
__getattr__ = names_of(__name__, "files", "training.run_folder")

logger = logging.getLogger(__name__)

# What transformers, PEFT, safetensors and pickle raise at files that they do not expect.
_PICKLE_ERRORS = (UnpicklingError, EOFError, LookupError, TypeError, AttributeError)
_LOADING_ERRORS = (
    *(*_PICKLE_ERRORS, OSError, ValueError, RuntimeError, ArithmeticError, SafetensorError, StrictDataclassError),
)

# Saved beside an adapter: some weights of its base.
BASE_SAMPLE_NAME = "base_sample.json"


def load_model(
    name_or_path: str | Path,
    model_class: Any = AutoModelForCausalLM,
    *,
    new_modules: Collection[str] = (),
    **kwargs: Any,
) -> PreTrainedModel:
    """Loads a model with `model_class.from_pretrained`, and raises where transformers would only warn.

    Args:
        name_or_path: A model folder or Hub id; or a folder with a PEFT adapter, which is loaded onto its base model.
        model_class: An Auto class or a model class. `ChatGPTForCausalLM` also reads GPT-2 checkpoints.
        new_modules: Modules, such as a task's head, that are newly initialized if the checkpoint lacks them or has another
            shape.
        **kwargs: Passed to `from_pretrained`.

    Raises:
        CheckpointError: If there is no model, or weights are missing, mis-shaped or truncated.
        ConfigError: If config.json contradicts itself or names an unknown family.
    """
    folder = Path(name_or_path)
    check_files(folder)
    if is_adapter(folder):
        return _load_adapter(folder, model_class, new_modules=new_modules, **kwargs)
    check_folder(name_or_path)
    if folder.is_dir():
        load_config(folder, getattr(model_class, "config_class", None) or AutoConfig)
    else:
        refuse_foreign_code(name_or_path)
    for file in safetensors_files(folder):
        check_safetensors(file)
    if folder.is_dir():
        check_storage(folder)
        check_sizes(folder, model_class)
        check_adapter_sizes(folder)
        if "device_map" not in kwargs:
            check_memory(folder, kwargs.get("dtype"))
    try:
        # So that mis-shaped weights are returned by name; transformers' own error is a table in the log.
        model, report = model_class.from_pretrained(
            name_or_path, output_loading_info=True, ignore_mismatched_sizes=True, trust_remote_code=False, **kwargs
        )
    except ImportError as error:
        # A quantized folder needs another package.
        require(
            f"The quantized model {name_or_path}", *(name for name in EXTRAS["quantize"] if name in str(error).lower())
        )
        raise CheckpointError(quantized_message(name_or_path, error)) from error
    except AssertionError as error:
        if "padding_idx" not in str(error).lower():
            raise CheckpointError(f"No model could be loaded from {name_or_path}: {one_line(error)}") from error
        raise ConfigError(
            f"{folder / CONFIG_NAME}: pad_token_id is {config_of(folder).get('pad_token_id')}, and the vocabulary of the model has "
            "no such token: write one of its ids, or null."
        ) from error
    except _LOADING_ERRORS as error:
        if quantization_of(name_or_path):
            raise CheckpointError(quantized_message(name_or_path, error)) from error
        if pickled_weights(folder) and isinstance(error, _PICKLE_ERRORS):
            raise CheckpointError(pickle_message(folder)) from error
        raise CheckpointError(
            f"No model could be loaded from {name_or_path}: {one_line(error)} Name a folder that `save_pretrained` wrote, or the "
            "id of a model on the Hub."
        ) from error
    mismatched = sorted(key for key in report["mismatched_keys"] if key[0].partition(".")[0] not in new_modules)
    if mismatched:
        name, stored, expected = mismatched[0]
        raise CheckpointError(
            f"{name_or_path}: the weight {name} has the shape {tuple(stored)}, {CONFIG_NAME} asks for "
            f"{tuple(expected)} ({len(mismatched)} such weights). Config and weights do not belong together."
        )
    if missing := sorted(key for key in report["missing_keys"] if key.partition(".")[0] not in new_modules):
        raise MissingWeights(
            f"{name_or_path}: {len(missing)} weights are missing, including {', '.join(missing[:3])}. "
            "The checkpoint is incomplete: save or copy it again.",
            missing,
        )
    check_finite(model.named_parameters(), name_or_path)
    check_generation(model, name_or_path)
    return model


def check_generation(model: PreTrainedModel, source: str | Path) -> None:
    """Raises `ConfigError` if a model that generates has settings that `generate` cannot apply, or needs an encoder.

    Args:
        source: Its folder or Hub id, for the message.
    """
    if not model.can_generate():
        return
    if model.config.is_encoder_decoder:
        raise ConfigError(
            f"{Path(source) / CONFIG_NAME}: is_encoder_decoder is {model.config.is_encoder_decoder!r}, and only models without an "
            f"encoder are supported. If {type(model).__name__} is such a model, write false."
        )
    check_applied(model.generation_config, model.config.get_text_config().vocab_size, source)


def load_config(name_or_path: str | Path, config_class: Any = AutoConfig) -> PreTrainedConfig:
    """Loads a model's config.

    Args:
        name_or_path: A model folder or Hub id.
        config_class: `AutoConfig` or the config class of a model class.

    Raises:
        CheckpointError: If it cannot be read.
        ConfigError: If it contradicts itself, names an unknown family, or needs code that comes with the model.
    """
    check_files(Path(name_or_path))
    refuse_foreign_code(name_or_path, config_class)
    file = Path(name_or_path) / CONFIG_NAME
    check_layers(file)
    # A class that is no Auto class knows no such argument.
    consent = {"trust_remote_code": False} if config_class is AutoConfig else {}
    try:
        return config_class.from_pretrained(name_or_path, **consent)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {one_line(error)}") from error
    except _LOADING_ERRORS as error:
        raise ConfigError(f"{file} cannot be used: {one_line(error)}") from error


def check_finite(weights: Iterable[tuple[str, torch.Tensor]], where: str | Path) -> None:
    """Raises `CheckpointError` if weights are NaN or infinite: whatever such a model computes is NaN.

    Args:
        weights: Names and weights. Quantized ones, and those of a model without memory, are not checked.
        where: Their folder, for the message.
    """
    broken = []
    for name, whole in weights:
        # Of a weight that is shared among processes, this one's part.
        weight = whole.data.to_local() if isinstance(whole.data, DTensor) else whole
        plain = type(weight.data) is torch.Tensor and weight.is_floating_point() and weight.itemsize > 1
        if not plain or weight.is_meta or not weight.numel():
            continue
        # Reads each weight once and takes no memory, unlike `isfinite`.
        least, most = torch.aminmax(weight.detach())
        if not (least.isfinite() and most.isfinite()):
            broken.append(name)
    if broken:
        raise CheckpointError(
            f"{where}: NaN or infinite numbers in {len(broken)} of the weights, including {', '.join(broken[:3])}. The training "
            "diverged, or the file was damaged: use an earlier checkpoint, or copy it again."
        )


def check_finite_file(file: Path) -> None:
    """Raises `CheckpointError` if a safetensors file has weights that are NaN or infinite; holds one of them at a time."""
    with safe_open(file, "pt") as opened:
        check_finite(((name, opened.get_tensor(name)) for name in opened.keys()), file)  # noqa: SIM118


def check_folder(name_or_path: str | Path) -> None:
    """Raises `CheckpointError` for a file, or a folder without a model; a Hub id passes. Reads no weights."""
    folder = Path(name_or_path)
    refuse_other_formats(folder)
    named_as_path = folder.is_absolute() or str(name_or_path).startswith((".", "~")) or len(folder.parts) > 2
    if named_as_path and not folder.exists():
        raise CheckpointError(f"There is no folder {folder}; name one that `save_pretrained` wrote, or a Hub id.")
    if folder.is_file():
        raise CheckpointError(f"{folder} is a file; name the folder that contains {CONFIG_NAME} and the weights.")
    if folder.is_dir() and not (folder / CONFIG_NAME).is_file():
        raise CheckpointError(
            f"{folder} does not contain a model: {CONFIG_NAME} is missing. Name a folder that `save_pretrained` wrote."
        )


def check_named(name_or_path: str | Path, field: str) -> None:
    """As `check_folder`, and asks the Hub for the config of what is no folder.

    Args:
        field: What names the model, for the message.
    """
    check_folder(name_or_path)
    if Path(name_or_path).is_dir():
        return
    try:
        PreTrainedConfig.get_config_dict(str(name_or_path))
    except OSError as error:
        raise CheckpointError(
            f"--{field} {name_or_path}: there is no such folder here, and no such model could be read from the Hub: {one_line(error)}"
        ) from error


def refuse_adapter(name_or_path: str | Path) -> None:
    """Raises `ConversionError` for a folder that contains an adapter and no model."""
    if is_adapter(name_or_path):
        raise ConversionError(
            f"{name_or_path} contains an adapter: merge it into its base first, with `chatgpt-hf merge`."
        )


def repair_generation_config(model: Any) -> None:
    """Repairs a generation config that transformers would refuse to save, in place, and logs what it changed.

    Llama 2 was published with a temperature and without `do_sample`: its makers sample, so `do_sample` becomes true.

    Raises:
        ConfigError: If something else in it is wrong.
    """
    config = getattr(model, "generation_config", None)
    if config is None:
        return
    if config.pad_token_id is not None and config.pad_token_id < 0:
        logger.warning("%s: pad_token_id was %d and is now unset.", GENERATION_CONFIG_NAME, config.pad_token_id)
        config.pad_token_id = None
    try:
        config.validate(strict=True)
    except ValueError as error:
        was, config.do_sample = config.do_sample, True
        try:
            config.validate(strict=True)
        except ValueError:
            config.do_sample = was
            raise ConfigError(
                f"{GENERATION_CONFIG_NAME} of {model.name_or_path} cannot be saved: {' '.join(str(error).split())} "
                "Correct the file before training, because the trained model could not be written."
            ) from error
        logger.warning(
            "%s has settings of sampling without do_sample, which cannot be saved: do_sample is now true.",
            GENERATION_CONFIG_NAME,
        )


def load_for_inference(
    name_or_path: str | Path, model_class: Any = AutoModelForCausalLM, **kwargs: Any
) -> PreTrainedModel:
    """Calls `load_model`, placing the model on the machine's accelerator if there is one."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    placed = {"device_map": accelerator.type} if accelerator is not None else {}
    return load_model(name_or_path, model_class, **placed, **kwargs).eval()


def check_safetensors(file: Path) -> None:
    """Raises `CheckpointError` if a safetensors file is truncated or not a safetensors file; reads only its header."""
    read_header(file)


@contextmanager
def making_adapters() -> Iterator[None]:
    """Silences one warning while PEFT wraps a model, about names that only PEFT uses.

    PEFT 0.21 asks for `is_gradient_checkpointing` and its kin, which transformers 5.23 has renamed.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=r"`(is_)?gradient_checkpointing\w*` is deprecated", category=FutureWarning
        )
        yield


def _load_adapter(folder: Path, model_class: Any, **kwargs: Any) -> Any:
    """The `PeftModel` of an adapter and its base, whose embedding is extended to the adapter's tokenizer."""
    with needed_by(f"The adapter {folder}"):
        from peft import PeftModel

    base = base_of(folder)
    if not base:
        raise CheckpointError(
            f"{folder / ADAPTER_CONFIG_NAME} names no base model: `base_model_name_or_path` is missing."
        )
    for file in safetensors_files(folder):
        check_safetensors(file)
    check_adapter_sizes(folder)
    if not any(folder.glob("adapter_model*")):
        # PEFT would look for them on the Hub.
        raise CheckpointError(f"{folder} has no adapter_model.safetensors, the adapter's weights: copy it again.")
    try:
        model = load_model(base, model_class, **kwargs)
    except CheckpointError as error:
        raise CheckpointError(
            f"The base model of the adapter {folder} cannot be loaded. {base_places(folder, base)}{error}"
        ) from error
    check_adapter_patterns(folder, model)
    sample = sample_of(model)
    if (folder / "tokenizer.json").is_file():
        extend_vocabulary(model, len(load_tokenizer(folder)))
    try:
        if (folder / GENERATION_CONFIG_NAME).is_file():
            model.generation_config = GenerationConfig.from_pretrained(folder)
    except _LOADING_ERRORS as error:
        raise ConfigError(f"{folder / GENERATION_CONFIG_NAME} cannot be used: {one_line(error)}") from error
    check_generation(model, folder)
    try:
        with making_adapters():
            # PEFT only warns of missing weights.
            warnings.filterwarnings("error", message="Found missing adapter keys")
            adapted = PeftModel.from_pretrained(model, str(folder))
    except (UserWarning, ImportError, *_LOADING_ERRORS) as error:
        if isinstance(error, UnpicklingError):
            raise CheckpointError(pickle_message(folder)) from error
        raise CheckpointError(
            f"The adapter {folder} does not fit its base model {base}: {_first_line(error)}. Is {base} still the model it was "
            "trained on?"
        ) from error
    check_finite(adapted.named_parameters(), folder)
    if (folder / BASE_SAMPLE_NAME).is_file():
        try:
            trained_on = json.loads((folder / BASE_SAMPLE_NAME).read_text(encoding="utf-8"))
            # Tolerates a base that is loaded in another precision.
            same = np.allclose(sample, trained_on, rtol=0.02, atol=1e-3)
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise CheckpointError(
                f"{folder / BASE_SAMPLE_NAME} is no list of numbers ({one_line(error)}): copy it again."
            ) from error
        if not same:
            raise CheckpointError(
                f"The adapter {folder} was trained on another model than {base} is now, although the shapes match: restore the "
                "base model that it was trained on."
            )
    return adapted


def _first_line(error: Exception) -> str:
    """Returns the first sentence of an error of PEFT or torch, which list every weight on a line."""
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    # torch's own first line is only a title.
    return (" ".join(lines[:2]) if len(lines) > 1 else one_line(error))[:300].rstrip(".:")


def sample_of(model: PreTrainedModel) -> list[float]:
    """64 of a model's embedding weights, which identify an adapter's base: PEFT compares only shapes."""
    weights = model.get_input_embeddings().weight.detach().flatten()
    places = torch.linspace(0, weights.numel() - 1, 64, dtype=torch.float64).long()
    return weights[places.to(weights.device)].float().tolist()


# Longer than any text, and still a 32-bit index.
UNLIMITED_CONTEXT = 2**31 - 1


def context_length(model: PreTrainedModel) -> int:
    """The most tokens that a model attends to at once; `UNLIMITED_CONTEXT` where its config names no limit."""
    return context_of(model.config)


def context_of(config: PreTrainedConfig) -> int:
    """As `context_length`, from the model's config alone."""
    return getattr(config.get_text_config(), "max_position_embeddings", None) or UNLIMITED_CONTEXT


# Rows without a token that an embedding may have, because kernels like multiples of a power of two.
_MOST_PADDING = 512


@cache
def _warn_of_small_tokenizer(tokens: int, rows: int) -> None:
    """Warns once in a process: a session on each page of the chat makes the same check."""
    logger.warning(
        "The tokenizer has %d tokens and the model's `vocab_size` is %d: is it the tokenizer that the model was trained with?",
        tokens,
        rows,
    )


def check_tokenizer_fits(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises `TokenizerError` if the tokenizer can produce ids beyond the model's embedding, and warns if it uses little of it."""
    if 2 * len(tokenizer) < model.config.vocab_size - _MOST_PADDING:
        _warn_of_small_tokenizer(len(tokenizer), model.config.vocab_size)
    if len(tokenizer) > model.config.vocab_size:
        raise TokenizerError(
            f"The tokenizer has {len(tokenizer)} tokens and the model's `vocab_size` is {model.config.vocab_size}: "
            "use the tokenizer that the model was trained with, or call `model.resize_token_embeddings(len(tokenizer))`."
        )
    with clear_errors():
        # What a post-processor puts around a text need not be in the vocabulary.
        around = tokenizer("", verbose=False)["input_ids"]
    ids = [*tokenizer.get_vocab().values(), *around]
    if ids and max(ids) >= model.config.vocab_size:
        raise TokenizerError(
            f"The tokenizer has a token with the id {max(ids)} and the model's `vocab_size` is {model.config.vocab_size}: correct "
            "tokenizer.json, or use the tokenizer that the model was trained with."
        )


def end_marks(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Token ids that end an answer: the tokenizer's and our template's mark, and those of the model's generation."""
    named = getattr(model, "generation_config", model.config).eos_token_id
    ends = {
        tokenizer.eos_token_id,
        tokenizer.get_vocab().get(IM_END),
        *(named if isinstance(named, list) else [named]),
    }
    return ends - {None}


@torch.no_grad()
def extend_vocabulary(model: PreTrainedModel, size: int) -> None:
    """Extends embedding and head to `size` tokens; each new row is the mean of the old ones.

    The mean gives new tokens a moderate probability at first (Hewitt 2021, "Initializing new word embeddings for pretrained
    language models") and is deterministic.
    """
    before = model.config.vocab_size
    if size <= before:
        return
    model.resize_token_embeddings(size, mean_resizing=False)
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    for weight in {id(layer.weight): layer.weight for layer in layers if layer is not None}.values():
        weight[before:] = weight[:before].mean(dim=0)
