"""`chatgpt-hf reward`."""

import typer

from ._recipe import recipe_command, train

TYPES = (
    "training.preference_arguments:RewardModelArguments",
    "training.preference_arguments:PreferenceArguments",
    "training.preference_arguments:RewardArguments",
)


def register(app: typer.Typer, panel: str) -> None:
    """Adds the command."""
    recipe_command(app, "reward", panel, TYPES, train("chatgpt_hf.training.reward:reward"), HELP)


HELP = """Train a reward model, which scores answers, on pairs of answers.

Starts from a chat model and learns pairs (prompt, chosen, rejected) with TRL's RewardTrainer. Measures how many held-out pairs the model ranks right, beside a rule that sees only the length of the answers. The result is a folder for AutoModelForSequenceClassification with one output. RECIPE is a YAML file or the name of a shipped recipe; fields on the command line win over it. --resume continues an interrupted run.

Example: chatgpt-hf reward reward-en --model_name_or_path MODEL --dataset pairs.jsonl
"""
