"""`chatgpt-hf dpo`."""

import typer

from ._recipe import recipe_command, train

TYPES = (
    "training.preference_arguments:PreferenceModelArguments",
    "training.preference_arguments:PreferenceArguments",
    "training.preference_arguments:DPOArguments",
)


def register(app: typer.Typer, panel: str) -> None:
    """Adds the command."""
    recipe_command(app, "dpo", panel, TYPES, train("chatgpt_hf.training.dpo:dpo"), HELP)


HELP = """Train a chat model on preferences: pairs of answers, or answers that were judged.

Pairs (prompt, chosen, rejected) are learned with TRL's DPOTrainer and any of its losses, judged answers (prompt, completion, label) with its KTOTrainer. Measures how many held-out pairs the model ranks right, beside a rule that sees only the length of the answers. RECIPE is a YAML file or the name of a shipped recipe; fields on the command line win over it. --resume continues an interrupted run.

Example: chatgpt-hf dpo dpo-quickstart --model_name_or_path runs/mine-chat --dataset pairs.jsonl

Example: chatgpt-hf dpo dpo-quickstart --model_name_or_path MODEL --dataset pairs.jsonl --use_peft true --loss_type ipo
"""
