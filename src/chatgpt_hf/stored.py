"""Reads the format, dtype, origin and size of a folder's weights without loading the model."""

import json
import logging
import math
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedConfig
from transformers.utils import (
    ADAPTER_CONFIG_NAME,
    CONFIG_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
)

from .errors import CheckpointError
from .files import read_json
from .parsing import parse_yaml, read_file, special_kind

logger = logging.getLogger(__name__)

# In the config of a model whose weights come from another family: that family, and what else is known about the original.
ORIGIN_FIELD = "converted_from"

# How safetensors names the kinds of floating-point numbers that a model can be trained and saved in.
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# The bits of a number in the names of safetensors' dtypes.
_BITS = re.compile(r"BOOL|(?:F|BF|I|U|C)(\d+)(?:_\w+)?")
# Of a path, in most file systems.
_LONGEST_PATH = 4096
# Of a file's name, in bytes, on all common file systems.
_LONGEST_NAME = 255
# safetensors itself refuses a longer one.
_LONGEST_HEADER = 100_000_000
# The first line of the pointer that Git LFS leaves for a file that it has not fetched.
_POINTER = b"version https://git-lfs"
# Formats of other programs: what they are, and what reads them.
_OTHER_FORMATS = {
    ".gguf": "a GGUF file, which llama.cpp reads. transformers' `from_pretrained(FOLDER, gguf_file=NAME)` makes a model of it",
    ".onnx": "an ONNX graph, which onnxruntime runs. It cannot be turned back into a model",
}
# Files with the terms under which a model may be used; they have to go along with what is made from it.
_LICENCE_FILES = ("LICENSE*", "LICENCE*", "NOTICE*", "COPYING*", "USE_POLICY*")
CARD_NAME = "README.md"
# The facts of the run that made a folder.
REPORT_FILE = "report/report.json"
# The threshold below which a model abstains; it belongs to the weights that it was calibrated with.
ABSTENTION_NAME = "abstention.json"
# What reads a quantized folder, by the `quant_method` of its config.
_READERS = {
    "gptq": "transformers with `pip install optimum gptqmodel`, and vLLM, read GPTQ",
    "awq": "transformers with `pip install gptqmodel`, and vLLM, read AWQ",
    "fp8": "transformers on a GPU of compute capability 8.9 or newer, and vLLM, read float8",
    "fbgemm_fp8": "transformers with `pip install fbgemm-gpu` on a GPU, and vLLM, read this float8",
    "compressed-tensors": "transformers with `pip install compressed-tensors`, and vLLM, read it",
    "bitsandbytes": "transformers with `pip install bitsandbytes` reads it",
    "torchao": "transformers with `pip install torchao` reads it",
    "hqq": "transformers with `pip install hqq` reads it",
    "quanto": "transformers with `pip install optimum-quanto` reads it",
}
# Kinds of compressed-tensors that store plain numbers.
_PLAIN_FORMATS = ("dense",)


def refuse_other_formats(path: str | Path) -> None:
    """Raises `CheckpointError` for a file, or a folder without other weights, in the format of another program."""
    path = Path(path)
    files = [path] if path.is_file() else []
    if path.is_dir() and not weight_files(path):
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in _OTHER_FORMATS)
    for file in files:
        # A GGUF file begins with its name, whatever it is called.
        kind = ".gguf" if _begins_with(file, b"GGUF") else file.suffix.lower()
        if what := _OTHER_FORMATS.get(kind):
            raise CheckpointError(
                f"{file} is {what}. Name the folder that it was made from, with {CONFIG_NAME} and {SAFE_WEIGHTS_NAME}."
            )


def weight_files(folder: Path) -> list[Path]:
    """The files that `from_pretrained` takes a folder's weights from: safetensors, or torch files; empty without any."""
    for whole, index in ((SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME), (WEIGHTS_NAME, WEIGHTS_INDEX_NAME)):
        if (folder / whole).is_file():
            return [folder / whole]
        if (folder / index).is_file():
            return [folder / name for name in indexed_files(folder / index) if (folder / name).is_file()]
    return []


