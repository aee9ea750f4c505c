"""`chatgpt-hf ui`."""

from typing import Annotated

import typer

from ._moderation import (
    ModerationLabelsOption,
    ModerationLogTextOption,
    ModerationOption,
    ModerationThresholdOption,
    moderator,
)
from ._quantize import QuantizeOption


def register(app: typer.Typer) -> None:
    """Adds the command."""

    @app.command()
    def ui(
        model: Annotated[str, typer.Argument(help="Folder or Hub id of a chat model.")],
        host: Annotated[
            str, typer.Option("--host", help="Address to serve at; 0.0.0.0 lets the whole network in.")
        ] = "127.0.0.1",
        port: Annotated[int, typer.Option("--port", min=1, max=65535)] = 7860,
        system: Annotated[str | None, typer.Option("--system", help="System prompt of a new conversation.")] = None,
        max_new_tokens: Annotated[int | None, typer.Option("--max_new_tokens", help="Longest answer.")] = None,
        temperature: Annotated[
            float | None, typer.Option("--temperature", help="0 takes the likeliest token each time.")
        ] = None,
        quantize: QuantizeOption = None,
        moderation: ModerationOption = None,
        moderation_labels: ModerationLabelsOption = None,
        moderation_threshold: ModerationThresholdOption = 0.5,
        moderation_log_text: ModerationLogTextOption = False,
    ) -> None:
        """Talk to a chat model in the browser. Needs `pip install 'chatgpt-hf[ui]'`. Ctrl-C ends.

        Example: chatgpt-hf ui runs/quickstart
        """
        from ..inference.parameters import sampling
        from ..ui import serve_page

        serve_page(
            model,
            host=host,
            port=port,
            quantize=quantize,
            system_prompt=system,
            moderation=moderator(moderation, moderation_labels, moderation_threshold, moderation_log_text),
            max_new_tokens=max_new_tokens,
            started=lambda address: print(f"The page is at {address} (Ctrl-C ends).", flush=True),
            **sampling(temperature),
        )
