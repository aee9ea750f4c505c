"""`chatgpt-hf ui`."""

from typing import Annotated

import typer

from ._abstain import AbstainOption, AbstainTextOption, wanted
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
from .help import Command


def register(app: typer.Typer, panel: str) -> None:
    """Adds the command."""

    @app.command(cls=Command, rich_help_panel=panel)
    def ui(
        model: Annotated[str, typer.Argument(help="Folder or Hub id of a chat model.")],
        host: Annotated[
            str, typer.Option("--host", help="Address to listen on; 0.0.0.0 opens the page to the network.")
        ] = "127.0.0.1",
        port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port to listen on.")] = 7860,
        allowed_hosts: AllowedHostsOption = None,
        system: Annotated[str | None, typer.Option("--system", help="System prompt of new conversations.")] = None,
        max_new_tokens: Annotated[
            int | None,
            typer.Option("--max_new_tokens", help="Longest answer in tokens; the model's own setting if not given."),
        ] = None,
        temperature: Annotated[
            float | None,
            typer.Option(
                "--temperature", help="0 always takes the most likely token; the model's own setting if not given."
            ),
        ] = None,
        quantize: QuantizeOption = None,
        abstain: AbstainOption = None,
        abstain_text: AbstainTextOption = None,
        moderation: ModerationOption = None,
        moderation_labels: ModerationLabelsOption = None,
        moderation_threshold: ModerationThresholdOption = 0.5,
        moderation_log_text: ModerationLogTextOption = False,
    ) -> None:
        """Chat with a model in the browser.

        Opens a page on this machine; Ctrl-C ends it. Needs pip install 'chatgpt-hf[ui]'.

        Example: chatgpt-hf ui runs/quickstart

        Example: chatgpt-hf ui runs/quickstart --port 8080
        """
        check_moderation(moderation, moderation_labels)
        check_model(model)
        from chatgpt_hf.inference.parameters import sampling
        from chatgpt_hf.ui import serve_page

        serve_page(
            model,
            host=host,
            port=port,
            allowed_hosts=split_commas(allowed_hosts) or (),
            quantize=quantize,
            abstain=wanted(abstain),
            abstain_text=abstain_text,
            system_prompt=system,
            moderation=moderator(moderation, moderation_labels, moderation_threshold, moderation_log_text),
            max_new_tokens=max_new_tokens,
            started=lambda address: print(f"The page is at {address} (Ctrl-C ends).", flush=True),
            **sampling(temperature),
        )