def safetensors_files(folder: Path) -> list[Path]:
    """The safetensors files in a folder, sorted; not hidden ones, such as the `._model.safetensors` that macOS writes."""
    return sorted(folder.glob("[!.]*.safetensors"))


def indexed_files(index: Path) -> list[str]:
    """The names of the files that an index of weights lists, sorted.

    Raises:
        CheckpointError: If the index is not one, or names a file outside of its folder.
    """
    named = read_json(index).get("weight_map")
    if not isinstance(named, dict) or not named or not all(isinstance(name, str) for name in named.values()):
        raise CheckpointError(
            f"{index} lists no weights: `weight_map` has to be an object with the file of each weight."
        )
    names = sorted(set(named.values()))
    for name in names:
        # A Windows path has a drive or backslashes; `save_pretrained` writes all files beside the index.
        if name in ("", ".", "..") or set(name) & set("/\\:\0") or len(os.fsencode(name)) > _LONGEST_NAME:
            raise CheckpointError(
                f"{index} names {name!r:.300}, which is not a file beside it: weights outside of the folder are not read. Save or "
                "copy the model again."
            )
    return names


def check_shards(folder: Path) -> None:
    """Raises `CheckpointError` if a file is missing that the index of a folder's safetensors names."""
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    if index.is_file() and not (folder / SAFE_WEIGHTS_NAME).is_file():
        for name in indexed_files(index):
            if not (folder / name).is_file():
                raise CheckpointError(f"{index} names {name}, which is missing: save or copy the model again.")


class StoredTensor(NamedTuple):
    """Name, kind of number (as safetensors calls it) and shape of a tensor in a safetensors file."""

    name: str
    kind: str
    shape: tuple[int, ...]


def stored_tensors(folder: Path) -> Iterator[StoredTensor]:
    """The tensors in a folder's safetensors; reads only headers, and raises like `read_header`."""
    for file in weight_files(folder):
        if file.suffix == ".safetensors":
            yield from read_header(file)


def read_header(file: Path) -> list[StoredTensor]:
    """The tensors of a safetensors file, reading only its header.

    safetensors' own `safe_open` maps the whole file into memory, which fails for one that is larger than the memory.

    Raises:
        CheckpointError: If the file is truncated, or not a safetensors file.
    """
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            size = os.fstat(opened.fileno()).st_size - 8 - length
            if length.to_bytes(8, "little") == _POINTER[:8] and opened.read(len(_POINTER) - 8) == _POINTER[8:]:
                raise CheckpointError(
                    f"{file} is a pointer of Git LFS, which stands for the weights: run `git lfs pull` in its repository."
                )
            if length > _LONGEST_HEADER or size < 0:
                raise ValueError(f"a header of {length:,} bytes is not in it")
            header = json.loads(opened.read(length).decode())
        return _tensors_of(header, size)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = f"its header lacks {error}" if isinstance(error, KeyError) else error
        raise CheckpointError(
            f"{file} is not a complete safetensors file ({reason}): writing or copying it was interrupted. "
            "Use an earlier checkpoint, or save or copy it again."
        ) from error


def _tensors_of(header: dict[str, Any], size: int) -> list[StoredTensor]:
    """The tensors in a header; raises `ValueError` unless they fill the `size` bytes after it without gaps."""
    tensors, end = [], 0
    entries = [(name, entry) for name, entry in header.items() if name != "__metadata__"]
    for name, entry in sorted(entries, key=lambda item: item[1]["data_offsets"]):
        kind, shape, (begin, after) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        bits = _BITS.fullmatch(kind)
        if bits is None:
            raise ValueError(f"{name} has the unknown dtype {kind}")
        wanted = math.prod(shape) * int(bits[1] or 8)
        if begin != end or (after - begin) * 8 != wanted:
            raise ValueError(f"{name} of shape {shape} does not fit its place in the file")
        tensors.append(StoredTensor(name, kind, shape))
        end = after
    if end != size:
        raise ValueError(f"the header describes {end:,} bytes of weights, and {size:,} follow it")
    return tensors


