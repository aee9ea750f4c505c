"""One call for every direction: read, translate, check the logits, write."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import CONFIG_NAME

from ..checkpoints import check_tokenizer_fits, load_model, refuse_adapter
from ..errors import CheckpointError, ConversionError, TokenizerError
from ..files import atomic_folder, check_new_folder
from ..model.configuration_chatgpt import ChatGPTConfig
from ..model.modeling_chatgpt import ChatGPTForCausalLM
from ..tokenization_chatgpt import load_tokenizer
from .characters import META_NAME, PICKLED_META_NAME, read_character_tokenizer, refuse_pickled_meta
from .families import FAMILIES, MODEL_FAMILIES, find_file, known_families
from .families.family import FileFamily, ModelFamily, State

# Largest difference of float32 logits that rounding explains, for weights of any published GPT-2.
TOLERANCE = 1e-4
OURS = ChatGPTConfig.model_type
TARGETS = (OURS, *FAMILIES)
_TOKENIZER_FILES = {"tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "merges.txt"}

# A model, or ids (batch, seq) to float32 logits (batch, seq, vocab).
Reference: TypeAlias = PreTrainedModel | Callable[[torch.Tensor], torch.Tensor]


def convert_checkpoint(
    source: str | Path, output_dir: str | Path, to: str = OURS, *, tokenizer: str | Path | None = None
) -> float:
    """Converts a checkpoint and its tokenizer, checking the logits of random ids before anything is written.

    Args:
        source: Folder or Hub id of a model of a family in `families.py` or of ours; or a file of nanoGPT's or litgpt's.
        output_dir: A folder that does not exist or is empty.
        to: `"chatgpt"` or the name of a family.
        tokenizer: A tokenizer's folder or Hub id, or a table of characters as `meta.json`, in place of the source's own.

    Returns:
        The largest difference between the logits of source and target, in float32.

    Raises:
        ConversionError: If the family is unknown, the source or the target cannot express the model, a file would run
            code when it is read, or the logits differ.
        OutputError: If the folder is not empty.
        CheckpointError: If the source cannot be read.
        TokenizerError: If its tokenizer cannot, or does not fit.
    """
    if to not in TARGETS:
        raise ConversionError(f"--to {to} is unknown; known are {', '.join(TARGETS)}.")
    folder = check_new_folder(output_dir)
    model, reference = read_checkpoint(source)
    loaded_tokenizer = find_tokenizer(source, tokenizer)
    if loaded_tokenizer is not None and (tokenizer is not None or find_file(source)):
        check_tokenizer_fits(model, loaded_tokenizer)
        _name_special_tokens(model, loaded_tokenizer)
    converted, save = write_checkpoint(model, to)
    difference = logits_difference(reference, converted, model.config)
    if not difference <= TOLERANCE:
        raise ConversionError(
            f"The converted model's logits differ by {difference:.1e} from the source's (at most {TOLERANCE:.0e} is "
            "rounding). Nothing was written."
        )
    with atomic_folder(folder) as temporary:
        save(temporary)
        if loaded_tokenizer is not None:
            loaded_tokenizer.save_pretrained(temporary)
    return difference


def read_checkpoint(source: str | Path) -> tuple[ChatGPTForCausalLM, Reference]:
    """A checkpoint of any known family as a model of ours, and what computes the family's own logits.

    Raises:
        ConversionError: If the family is unknown, or our model cannot express the checkpoint.
        CheckpointError: If it cannot be read.
    """
    if found := find_file(source):
        file_family, file = found
        config, state = file_family.read(file)
        return _build(file_family, config, state, file), _logits_of(file_family, config, state)
    folder = Path(source)
    refuse_adapter(source)
    if folder.is_dir() and not (folder / CONFIG_NAME).is_file():
        raise CheckpointError(
            f"{folder} does not contain a model: {CONFIG_NAME} is missing, and there is no file of torch's that is known. Known are "
            f"{known_families()}."
        )
    name = _model_type(source)
    if name is not None and name != OURS and name not in MODEL_FAMILIES:
        raise ConversionError(
            f"{source} is of the family {name!r}, which is unknown here; known are {known_families()}."
        )
    family = MODEL_FAMILIES.get(name or OURS)
    if family is None or family.tensors_in is None:
        model = load_model(source, ChatGPTForCausalLM)
        return model, model if family is None else load_model(source)
    theirs = load_model(source)
    model = _build(family, theirs.config.to_dict(), theirs.state_dict(), source)
    model.generation_config = theirs.generation_config
    return model, theirs


def write_checkpoint(model: ChatGPTForCausalLM, to: str) -> tuple[Reference, Callable[[Path], None]]:
    """A model of ours as one of a family: what computes its logits, and what writes it into a folder.

    Raises:
        ConversionError: Naming the field that the family cannot express.
    """
    if to == OURS:
        return model, model.save_pretrained
    family = FAMILIES[to]
    config = family.config_out(model.config)
    state = family.tensors_out(model)
    if isinstance(family, FileFamily):
        write = family.write
        return _logits_of(family, config, state), lambda folder: write(folder, config, state)
    model_class = getattr(transformers, family.architecture)
    converted = model_class.from_pretrained(None, config=config, state_dict=state, dtype=model.dtype)
    converted.generation_config = model.generation_config
    return converted, converted.save_pretrained


@torch.inference_mode()
def logits_difference(reference: Reference, converted: Any, config: Any = None) -> float:
    """Largest absolute difference of float32 logits over random ids, (2, up to 64).

    Args:
        reference: A model or what computes logits from ids.
        converted: The same.
        config: What the ids have to fit; left out, the converted model's.
    """
    config = config or converted.config
    length = min(64, config.max_position_embeddings)
    ids = torch.randint(config.vocab_size, (2, length), generator=torch.Generator().manual_seed(0))
    return (_float32_logits(reference, ids) - _float32_logits(converted, ids)).abs().max().item()


def _float32_logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    is_model = isinstance(model, torch.nn.Module)
    if not is_model:
        return model(ids)
    dtype = model.dtype
    logits = model.to(torch.promote_types(dtype, torch.float32)).eval()(input_ids=ids).logits
    model.to(dtype)
    return logits


def _logits_of(family: FileFamily, config: dict[str, Any], state: State) -> Callable[[torch.Tensor], torch.Tensor]:
    def logits(ids: torch.Tensor) -> torch.Tensor:
        exact = {name: tensor.to(torch.promote_types(tensor.dtype, torch.float32)) for name, tensor in state.items()}
        return family.logits(config, exact, ids)

    return logits


def _build(
    family: ModelFamily | FileFamily, config: dict[str, Any], state: State, source: str | Path
) -> ChatGPTForCausalLM:
    """A model of ours from a family's config and tensors, each of which has to find its place."""
    ours = family.config_in(config)
    if isinstance(family, FileFamily):
        ours["tie_word_embeddings"] = "lm_head.weight" not in state
    tensors = family.tensors_in(state, config) if family.tensors_in else state
    try:
        built = ChatGPTConfig(**ours)
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise ConversionError(f"The config of {source} cannot be used: {error}") from error
    dtype = tensors["model.embed_tokens.weight"].dtype
    model, report = ChatGPTForCausalLM.from_pretrained(
        None, config=built, state_dict=tensors, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
    )
    for key, what in (
        ("mismatched_keys", "have other shapes than the config asks for"),
        ("missing_keys", "are missing"),
    ):
        if names := sorted(str(found if isinstance(found, str) else found[0]) for found in report[key]):
            raise CheckpointError(f"{source}: {len(names)} weights {what}, {', '.join(names[:3])} among them.")
    if names := sorted(report["unexpected_keys"]):
        raise CheckpointError(f"{source}: the config knows nothing of {', '.join(names[:3])}.")
    return model.eval()


