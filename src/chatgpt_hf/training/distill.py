"""Trains a small chat model to predict what a larger one predicts, with TRL's `DistillationTrainer`."""

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import Sampler, SequentialSampler
from transformers import GenerationConfig, PreTrainedModel, Trainer

from ..checkpoints import check_tokenizer_fits, context_length, load_model, making_adapters, sample_of
from ..data.packing import IGNORE_INDEX
from ..errors import ConfigError
from ..evaluation.mode import evaluating
from ..extras import needed_by
from ..tokenization_chatgpt import load_tokenizer
from .adapters import lora_config, quantization
from .arguments import ChatModelArguments, ConversationDataArguments
from .chat_run import check_fills_a_step, check_not_used, load_chat_tokenizer
from .conversation_run import ConversationRun, answer_figures, set_generation
from .distill_arguments import DistillArguments
from .preferences import PreferenceTrainer, silence_attention_dropout
from .resuming import EpochSampler, ResumableTrainer, template_fingerprint, text_fingerprint
from .run import check_block_size
from .weights import loading

with needed_by("Training"):
    from trl import DistillationTrainer

# Fields of TRL's and transformers' that do nothing here.
NOT_USED = {
    "model_init_kwargs": "give --dtype or --attn_implementation",
    "teacher_model_init_kwargs": "give --dtype or --attn_implementation, which hold for both models",
    "teacher_model_revision": "fetch the revision with `chatgpt-hf pull` and name its folder",
    "trust_remote_code": "code that comes with a model is not run",
    "chat_template_kwargs": "conversations are rendered as in `chatgpt-hf sft`",
    "max_tool_calling_iterations": "tools are not called",
    "use_vllm": "own answers are sampled with transformers",
    "log_completions": "report/samples.md has answers",
    "num_completions_to_print": "report/samples.md has answers",
    "log_unique_prompts": "report/samples.md has answers",
    "train_sampling_strategy": "the order is random, or that of the data with --shuffle_dataset false",
    "label_smoothing_factor": "the teacher's predictions take the place of labels",
    **{item.name: "vLLM is not used" for item in fields(DistillArguments) if item.name.startswith("vllm_")},
}
# Fields that say how the student samples its own answers.
_SAMPLING = (
    "top_p",
    "top_k",
    "min_p",
    "generation_kwargs",
    "repetition_penalty",
    "cache_implementation",
    "max_completion_length",
)
# What a resumed run has to share with the run before, besides its data: with another loss the curve would be of two trainings.
_SETTINGS = ("lmbda", "beta", "temperature", "disable_dropout", "shuffle_dataset", *_SAMPLING)


class StudentTrainer(PreferenceTrainer, DistillationTrainer):
    """`DistillationTrainer` on conversations that are tokenized already, and on own answers for a share of them.

    Rows have one column, `prompt`, with `prompt_ids`, (prompt,), and `completion_ids` and `completion_mask`, both
    (completion,): the loss is measured where the mask is 1.

    Args:
        share: Share of the rows whose answer the student samples in each step; TRL's trainer has 1.
        context: Positions of both models. A prompt that leaves no room for an own answer keeps that of the row.
    """

    def __init__(self, *args: Any, share: float, context: int, **kwargs: Any) -> None:
        self.share, self.context = share, context
        super().__init__(*args, **kwargs)

    def _get_train_sampler(self, dataset: Dataset | None = None) -> Sampler:
        return EpochSampler(super()._get_train_sampler(dataset), self.args)

    def _get_eval_sampler(self, eval_dataset: Dataset) -> Sampler:
        return SequentialSampler(eval_dataset)

    def _generate(self, prompts: Sequence[dict[str, list[int]]]) -> tuple[Any, ...]:
        """Returns ids of prompts and answers, masks of the answers, and no images: what TRL learns in a step."""
        rows = [(row["prompt_ids"], row["completion_ids"], row["completion_mask"]) for row in prompts]
        if self.model.training and self.share:
            asked = [index for index in _chosen(len(rows), self.share) if self._has_room(last_prompt(prompts[index]))]
            answers = self._own_answers([last_prompt(prompts[index]) for index in asked])
            for index, answer in zip(asked, answers, strict=True):
                rows[index] = (last_prompt(prompts[index]), answer, [1] * len(answer))
        prompt_ids, completion_ids, masks = map(list, zip(*rows, strict=True))
        return prompt_ids, completion_ids, masks, None, []

    def _has_room(self, prompt: list[int]) -> bool:
        return len(prompt) + int(self.max_completion_length) <= self.context

    def _own_answers(self, prompts: list[list[int]]) -> list[list[int]]:
        if not prompts:
            return []
        model = self.accelerator.unwrap_model(self.model)
        with evaluating(model), plain_sampling(model):
            return self._generate_single_turn(prompts, None, {})


