"""`chatgpt-hf calibrate`."""

from typing import Annotated

import typer

from ._choices import LARGEST_SEED
from ._paths import check_model
from ._terminal import say, visible
from .help import Command


def register(app: typer.Typer, panel: str) -> None:
    """Adds the command."""

    @app.command(cls=Command, rich_help_panel=panel)
    def calibrate(
        model: Annotated[str, typer.Argument(help="Folder of a chat model.")],
        known: Annotated[
            list[str],
            typer.Option(
                "--known",
                help="Conversations whose last answer the model should know, as for sft: a file, folder, glob, Hub id or builtin:python-qa.",
            ),
        ],
        unknown: Annotated[
            list[str] | None,
            typer.Option(
                "--unknown",
                help="Conversations whose last answer it cannot know; they measure what abstaining is good for. Of a source with its own held-out part, that part.",
            ),
        ] = None,
        keep: Annotated[float, typer.Option("--keep", help="Share of the right answers to keep.")] = 0.95,
        text: Annotated[str, typer.Option("--text", help="What the model says when it abstains.")] = "I don't know.",
        limit: Annotated[
            int, typer.Option("--limit", help="At most this many conversations of each kind, chosen at random.")
        ] = 1000,
        max_new_tokens: Annotated[
            int, typer.Option("--max_new_tokens", help="Answers are judged by at most this many tokens.")
        ] = 128,
        batch_size: Annotated[
            int, typer.Option("--batch_size", min=1, help="Number of questions answered at a time.")
        ] = 32,
        encoding: Annotated[
            str | None, typer.Option("--encoding", help="Encoding of the files, such as gb18030; UTF-8 if not given.")
        ] = None,
        seed: Annotated[
            int, typer.Option("--seed", min=0, max=LARGEST_SEED, help="Random seed of the choice of conversations.")
        ] = 0,
    ) -> None:
        """Find the threshold below which a model says that it does not know, for --abstain.

        The model answers the questions; the threshold keeps a share of the answers that are right, word for word. It is written into MODEL as abstention.json, with what it costs, and belongs to these weights.

        Example: chatgpt-hf calibrate runs/quickstart --known builtin:python-qa --unknown builtin:python-qa --text "I don't know that function."

        Example: chatgpt-hf calibrate my-model --known my-chats.jsonl --keep 0.9
        """
        check_model(model)
        from rich.console import Console
        from rich.table import Table

        from chatgpt_hf.inference.calibration import calibrate as run
        from chatgpt_hf.stored import ABSTENTION_NAME

        found = run(
            model,
            known,
            unknown,
            keep=keep,
            text=text,
            limit=limit,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            encoding=encoding,
            seed=seed,
        )
        table = Table("figure", "value", "95 % interval", box=None, header_style="bold")
        for name, figure in found.figures.items():
            table.add_row(TITLES[name], figure.shown(), figure.interval())
        Console().print(table)
        counts = ", ".join(f"{value:,} {name.replace('_', ' ')}" for name, value in found.counts.items())
        say(f"Measured on: {counts}.")
        say(
            visible(
                f"Threshold {found.abstention.threshold:.4f}, written to {model}/{ABSTENTION_NAME}: --abstain uses it."
            )
        )


TITLES = {
    "right_given": "right answers still given",
    "wrong_given": "wrong answers still given",
    "invented_given": "wrong answers to unknown questions still given",
    "auroc": "AUROC, right against wrong",
}
