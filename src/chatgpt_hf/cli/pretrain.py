"""`chatgpt-hf pretrain`."""

import typer

from ._recipe import recipe_command


def register(app: typer.Typer) -> None:
    """Adds the command."""

    @recipe_command(
        app,
        "pretrain",
        ("ModelArguments", "ArchitectureArguments", "CorpusArguments", "PretrainArguments"),
        "chatgpt_hf.training.pretrain:pretrain",
    )
    def pretrain() -> None:
        """From a corpus to a base model.

        Trains a tokenizer where none is given, tokenizes and packs the corpus, trains with transformers' Trainer, and
        leaves a plain model folder with a report.

        Example: chatgpt-hf pretrain pretrain-quickstart --corpus my-texts/ --output_dir runs/mine --max_steps 500
        """
