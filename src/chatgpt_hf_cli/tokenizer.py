"""`chatgpt-hf tokenizer`."""

from typing import Annotated

import typer

from ._terminal import say
from .help import Command, Group


def register(app: typer.Typer, panel: str) -> None:
    """Adds the command group."""
    group = typer.Typer(
        cls=Group,
        help="Train a tokenizer, or show how one splits a text.\n\nExample: chatgpt-hf tokenizer train --corpus my-texts/ --output_dir runs/tokenizer",
    )
    app.add_typer(group, name="tokenizer", rich_help_panel=panel)

    @group.command(cls=Command)
    def train(
        corpus: Annotated[
            str,
            typer.Option("--corpus", help="Text to train on: builtin:python-docs, a file, folder, glob or Hub id."),
        ],
        output_dir: Annotated[str, typer.Option("--output_dir", help="Folder to write; AutoTokenizer loads it.")],
        vocab_size: Annotated[
            int, typer.Option("--vocab_size", help="Number of tokens, including the 256 bytes and 4 special tokens.")
        ] = 4096,
        max_digits: Annotated[
            int,
            typer.Option(
                "--max_digits",
                help="Split numbers into groups of at most this many digits; llama.cpp supports 1 and 3.",
            ),
        ] = 2,
        text_column: Annotated[str, typer.Option("--text_column", help="Column with the text.")] = "text",
        encoding: Annotated[
            str | None, typer.Option("--encoding", help="Encoding of the files, such as gb18030; UTF-8 if not given.")
        ] = None,
    ) -> None:
        """Train a byte-level BPE tokenizer on a corpus.

        Every text decodes back exactly: Chinese, emoji and code too.

        Example: chatgpt-hf tokenizer train --corpus my-texts/ --vocab_size 8192 --output_dir runs/tokenizer
        """
        from chatgpt_hf.training.tokenizer import train_tokenizer_on_corpus

        trained = train_tokenizer_on_corpus(
            corpus,
            output_dir,
            vocab_size=vocab_size,
            max_digits=max_digits,
            text_column=text_column,
            encoding=encoding,
        )
        say(f"{len(trained)} tokens, written to {output_dir}")

    @group.command(cls=Command)
    def show(
        tokenizer: Annotated[str, typer.Argument(help="Folder or Hub id of a tokenizer.")],
        text: Annotated[str, typer.Argument(help="Text to split.")],
    ) -> None:
        """Show the tokens of a text and their ids.

        Example: chatgpt-hf tokenizer show runs/quickstart "str.join"
        """
        from chatgpt_hf.tokenization_chatgpt import load_tokenizer

        loaded = load_tokenizer(tokenizer)
        for token in loaded(text, add_special_tokens=False)["input_ids"]:
            say(f"{token}\t{loaded.decode([token])!r}")
