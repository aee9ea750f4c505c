"""What the trainings of chat models share: a base with adapters, rows of which some are held out, answers before and after."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from datasets import Dataset
from transformers import IntervalStrategy, PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from ..checkpoints import load_model
from ..data.prepare import tokenizer_fingerprint
from ..errors import ConfigError, DataError, TokenizerError
from ..evaluation.generation import generate_completions
from ..tokenization_chatgpt import load_tokenizer
from .adapters import adapter_record
from .arguments import ChatModelArguments
from .resuming import ResumableTrainer, template_fingerprint
from .run import Run, write_base_sample
from .weights import loading

# Longest answer to a prompt of `answer_samples`.
_ANSWER_TOKENS = 128


class ChatRun(Run):
    """A training of a chat model, or of adapters for one, on rows of which some may be held out.

    Attributes:
        base_role: What `--model_name_or_path` names, for the message if it is missing.
        examples: What the rows are, for messages.
        usual_fraction: A share of them that is usually held out, for messages.
        data_arguments: Where the rows come from.
        base_sample: Some weights of the base, by which an adapter's folder recognizes it; set by `prepare`.
        adapter: PEFT's config if adapters are trained; set by `make_trainer`.
        rows, eval_rows: What the trainer learns, and what it measures on; set by `prepare`.
    """

    base_role: ClassVar[str]
    examples: ClassVar[str]
    usual_fraction: ClassVar[float]

    arguments: Any
    model_arguments: ChatModelArguments
    base_sample: list[float]
    adapter: Any = None
    rows: Dataset
    eval_rows: Dataset | None

    def __init__(self, model_arguments: ChatModelArguments, data_arguments: Any, arguments: Any) -> None:
        super().__init__(arguments, model_arguments, data_arguments)
        self.model_arguments, self.data_arguments = model_arguments, data_arguments

    @property
    def base(self) -> str:
        """Folder or Hub id of the model that the training starts from."""
        return str(self.model_arguments.model_name_or_path)

    def check(self) -> None:
        if self.model_arguments.model_name_or_path is None:
            raise ConfigError(f"--model_name_or_path is missing: name {self.base_role}.")
        self.check_arguments()
        if self.arguments.load_best_model_at_end and self.arguments.eval_strategy == "no":
            raise ConfigError(
                f"--load_best_model_at_end needs --eval_strategy steps or epoch, with {self.examples} held out."
            )
        super().check()

    def check_arguments(self) -> None:
        """Raises `ConfigError` if the arguments contradict themselves or one another. A base model is named by now."""

    def check_held_out(self, *, is_held_out: bool) -> None:
        """Raises `ConfigError` if the arguments ask for evaluations during the training and no rows are held out."""
        if not is_held_out and self.arguments.eval_strategy != "no":
            raise ConfigError(
                f"--eval_strategy {IntervalStrategy(self.arguments.eval_strategy).value} needs {self.examples} to measure on, "
                f"and none are held out: give --test_fraction {self.usual_fraction} or an --eval_dataset."
            )

    def load_other(self, field: str, name: str) -> PreTrainedModel:
        """Loads a model whose predictions are compared with those of `model`, such as a reference.

        Raises:
            ConfigError: If it has another vocabulary than `model` and `tokenizer`, which are loaded by now.
        """
        tokenizer = load_tokenizer(name)
        other = load_model(name, **loading(self.model_arguments))
        same = tokenizer_fingerprint(tokenizer) == tokenizer_fingerprint(self.tokenizer)
        if not same or other.config.vocab_size != self.model.config.vocab_size:
            raise ConfigError(
                f"--{field} {name} has another vocabulary ({other.config.vocab_size} entries) than {self.base} "
                f"({self.model.config.vocab_size}), so their log-probabilities cannot be compared: name a model with the same "
                "tokenizer."
            )
        return other

    def record(self) -> dict[str, Any]:
        """Facts for data.json that every such training has: of the tokenizer, the seed and the adapters."""
        return {
            "tokenizer": tokenizer_fingerprint(self.tokenizer),
            "template": template_fingerprint(self.tokenizer.chat_template),
            "seed": self.arguments.seed,
            **adapter_record(self.model_arguments, self.base_sample),
        }

    def save(self, trainer: ResumableTrainer) -> None:
        super().save(trainer)
        if self.adapter is not None:
            write_base_sample(self.folder, self.base_sample)

    def training_figures(self, metrics: dict[str, float]) -> dict[str, Any]:
        """The size of the model, and `Trainer`'s figures of the training."""
        return {
            # PEFT puts the adapter's weights among the model's.
            "parameters": self.model.num_parameters(),
            **({"adapter_parameters": self.model.num_parameters(only_trainable=True)} if self.adapter else {}),
            **{name: value for name, value in metrics.items() if name.startswith("train_") or name == "epoch"},
        }

    def answer_samples(self, prompts: Sequence[Sequence[int]], desc: str) -> list[str]:
        """Answers prompts greedily.

        Args:
            prompts: Token ids.
            desc: Text of the progress bar.

        Returns:
            For each prompt its text and, on the next line, the answer.
        """
        if not prompts:
            return []
        with self.world.shared():
            answers = generate_completions(
                self.model,
                self.tokenizer,
                prompts,
                max_new_tokens=_ANSWER_TOKENS,
                batch_size=len(prompts),
                progress=False,
                desc=desc,
                do_sample=False,
            )
        asked = self.tokenizer.batch_decode(prompts, skip_special_tokens=True)
        return [f"{question.strip()}\n{answer.text}" for question, answer in zip(asked, answers, strict=True)]


def before_and_after(before: Sequence[str], after: Sequence[str]) -> list[str]:
    """Returns texts of `answer_samples` for a report: the answers to a prompt one after the other, each with its time."""
    return [
        f"({when})\n{text}"
        for texts in zip(before, after, strict=True)
        for when, text in zip(("before", "after"), texts, strict=True)
    ]


def check_fills_a_step(rows: int, sources: Sequence[str], arguments: TrainingArguments) -> None:
    """Raises `DataError` if there are fewer rows than a step takes.

    Args:
        sources: Where they are from, for the message.
    """
    taken = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    if rows < taken:
        raise DataError(
            f"{', '.join(sources)}: the rows to train on are {rows}, and a step takes {taken}: give more rows, or a smaller "
            "--per_device_train_batch_size or --gradient_accumulation_steps."
        )


def check_not_used(arguments: Any, reasons: Mapping[str, str]) -> None:
    """Raises `ConfigError` if a field is set that does nothing here.

    Args:
        arguments: A dataclass of arguments.
        reasons: By the fields' names.
    """
    for item in dataclasses.fields(arguments):
        if item.name in reasons and getattr(arguments, item.name) != item.default:
            raise ConfigError(f"--{item.name} does nothing here: {reasons[item.name]}. Leave it out.")


def load_chat_tokenizer(name_or_path: str) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of a chat model.

    Raises:
        TokenizerError: If it has no chat template.
    """
    tokenizer = load_tokenizer(name_or_path)
    if tokenizer.chat_template is None:
        raise TokenizerError(
            f"{name_or_path} has no chat template, so it is a base model: make it a chat model with `chatgpt-hf sft` first."
        )
    if tokenizer.pad_token_id is None:
        # Padding is masked by position, so nothing is lost.
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
