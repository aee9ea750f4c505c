"""Checks of a model's folder that somebody else may have made, before a library opens what is in it.

transformers and PEFT read every file that a folder names, follow every link, and build every size that a config asks for.
Code that comes with a folder is never run.
"""

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import (
    ADAPTER_CONFIG_NAME,
    CONFIG_NAME,
    GENERATION_CONFIG_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    WEIGHTS_INDEX_NAME,
)

from .errors import CheckpointError, ConfigError
from .files import check_regular, check_text_file, read_json
from .generation_settings import check_settings
from .stored import (
    check_shards,
    config_of,
    indexed_files,
    quantization_of,
    read_header,
    safetensors_files,
    stored_tensors,
)

_INDEXES = (SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_INDEX_NAME)
# Not tokenizer.json, which is large, and read by `load_tokenizer`.
_TOKENIZER_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
# Read by libraries, which name neither the file nor what would be right.
_READ_AS_JSON = (CONFIG_NAME, GENERATION_CONFIG_NAME, ADAPTER_CONFIG_NAME, *_INDEXES)
_TEXT = ("vocab.json", "vocab.txt", "merges.txt", "tokenizer.model")
# The only folders within a model's folder that a library reads when it loads the model.
_FOLDERS = ("additional_chat_templates", "custom_generate")
_CUSTOM_GENERATE = "custom_generate/generate.py"
# The Hub's cache keeps the files of a snapshot by their hash, and links to them.
_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
# Not `max_window_layers`, which is 28 in small models too.
_LAYERS = re.compile(r"(?!max_window_)(?:\w+_)?n?_?layers?")
# A config may ask for this many times the stored weights, and this many more: a new head, or an embedding that is not tied.
_MOST_TIMES, _MOST_MORE = 4, 100_000_000
# transformers makes a name for each label.
_MOST_LABELS = 1_000_000
# Layers that an adapter may repeat although it has weights for fewer.
_MOST_REPEATED = 128
# Rounds of an adapter's initialization, which PEFT repeats when it loads one; it suggests 16 and 1.
_MOST_ROUNDS = 100
# Fields of adapter_config.json with patterns, as values or as keys.
_PATTERNS = (
    *("target_modules", "exclude_modules", "rank_pattern", "alpha_pattern", "layers_pattern", "modules_to_save"),
    *("feedforward_modules", "target_parameters", "n_frequency_pattern", "block_size_pattern"),
)
_PLAIN = re.compile(r"[\w.-]*")
# Longer than any pattern takes that was meant to be used.
SECONDS = 60
# Matches patterns as PEFT does; what is no pattern is PEFT's to refuse.
_TRY = """
import json, re, sys
patterns, names = json.load(sys.stdin)
for pattern in patterns:
    try:
        for name in names:
            re.match(pattern, name), re.fullmatch(pattern, name)
    except (re.error, RecursionError, OverflowError):
        pass
"""
_SETTINGS = (CONFIG_NAME, GENERATION_CONFIG_NAME, ADAPTER_CONFIG_NAME)
# The modules that a folder of ours names, and that of our pipelines, which are saved with models of any family.
OUR_MODULES, OUR_PIPELINES = {"configuration_chatgpt", "modeling_chatgpt"}, {"pipelines"}


def check_files(folder: Path, *, tokenizer: bool = False) -> None:
    """Checks the files of a folder before a library opens them; a folder that does not exist passes.

    Args:
        tokenizer: Check the JSON files of the tokenizer instead of those of the model.

    Raises:
        CheckpointError: If one is no regular file, is a link that leaves the folder, or should be JSON with an object and is not;
            or if an index of weights names files outside of the folder.
    """
    if not folder.is_dir():
        return
    for path in _opened(folder):
        if path.is_dir() and path.name not in _FOLDERS:
            # Checkpoints and logs may well be on another disk, and no library opens them.
            continue
        check_link(path, folder, loads=True)
        if not path.is_dir() and path.exists():
            (check_text_file if path.name in _TEXT or path.suffix == ".jinja" else check_regular)(path)
    for name in _TOKENIZER_FILES if tokenizer else _READ_AS_JSON:
        content = read_json(folder / name)
        if name in _SETTINGS:
            _check_finite(folder / name, content)
        if name == CONFIG_NAME:
            _check_fields(folder / name, content)
    if tokenizer:
        return
    check_settings(folder)
    for name in _INDEXES:
        if (folder / name).is_file():
            indexed_files(folder / name)


