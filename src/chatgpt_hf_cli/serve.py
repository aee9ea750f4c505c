"""`chatgpt-hf serve`."""

from typing import Annotated

import typer

from ._abstain import AbstainOption, AbstainTextOption, wanted
from ._compile import CompileOption
from ._hosts import AllowedHostsOption
from ._moderation import (
    ModerationLabelsOption,
    ModerationLogTextOption,
    ModerationOption,
    ModerationThresholdOption,
    check_moderation,
    moderator,
    split_commas,
)
from ._paths import check_model
from ._quantize import QuantizeOption
from ._tensor_parallel import TpPlanOption, run_among
from ._terminal import say_aside, visible
from .errors import UsageMistake
from .help import Command

LOG_LEVELS = ("debug", "info", "warning", "error", "critical")


def register(app: typer.Typer, panel: str) -> None:
    """Adds the command."""

    @app.command(cls=Command, rich_help_panel=panel)
    def serve(
        model: Annotated[str, typer.Argument(help="Folder or Hub id of a causal language model.")],
        host: Annotated[
            str, typer.Option("--host", help="Address to listen on; 0.0.0.0 opens it to other machines.")
        ] = "127.0.0.1",
        port: Annotated[
            int, typer.Option("--port", min=0, max=65535, help="Port to listen on; 0 takes any free one.")
        ] = 8000,
        allowed_hosts: AllowedHostsOption = None,
        served_model_name: Annotated[
            str | None, typer.Option("--served_model_name", help="Name of the model for clients; MODEL if not given.")
        ] = None,
        continuous_batching: Annotated[
            bool,
            typer.Option(
                "--continuous_batching/--no-continuous_batching",
                help="Batch requests together: more tokens per second with many clients. Each request may set temperature, "
                "top_p and top_k; seed, penalties, min_p and logit_bias are refused.",
            ),
        ] = False,
        api_key: Annotated[
            str | None,
            typer.Option(
                "--api_key", envvar="CHATGPT_HF_API_KEY", help="Key that clients must send as a bearer token."
            ),
        ] = None,
        max_concurrent: Annotated[
            int,
            typer.Option("--max_concurrent", min=1, help="Largest number of requests at a time; more get status 429."),
        ] = 16,
        max_body_bytes: Annotated[
            int,
            typer.Option("--max_body_bytes", min=1, help="Largest request in bytes; a larger one gets status 413."),
        ] = 1_000_000,
        request_seconds: Annotated[
            float, typer.Option("--request_seconds", min=0.1, help="Time limit for one answer, in seconds.")
        ] = 300,
        repetition_penalty: Annotated[
            float | None,
            typer.Option(
                "--repetition_penalty",
                help="Repetition penalty of requests that set none; the model's own if not given. Continuous batching needs 1, which is none.",
            ),
        ] = None,
        quantize: QuantizeOption = None,
        compile: CompileOption = False,
        tp_plan: TpPlanOption = None,
        abstain: AbstainOption = None,
        abstain_text: AbstainTextOption = None,
        bad_words: Annotated[
            list[str] | None,
            typer.Option("--bad_words", help="Words that the model must not generate, separated by commas."),
        ] = None,
        watermark: Annotated[
            bool,
            typer.Option("--watermark", help="Mark the text so that transformers' WatermarkDetector recognises it."),
        ] = False,
        moderation: ModerationOption = None,
        moderation_labels: ModerationLabelsOption = None,
        moderation_threshold: ModerationThresholdOption = 0.5,
        moderation_log_text: ModerationLogTextOption = False,
        log_level: Annotated[
            str, typer.Option("--log_level", help="debug, info (shows each request), warning, error or critical.")
        ] = "warning",
    ) -> None:
        """Serve a model with an OpenAI-compatible API.

        Endpoints: /v1/chat/completions, /v1/completions, /v1/models, /health and /metrics. Ctrl-C or SIGTERM stops the server after the running answers. Needs pip install 'chatgpt-hf[serve]'.

        Example: chatgpt-hf serve runs/quickstart --port 8000

        Example: chatgpt-hf serve runs/quickstart --continuous_batching --repetition_penalty 1

        Example: torchrun --nproc_per_node 2 --no-python chatgpt-hf serve my-model --tp_plan auto
        """
        if log_level not in LOG_LEVELS:
            raise UsageMistake(f"--log_level is {log_level}; use debug, info, warning, error or critical.")
        if compile and continuous_batching:
            raise UsageMistake("--compile is for one request at a time: leave out --compile or --continuous_batching.")
        if abstain is not None and continuous_batching:
            raise UsageMistake("--abstain judges one answer at a time: leave out --abstain or --continuous_batching.")
        check_moderation(moderation, moderation_labels)
        check_model(model)

        def work() -> None:
            from rich.console import Console

            from chatgpt_hf.inference.abstention import choose_abstention
            from chatgpt_hf.inference.compiling import compiled_prefix
            from chatgpt_hf.inference.loading import load_for_generation
            from chatgpt_hf.inference.parameters import restrictions
            from chatgpt_hf.serving.engine import Engine
            from chatgpt_hf.serving.server import serve as run
            from chatgpt_hf.tokenization_chatgpt import load_tokenizer

            tokenizer = load_tokenizer(model)
            loaded = load_for_generation(model, quantize)
            abstention = choose_abstention(model, tokenizer, wanted(abstain), abstain_text, quantize=quantize)
            engine = Engine(
                served_model_name or model,
                loaded,
                tokenizer,
                prefix=compiled_prefix(loaded.eval(), say_aside) if compile else None,
                moderation=moderator(moderation, moderation_labels, moderation_threshold, moderation_log_text),
                continuous_batching=continuous_batching,
                abstain=abstention,
                max_concurrent=max_concurrent,
                **({} if repetition_penalty is None else {"repetition_penalty": repetition_penalty}),
                **restrictions(tokenizer, split_commas(bad_words), watermark),
            )
            console = Console(stderr=True)

            def ready(address: str) -> None:
                console.print(visible(f"{engine.name} is served at {address}/v1"), markup=False, soft_wrap=True)

            run(
                engine,
                host=host,
                port=port,
                allowed_hosts=split_commas(allowed_hosts) or (),
                api_key=api_key,
                max_concurrent=max_concurrent,
                max_body_bytes=max_body_bytes,
                request_seconds=request_seconds,
                log_level=log_level,
                ready=ready,
            )

        run_among(tp_plan, work, quantize=quantize, compile=compile, continuous_batching=continuous_batching)
