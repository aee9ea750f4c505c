"""Another vocabulary for a model that is trained already."""

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import ConfigError


@torch.no_grad()
def transfer_vocabulary(model: PreTrainedModel, old: PreTrainedTokenizerBase, new: PreTrainedTokenizerBase) -> None:
    """Gives a model rows for the tokens of another tokenizer, in its embedding and in its head, in place.

    A token that both know keeps its row; the row of another is the mean of the rows of the tokens that its text had before,
    "fast vocabulary transfer" (Gee et al. 2022, section 3.2). A token without a text of its own, part of a character perhaps,
    begins with the mean of all.

    Args:
        old: The tokenizer that the model was trained with.
        new: The one that it is to have; its special tokens become the config's.

    Raises:
        ConfigError: When the model has tables of n-grams, which are looked up by ids.
    """
    if getattr(model.config, "ngram_vocab_sizes", None):
        raise ConfigError(
            "A model with ngram_vocab_sizes knows n-grams by the ids of its own tokenizer: it cannot have another one."
        )
    known = old.get_vocab()
    pieces: list[list[int]] = []
    for index, token in enumerate(new.convert_ids_to_tokens(list(range(len(new))))):
        text = "" if index in new.all_special_ids else new.decode([index])
        same = [known[token]] if token in known else []
        pieces.append(same or ([] if "�" in text else old(text, add_special_tokens=False)["input_ids"]))
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    before = {id(layer): layer.weight.clone() for layer in layers if layer is not None}
    model.resize_token_embeddings(len(new), mean_resizing=False)
    after = (model.get_input_embeddings(), model.get_output_embeddings())
    for was, layer in zip(layers, after, strict=True):
        if was is None or layer is None:
            continue
        rows = before[id(was)]
        everything = rows[: len(old)].mean(dim=0)
        for index, ids in enumerate(pieces):
            layer.weight[index] = rows[ids].mean(dim=0) if ids else everything
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        for config in (model.config, model.generation_config):
            if config is not None:
                setattr(config, name, getattr(new, name))
