"""The moderation options, shared by all commands that chat."""

from typing import TYPE_CHECKING, Annotated

import typer

from .errors import UsageMistake

if TYPE_CHECKING:
    from chatgpt_hf.moderation import Moderator

ModerationOption = Annotated[
    list[str] | None,
    typer.Option(
        "--moderation",
        help="Block messages and answers with a word list (.txt, one word or phrase per line) or a text-classification "
        "model (folder or Hub id). Repeatable.",
    ),
]
ModerationLabelsOption = Annotated[
    list[str] | None,
    typer.Option("--moderation_labels", help="Labels of that model to block, separated by commas."),
]
ModerationThresholdOption = Annotated[
    float, typer.Option("--moderation_threshold", help="Lowest score of a label that is blocked.")
]
ModerationLogTextOption = Annotated[
    bool, typer.Option("--moderation_log_text", help="Log the blocked text too, not only the reason.")
]


def moderator(
    specs: list[str] | None, labels: list[str] | None, threshold: float, log_text: bool
) -> "Moderator | None":
    """Loads the moderators that the options name; None if they name none."""
    check_moderation(specs, labels)
    if not specs:
        return None
    from chatgpt_hf.moderation import Moderators, load_moderator

    return Moderators([load_moderator(spec, split_commas(labels), threshold, log_text) for spec in specs])


def check_moderation(specs: list[str] | None, labels: list[str] | None) -> None:
    """Raises `UsageMistake` if there are labels but no model that they could belong to."""
    if split_commas(labels) and all(spec.endswith(".txt") for spec in specs or []):
        raise UsageMistake("--moderation_labels are labels of a model: name the model with --moderation.")


def split_commas(values: list[str] | None) -> list[str]:
    """The values of a repeatable option, each of which may hold several separated by commas."""
    return [part.strip() for value in values or [] for part in value.split(",") if part.strip()]
