"""`chatgpt-hf serve`."""

from typing import Annotated

import typer
from rich.console import Console

from ._moderation import (
    ModerationLabelsOption,
    ModerationLogTextOption,
    ModerationOption,
    ModerationThresholdOption,
    moderator,
    split_commas,
)
from ._quantize import QuantizeOption


def register(app: typer.Typer) -> None:
    """Adds the command."""

    @app.command()
    def serve(
        model: Annotated[str, typer.Argument(help="Folder or Hub id of a causal language model.")],
        host: Annotated[str, typer.Option("--host", help="0.0.0.0 lets other machines in.")] = "127.0.0.1",
        port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 for any that is free.")] = 8000,
        served_model_name: Annotated[
            str | None, typer.Option("--served_model_name", help="How clients name the model; MODEL if not given.")
        ] = None,
        continuous_batching: Annotated[
            bool,
            typer.Option(
                "--continuous_batching/--no-continuous_batching",
                help="Requests share the model's steps: more tokens a second when many ask at once. temperature, top_p and "
                "top_k work for each request; seed, penalties, min_p and logit_bias are refused then.",
            ),
        ] = False,
        api_key: Annotated[
            str | None,
            typer.Option("--api_key", envvar="CHATGPT_HF_API_KEY", help="That clients must send as a bearer token."),
        ] = None,
        max_concurrent: Annotated[
            int, typer.Option("--max_concurrent", min=1, help="Requests under way at a time; more get 429.")
        ] = 16,
        max_body_bytes: Annotated[
            int, typer.Option("--max_body_bytes", min=1, help="Largest request; more gets 413.")
        ] = 1_000_000,
        request_seconds: Annotated[
            float, typer.Option("--request_seconds", min=0.1, help="An answer that takes longer is ended.")
        ] = 300,
        repetition_penalty: Annotated[
            float | None,
            typer.Option(
                "--repetition_penalty",
                help="In place of the model's own, for requests that bring none; 1 is none, which continuous batching needs.",
            ),
        ] = None,
        quantize: QuantizeOption = None,
        bad_words: Annotated[
            list[str] | None, typer.Option("--bad_words", help="Words not to say, with commas between them.")
        ] = None,
        watermark: Annotated[
            bool,
            typer.Option("--watermark", help="Prefer tokens by which transformers' WatermarkDetector knows the text."),
        ] = False,
        moderation: ModerationOption = None,
        moderation_labels: ModerationLabelsOption = None,
        moderation_threshold: ModerationThresholdOption = 0.5,
        moderation_log_text: ModerationLogTextOption = False,
        log_level: Annotated[str, typer.Option("--log_level", help="info shows each request.")] = "warning",
    ) -> None:
        """Serve a model with OpenAI's API: /v1/chat/completions, /v1/completions, /v1/models; /health, /metrics.

        Ctrl-C or SIGTERM ends it after the answers under way.

        Example: chatgpt-hf serve runs/quickstart --port 8000
        """
        from ..errors import ConfigError

        try:
            from ..serving.engine import Engine
            from ..serving.server import serve as run
        except ImportError as error:
            raise ConfigError(
                f"The server needs packages that are not installed ({error}): pip install 'chatgpt-hf[serve]'"
            ) from error
        if log_level not in ("debug", "info", "warning", "error", "critical"):
            raise ConfigError(f"--log_level is {log_level}; use debug, info, warning, error or critical.")

        from ..inference.loading import load_for_generation
        from ..inference.parameters import restrictions
        from ..tokenization_chatgpt import load_tokenizer

        tokenizer = load_tokenizer(model)
        engine = Engine(
            served_model_name or model,
            load_for_generation(model, quantize),
            tokenizer,
            moderation=moderator(moderation, moderation_labels, moderation_threshold, moderation_log_text),
            continuous_batching=continuous_batching,
            max_concurrent=max_concurrent,
            **({} if repetition_penalty is None else {"repetition_penalty": repetition_penalty}),
            **restrictions(tokenizer, split_commas(bad_words), watermark),
        )
        console = Console(stderr=True)

        def ready(address: str) -> None:
            console.print(f"{engine.name} is served at {address}/v1", markup=False, soft_wrap=True)

        run(
            engine,
            host=host,
            port=port,
            api_key=api_key,
            max_concurrent=max_concurrent,
            max_body_bytes=max_body_bytes,
            request_seconds=request_seconds,
            log_level=log_level,
            ready=ready,
        )
