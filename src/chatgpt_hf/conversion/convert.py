"""Converts checkpoints in every direction: read, translate, check the logits, write."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import CONFIG_NAME

from ..checkpoints import check_tokenizer_fits, load_model, refuse_adapter
from ..errors import CheckpointError, ConversionError, TokenizerError
from ..files import check_new_folder, new_folder
from ..model.configuration_chatgpt import ChatGPTConfig
from ..model.modeling_chatgpt import ChatGPTForCausalLM
from ..stored import ORIGIN_FIELD, carry_origin, copy_licence, warn_of_calibration
from ..tokenization_chatgpt import load_tokenizer
from .characters import META_NAME, PICKLED_META_NAME, read_character_tokenizer, refuse_pickled_meta
from .families import FAMILIES, MODEL_FAMILIES, find_file, known_families
from .families.family import FileFamily, ModelFamily, State

# Largest difference of float32 logits that rounding can explain, for any published GPT-2.
TOLERANCE = 1e-4
OURS = ChatGPTConfig.model_type
TARGETS = (OURS, *FAMILIES)
_TOKENIZER_FILES = {"tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "merges.txt"}

# A model, a function from ids (batch, seq) to float32 logits (batch, seq, vocab), or the logits of `random_ids`.
Reference: TypeAlias = PreTrainedModel | Callable[[torch.Tensor], torch.Tensor] | torch.Tensor


def convert_checkpoint(
    source: str | Path, output_dir: str | Path, to: str = OURS, *, tokenizer: str | Path | None = None
) -> float:
    """Converts a checkpoint and its tokenizer, and compares the logits of random ids before writing anything.

    Needs memory for the weights once, in the type in which they are stored, and for the logits.

    Args:
        source: Folder or Hub id of our model or of a family in `families/`; or a checkpoint file of nanoGPT or litgpt.
        output_dir: A folder that does not exist or is empty.
        to: `"chatgpt"` or the name of a family.
        tokenizer: Folder or Hub id of a tokenizer, or a character table (`meta.json`), to use instead of the source's.

    Returns:
        The largest difference between the logits of source and target, in float32.

    Raises:
        ConversionError: If the family is unknown, the source or the target cannot express the model, a file would run
            code when it is read, or the logits differ.
        OutputError: If the folder is not empty.
        CheckpointError: If the source cannot be read.
        TokenizerError: If the tokenizer cannot be read, or does not fit the model.
    """
    if to not in TARGETS:
        raise ConversionError(f"--to {to} is unknown; choose from {', '.join(TARGETS)}.")
    folder = check_new_folder(output_dir)
    model, reference = read_checkpoint(source)
    loaded_tokenizer = None
    names_special_tokens = tokenizer is not None or find_file(source) is not None
    if names_special_tokens and (loaded_tokenizer := find_tokenizer(source, tokenizer)) is not None:
        check_tokenizer_fits(model, loaded_tokenizer)
        _name_special_tokens(model, loaded_tokenizer)
    carry_origin(model.config, source)
    converted, save = write_checkpoint(model, to)
    difference = logits_difference(reference, converted, model.config)
    if not difference <= TOLERANCE:
        raise ConversionError(
            f"The converted model's logits differ by {difference:.1e} from the source's (rounding explains at most "
            f"{TOLERANCE:.0e}). Nothing was written."
        )
    if not names_special_tokens:
        # Only now, because a large one takes as much memory as the logits.
        loaded_tokenizer = find_tokenizer(source)
    with new_folder(folder) as temporary:
        save(temporary)
        if loaded_tokenizer is not None:
            loaded_tokenizer.save_pretrained(temporary)
        copy_licence(source, temporary)
    warn_of_calibration(source)
    return difference


def read_checkpoint(source: str | Path) -> tuple[ChatGPTForCausalLM, Reference]:
    """Reads a checkpoint of any known family as our model; also returns the family's own logits, or what computes them.

    Raises:
        ConversionError: If the family is unknown, or our model cannot express the checkpoint.
        CheckpointError: If the checkpoint cannot be read.
    """
    if found := find_file(source):
        file_family, file = found
        config, state = file_family.read(file)
        model = _build(file_family, config, state, file)
        return model, _logits_of(file_family, config, state)
    folder = Path(source)
    refuse_adapter(source)
    if folder.is_dir() and not (folder / CONFIG_NAME).is_file():
        raise CheckpointError(
            f"{folder} does not contain a model: {CONFIG_NAME} is missing, and there is no known torch file. Known families: "
            f"{known_families()}."
        )
    config = known_config(source)
    family = MODEL_FAMILIES.get(config.get("model_type") or OURS)
    if family is None:
        model = load_model(source, ChatGPTForCausalLM)
        return model, model
    # Before anything large is read; a config that its own family refuses is refused below, by name of its file.
    with suppress(ValueError, TypeError, StrictDataclassError):
        family.config_in(config)
    theirs = load_model(source)
    # Computed now, so that the two models are not in memory at the same time.
    logits = float32_logits(theirs, random_ids(theirs.config))
    if family.tensors_in is None:
        del theirs
        return load_model(source, ChatGPTForCausalLM), logits
    model = _build(family, theirs.config.to_dict(), theirs.state_dict(), source)
    model.generation_config = theirs.generation_config
    return model, logits


def write_checkpoint(model: ChatGPTForCausalLM, to: str) -> tuple[Reference, Callable[[Path], None]]:
    """Translates our model to a family; returns a reference for its logits, and a function that writes a folder.

    Raises:
        ConversionError: If the family cannot express the model; the message names the field.
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


