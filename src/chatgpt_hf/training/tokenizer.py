"""From a corpus to a tokenizer folder."""

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from ..data.corpus import load_corpus
from ..files import atomic_folder, check_new_folder
from ..tokenization_chatgpt import MAX_DIGITS, train_tokenizer


def train_tokenizer_on_corpus(
    corpus: str,
    output_dir: str | Path,
    *,
    vocab_size: int = 4096,
    max_digits: int = MAX_DIGITS,
    text_column: str = "text",
) -> PreTrainedTokenizerBase:
    """Trains on a corpus' training part and writes the folder that `AutoTokenizer` loads.

    Raises:
        DataError: When the corpus cannot be used.
        TokenizerError: When `vocab_size` is too small, or `max_digits` none of 1 to 3.
        OutputError: When the folder is not empty.
    """
    folder = check_new_folder(output_dir)
    texts = load_corpus(corpus, text_column=text_column)["train"]["text"]
    tokenizer = train_tokenizer(texts, vocab_size, max_digits=max_digits)
    with atomic_folder(folder) as temporary:
        tokenizer.save_pretrained(temporary)
    return tokenizer