def _model_type(source: str | Path) -> str | None:
    """What config.json calls the family; None where it cannot be read, which loading the model says more about."""
    try:
        return PreTrainedConfig.get_config_dict(str(source))[0].get("model_type")
    except (OSError, ValueError):
        return None


def find_tokenizer(source: str | Path, named: str | Path | None = None) -> PreTrainedTokenizerBase | None:
    """The tokenizer that was named, or the source's; None where it has none, for which transformers would make one up."""
    if named is not None:
        file = Path(named)
        if file.suffix == ".pkl":
            refuse_pickled_meta(file)
        return read_character_tokenizer(file) if file.suffix == ".json" else load_tokenizer(named)
    found = find_file(source)
    folder = found[1].parent if found else Path(source)
    if not folder.is_dir():
        try:
            return load_tokenizer(source)
        except TokenizerError:
            return None
    if any((folder / name).is_file() for name in _TOKENIZER_FILES):
        return load_tokenizer(folder)
    if found and (folder / META_NAME).is_file():
        return read_character_tokenizer(folder / META_NAME)
    if found and (folder / PICKLED_META_NAME).is_file():
        refuse_pickled_meta(folder / PICKLED_META_NAME)
    return None


def _name_special_tokens(model: ChatGPTForCausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
    """The tokenizer's special ids where the checkpoint has named none, so that generation ends where it should."""
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if getattr(model.config, name) is None and getattr(tokenizer, name, None) is not None:
            setattr(model.config, name, getattr(tokenizer, name))
            setattr(model.generation_config, name, getattr(tokenizer, name))