def logits_difference(reference: Reference, converted: Any, config: Any = None) -> float:
    """The largest absolute difference of float32 logits on random ids, (2, up to 64).

    Args:
        reference: A model, a function from ids to logits, or logits.
        converted: The same.
        config: The config that limits the ids; None means the converted model's.
    """
    ids = random_ids(config or converted.config)
    return (float32_logits(reference, ids) - float32_logits(converted, ids)).abs().max().item()


def random_ids(config: Any) -> torch.Tensor:
    """The ids on which models are compared, (2, up to 64); the same for every model of a vocabulary and context."""
    length = min(64, config.max_position_embeddings)
    return torch.randint(config.vocab_size, (2, length), generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def float32_logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """The logits (batch, seq, vocab) of ids (batch, seq) by a `Reference`, in float32 whatever dtype a model is in."""
    if isinstance(model, torch.Tensor):
        return model
    if not isinstance(model, torch.nn.Module):
        return model(ids)
    with _computing_in_float32(model):
        return model.eval()(input_ids=ids, use_cache=False).logits


@contextmanager
def _computing_in_float32(model: torch.nn.Module) -> Iterator[None]:
    """Widens each module's weights to float32 only while it runs, because all of them together may not fit into memory."""
    kept: list[list[tuple[torch.Tensor, torch.Tensor]]] = []

    def widen(module: torch.nn.Module, _: Any) -> None:
        own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
        kept.append([(tensor, tensor.data) for tensor in own if tensor.dtype in (torch.float16, torch.bfloat16)])
        for tensor, _ in kept[-1]:
            tensor.data = tensor.data.float()

    def restore(*_: Any) -> None:
        for tensor, data in kept.pop():
            tensor.data = data

    handles = [
        handle
        for module in model.modules()
        for handle in (
            module.register_forward_pre_hook(widen, prepend=True),
            module.register_forward_hook(restore, always_call=True),
        )
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _logits_of(family: FileFamily, config: dict[str, Any], state: State) -> Callable[[torch.Tensor], torch.Tensor]:
    def logits(ids: torch.Tensor) -> torch.Tensor:
        exact = {name: tensor.to(torch.promote_types(tensor.dtype, torch.float32)) for name, tensor in state.items()}
        return family.logits(config, exact, ids)

    return logits


def _build(
    family: ModelFamily | FileFamily, config: dict[str, Any], state: State, source: str | Path
) -> ChatGPTForCausalLM:
    """Builds our model from a family's config and tensors; raises if a tensor is left over or missing."""
    ours = family.config_in(config)
    if isinstance(family, FileFamily):
        ours["tie_word_embeddings"] = "lm_head.weight" not in state
    tensors = family.tensors_in(state, config) if family.tensors_in else state
    ours[ORIGIN_FIELD] = {"model_type": family.name}
    try:
        built = ChatGPTConfig(**ours)
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise ConversionError(f"The config of {source} cannot be used: {error}") from error
    dtype = tensors["model.embed_tokens.weight"].dtype
    model, report = ChatGPTForCausalLM.from_pretrained(
        None, config=built, state_dict=tensors, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
    )
    for key, what in (
        ("mismatched_keys", "have other shapes than in the config"),
        ("missing_keys", "are missing"),
    ):
        if names := sorted(str(found if isinstance(found, str) else found[0]) for found in report[key]):
            raise CheckpointError(f"{source}: {len(names)} weights {what}, including {', '.join(names[:3])}.")
    if names := sorted(report["unexpected_keys"]):
        raise CheckpointError(f"{source}: the config has no place for the weights {', '.join(names[:3])}.")
    return model.eval()


def known_config(source: str | Path) -> dict[str, Any]:
    """The content of config.json; empty if it cannot be read: loading the model gives a better message.

    Raises:
        ConversionError: If the model's family is unknown.
    """
    try:
        config = PreTrainedConfig.get_config_dict(str(source))[0]
    except (OSError, ValueError):
        return {}
    name = config.get("model_type")
    if name is not None and name != OURS and name not in MODEL_FAMILIES:
        raise ConversionError(
            f"{source} belongs to the family {name!r}, which is unknown here. Known families: {known_families()}."
        )
    return config


def find_tokenizer(source: str | Path, named: str | Path | None = None) -> PreTrainedTokenizerBase | None:
    """Returns the named tokenizer or the source's; None if there is none, where transformers would invent one."""
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
    """Copies the tokenizer's special ids if the checkpoint has none, so that generation stops where it should."""
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if getattr(model.config, name) is None and getattr(tokenizer, name, None) is not None:
            setattr(model.config, name, getattr(tokenizer, name))
            setattr(model.generation_config, name, getattr(tokenizer, name))
