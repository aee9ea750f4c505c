"""The known families, and how to recognize a checkpoint's family."""

from pathlib import Path

from transformers.conversion_mapping import register_checkpoint_conversion_mapping

from ...model.configuration_chatgpt import ChatGPTConfig
from .family import FileFamily, ModelFamily
from .gpt2 import GPT2, GPT2_WEIGHT_MAPPING
from .litgpt import LITGPT
from .llama import LLAMA_FAMILIES
from .nanogpt import NANOGPT

MODEL_FAMILIES: dict[str, ModelFamily] = {family.name: family for family in (GPT2, *LLAMA_FAMILIES)}
FILE_FAMILIES: dict[str, FileFamily] = {family.name: family for family in (NANOGPT, LITGPT)}
FAMILIES: dict[str, ModelFamily | FileFamily] = {**MODEL_FAMILIES, **FILE_FAMILIES}


def known_families() -> str:
    """The names of all families that a source can belong to, for messages."""
    files = [f"{family.name} ({family.weights_name})" for family in FILE_FAMILIES.values()]
    return ", ".join(["chatgpt", *MODEL_FAMILIES, *files])


def find_file(source: str | Path) -> tuple[FileFamily, Path] | None:
    """Returns the family and file if the source is a torch file, or a folder with one as its model; otherwise None."""
    path = Path(source)
    if path.is_file():
        if path.name == LITGPT.weights_name or (
            path.suffix == ".pth" and (path.parent / "model_config.yaml").is_file()
        ):
            return LITGPT, path
        return (NANOGPT, path) if path.suffix in (".pt", ".pth") else None
    # litgpt keeps the config.json of the model that it started from next to its own files.
    if (path / LITGPT.weights_name).is_file():
        return LITGPT, path / LITGPT.weights_name
    if (path / NANOGPT.weights_name).is_file() and not (path / "config.json").is_file():
        return NANOGPT, path / NANOGPT.weights_name
    return None


def _register() -> None:
    """Lets `from_pretrained` read the families that have a class in transformers."""
    for family in MODEL_FAMILIES.values():
        ChatGPTConfig.foreign_config_readers[family.name] = family.reader
    register_checkpoint_conversion_mapping(ChatGPTConfig.model_type, GPT2_WEIGHT_MAPPING, overwrite=True)


_register()
