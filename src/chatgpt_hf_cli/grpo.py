"""`chatgpt-hf grpo`."""

import typer

from ._recipe import recipe_command, train

TYPES = (
    "training.preference_arguments:RewardModelArguments",
    "training.grpo_arguments:PromptArguments",
    "training.grpo_arguments:GRPOArguments",
)


def register(app: typer.Typer, panel: str) -> None:
    """Adds the command."""
    recipe_command(app, "grpo", panel, TYPES, train("chatgpt_hf.training.grpo:grpo"), HELP)


HELP = """Train a chat model on rewards for its own answers.

The model samples several answers to each prompt, rewards say what they are worth (right answers, tests that pass, a reward model, a function of yours), and TRL's GRPOTrainer or RLOOTrainer makes the better ones likelier. Measures the rewards of answers to held-out prompts before and after. RECIPE is a YAML file or the name of a shipped recipe; fields on the command line win over it. --resume continues an interrupted run.

Example: chatgpt-hf grpo grpo-arithmetic --model_name_or_path MODEL --dataset sums.jsonl

Example: chatgpt-hf grpo --model_name_or_path MODEL --dataset questions.jsonl --rewards number '{"name": "length", "most": 64}' --reward_weights 1 0.1
"""