def _check_fields(file: Path, content: dict[str, Any]) -> None:
    """Raises `CheckpointError` for fields of config.json that transformers takes as they are, and that nothing works with."""
    for name in content:
        # Would replace a method of the config.
        if callable(getattr(PreTrainedConfig, name, None)):
            raise CheckpointError(f"{file}: {name:.100} is not the name of a field. Delete it.")
    if content.get("return_dict", True) is not True:
        raise CheckpointError(f"{file}: return_dict is not true, but outputs with names are needed. Delete the field.")
    classes = content.get("architectures")
    if classes is not None and not (isinstance(classes, list) and all(isinstance(name, str) for name in classes)):
        raise CheckpointError(
            f"{file}: architectures is {classes!r:.100}, which is not a list of the names of classes."
        )


def _check_finite(file: Path, content: dict[str, Any]) -> None:
    """Raises `CheckpointError` for a NaN or an infinite number: whatever is computed with it is no number either."""
    for name, value in _values(content):
        # The limits of a Mamba's time steps are open at one end.
        if isinstance(value, float) and not math.isfinite(value) and "time_step_limit" not in name:
            raise CheckpointError(f"{file}: {name} is {value}, which is not a finite number.")


def _values(content: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The values in an object, also those in objects and lists within it, with their names, such as `rope_scaling.factor`."""
    if isinstance(content, dict):
        for key, value in content.items():
            # How transformers writes a number that JSON does not know.
            yield from _values(_special(value), f"{name}.{key}" if name else str(key))
    elif isinstance(content, list):
        for value in content:
            yield from _values(_special(value), name)
    else:
        yield name, content


def _special(value: Any) -> Any:
    """NaN or infinity that transformers wrote as an object, such as `{"__float__": "NaN"}`; anything else as it is."""
    if isinstance(value, dict) and value.keys() == {"__float__"}:
        with suppress(TypeError, ValueError):
            return float(value["__float__"])
    return value


def _opened(folder: Path) -> Iterator[Path]:
    """The entries of a model's folder that a library may open when it loads the model."""
    yield from sorted(folder.iterdir())
    for name in _FOLDERS:
        if (folder / name).is_dir():
            yield from sorted((folder / name).iterdir())


def check_link(path: Path, folder: Path, *, loads: bool = False) -> None:
    """Raises `CheckpointError` if a path in a folder is a link that leaves it, other than into the blobs of the Hub's cache.

    The owner of a folder decides where a link leads, and would have files read, converted or published that they cannot read.

    Args:
        loads: Allow a link from weights to weights, both .safetensors: large files often lie on another disk, and no other kind
            of file can be read that way.
    """
    if not path.is_symlink():
        return
    # Unlike `Path.resolve`, this does not raise for a link to itself.
    target, inside = Path(os.path.realpath(path)), Path(os.path.realpath(folder))
    blobs = target.parent
    is_blob = blobs.name == "blobs" and blobs.parent.name.startswith("models--") and _HASH.fullmatch(target.name)
    is_weights = path.suffix == target.suffix == ".safetensors" and target.is_file()
    if not target.is_relative_to(inside) and not is_blob and not (loads and is_weights):
        raise CheckpointError(
            f"{path} is a link to {target}, outside of the folder. Such links are followed only to weights (.safetensors), and only "
            "to load them: put a copy of the file there, if it belongs to the model."
        )


def refuse_foreign_code(name_or_path: str | Path, config_class: Any = AutoConfig) -> None:
    """Raises `ConfigError` if a model needs, or asks to run, code that is not this package's or transformers'.

    transformers asks on the terminal whether to run such code; or, if it knows the family, silently uses its own class, which
    need not compute the same.

    Args:
        name_or_path: A model folder or Hub id.
        config_class: The config class of a model class that the caller brings; its family counts as known.
    """
    config = config_of(name_or_path)
    where = Path(name_or_path) / CONFIG_NAME
    family = config.get("model_type")
    known = isinstance(family, str) and (
        family in CONFIG_MAPPING or family == getattr(config_class, "model_type", None)
    )
    if family is not None and not known:
        raise ConfigError(
            f"{where} cannot be used: neither transformers nor this package knows the model_type {family!r}, and code from the "
            "folder is not run."
        )
    for field, ours in (
        ("auto_map", OUR_MODULES if family == "chatgpt" else set()),
        ("custom_pipelines", OUR_PIPELINES),
    ):
        for reference in _references(config.get(field)):
            if reference.rpartition("--")[2].partition(".")[0] not in ours:
                raise ConfigError(
                    f"{where} names the code {reference}, and code that comes with a model is not run. Delete the field {field} to "
                    f"load the weights with the installed class for the model_type {family!r}, if they are meant for it."
                )
    if kernel := next(_kernels(config), None):
        raise ConfigError(
            f"{where} asks for the kernel {kernel}, which would be code from the Hub. Delete the field in {CONFIG_NAME}; "
            "--attn_implementation chooses how attention is computed."
        )
    if (Path(name_or_path) / _CUSTOM_GENERATE).exists():
        raise ConfigError(
            f"{Path(name_or_path) / _CUSTOM_GENERATE} is code that generates in another way, and code that comes with a model is "
            "not run. Delete the folder custom_generate to generate as transformers does."
        )


def _references(named: Any) -> Iterator[str]:
    """The classes in a field of a config, such as `modeling_theirs.Model` or `someone/theirs--modeling_theirs.Model`."""
    if isinstance(named, dict):
        # A pipeline's entry also names classes of transformers.
        for item in [named["impl"]] if "impl" in named else named.values():
            yield from _references(item)
    elif isinstance(named, list):
        for item in named:
            yield from _references(item)
    elif named is not None:
        yield str(named)


def _kernels(config: dict[str, Any]) -> Iterator[str]:
    """The names of repositories in fields such as `attn_implementation`, also of a composite model's parts."""
    for name, value in config.items():
        if str(name).removesuffix("_internal").endswith("_implementation"):
            values = value.values() if isinstance(value, dict) else [value]
            yield from (each for each in values if isinstance(each, str) and "/" in each)
        elif isinstance(value, dict):
            yield from _kernels(value)


def check_sizes(folder: Path, model_class: Any) -> None:
    """Raises `ConfigError` if a config describes a much larger model than the folder's weights, which would be built all the same.

    Args:
        model_class: An Auto class or a model class.
    """
    if quantization_of(folder):
        return
    check_shards(folder)
    stored = list(stored_tensors(folder))
    if not stored:
        return
    file = folder / CONFIG_NAME
    check_layers(file, len(stored), f"and the folder has only {len(stored):,} weights")
    try:
        # Shapes without memory.
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            model = _build(folder, model_class)
    except Exception as error:
        if "overflow" in str(error).lower():
            raise ConfigError(
                f"{file} describes a model that fits no machine: {' '.join(str(error).split())}"
            ) from error
        return  # Loading it says what is wrong.
    asked = sum(weight.numel() for weight in (*model.parameters(), *model.buffers()))
    has = sum(math.prod(tensor.shape) for tensor in stored)
    if asked > _MOST_TIMES * has + _MOST_MORE:
        raise ConfigError(
            f"{file} describes a model of {asked:,} numbers, and the folder's weights have {has:,}. Config and weights do not "
            "belong together."
        )


def check_layers(file: Path, most: int = 10_000, reason: str = "more than any model has") -> None:
    """Raises `ConfigError` if a config asks for too many layers or labels: already its config has a list of them."""
    content = read_json(file)
    for name, value in _values(content):
        if name.rpartition(".")[2] == "num_labels" and isinstance(value, int) and value > _MOST_LABELS:
            raise ConfigError(f"{file}: {name} is {value:,}, and at most {_MOST_LABELS:,} labels are possible.")
    for name, value in content.items():
        if _LAYERS.fullmatch(name) and isinstance(value, int) and value > most:
            raise ConfigError(f"{file}: {name} is {value:,}, {reason}.")


def _build(folder: Path, model_class: Any) -> torch.nn.Module:
    if hasattr(model_class, "from_config"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        return model_class.from_config(config, trust_remote_code=False)
    return model_class(model_class.config_class.from_pretrained(folder))


def check_adapter_sizes(folder: Path) -> None:
    """Raises `ConfigError` if an adapter's config asks for larger matrices or more layers than its folder has, or endless work.

    A folder without an adapter passes.
    """
    file = folder / ADAPTER_CONFIG_NAME
    if not file.is_file():
        return
    config = read_json(file)
    tensors = [tensor for weights in safetensors_files(folder) for tensor in read_header(weights)]
    largest = max((size for tensor in tensors for size in tensor.shape), default=None)
    ranks = config.get("rank_pattern")
    sizes = {name: config.get(name) for name in ("r", "num_virtual_tokens")}
    if config.get("peft_type") == "LOKR":
        # Any rank beyond half of a dimension means a full matrix there.
        del sizes["r"]
    sizes |= ranks if isinstance(ranks, dict) else {}
    for name, size in sizes.items():
        if largest is not None and isinstance(size, int) and size > largest:
            raise ConfigError(f"{file}: {name} is {size:,}, and no weight of the adapter is larger than {largest:,}.")
    niter = str(config.get("init_lora_weights")).rpartition("niter_")[2]
    loftq = config.get("loftq_config")
    for name, rounds in (
        ("init_lora_weights", float(niter) if niter.isdecimal() else None),
        ("loftq_config.loftq_iter", loftq.get("loftq_iter") if isinstance(loftq, dict) else None),
    ):
        if isinstance(rounds, (int, float)) and rounds > _MOST_ROUNDS:
            raise ConfigError(
                f"{file}: {name} asks for {rounds:,.0f} rounds, and at most {_MOST_ROUNDS} are possible."
            )
    ranges = config.get("layer_replication")
    ends = [ends for ends in ranges if isinstance(ends, list) and len(ends) == 2] if isinstance(ranges, list) else []
    layers = sum(end - start for start, end in ends if isinstance(start, int) and isinstance(end, int))
    if layers > max(len(tensors), _MOST_REPEATED):
        raise ConfigError(
            f"{file}: layer_replication asks for {layers:,} layers, and the adapter has only {len(tensors):,} weights."
        )


def check_adapter_patterns(folder: Path, model: torch.nn.Module) -> None:
    """Raises `ConfigError` if a pattern in an adapter's config takes too long to match the names of its base model's modules.

    Python's `re` cannot be stopped, so another process tries the patterns first.
    """
    file = folder / ADAPTER_CONFIG_NAME
    config = read_json(file)
    named: list[tuple[str, str]] = []
    for field in _PATTERNS:
        value = config.get(field)
        texts = [value] if isinstance(value, str) else value if isinstance(value, (list, dict)) else []
        # Letters and dots match in one step.
        named += [(field, text) for text in texts if isinstance(text, str) and not _PLAIN.fullmatch(text)]
    names = [name for name, _ in model.named_modules()]
    for field, text in dict.fromkeys(named):
        job = json.dumps([[rf"(.*\.)?({text})$", rf"(^|.*\.){text}($|\..*)", text], names])
        try:
            subprocess.run(
                [sys.executable, "-I", "-c", _TRY], input=job, encoding="utf-8", timeout=SECONDS, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise ConfigError(
                f"{file}: the pattern {text!r:.200} of {field} takes more than {SECONDS} seconds to match the model's modules: "
                "write it without repeats of repeats, or list the modules."
            ) from error
