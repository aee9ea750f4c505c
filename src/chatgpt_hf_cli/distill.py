"""`chatgpt-hf distill`."""

import typer

from ._recipe import recipe_command, train

TYPES = (
    "training.arguments:ChatModelArguments",
    "training.arguments:ConversationDataArguments",
    "training.distill_arguments:DistillArguments",
)


def register(app: typer.Typer, panel: str) -> None:
    """Adds the command."""
    recipe_command(app, "distill", panel, TYPES, train("chatgpt_hf.training.distill:distill"), HELP)


HELP = """Train a small chat model on the predictions of a larger one.

The small model, the student, learns what the larger one, the teacher, predicts for each token of the answers in conversations, with TRL's DistillationTrainer. Both need the same tokenizer. With --lmbda above 0 the student also learns from answers that it samples itself. RECIPE is a YAML file or the name of a shipped recipe; fields on the command line win over it. --resume continues an interrupted run.

Example: chatgpt-hf distill distill-quickstart --model_name_or_path runs/small --teacher_model_name_or_path runs/mine-chat

Example: chatgpt-hf distill distill-quickstart --model_name_or_path SMALL --teacher_model_name_or_path LARGE --dataset chats.jsonl --lmbda 0.5 --beta 0.5
"""
