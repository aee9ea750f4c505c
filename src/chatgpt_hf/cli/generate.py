"""`chatgpt-hf generate`."""

import sys
from typing import Annotated, Any

import typer

from ..errors import ConfigError
from ._moderation import split_commas
from ._quantize import QuantizeOption


def register(app: typer.Typer) -> None:
    """Adds the command."""

    @app.command()
    def generate(
        model: Annotated[str, typer.Argument(help="Folder or Hub id of a causal language model.")],
        prompt: Annotated[str, typer.Option("--prompt", help="Text to continue.")] = "",
        prompts: Annotated[
            str | None,
            typer.Option(
                "--prompts", help="A .jsonl file with prompt or messages on each line, answered all together."
            ),
        ] = None,
        output: Annotated[
            str | None, typer.Option("--output", help="File for these answers; one that was begun is gone on with.")
        ] = None,
        max_new_tokens: Annotated[int, typer.Option("--max_new_tokens", help="Longest continuation.")] = 128,
        temperature: Annotated[
            float | None, typer.Option("--temperature", help="0 takes the likeliest token each time.")
        ] = None,
        top_k: Annotated[int | None, typer.Option("--top_k", help="Sample among the k likeliest tokens.")] = None,
        top_p: Annotated[float | None, typer.Option("--top_p", help="Sample within this probability mass.")] = None,
        repetition_penalty: Annotated[
            float | None, typer.Option("--repetition_penalty", help="Above 1: less of what was said before.")
        ] = None,
        speculate: Annotated[
            str | None,
            typer.Option(
                "--speculate",
                help="Several tokens a step, guessed from the text so far (auto), by a smaller model (its folder), or by the model's own first layers (their number).",
            ),
        ] = None,
        quantize: QuantizeOption = None,
        compile: Annotated[
            bool,
            typer.Option("--compile", help="Compile the steps first, in ten to thirty seconds: for long answers."),
        ] = False,
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
        """Continue a text, or answer a file of prompts. The defaults come from the model's generation_config.json.

        Example: chatgpt-hf generate runs/quickstart/base --prompt "Return a copy of" --temperature 0.8 --seed 1

        Example: chatgpt-hf generate my-model --prompts prompts.jsonl --output answers.jsonl
        """
        sampling: dict[str, Any] = {
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "repetition_penalty": repetition_penalty,
        }
        if prompts is not None:
            from ..inference.prompt_file import generate_file

            if output is None:
                raise ConfigError("--prompts needs --output: the .jsonl file for the answers.")
            if prompt or seed is not None or bad_words or watermark or speculate or compile:
                raise ConfigError(
                    "--prompt, --seed, --bad_words, --watermark, --speculate and --compile are for one text, not for --prompts."
                )
            count = generate_file(model, prompts, output, max_new_tokens=max_new_tokens, quantize=quantize, **sampling)
            typer.echo(f"{count} answers in {output}")
            return
        if output is not None:
            raise ConfigError("--output is for the answers to --prompts; a text is printed.")
        from ..inference.generate import stream_text

        pieces = stream_text(
            model,
            prompt,
            max_new_tokens=max_new_tokens,
            seed=seed,
            bad_words=split_commas(bad_words),
            watermark=watermark,
            speculate=speculate,
            quantize=quantize,
            compile=compile,
            report=lambda sentence: typer.echo(sentence, err=True),
            **sampling,
        )
        for piece in pieces:
            sys.stdout.write(piece)
            sys.stdout.flush()
        sys.stdout.write("\n")