def distill(
    model_arguments: ChatModelArguments,
    conversation_arguments: ConversationDataArguments,
    arguments: DistillArguments,
) -> dict[str, Any]:
    """Trains a chat model on the predictions of a larger one, and writes a plain model folder, or an adapter.

    Returns:
        The run's figures, as in its results.json: the divergence from the teacher on held-out conversations, and the figures of
        the answers as in `sft`.

    Raises:
        ChatGPTError: If data, models or folder cannot be used.
    """
    return DistillRun(model_arguments, conversation_arguments, arguments).execute()


class DistillRun(ConversationRun):
    """Trains a chat model, the student, on the predictions of another, the teacher.

    Attributes:
        teacher: Set by `prepare`.
    """

    command = "distill"
    base_role = "the model to train, the student"
    arguments: DistillArguments
    teacher: PreTrainedModel

    def check_arguments(self) -> None:
        super().check_arguments()
        arguments = self.arguments
        if arguments.teacher_model_name_or_path is None:
            raise ConfigError("--teacher_model_name_or_path is missing: name the chat model to learn from.")
        check_not_used(arguments, NOT_USED)
        if not 0 <= arguments.lmbda <= 1:
            raise ConfigError(
                f"--lmbda is {arguments.lmbda}: give the share of answers that the student samples, from 0 to 1."
            )
        if not 0 < arguments.temperature < math.inf:
            raise ConfigError(f"--temperature is {arguments.temperature}: give a finite number above 0.")
        if arguments.max_completion_length is None or arguments.max_completion_length < 1:
            raise ConfigError(f"--max_completion_length is {arguments.max_completion_length}: give 1 or more tokens.")
        if arguments.disable_dropout and self.model_arguments.use_peft and self.model_arguments.lora_dropout:
            raise ConfigError(
                f"--lora_dropout {self.model_arguments.lora_dropout} does nothing while --disable_dropout is true: give --lora_dropout 0, "
                "or leave out --disable_dropout."
            )
        if not arguments.lmbda:
            only = "it is for answers of the model's own: give --lmbda above 0"
            check_not_used(arguments, dict.fromkeys(_SAMPLING, only))

    def prepare(self) -> None:
        chosen, arguments = self.model_arguments, self.arguments
        teacher = str(arguments.teacher_model_name_or_path)
        template = load_chat_tokenizer(teacher).chat_template
        self.tokenizer = load_tokenizer(self.base)
        if self.tokenizer.chat_template is None:
            self.tokenizer.chat_template = template
        elif template_fingerprint(self.tokenizer.chat_template) != template_fingerprint(template):
            raise ConfigError(
                f"--teacher_model_name_or_path {teacher} has another chat template than {self.base}, so it would read "
                "conversations in a form that it has not learned: copy its chat_template.jinja to the student's folder."
            )
        if self.tokenizer.pad_token_id is None:
            # Padding is masked by position, so nothing is lost.
            self.tokenizer.pad_token = self.tokenizer.eos_token
        splits = self.read()
        self.model = load_model(self.base, **loading(chosen), **quantization(chosen))
        check_tokenizer_fits(self.model, self.tokenizer)
        self.teacher = self.load_other("teacher_model_name_or_path", teacher).requires_grad_(False)
        for model in (self.model, self.teacher):
            check_block_size(self.data_arguments.block_size, model)
        self.base_sample = sample_of(self.model)
        self.prepare_rows(splits)
        # TRL leaves out what does not fill a step.
        check_fills_a_step(len(self.rows), [source.source for source in self.sources], arguments)
        self.data |= {
            "teacher_model_name_or_path": text_fingerprint(json.dumps(sample_of(self.teacher))),
            **{name: getattr(arguments, name) for name in _SETTINGS},
        }

    def to_rows(self, tokenized: Dataset) -> Dataset:
        return tokenized.map(
            lambda row: {"prompt": as_prompt(row["input_ids"], row["labels"])},
            remove_columns=tokenized.column_names,
            load_from_cache_file=False,
            desc="Dividing conversations",
        )

    def make_trainer(self) -> ResumableTrainer:
        arguments = self.arguments
        # TRL ends own answers where the model's generation ends.
        set_generation(self.model, self.tokenizer)
        self.base_figures: dict[str, float] = {}
        if self.data_arguments.evaluate_base:
            set_generation(self.teacher, self.tokenizer)
            for name, model in (("base", self.model), ("teacher", self.teacher)):
                self.base_figures |= answer_figures(self.answers(model, f"Answers of the {name}"), f"{name}_")
        if arguments.disable_dropout:
            silence_attention_dropout(self.model)
        self.adapter = lora_config(self.model_arguments, self.model)
        with making_adapters():
            trainer = StudentTrainer(
                model=self.model,
                teacher_model=self.teacher,
                args=arguments,
                train_dataset=self.rows,
                eval_dataset=self.eval_rows,
                processing_class=self.tokenizer,
                peft_config=self.adapter,
                share=arguments.lmbda,
                context=min(map(context_length, (self.model, self.teacher))),
            )
        # TRL's constructor takes no such argument here, as `SFTTrainer` does.
        trainer.optimizer_cls_and_kwargs = arguments.optimizer_cls_and_kwargs
        return trainer

    def first_loss(self) -> float | None:
        guess = math.log(self.model.config.vocab_size)
        # The reverse KL of a model that guesses is that of the teacher's unlikeliest tokens; what lies between is bounded by ln 2.
        return {0.0: guess, 1.0: 2 * guess}.get(self.arguments.beta, math.log(2))

    def measure(self, trainer: Trainer, metrics: dict[str, float]) -> dict[str, Any]:
        results = {
            **self.training_figures(metrics),
            "share_of_tokens_learned": self.share_learned,
            "teacher_parameters": self.teacher.num_parameters(),
            **self.base_figures,
        }
        if self.eval_rows is not None:
            results["held_out_divergence"] = trainer.evaluate()["eval_loss"]
        return results | self.measure_answers()

    def report(self, trainer: Trainer, results: dict[str, Any]) -> None:
        self.write_conversation_report(
            trainer,
            results,
            title="Distillation",
            description=f"a chat model that learned to predict what `{self.arguments.teacher_model_name_or_path}` predicts.",
            loss_label="divergence from the teacher",
        )


