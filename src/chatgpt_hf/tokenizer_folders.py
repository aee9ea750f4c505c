"""Tokenizers loaded from a folder or the Hub, as their tokenizer.json describes them; code that comes with one is never run."""

import json
import logging
from os import PathLike
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer, GPT2Tokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils import cached_file

from .errors import CheckpointError, TokenizerError, one_line
from .files import read_json
from .stored import base_of, base_places, is_adapter, refuse_other_formats
from .untrusted import check_files
from .untrusted_tokenizers import check_fields, check_parts

logger = logging.getLogger(__name__)

TOKENIZER_FILE = "tokenizer.json"
# The options of the models of tokenizers that decide about ids.
_MODEL_OPTIONS = (
    *("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", "byte_fallback"),
    *("ignore_merges", "max_input_chars_per_word"),
)

# A folder without any of these has no tokenizer.
_TOKENIZERS = {TOKENIZER_FILE, "tokenizer.model", "vocab.json", "tokenizer_config.json"}


def load_tokenizer(path_or_id: str | PathLike[str]) -> PreTrainedTokenizerBase:
    """Loads a tokenizer from a folder or the Hub; never runs code that comes with it.

    Unlike `AutoTokenizer`, also accepts a folder with only GPT-2's `vocab.json` and `merges.txt`, and for an adapter without a
    tokenizer gives that of its base model.

    Raises:
        TokenizerError: If there is no tokenizer, or it cannot be read.
    """
    folder = Path(path_or_id).expanduser()
    if folder.is_file():
        refuse_other_formats(folder)
    loader: Any = AutoTokenizer
    stored: dict[str, Any] = {}
    if folder.is_dir():
        try:
            check_files(folder, tokenizer=True)
            # Once: a large vocabulary takes some tenths of a second.
            stored = read_json(folder / TOKENIZER_FILE)
            check_fields(folder / "tokenizer_config.json", read_json(folder / "tokenizer_config.json"))
        except CheckpointError as error:
            raise TokenizerError(str(error)) from error
        names = {file.name for file in folder.iterdir()}
        if is_adapter(folder) and not names & _TOKENIZERS and (base := base_of(folder)):
            # PEFT saves none with an adapter.
            try:
                return load_tokenizer(base)
            except TokenizerError as error:
                raise TokenizerError(
                    f"The adapter {folder} has no tokenizer, and that of its base model cannot be loaded. "
                    f"{base_places(folder, base)}{error}"
                ) from error
        if not names & {TOKENIZER_FILE, "tokenizer.model"}:
            # Without these files, AutoTokenizer may return a tokenizer with an empty vocabulary, so do not call it.
            missing = sorted({"vocab.json", "merges.txt"} - names)
            if missing:
                raise TokenizerError(
                    f"{folder} has no tokenizer: tokenizer.json is missing, and so is {' and '.join(missing)} of GPT-2's "
                    "older format. Save one there with tokenizer.save_pretrained(folder)"
                )
            if "tokenizer_config.json" not in names:
                loader = GPT2Tokenizer
        elif TOKENIZER_FILE in names and "auto_map" in read_json(folder / "tokenizer_config.json"):
            # AutoTokenizer would refuse, but what the code does is in the file.
            loader = PreTrainedTokenizerFast
            logger.warning(
                "%s names code for the tokenizer, which is not run: tokenizer.json is used as it is.",
                folder / "tokenizer_config.json",
            )
    elif folder.exists() or folder.is_absolute() or str(path_or_id).startswith((".", "~")):
        raise TokenizerError(f"{folder} is not a folder: give the folder that contains tokenizer.json, or a Hub id")
    try:
        stored = stored or _downloaded(str(folder))
        _check_kind(stored)
        described = _described(stored)
        tokenizer = loader.from_pretrained(str(folder), trust_remote_code=False)
        return _faithful(tokenizer, str(folder), stored, described)
    # The tokenizers library raises a bare `Exception` for a file that it cannot parse, or panics.
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        if "trust_remote_code" in str(error):
            error = TokenizerError(
                "its tokenizer is code, which is not run; only tokenizers with a tokenizer.json are read"
            )
        raise TokenizerError(
            f"no tokenizer could be loaded from {str(path_or_id)!r}: {one_line(error)[:500]}"
        ) from error


