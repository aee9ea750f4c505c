"""One call for every direction: read, translate, check the logits, write."""

from collections.abc import Callable
from pathlib import Path

import torch
from transformers import GPT2LMHeadModel, PreTrainedModel, PreTrainedTokenizerBase

from ..checkpoints import atomic_folder, load_model
from ..errors import ConversionError, OutputError, TokenizerError
from ..modeling_chatgpt import ChatGPTForCausalLM
from ..tokenization_chatgpt import load_tokenizer
from .gpt2 import to_gpt2_config, to_gpt2_state_dict

# Largest difference of float32 logits that rounding explains, for weights of any published GPT-2.
TOLERANCE = 1e-4


def convert_checkpoint(source: str | Path, output_dir: str | Path, to: str = "chatgpt") -> float:
    """Converts a checkpoint and its tokenizer, checking the logits of random ids before anything is written.

    Args:
        source: Folder or Hub id; a GPT-2 or a chatgpt model.
        output_dir: A folder that does not exist or is empty.
        to: `"chatgpt"` or `"gpt2"`.

    Returns:
        The largest difference between the logits of source and target, in float32.

    Raises:
        ConversionError: When the target cannot express the source, or the logits differ.
        OutputError: When the folder is not empty.
        CheckpointError: When the source cannot be read.
        TokenizerError: When its tokenizer cannot.
    """
    if to not in TARGETS:
        raise ConversionError(f"--to {to} is unknown; known are {', '.join(TARGETS)}.")
    folder = Path(output_dir)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"{folder} is not an empty folder. Nothing was written; name another one.")
    reference, converted = TARGETS[to](source)
    difference = logits_difference(reference, converted)
    if not difference <= TOLERANCE:
        raise ConversionError(
            f"The converted model's logits differ by {difference:.1e} from the source's (at most {TOLERANCE:.0e} is "
            "rounding). Nothing was written."
        )
    tokenizer = _tokenizer(source)
    with atomic_folder(folder) as temporary:
        converted.save_pretrained(temporary)
        if tokenizer is not None:
            tokenizer.save_pretrained(temporary)
    return difference


def _tokenizer(source: str | Path) -> PreTrainedTokenizerBase | None:
    """The source's tokenizer; None where it has none, for which transformers would make an empty one up."""
    names = {"tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "merges.txt"}
    if Path(source).is_dir():
        there = any((Path(source) / name).is_file() for name in names)
        return load_tokenizer(source) if there else None
    try:
        return load_tokenizer(source)
    except TokenizerError:
        return None


@torch.inference_mode()
def logits_difference(reference: PreTrainedModel, converted: PreTrainedModel) -> float:
    """Largest absolute difference of float32 logits over random ids, (2, up to 64)."""
    length = min(64, converted.config.max_position_embeddings)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(converted.config.vocab_size, (2, length), generator=generator)
    dtypes = [model.dtype for model in (reference, converted)]
    logits = [
        model.to(torch.promote_types(dtype, torch.float32)).eval()(input_ids=ids).logits
        for model, dtype in zip((reference, converted), dtypes, strict=True)
    ]
    for model, dtype in zip((reference, converted), dtypes, strict=True):
        model.to(dtype)
    return (logits[0] - logits[1]).abs().max().item()


def _to_chatgpt(source: str | Path) -> tuple[PreTrainedModel, PreTrainedModel]:
    return load_model(source), load_model(source, ChatGPTForCausalLM)


def _to_gpt2(source: str | Path) -> tuple[PreTrainedModel, PreTrainedModel]:
    model = load_model(source, ChatGPTForCausalLM)
    config = to_gpt2_config(model.config)
    converted = GPT2LMHeadModel.from_pretrained(
        None, config=config, state_dict=to_gpt2_state_dict(model), dtype=model.dtype
    )
    converted.generation_config = model.generation_config
    return model, converted


TARGETS: dict[str, Callable[[str | Path], tuple[PreTrainedModel, PreTrainedModel]]] = {
    "chatgpt": _to_chatgpt,
    "gpt2": _to_gpt2,
}
