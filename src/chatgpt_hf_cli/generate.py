"""`chatgpt-hf generate`."""

import sys
from typing import Annotated, Any

import typer

from ._abstain import AbstainOption, AbstainTextOption, wanted
from ._choices import LARGEST_SEED
from ._compile import CompileOption
from ._moderation import split_commas
from ._paths import check_file, check_model
from ._quantize import QuantizeOption
from ._tensor_parallel import TpPlanOption, run_among
from ._terminal import say, say_aside, write
from .errors import UsageMistake
from .help import Command


def register(app: typer.Typer, panel: str) -> None:
    """Adds the command."""

    @app.command(cls=Command, rich_help_panel=panel)
    def generate(
        model: Annotated[str, typer.Argument(help="Folder or Hub id of a causal language model.")],
        prompt: Annotated[str, typer.Option("--prompt", help="Text to continue.")] = "",
        prompts: Annotated[
            str | None,
            typer.Option(
                "--prompts", help="File (.jsonl) with a prompt or messages on each line, answered as a batch."
            ),
        ] = None,
        output: Annotated[
            str | None,
            typer.Option("--output", help="File for the answers to --prompts. An unfinished file is continued."),
        ] = None,
        samples: Annotated[
            int | None,
            typer.Option(
                "--samples",
                min=1,
                help="Sample this many answers to each of --prompts, from the model's plain distribution.",
            ),
        ] = None,
        tools: Annotated[
            list[str] | None,
            typer.Option(
                "--tools", help="With --samples: tools that the model may call while it answers messages: calculator."
            ),
        ] = None,
        max_new_tokens: Annotated[
            int,
            typer.Option(
                "--max_new_tokens", help="Longest continuation in tokens; the end of the model's context also ends it."
            ),
        ] = 128,
        temperature: Annotated[
            float | None,
            typer.Option(
                "--temperature", help="0 always takes the most likely token; the model's own setting if not given."
            ),
        ] = None,
        top_k: Annotated[int | None, typer.Option("--top_k", help="Sample from the k most likely tokens.")] = None,
        top_p: Annotated[
            float | None,
            typer.Option("--top_p", help="Sample from the most likely tokens with this total probability."),
        ] = None,
        repetition_penalty: Annotated[
            float | None, typer.Option("--repetition_penalty", help="Above 1 makes repetition less likely.")
        ] = None,
        speculate: Annotated[
            str | None,
            typer.Option(
                "--speculate",
                help="Faster generation with the same result: guess several tokens per step from the text so far (auto), with a smaller model (its folder), or with the model's first layers (their number).",
            ),
        ] = None,
        quantize: QuantizeOption = None,
        compile: CompileOption = False,
        tp_plan: TpPlanOption = None,
        abstain: AbstainOption = None,
        abstain_text: AbstainTextOption = None,
        seed: Annotated[
            int | None,
            typer.Option(
                "--seed",
                min=0,
                max=LARGEST_SEED,
                help="Random seed: the same seed gives the same text, or the same --samples (0 if not given).",
            ),
        ] = None,
        bad_words: Annotated[
            list[str] | None,
            typer.Option("--bad_words", help="Words that the model must not generate, separated by commas."),
        ] = None,
        watermark: Annotated[
            bool,
            typer.Option("--watermark", help="Mark the text so that transformers' WatermarkDetector recognises it."),
        ] = False,
    ) -> None:
        """Continue a text, or answer a file of prompts.

        Options that are not given come from the model's generation_config.json; with --samples, nothing does: the temperature is 1.

        Example: chatgpt-hf generate runs/quickstart/base --prompt "Return a copy of" --temperature 0.8 --seed 1

        Example: chatgpt-hf generate my-model --prompts prompts.jsonl --output answers.jsonl

        Example: chatgpt-hf generate my-model --prompts prompts.jsonl --samples 8 --seed 1 --output samples.jsonl

        Example: torchrun --nproc_per_node 2 --no-python chatgpt-hf generate my-model --prompt "Return a copy of" --tp_plan auto
        """
        sampling: dict[str, Any] = {
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "repetition_penalty": repetition_penalty,
        }
        if tools and samples is None:
            raise UsageMistake("--tools is for --samples: leave it out.")
        if prompts is not None:
            if output is None:
                raise UsageMistake("--prompts needs --output: the .jsonl file for the answers.")
            if prompt or bad_words or watermark or speculate or compile:
                raise UsageMistake(
                    "--prompt, --bad_words, --watermark, --speculate and --compile are for one text, not for --prompts."
                )
            if samples is None and seed is not None:
                raise UsageMistake("--seed is for one text or for --samples, not for --prompts with one answer each.")
            if samples is not None and repetition_penalty not in (None, 1):
                raise UsageMistake(
                    "--samples come from the model's plain distribution: leave --repetition_penalty out."
                )
            if samples is not None and (abstain is not None or abstain_text is not None):
                raise UsageMistake(
                    "--abstain judges one answer to a prompt, and --samples gives several: leave one of them out."
                )
            if samples is not None and samples > 1 and temperature == 0:
                raise UsageMistake(f"At --temperature 0, all {samples} answers are the same: give --samples 1.")
            check_model(model)
            check_file("--prompts", prompts)
            if samples is not None:

                def sample() -> None:
                    from chatgpt_hf.inference.samples_file import sample_file

                    del sampling["repetition_penalty"]
                    count = sample_file(
                        model,
                        prompts,
                        output,
                        samples=samples,
                        seed=seed or 0,
                        max_new_tokens=max_new_tokens,
                        quantize=quantize,
                        tools=tools or (),
                        **{name: value for name, value in sampling.items() if value is not None},
                    )
                    say(f"{count} answers in {output}")

                run_among(tp_plan, sample, quantize=quantize)
                return
            if tp_plan is not None:
                raise UsageMistake(
                    "--prompts is answered by continuous batching, which does not work with --tp_plan: give --samples 1 (with "
                    "--temperature 0 for the most likely tokens), or leave --tp_plan out."
                )
            from chatgpt_hf.inference.prompt_file import generate_file

            count = generate_file(
                model,
                prompts,
                output,
                max_new_tokens=max_new_tokens,
                quantize=quantize,
                abstain=wanted(abstain),
                abstain_text=abstain_text,
                **sampling,
            )
            say(f"{count} answers in {output}")
            return
        if samples is not None:
            raise UsageMistake("--samples needs --prompts: the .jsonl file with the prompts.")
        if abstain is not None or abstain_text is not None:
            raise UsageMistake(
                "--abstain judges answers to messages, and a single text has none: give --prompts, or use chatgpt-hf chat --prompt."
            )
        if output is not None:
            raise UsageMistake("--output is for the answers to --prompts; a single text is printed.")
        check_model(model)

        def answer() -> None:
            from chatgpt_hf.inference.generate import stream_text

            in_line = False

            def report(sentence: str) -> None:
                nonlocal in_line
                if in_line:
                    sys.stdout.write("\n")
                    sys.stdout.flush()
                    in_line = False
                say_aside(sentence)

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
                report=report,
                **sampling,
            )
            for piece in pieces:
                write(piece)
                in_line = True
            if in_line:
                sys.stdout.write("\n")

        if speculate is not None and speculate != "auto" and tp_plan is not None:
            raise UsageMistake(
                f"--speculate {speculate} does not work with --tp_plan: give auto, or leave one of them out."
            )
        run_among(tp_plan, answer, quantize=quantize, compile=compile)