def _check_kind(stored: dict[str, Any]) -> None:
    """Raises `TokenizerError` for a tokenizer.json of another program."""
    if stored and not (isinstance(stored.get("model"), dict) and isinstance(stored.get("added_tokens"), list)):
        raise TokenizerError(
            "tokenizer.json is not a file of the tokenizers library, which has an object `model` and a list `added_tokens`. Save "
            "one there with tokenizer.save_pretrained(folder)"
        )


def _downloaded(name: str) -> dict[str, Any]:
    """The tokenizer.json of a tokenizer from the Hub; empty without one."""
    try:
        file = cached_file(name, TOKENIZER_FILE)
    except OSError:
        return {}
    return read_json(Path(file))


def _faithful(
    tokenizer: PreTrainedTokenizerBase, name: str, stored: dict[str, Any], described: Tokenizer | None
) -> PreTrainedTokenizerBase:
    """Returns a tokenizer with the parts that tokenizer.json describes, if there is one.

    Many classes of transformers build some of the parts themselves: GPT2Tokenizer leaves out a Digits pre-tokenizer,
    LlamaTokenizer any normalizer. If a part differs, the tokenizer is loaded again with the class that takes the file as it is,
    which is also what `save_pretrained` then names.
    """
    if described is None:
        return tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None and _parts(backend) == _stored_parts(stored, described):
        return tokenizer
    # Unigram has a list of pairs.
    vocabulary = {entry if isinstance(entry, str) else entry[0] for entry in stored["model"]["vocab"]}
    vocabulary |= {token["content"] for token in stored["added_tokens"]}
    known = {key: token for key, token in tokenizer.special_tokens_map.items() if token in vocabulary}
    return PreTrainedTokenizerFast.from_pretrained(
        name,
        **known,
        model_input_names=tokenizer.model_input_names,
        padding_side=tokenizer.padding_side,
        model_max_length=tokenizer.model_max_length,
    )


def _parts(backend: Tokenizer) -> dict[str, Any]:
    """Returns all parts of a tokenizer that decide about ids, except for the vocabulary."""
    processor = backend.post_processor
    parts: dict[str, Any] = {
        "normalizer": backend.normalizer,
        "pre_tokenizer": backend.pre_tokenizer,
        "decoder": backend.decoder,
        # Without one, transformers adds one that does nothing.
        "post_processor": processor if processor and processor.num_special_tokens_to_add(False) else None,
    }
    # BPE takes an empty affix and none alike.
    options = {name: getattr(backend.model, name, None) or None for name in _MODEL_OPTIONS}
    added = {index: token.__getstate__() for index, token in backend.get_added_tokens_decoder().items()}
    states = {name: None if part is None else part.__getstate__() for name, part in parts.items()}
    return {**states, "model": options, "added_tokens": added, "size": backend.get_vocab_size(with_added_tokens=False)}


def _described(stored: dict[str, Any]) -> Tokenizer | None:
    """A tokenizer with all parts of a tokenizer.json except for the vocabulary, checked; None without a file."""
    if not stored:
        return None
    model = stored["model"]
    if model.get("type") in ("BPE", "WordPiece", "WordLevel"):
        # Large, and not needed to make the parts.
        model = {**model, "vocab": {}, **({"merges": []} if "merges" in model else {})}
    # Added tokens would already be normalized.
    backend = Tokenizer.from_str(json.dumps({**stored, "model": model, "added_tokens": []}))
    check_parts(backend)
    return backend


def _stored_parts(stored: dict[str, Any], described: Tokenizer) -> dict[str, Any]:
    """`_parts` of a tokenizer.json."""
    added = {
        token["id"]: {name: value for name, value in token.items() if name != "id"} for token in stored["added_tokens"]
    }
    return {**_parts(described), "added_tokens": added, "size": len(stored["model"]["vocab"])}
