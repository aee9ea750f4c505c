"""`chatgpt-hf pairs`."""

from typing import Annotated

import typer

from ._choices import check_choice
from ._terminal import say
from .errors import UsageMistake
from .help import Command

# `KINDS` of the library, which is not imported for the help.
KINDS = ("pairs", "sft")


def register(app: typer.Typer, panel: str) -> None:
    """Adds the command."""

    @app.command(cls=Command, rich_help_panel=panel)
    def pairs(
        samples: Annotated[
            list[str], typer.Argument(help="Files of `generate --samples`, or others with prompt and completion.")
        ],
        rewards: Annotated[
            list[str] | None,
            typer.Option(
                "--rewards",
                help="What answers are worth: exact, number, regex, json_schema, python, length or honest; a reward model; or module:function. May be repeated.",
            ),
        ] = None,
        output: Annotated[str | None, typer.Option("--output", help="The new .jsonl file.")] = None,
        to: Annotated[
            str,
            typer.Option(
                "--to", help="pairs: the best answer against the worst, for dpo and reward; sft: the best, for sft."
            ),
        ] = "pairs",
        per_prompt: Annotated[int, typer.Option("--per_prompt", min=1, help="At most this many rows per prompt.")] = 1,
        min_margin: Annotated[
            float, typer.Option("--min_margin", min=0, help="Smallest difference between the rewards of a pair.")
        ] = 0.0,
        min_reward: Annotated[
            float | None, typer.Option("--min_reward", help="Lowest reward of a chosen answer.")
        ] = None,
        reward_weights: Annotated[
            list[float] | None,
            typer.Option("--reward_weights", help="Factor of each of --rewards, in the same order. May be repeated."),
        ] = None,
        answer_column: Annotated[
            str | None, typer.Option("--answer_column", help="Column that the rewards read as answer.")
        ] = None,
    ) -> None:
        """Make pairs or examples from a model's own answers.

        Rewards rank the sampled answers to each prompt; the best and the worst become data for dpo, reward or sft. Equal answers count once, and answers that were cut are never chosen. Says how many prompts gave no row, and why.

        Example: chatgpt-hf pairs samples.jsonl --rewards exact --output pairs.jsonl

        Example: chatgpt-hf pairs samples.jsonl --rewards number --to sft --min_reward 1 --output right.jsonl
        """
        check_choice("--to", to, KINDS)
        if not rewards:
            raise UsageMistake("--rewards is missing: name what answers are worth, such as exact.")
        if output is None:
            raise UsageMistake("--output is missing: name the .jsonl file to write.")
        from chatgpt_hf.data.sources import parse_sources
        from chatgpt_hf.rewards.loading import load_rewards
        from chatgpt_hf.rewards.pairs import check_new, make_rows, write_rows

        check_new(output)
        made = make_rows(
            parse_sources(samples),
            load_rewards(rewards, reward_weights or None),
            kind=to,
            per_prompt=per_prompt,
            min_margin=min_margin,
            min_reward=min_reward,
            named={"answer": answer_column} if answer_column else None,
        )
        write_rows(made, output)
        say(f"{len(made.rows)} rows in {output}")
        say(f"{made.answers} answers to {made.prompts} prompts, mean reward {made.mean_reward:.3f}")
        for reason, count in made.without.most_common():
            say(f"{count} prompts {reason}: no row")
        for note, count in made.notes.most_common():
            say(f"{count} {note}")
