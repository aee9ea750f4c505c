"""`chatgpt-hf sft`."""

import typer

from ._recipe import recipe_command, train

TYPES = (
    "training.arguments:ChatModelArguments",
    "training.arguments:ConversationArguments",
    "training.arguments:ChatSFTArguments",
)


def register(app: typer.Typer, panel: str) -> None:
    """Adds the command."""
    recipe_command(app, "sft", panel, TYPES, train("chatgpt_hf.training.sft:sft"), HELP)


HELP = """Train a base model to chat (supervised fine-tuning).

Learns the assistant's turns in conversations with TRL's SFTTrainer, and measures how many questions of a trained and of a held-out sample the model answers exactly. RECIPE is a YAML file or the name of a shipped recipe; fields on the command line win over it. --resume continues an interrupted run.

Example: chatgpt-hf sft sft-quickstart --model_name_or_path runs/mine --dataset chats.jsonl

Example: chatgpt-hf sft sft-lora --dataset chats.jsonl --output_dir runs/adapter
"""
