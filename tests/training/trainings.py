"""The trainings whose recipes many tests parse: the types of their arguments, and their functions."""

from collections.abc import Callable
from typing import Any

from chatgpt_hf import pretrain, sft
from chatgpt_hf.tasks.arguments import TaskArguments
from chatgpt_hf.training.arguments import (
    ArchitectureArguments,
    ChatModelArguments,
    ChatSFTArguments,
    ConversationArguments,
    CorpusArguments,
    FinetuneArguments,
    ModelArguments,
    PretrainArguments,
    TaskModelArguments,
)
from chatgpt_hf.training.finetune import finetune

PRETRAIN = (ModelArguments, ArchitectureArguments, CorpusArguments, PretrainArguments)
SFT = (ChatModelArguments, ConversationArguments, ChatSFTArguments)
FINETUNE = (TaskModelArguments, TaskArguments, FinetuneArguments)
COMMANDS: dict[str, tuple[tuple[type, ...], Callable[..., dict[str, Any]]]] = {
    "pretrain": (PRETRAIN, pretrain),
    "sft": (SFT, sft),
    "finetune": (FINETUNE, finetune),
}
