"""Merges an adapter into its base model."""

from pathlib import Path

from ..checkpoints import ADAPTER_CONFIG_NAME, load_model
from ..errors import ConversionError
from ..files import atomic_folder, check_new_folder
from ..tokenization_chatgpt import load_tokenizer
from .convert import TOLERANCE, logits_difference


def merge_adapter(source: str | Path, output_dir: str | Path) -> float:
    """Adds an adapter's weights to its base model's, compares the logits, and writes the result.

    Args:
        source: Folder of an adapter, as written by `chatgpt-hf sft --use_peft true`.
        output_dir: A folder that does not exist or is empty.

    Returns:
        The largest difference between the logits with a separate adapter and with the merged one, in float32.

    Raises:
        ConversionError: If the source contains no adapter, or the logits differ.
        OutputError: If the folder is not empty.
        CheckpointError: If adapter or base model cannot be read, or do not belong together.
    """
    folder = check_new_folder(output_dir)
    if not (Path(source) / ADAPTER_CONFIG_NAME).is_file():
        raise ConversionError(
            f"{source} contains no adapter: {ADAPTER_CONFIG_NAME} is missing. A complete model needs no merging."
        )
    merged = load_model(source).merge_and_unload()
    difference = logits_difference(load_model(source), merged)
    if not difference <= TOLERANCE:
        raise ConversionError(
            f"The merged model's logits differ by {difference:.1e} (rounding explains at most {TOLERANCE:.0e}). Nothing was "
            "written."
        )
    with atomic_folder(folder) as temporary:
        merged.save_pretrained(temporary)
        load_tokenizer(source).save_pretrained(temporary)
    return difference
