"""An adapter and its base model as one ordinary model."""

from pathlib import Path

from ..checkpoints import ADAPTER_CONFIG_NAME, load_model
from ..errors import ConversionError
from ..files import atomic_folder, check_new_folder
from ..tokenization_chatgpt import load_tokenizer
from .convert import TOLERANCE, logits_difference


def merge_adapter(source: str | Path, output_dir: str | Path) -> float:
    """Adds an adapter's weights to those of its base model and writes the result, checking the logits before.

    Args:
        source: Folder of an adapter, as `chatgpt-hf sft --use_peft true` leaves it.
        output_dir: A folder that does not exist or is empty.

    Returns:
        The largest difference between the logits with the adapter beside the model and in it, in float32.

    Raises:
        ConversionError: If the source holds no adapter, or the logits differ.
        OutputError: If the folder is not empty.
        CheckpointError: If adapter or base model cannot be read, or do not belong together.
    """
    folder = check_new_folder(output_dir)
    if not (Path(source) / ADAPTER_CONFIG_NAME).is_file():
        raise ConversionError(
            f"{source} holds no adapter: {ADAPTER_CONFIG_NAME} is missing. A whole model needs no merging."
        )
    merged = load_model(source).merge_and_unload()
    difference = logits_difference(load_model(source), merged)
    if not difference <= TOLERANCE:
        raise ConversionError(
            f"The merged model's logits differ by {difference:.1e} (at most {TOLERANCE:.0e} is rounding). Nothing was written."
        )
    with atomic_folder(folder) as temporary:
        merged.save_pretrained(temporary)
        load_tokenizer(source).save_pretrained(temporary)
    return difference