def config_of(name_or_path: str | Path) -> dict[str, Any]:
    """The content of a model's config.json, for an adapter its base's; empty where there is none that can be read."""
    if is_adapter(name_or_path):
        base = base_of(name_or_path)
        return config_of(base) if base else {}
    try:
        found = PreTrainedConfig.get_config_dict(str(name_or_path))[0]
    # transformers looks into what should be an object.
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def is_adapter(name_or_path: str | Path) -> bool:
    """True for a folder with an adapter and without a model."""
    folder = Path(name_or_path)
    return (folder / ADAPTER_CONFIG_NAME).is_file() and not (folder / CONFIG_NAME).is_file()


def base_of(adapter: str | Path) -> str | None:
    """The base model of an adapter's folder, which may be another adapter; None if the adapter names none.

    A relative path leads from the adapter's folder, if there is a model; else it is as it was written: a path from the working
    directory, or a Hub id.

    Raises:
        CheckpointError: If adapter_config.json cannot be read, or the adapter is based on itself, directly or through others.
    """
    seen: set[Path] = set()
    found: list[str | None] = []
    current = Path(adapter)
    while not found or (found[-1] and is_adapter(current)):
        if current.resolve() in seen:
            raise CheckpointError(
                f"{Path(adapter) / ADAPTER_CONFIG_NAME}: the adapter is based on itself"
                f"{'' if len(found) == 1 else f' through {found[0]}'}. Name the model that it was trained on as "
                "`base_model_name_or_path`."
            )
        seen.add(current.resolve())
        base = read_json(current / ADAPTER_CONFIG_NAME).get("base_model_name_or_path")
        if base is not None and (not isinstance(base, str) or len(base) > _LONGEST_PATH or "\0" in base):
            raise CheckpointError(
                f"{current / ADAPTER_CONFIG_NAME}: `base_model_name_or_path` is no name of a model or folder."
            )
        found.append(_sought(current, base) if base else base)
        current = Path(found[-1] or "")
    return found[0]


def _sought(adapter: Path, base: str) -> str:
    """The path of a base model from an adapter's folder, if there is one and it is not the adapter; else the base as it is named."""
    beside = adapter / base
    is_model = any((beside / name).is_file() for name in (CONFIG_NAME, ADAPTER_CONFIG_NAME))
    return str(beside) if is_model and beside.resolve() != adapter.resolve() else base


def base_places(adapter: Path, base: str) -> str:
    """A sentence about where a base model was sought, for an error; empty if it is there, or is named by an absolute path."""
    if Path(base).is_absolute() or Path(base).exists():
        return ""
    return f"There is no folder {adapter / base}, and no {base} in the working directory, {Path.cwd()}. "


def stored_dtype(name_or_path: str | Path) -> torch.dtype:
    """The dtype that a model is stored in: that of its config.json, or else of its first weights; float32 if neither says.

    Args:
        name_or_path: Folder or Hub id of a model, or the folder of an adapter, which has the dtype of its base.
    """
    config = config_of(name_or_path)
    named = str(config.get("dtype") or config.get("torch_dtype")).removeprefix("torch.")
    for dtype in _DTYPES.values():
        if named == str(dtype).removeprefix("torch."):
            return dtype
    folder = Path(name_or_path)
    found = (
        (_DTYPES[kind] for _, kind, _ in stored_tensors(folder) if kind in _DTYPES) if folder.is_dir() else iter(())
    )
    return next(found, torch.float32)


