"""`chatgpt-hf generate`."""

import sys
from typing import Annotated

import typer

from ._moderation import split_commas


def register(app: typer.Typer) -> None:
    """Adds the command."""

    @app.command()
    def generate(
        model: Annotated[str, typer.Argument(help="Folder or Hub id of a causal language model.")],
        prompt: Annotated[str, typer.Option("--prompt", help="Text to continue.")] = "",
        max_new_tokens: Annotated[int, typer.Option("--max_new_tokens", help="Longest continuation.")] = 128,
        temperature: Annotated[
            float | None, typer.Option("--temperature", help="0 takes the likeliest token each time.")
        ] = None,
        top_k: Annotated[int | None, typer.Option("--top_k", help="Sample among the k likeliest tokens.")] = None,
        top_p: Annotated[float | None, typer.Option("--top_p", help="Sample within this probability mass.")] = None,
        seed: Annotated[int | None, typer.Option("--seed", help="Same seed, same text.")] = None,
        bad_words: Annotated[
            list[str] | None,
            typer.Option("--bad_words", help="Words that the model does not choose, with commas between them."),
        ] = None,
        watermark: Annotated[
            bool,
            typer.Option("--watermark", help="Prefer tokens by which transformers' WatermarkDetector knows the text."),
        ] = False,
    ) -> None:
        """Continue a text. The defaults come from the model's generation_config.json.

        Example: chatgpt-hf generate runs/quickstart/base --prompt "Return a copy of" --temperature 0.8 --seed 1
        """
        from ..inference.generate import stream_text

        sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        pieces = stream_text(
            model,
            prompt,
            max_new_tokens=max_new_tokens,
            seed=seed,
            bad_words=split_commas(bad_words),
            watermark=watermark,
            **sampling,
        )
        for piece in pieces:
            sys.stdout.write(piece)
            sys.stdout.flush()
        sys.stdout.write("\n")