def as_prompt(ids: Sequence[int], labels: Sequence[int]) -> dict[str, list[int]]:
    """Divides a row of `tokenize_conversations` into what comes before the learned tokens, and the rest with a mask.

    Returns:
        `prompt_ids`, (prompt,), at least one; `completion_ids` and `completion_mask`, (completion,), up to the last learned one.
    """
    # Nothing predicts the first token.
    learned = [index for index, label in enumerate(labels) if label != IGNORE_INDEX and index]
    start, end = learned[0], learned[-1] + 1
    return {
        "prompt_ids": list(ids[:start]),
        "completion_ids": list(ids[start:end]),
        "completion_mask": [int(label != IGNORE_INDEX) for label in labels[start:end]],
    }


def _chosen(count: int, share: float) -> list[int]:
    """The numbers of the rows that get an own answer, each by chance."""
    return [index for index, value in enumerate(torch.rand(count).tolist()) if value < share]


def last_prompt(row: dict[str, list[int]]) -> list[int]:
    """Returns everything before the last answer of a tokenized conversation, which a student may answer itself."""
    mask = row["completion_mask"]
    # The last token of a row is learned; earlier answers end with a 0.
    start = len(mask) - mask[::-1].index(0) if 0 in mask else 0
    return row["prompt_ids"] + row["completion_ids"][:start]


@contextmanager
def plain_sampling(model: PreTrainedModel) -> Iterator[None]:
    """Leaves the sampling parameters of the model's generation config out while the block runs.

    What TRL's config does not set, transformers would take from there, such as `no_repeat_ngram_size`.
    """
    plain = getattr(model, "get_base_model", lambda: model)()
    own = plain.generation_config
    plain.generation_config = GenerationConfig(eos_token_id=own.eos_token_id, pad_token_id=own.pad_token_id)
    try:
        yield
    finally:
        plain.generation_config = own
