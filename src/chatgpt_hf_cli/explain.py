"""`chatgpt-hf explain`."""

from typing import Annotated

import typer

from ._moderation import split_commas
from ._terminal import say, say_aside
from .help import Command


def register(app: typer.Typer, panel: str) -> None:
    """Adds the command."""

    @app.command(cls=Command, rich_help_panel=panel)
    def explain(
        model: Annotated[str, typer.Argument(help="Folder or Hub id of a causal language model.")],
        out: Annotated[str, typer.Option("--out", help="HTML file to write.")],
        text: Annotated[str | None, typer.Option("--text", help="Text to explain token by token.")] = None,
        prompt: Annotated[
            str | None, typer.Option("--prompt", help="Message to a chat model; its answer is explained.")
        ] = None,
        corpus: Annotated[
            str,
            typer.Option(
                "--corpus",
                help="Text to train the tuned lens on, and to measure how much each part of the model matters.",
            ),
        ] = "builtin:python-docs",
        without: Annotated[
            list[str] | None,
            typer.Option(
                "--without",
                help="Leave out a part: attention, lens, attribution, heads, tuned_lens or ablation; repeat it, or use commas.",
            ),
        ] = None,
    ) -> None:
        """Write an HTML page that shows what happens inside a model.

        Says first how long it will take; with a large model most of that is the ablation, which removes every part in turn. Attributions need captum: pip install 'chatgpt-hf[explain]'.

        Example: chatgpt-hf explain runs/quickstart --prompt "What does str.join do?" --out answer.html

        Example: chatgpt-hf explain runs/quickstart --text "Return a copy of the list." --out report.html

        Example: chatgpt-hf explain smollm2 --text "Paris is in France." --out fast.html --without ablation,tuned_lens
        """
        from chatgpt_hf.explain import write_explanation

        def report(sentence: str) -> None:
            say_aside(sentence)

        page = write_explanation(
            model, out, text=text, prompt=prompt, corpus=corpus, without=split_commas(without), report=report
        )
        say(f"Written to {page}")
