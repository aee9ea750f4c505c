"""A character tokenizer, as in nanoGPT's character data sets, from a JSON table."""

from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ..errors import TokenizerError
from ..parsing import parse_json, read_file

META_NAME = "meta.json"
PICKLED_META_NAME = "meta.pkl"


def read_character_tokenizer(file: Path) -> PreTrainedTokenizerBase:
    """Reads the tokenizer of a `meta.json`: `{"stoi": {"a": 0, ...}, "itos": {"0": "a", ...}}`; `itos` is optional.

    The tokenizer raises an error for a character that is not in the table, as in nanoGPT.

    Raises:
        TokenizerError: If the file cannot be read, or does not map characters one-to-one to ids from 0.
    """
    try:
        meta = parse_json(read_file(file))
    except (OSError, ValueError) as error:
        raise TokenizerError(f"{file} cannot be read: {error}") from error
    stoi: Any = meta.get("stoi") if isinstance(meta, dict) else None
    if not isinstance(stoi, dict) or not stoi:
        raise TokenizerError(
            f'{file} has no `stoi`; it must be {{"stoi": {{"a": 0, ...}}, "itos": {{"0": "a", ...}}}}.'
        )
    for character, index in stoi.items():
        if len(character) != 1 or not isinstance(index, int) or isinstance(index, bool):
            raise TokenizerError(f"{file}: `stoi` has {character!r}: {index!r}; it must be one character and its id.")
    if sorted(stoi.values()) != list(range(len(stoi))):
        raise TokenizerError(f"{file}: the ids of `stoi` must be 0 to {len(stoi) - 1}, each once.")
    if "itos" in meta:
        itos = meta["itos"]
        pairs = itos.items() if isinstance(itos, dict) else enumerate(itos) if isinstance(itos, list) else ()
        if {str(index): character for index, character in pairs} != {str(i): c for c, i in stoi.items()}:
            raise TokenizerError(f"{file}: `itos` is not the inverse of `stoi`.")
    tokenizer = Tokenizer(models.WordLevel(stoi))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)


def refuse_pickled_meta(file: Path) -> None:
    """Raises `TokenizerError`, which tells how to turn a `meta.pkl` into a `meta.json`."""
    raise TokenizerError(
        f"{file} is a pickle, which can run code when it is read, so it is not read. If you made it yourself, write its table "
        f"as {META_NAME} next to it and try again:\n"
        f"""  python -c "import json, pickle; m = pickle.load(open('{PICKLED_META_NAME}', 'rb')); """
        f"""json.dump({{'stoi': m['stoi'], 'itos': m['itos']}}, open('{META_NAME}', 'w'))"\n"""
        f"Or name the folder of a tokenizer with --tokenizer."
    )
