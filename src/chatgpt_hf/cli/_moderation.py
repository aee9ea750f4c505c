"""The options of moderation, the same for every command that talks."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..moderation import Moderator

ModerationOption = Annotated[
    list[str] | None,
    typer.Option(
        "--moderation",
        help="A word list (.txt, a word or phrase in a line) or a text-classification model (folder or Hub id) that looks at "
        "what goes in and comes out. May be given several times.",
    ),
]
ModerationLabelsOption = Annotated[
    list[str] | None,
    typer.Option("--moderation_labels", help="Labels of the model that are blocked, with commas between them."),
]
ModerationThresholdOption = Annotated[
    float, typer.Option("--moderation_threshold", help="The score from which on a label is blocked.")
]
ModerationLogTextOption = Annotated[
    bool, typer.Option("--moderation_log_text", help="Log what was blocked, and not only why.")
]


def moderator(
    specs: list[str] | None, labels: list[str] | None, threshold: float, log_text: bool
) -> "Moderator | None":
    """What the options ask for; None where they ask for nothing.

    Raises:
        ConfigError: When there are labels and no model that they could belong to.
    """
    from ..errors import ConfigError
    from ..moderation import Moderators, load_moderator

    names = split_commas(labels)
    if names and all(spec.endswith(".txt") for spec in specs or []):
        raise ConfigError("--moderation_labels are those of a model; name it with --moderation.")
    if not specs:
        return None
    return Moderators([load_moderator(spec, names, threshold, log_text) for spec in specs])


def split_commas(values: list[str] | None) -> list[str]:
    """The values of an option that may be given several times, and each time with commas between several."""
    return [part.strip() for value in values or [] for part in value.split(",") if part.strip()]