def quantization_of(name_or_path: str | Path) -> str | None:
    """The method, such as gptq or fp8, that a model's weights are quantized with according to its config; None if they are not."""
    found = config_of(name_or_path).get("quantization_config")
    if not isinstance(found, dict):
        return None
    # bitsandbytes did not always write its name.
    return str(found.get("quant_method") or "bitsandbytes")


def is_foreign(name_or_path: str | Path) -> bool:
    """True if a model's weights were not trained with this package first: it is, or was converted from, another family's."""
    config = config_of(name_or_path)
    return bool(config) and (config.get("model_type") != "chatgpt" or ORIGIN_FIELD in config)


def origin_of(source: str | Path) -> dict[str, Any]:
    """The name of a model, and its licence where its folder has a card that names one: what a model made from it says about it.

    Returns:
        `name`, a Hub id or the name of a folder or file; and `license`, `license_name` and `license_link` as the card has them,
        or else as they were known of the model that this one was trained from.
    """
    path = Path(source)
    if not path.exists():
        return {"name": str(source)}
    try:
        text = read_file(path / CARD_NAME, "utf-8-sig")
        _, metadata, _ = re.split(r"^---\s*$", text, maxsplit=2, flags=re.MULTILINE)
        card = parse_yaml(metadata)
    except (OSError, ValueError):
        card = None
    known = card if isinstance(card, dict) else {}
    if not known.get("license"):
        known = _origin_in_report(path)
    names = ("license", "license_name", "license_link")
    return {"name": path.resolve().name, **{name: known[name] for name in names if _is_named(known.get(name))}}


def _is_named(value: Any) -> bool:
    """True for a text, or a list of texts: a few lines of YAML can be an object of any size."""
    texts = value if isinstance(value, list) else [value]
    return bool(texts) and all(isinstance(text, str) and text for text in texts)


def carry_origin(config: PreTrainedConfig, source: str | Path, adapter: str | Path | None = None) -> None:
    """Writes into the config of a model made from `source` what is known of the original, unless that is ours from the start.

    Args:
        config: The config of the new model, which still has what the source's config says.
        source: The model whose weights it has.
        adapter: The adapter that was merged into it: its card names a licence where the source names none.
    """
    known = getattr(config, ORIGIN_FIELD, None) or _origin_in_report(Path(source))
    if not known and config.model_type == "chatgpt":
        return
    origin = origin_of(source)
    if adapter is not None and "license" not in origin:
        origin = {**origin_of(adapter), **origin}
    setattr(config, ORIGIN_FIELD, {"model_type": config.model_type, **origin, **known})


def _origin_in_report(folder: Path) -> dict[str, Any]:
    """Returns the facts in a run's report about the foreign model that it started from; none for a file."""
    if not folder.is_dir():
        return {}
    found = read_json(folder / REPORT_FILE).get("origin")
    return found if isinstance(found, dict) else {}


def copy_licence(source: str | Path | None, folder: Path) -> None:
    """Copies a local model's files with its licence into the folder of a model made from it, where there are none yet."""
    if source is None or not Path(source).is_dir():
        return
    for pattern in _LICENCE_FILES:
        for file in sorted(Path(source).glob(pattern)):
            if file.is_file() and not (folder / file.name).exists():
                shutil.copyfile(file, folder / file.name)


def warn_of_calibration(source: str | Path | None) -> None:
    """Warns that a model made from `source` has other weights, so the source's calibration of abstention stays behind."""
    if source is not None and (Path(source) / ABSTENTION_NAME).is_file():
        logger.warning(
            "%s is not copied: its threshold belongs to the weights that it was calibrated with. Run `chatgpt-hf calibrate` on the "
            "new folder.",
            Path(source) / ABSTENTION_NAME,
        )


