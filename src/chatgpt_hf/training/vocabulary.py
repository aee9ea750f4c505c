"""Gives a trained model another vocabulary."""

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import ConfigError


@torch.no_grad()
def transfer_vocabulary(model: PreTrainedModel, old: PreTrainedTokenizerBase, new: PreTrainedTokenizerBase) -> None:
    """Adapts a model's embedding and head to another tokenizer, in place ("fast vocabulary transfer").

    A token that both tokenizers know keeps its row. The row of any other token is the mean of the rows of the old
    tokens that spell its text (Gee et al. 2022, section 3.2). A token that has no text, such as part of a character,
    starts with the mean of all rows.

    Args:
        old: The tokenizer that the model was trained with.
        new: The new tokenizer; its special tokens are written into the config.

    Raises:
        ConfigError: If the model has n-gram tables, which are indexed by token ids.
    """
    if getattr(model.config, "ngram_vocab_sizes", None):
        raise ConfigError(
            "A model with ngram_vocab_sizes indexes n-grams by its own tokenizer's ids: it cannot get another tokenizer."
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
