"""Training a tokenizer on a corpus."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from chatgpt_hf.errors import OutputError, TokenizerError
from chatgpt_hf.training.tokenizer import train_tokenizer_on_corpus


def test_the_folder_opens_with_auto_tokenizer(corpus_file: Path, tmp_path: Path) -> None:
    trained = train_tokenizer_on_corpus(str(corpus_file), tmp_path / "new" / "tokenizer", vocab_size=280)
    loaded = AutoTokenizer.from_pretrained(tmp_path / "new" / "tokenizer")
    text = "The dog looks at 你好 👍🏽 <|im_end|>"
    assert len(loaded) == len(trained) == 280
    assert loaded(text)["input_ids"] == trained(text)["input_ids"]
    assert loaded.chat_template == trained.chat_template is not None


def test_what_is_there_stays(corpus_file: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    for folder in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(OutputError, match=r"is not an empty folder. Nothing was written"):
            train_tokenizer_on_corpus(str(corpus_file), folder, vocab_size=280)
    with pytest.raises(TokenizerError, match=r"vocab_size is 200.*need 260"):
        train_tokenizer_on_corpus(str(corpus_file), tmp_path / "new", vocab_size=200)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