def check_memory(folder: Path, dtype: torch.dtype | None = None, *, copies: float = 1.0, hint: str = "") -> None:
    """Raises if a folder's weights need more memory than this machine has.

    Args:
        dtype: The dtype that the weights will have; None for the one that they are stored in.
        copies: How often they are held: a training also has gradients and the optimizer's state.
        hint: What would help, as the end of the message.

    Raises:
        CheckpointError: With both numbers.
    """
    memory = machine_memory()
    needed = copies * _bytes_of(folder, dtype)
    if memory is not None and needed > memory:
        raise CheckpointError(
            f"{folder} needs {needed / 1e9:,.1f} GB of memory"
            f"{'' if copies == 1 else ' to train (weights, gradients and the state of the optimizer)'}, and this machine has "
            f"{memory / 1e9:,.1f} GB. {hint or 'Use a larger machine, or a smaller model.'}"
        )


def machine_memory() -> int | None:
    """Bytes of memory that this process can have: the machine's, or less by the limit of its container or of `ulimit -v`.

    None if the system does not say.
    """
    try:
        limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    except (AttributeError, OSError, ValueError):
        return None
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8").strip()
        limits += [int(limit)] if limit.isdigit() else []
    except OSError:
        pass
    try:
        import resource  # not on Windows

        limit_of_process, _ = resource.getrlimit(resource.RLIMIT_AS)
        limits += [limit_of_process] if limit_of_process != resource.RLIM_INFINITY else []
    except ImportError:
        pass
    return min(limits)


def _bytes_of(folder: Path, dtype: torch.dtype | None) -> float:
    if not quantization_of(folder):
        # A folder of torch files is as large as its tensors.
        known = [(kind, math.prod(shape)) for _, kind, shape in stored_tensors(folder)]
        if known and dtype is not None:
            return sum(count for _, count in known) * dtype.itemsize
    return sum(file.stat().st_size for file in weight_files(folder))


def check_storage(folder: Path) -> None:
    """Raises `CheckpointError` if the weights are stored in another way than the config says.

    These are weights in float8 without a config that says how to read them, and plain weights that the config calls quantized.
    """
    method = quantization_of(folder)
    stored = list(stored_tensors(folder))
    if method is None:
        for name, kind, _ in stored:
            if kind.startswith("F8"):
                raise CheckpointError(
                    f"{folder} stores its weights as float8 ({name} is {kind}), and {CONFIG_NAME} has no `quantization_config` that "
                    "says how to read them. vLLM and ComfyUI read some of such files; name the original model in bfloat16."
                )
        return
    plain = bool(stored) and all(kind in _DTYPES for _, kind, _ in stored)
    if plain and method in _READERS and config_of(folder)["quantization_config"].get("format") not in _PLAIN_FORMATS:
        raise CheckpointError(
            f"{folder / CONFIG_NAME} has a `quantization_config` ({method}), and the folder's weights are not quantized: {stored[0].name} is "
            f"{stored[0].kind}. Delete the field to use the weights as they are, or copy the quantized ones again."
        )


def quantized_message(name_or_path: str | Path, error: Exception) -> str:
    method = quantization_of(name_or_path)
    reader = _READERS.get(str(method))
    reason = " ".join(str(error).split()).rstrip(".")
    if method is None:
        return f"{name_or_path} cannot be loaded: {reason}."
    return (
        f"{name_or_path} is quantized ({method}) and cannot be loaded here: {reason}. "
        f"{f'{reader}. ' if reader else ''}Or name the original model."
    )


def pickled_weights(folder: Path) -> bool:
    """True if the weights of a folder are in torch files, which are pickles."""
    return any(file.suffix == ".bin" for file in weight_files(folder))


def pickle_message(folder: Path) -> str:
    """The error of a folder whose weights are a pickle that holds, or asks for, more than tensors."""
    return (
        f"{folder} has weights in a pickle that is damaged, or that would run code when it is loaded; only tensors are read from "
        f"one. Name a folder with {SAFE_WEIGHTS_NAME}."
    )


def _begins_with(file: Path, magic: bytes) -> bool:
    try:
        if special_kind(file):
            return False
        with file.open("rb") as opened:
            return opened.read(len(magic)) == magic
    except OSError:
        return False
