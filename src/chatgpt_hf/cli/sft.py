"""`chatgpt-hf sft`."""

import typer

from ._recipe import recipe_command


def register(app: typer.Typer) -> None:
    """Adds the command."""

    @recipe_command(
        app,
        "sft",
        ("ChatModelArguments", "ConversationArguments", "ChatSFTArguments"),
        "chatgpt_hf.training.sft:sft",
    )
    def sft() -> None:
        """From a base model to a chat model.

        Learns what the assistant says in conversations (column `messages`) with TRL's SFTTrainer, and measures how many
        of a trained and of a held-out sample are answered exactly.

        Example: chatgpt-hf sft sft-quickstart --model_name_or_path runs/mine --dataset chats.jsonl --output_dir runs/chat
        """
