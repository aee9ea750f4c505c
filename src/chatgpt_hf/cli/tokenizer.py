"""`chatgpt-hf tokenizer`."""

from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Adds the command group."""
    group = typer.Typer(no_args_is_help=True, help="Train a tokenizer, and see what one does to a text.")
    app.add_typer(group, name="tokenizer")

    @group.command()
    def train(
        corpus: Annotated[str, typer.Option("--corpus", help="builtin:python-docs, a file, folder, glob, or Hub id.")],
        output_dir: Annotated[str, typer.Option("--output_dir", help="Folder to write; AutoTokenizer loads it.")],
        vocab_size: Annotated[
            int, typer.Option("--vocab_size", help="Tokens, the 256 bytes and 4 specials included.")
        ] = 4096,
        max_digits: Annotated[
            int, typer.Option("--max_digits", help="Digits in one piece of a number; llama.cpp knows 1 and 3.")
        ] = 2,
        text_column: Annotated[str, typer.Option("--text_column", help="Column that holds the text.")] = "text",
    ) -> None:
        """Train a byte-level BPE on a corpus. Any text comes back exactly: Chinese, emoji, code.

        Example: chatgpt-hf tokenizer train --corpus my-texts/ --vocab_size 8192 --output_dir runs/tokenizer
        """
        from ..training.tokenizer import train_tokenizer_on_corpus

        trained = train_tokenizer_on_corpus(
            corpus, output_dir, vocab_size=vocab_size, max_digits=max_digits, text_column=text_column
        )
        typer.echo(f"{len(trained)} tokens, written to {output_dir}")

    @group.command()
    def show(
        tokenizer: Annotated[str, typer.Argument(help="Folder or Hub id of a tokenizer.")],
        text: Annotated[str, typer.Argument(help="A text.")],
    ) -> None:
        """Show a text's tokens and their ids."""
        from ..tokenization_chatgpt import load_tokenizer

        loaded = load_tokenizer(tokenizer)
        for token in loaded(text, add_special_tokens=False)["input_ids"]:
            typer.echo(f"{token}\t{loaded.decode([token])!r}")
