"""Trains a tokenizer on a corpus."""

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from ..data.corpus import load_corpus
from ..files import check_new_folder, new_folder
from ..tokenization_chatgpt import MAX_DIGITS, train_tokenizer


def train_tokenizer_on_corpus(
    corpus: str,
    output_dir: str | Path,
    *,
    vocab_size: int = 4096,
    max_digits: int = MAX_DIGITS,
    text_column: str = "text",
    encoding: str | None = None,
) -> PreTrainedTokenizerBase:
    """Trains on the training part of a corpus and writes a folder that `AutoTokenizer` loads.

    Raises:
        DataError: If the corpus cannot be used.
        TokenizerError: If `vocab_size` is too small, or `max_digits` is not 1, 2 or 3.
        OutputError: If the folder is not empty.
    """
    folder = check_new_folder(output_dir)
    texts = load_corpus(corpus, text_column=text_column, encoding=encoding)["train"]["text"]
    tokenizer = train_tokenizer(texts, vocab_size, max_digits=max_digits)
    with new_folder(folder) as temporary:
        tokenizer.save_pretrained(temporary)
    return tokenizer
