"""Trains a chat model on rewards for its own answers, with TRL's `GRPOTrainer` or `RLOOTrainer`."""

import copy
import dataclasses
import json
import logging
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, concatenate_datasets
from transformers import Trainer, TrainerState

from ..chat_templates import encode_chat_prompt
from ..checkpoints import check_tokenizer_fits, context_length, end_marks, load_model, making_adapters, sample_of
from ..data.conversations import InvalidRows, as_json, conversation_key, warn_of_shared_prompts
from ..data.preference_tokens import encode_sides
from ..data.prompts import Prompts, read_prompts
from ..data.sources import parse_sources
from ..errors import CheckpointError, ConfigError, DataError
from ..extras import needed_by
from ..inference.tools import Tools
from ..rewards import check_columns, load_rewards
from ..rewards.base import RESERVED
from .adapters import lora_config, quantization
from .chat_run import ChatRun, before_and_after, load_chat_tokenizer
from .grpo_arguments import GRPOArguments, PromptArguments
from .grpo_figures import MeasuredAnswers, measure_answers
from .preference_arguments import RewardModelArguments
from .preferences import no_end_mark, silence_attention_dropout
from .resuming import READ_WITH, ResumableTrainer, rows_fingerprint, text_fingerprint
from .rollouts import (
    CLIPPED,
    REMEDY,
    RLOO,
    ROW_LOSSES,
    STEP_LOSSES,
    TOKEN_LOSSES,
    GroupTrainer,
    LeaveOneOutTrainer,
    check_tools,
    plain_copy,
)
from .run import resumes
from .run_folder import TRAINER_STATE_NAME
from .weights import loading

with needed_by("Training"):
    from trl.trainer.callbacks import SyncRefModelCallback
    from trl.trainer.utils import add_fused_lm_head

logger = logging.getLogger(__name__)

LOSSES = (*STEP_LOSSES, *TOKEN_LOSSES, *ROW_LOSSES)
# What a resumed run has to share with the run before, besides its data: with other settings the curve would be of two trainings.
_SETTINGS = (
    *("loss_type", "beta", "num_generations", "num_iterations", "generation_batch_size", "max_completion_length"),
    *("temperature", "top_p", "top_k", "epsilon", "epsilon_high", "delta", "importance_sampling_level"),
    *("scale_rewards", "multi_objective_aggregation"),
    *("reward_weights", "mask_truncated_completions", "top_entropy_quantile"),
    *("entropy_coef", "use_adaptive_entropy", "normalize_advantages", "reward_clip_range", "disable_dropout"),
    *("shuffle_dataset", "use_bias_correction_kl", "off_policy_mask_threshold", "max_tool_calling_iterations"),
)
# Fields of TRL's that do nothing here, or would sample answers from another distribution than the one that is learned.
NOT_USED = {
    "model_init_kwargs": "give --dtype or --attn_implementation",
    "trust_remote_code": "code that comes with a model is not run",
    "router_aux_loss_coef": "it is for mixtures of experts",
    "chat_template_kwargs": "the chat template gets messages only",
    "remove_unused_columns": "rewards read the columns",
    "cache_implementation": "the sampler has its own cache",
    "generation_kwargs": "answers are sampled as they are learned, with --temperature, --top_p and --top_k",
    "min_p": "answers are sampled as they are learned, with --temperature, --top_p and --top_k",
    "repetition_penalty": "answers are sampled as they are learned, with --temperature, --top_p and --top_k",
    "log_multimodal": "there are only texts",
    "use_transformers_paged": "its new name is --use_transformers_continuous_batching",
    "vllm_importance_sampling_cap": "its new name is --vllm_importance_sampling_clip_max",
}
# Prompts that are shown in the report.
_SHOWN = 4
# Fewer prompts say little.
_FEW = 30


def grpo(
    model_arguments: RewardModelArguments, prompt_arguments: PromptArguments, arguments: GRPOArguments
) -> dict[str, Any]:
    """Trains a chat model on rewards for its answers and writes a plain model folder, or an adapter.

    Returns:
        The run's figures, as in its results.json: what answers to held-out prompts are worth, before and after.

    Raises:
        ChatGPTError: If data, rewards, model or folder cannot be used.
    """
    return GRPORun(model_arguments, prompt_arguments, arguments).execute()


class GRPORun(ChatRun):
    """Trains a chat model on rewards for the answers that it samples."""

    command = "grpo"
    base_role = "the chat model to train, such as one that `sft` made"
    examples = "prompts"
    usual_fraction = 0.1
    arguments: GRPOArguments
    model_arguments: RewardModelArguments
    data_arguments: PromptArguments

    def check_arguments(self) -> None:
        chosen, arguments = self.data_arguments, self.arguments
        if not chosen.dataset:
            raise ConfigError("--dataset is missing: name a file, folder or Hub id with prompts.")
        if not chosen.rewards:
            raise ConfigError("--rewards is missing: say what an answer is worth, such as --rewards exact.")
        if chosen.evaluate_prompts < 0:
            raise ConfigError(
                f"--evaluate_prompts is {chosen.evaluate_prompts}: give 0 to skip the evaluation, or more."
            )
        if chosen.evaluate_prompts and self._is_sharded():
            raise ConfigError(
                "--evaluate_prompts needs the whole model in each process, and DeepSpeed and FSDP divide it: give --evaluate_prompts 0."
            )
        if self.model_arguments.lora_dropout and arguments.disable_dropout:
            raise ConfigError(
                f"--lora_dropout {self.model_arguments.lora_dropout} does nothing while --disable_dropout is true: give "
                "--disable_dropout false, or leave it out."
            )
        check_settings(arguments, use_peft=self.model_arguments.use_peft)
        check_tools(chosen.tools, arguments, is_sharded=self._is_sharded())

    def _is_sharded(self) -> bool:
        return bool(self.arguments.deepspeed or self.arguments.fsdp)

    def check(self) -> None:
        super().check()
        if self.checkpoint is not None:
            check_at_border(self.checkpoint, steps_of_generation(self.arguments))

    def prepare(self) -> None:
        chosen, arguments = self.data_arguments, self.arguments
        self.tokenizer = load_chat_tokenizer(self.base)
        self.rewards = load_rewards(chosen.rewards, arguments.reward_weights)
        for reward in self.rewards:
            reward.check()
        splits = self._read_splits()
        for rows in splits.values():
            places = ["", *rows["place"]]
            check_columns(self.rewards, rows.remove_columns("place"), places.__getitem__)
        self.model = load_model(self.base, **loading(self.model_arguments), **quantization(self.model_arguments))
        check_tokenizer_fits(self.model, self.tokenizer)
        self.ends = end_marks(self.model, self.tokenizer)
        for reward in self.rewards:
            reward.ends = self.ends
        self.toolbox: Tools | None = None
        if chosen.tools:
            self.toolbox = Tools(chosen.tools, self.tokenizer, self.ends, arguments.max_tool_calling_iterations)
        room = context_length(self.model) - int(arguments.max_completion_length or 0)
        if room < 1:
            raise ConfigError(
                f"--max_completion_length {arguments.max_completion_length} leaves no room for a prompt in the model's context, which "
                f"is {context_length(self.model)}: give less."
            )
        self.prompt_ids: dict[str, list[int]] = {}
        for name in splits:
            splits[name] = self._encoded(splits[name], room)
        self._check_end_mark(splits["train"])
        self.rows, self.eval_rows = splits["train"], splits.get("test")
        self._check_enough()
        self.base_sample = sample_of(self.model)
        self.reference = None
        self.data = {
            "rows": rows_fingerprint(self.rows),
            "held_out": None if self.eval_rows is None else rows_fingerprint(self.eval_rows),
            "test_fraction": chosen.test_fraction,
            "system_prompt": text_fingerprint(chosen.system_prompt),
            "rewards": json.loads(json.dumps(chosen.rewards, default=str)),
            "tools": list(chosen.tools),
            **{name: getattr(arguments, name) for name in _SETTINGS},
            # Of a loss that is a mean over the tokens of a batch, whatever their number.
            **({"batch_size": arguments.per_device_train_batch_size} if arguments.loss_type in TOKEN_LOSSES else {}),
            READ_WITH: {"skip_invalid": chosen.skip_invalid},
            **self.record(),
            # The reference is the base model, which no checkpoint holds.
            "base": text_fingerprint(json.dumps(self.base_sample)),
        }
        if not (self._is_sharded() or self.model_arguments.load_in_4bit):
            # `Trainer` does so later, and the model answers before.
            self.model.to(arguments.device)
        # Before anything is written: a reward that fails is found here.
        self.measured = [self._measure()]
        self._warn_before()

    def _read_splits(self) -> dict[str, Dataset]:
        chosen = self.data_arguments
        named = {"prompt": chosen.prompt_column, "answer": chosen.answer_column}
        reading = partial(
            read_prompts,
            seed=self.arguments.seed,
            skip_invalid=chosen.skip_invalid,
            named={name: column for name, column in named.items() if column is not None},
            reserved=RESERVED,
        )
        sources = parse_sources(chosen.dataset, encoding=chosen.encoding, field="dataset")
        self.sources = [source.source for source in sources]
        read: Prompts = reading(sources, test_fraction=0.0 if chosen.eval_dataset else chosen.test_fraction)
        splits, self.summaries = dict(read.splits), list(read.summaries)
        if chosen.eval_dataset is not None:
            held_out = reading(parse_sources(chosen.eval_dataset, encoding=chosen.encoding, field="eval_dataset"))
            splits["test"] = held_out.splits.get("test", held_out.splits["train"])
            warn_of_shared_prompts(splits["train"], splits["test"])
            self.summaries += held_out.summaries
        self.check_held_out(is_held_out="test" in splits)
        return splits

    def _encoded(self, rows: Dataset, room: int) -> Dataset:
        """Encodes prompts into `prompt_ids`; returns the rows that leave room for an answer, each with its system message."""
        system, long = self.data_arguments.system_prompt, 0
        tools = None if self.toolbox is None else self.toolbox.schemas
        invalid = InvalidRows(self.data_arguments.skip_invalid)
        kept, prompts = [], []
        for index, (prompt, place) in enumerate(zip(rows["prompt"], rows["place"], strict=True)):
            if system and prompt[0]["role"] != "system":
                prompt = [{"role": "system", "content": system}, *prompt]
            try:
                ids = encode_chat_prompt(self.tokenizer, prompt, tools)
            except DataError as error:
                invalid.add(place, error)
                continue
            if len(ids) > room:
                long += 1
                continue
            self.prompt_ids[conversation_key(prompt)] = ids
            kept.append(index)
            prompts.append(prompt)
        invalid.warn("prompts")
        if not kept:
            raise DataError(
                f"{', '.join(self.sources)}: none of the {len(rows)} prompts leaves room for --max_completion_length "
                f"{self.arguments.max_completion_length} in the model's context, which is {context_length(self.model)}: give less."
            )
        if long:
            logger.warning(
                "%d of %d prompts have more than %d tokens and leave no room for an answer; they are left out.",
                long,
                len(rows),
                room,
            )
        written = {"prompt": [as_json(prompt) for prompt in prompts]}
        encoded = Dataset.from_dict(written, Features(prompt=rows.features["prompt"]))
        # `add_column` takes no column of JSON.
        return concatenate_datasets([encoded, rows.select(kept).remove_columns(["prompt", "place"])], axis=1)

    def _check_end_mark(self, rows: Dataset) -> None:
        answer = [{"role": "assistant", "content": "."}]
        last = encode_sides(rows[0]["prompt"], [answer], None, self.tokenizer).ids[0][-1]
        if last not in self.ends:
            raise no_end_mark([last], self.tokenizer)

    def _check_enough(self) -> None:
        arguments = self.arguments
        taken = int(arguments.generation_batch_size or 0) // int(arguments.num_generations or 1)
        if len(self.rows) < taken:
            raise DataError(
                f"{', '.join(self.sources)}: the prompts to train on are {len(self.rows)}, and {taken} are answered at a time: give more "
                "prompts, or a smaller --per_device_train_batch_size or --gradient_accumulation_steps."
            )
        if self.eval_rows is not None and len(self.eval_rows) < _FEW:
            logger.warning("Only %d prompts are held out: figures for them say little.", len(self.eval_rows))

    def make_trainer(self) -> ResumableTrainer:
        arguments = copy.copy(self.arguments)
        self.adapter = lora_config(self.model_arguments, self.model)
        if arguments.disable_dropout:
            silence_attention_dropout(self.model)
        beta = arguments.beta
        reference = None
        if beta and self.adapter is None:
            reference = copy.deepcopy(self.model).requires_grad_(False).eval()
        # TRL would load the reference from the folder that the config names, and the model may have changed since.
        arguments.beta, arguments.sync_ref_model = 0.0, False
        with making_adapters():
            trainer_class = LeaveOneOutTrainer if arguments.loss_type == RLOO else GroupTrainer
            trainer = trainer_class(
                model=self.model,
                reward_funcs=list(self.rewards),
                args=arguments,
                train_dataset=self.rows,
                eval_dataset=self.eval_rows,
                processing_class=self.tokenizer,
                peft_config=self.adapter,
            )
        trainer.prompt_ids = self.prompt_ids
        if self.toolbox is not None:
            trainer.use_tools(self.toolbox)
        trainer.eos_token_ids = sorted(self.ends)
        trainer.optimizer_cls_and_kwargs = arguments.optimizer_cls_and_kwargs
        trainer.beta = trainer.args.beta = beta
        if reference is not None:
            add_fused_lm_head(reference, temperature=trainer.temperature)
            trainer.ref_model = trainer.accelerator.prepare_model(reference, evaluation_mode=True)
            if self.arguments.sync_ref_model:
                trainer.args.sync_ref_model = True
                trainer.add_callback(SyncRefModelCallback(trainer.ref_model, trainer.accelerator))
        return trainer

    def references(self) -> int:
        return int(bool(self.arguments.beta) and not self.model_arguments.use_peft)

    def first_loss(self) -> float | None:
        return largest_loss(self.arguments, self.model.config.get_text_config().vocab_size)

    def _measure(self) -> MeasuredAnswers | None:
        """Lets the model answer some held-out prompts, or some of the training; None if none are to be measured."""
        chosen, arguments = self.data_arguments, self.arguments
        rows = self.rows if self.eval_rows is None else self.eval_rows
        if not chosen.evaluate_prompts:
            return None
        rows = rows.select(range(min(chosen.evaluate_prompts, len(rows))))
        return measure_answers(
            plain_copy(self.model),
            self.tokenizer,
            rows,
            [self.prompt_ids[conversation_key(prompt)] for prompt in rows["prompt"]],
            self.rewards,
            samples=int(arguments.num_generations or 1),
            ends=self.ends,
            toolbox=self.toolbox,
            seed=arguments.seed,
            max_new_tokens=arguments.max_completion_length,
            temperature=arguments.temperature,
            top_p=arguments.top_p,
            top_k=arguments.top_k or 0,
        )

    def _warn_before(self) -> None:
        """Warns if the answers before the training say that nothing can be learned."""
        if (before := self.measured[0]) is None:
            return
        if before.clipped.all():
            logger.warning("Before the training, %s.", CLIPPED)
        elif np.nanmax(before.sampled, initial=-np.inf) == np.nanmin(before.sampled, initial=np.inf):
            logger.warning(
                "Before the training, all answers get the same reward, %.4g: %s.", np.nanmean(before.sampled), REMEDY
            )

    def measure(self, trainer: Trainer, metrics: dict[str, float]) -> dict[str, Any]:
        results = {**self.training_figures(metrics), "train_rows": len(self.rows)}
        if self.eval_rows is not None:
            results["held_out_rows"] = len(self.eval_rows)
        if self.checkpoint is None:
            # They count only the steps since resuming.
            results["train_groups"] = trainer.groups
            results["train_groups_of_equal_reward"] = trainer.dead_groups
        before = self.measured[0]
        if before is not None and (after := self._measure()) is not None:
            self.measured.append(after)
            part = "trained" if self.eval_rows is None else "held_out"
            best = "pass_at" if before.is_right_or_wrong() and after.is_right_or_wrong() else "best_of"
            begun = before.figures(best)
            for name, value in after.figures(best).items():
                results |= {f"{part}_{name}_before": begun[name], f"{part}_{name}": value}
            results |= {f"{part}_{name}": value for name, value in after.gain(before).items()}
        return results

    def report(self, trainer: Trainer, results: dict[str, Any]) -> None:
        method = "RLOO" if self.arguments.loss_type == RLOO else f"GRPO ({self.arguments.loss_type})"
        names = ", ".join(reward.name for reward in self.rewards)
        called = f", and calls tools in its answers ({', '.join(self.data_arguments.tools)})" if self.toolbox else ""
        texts = [measured.texts[:_SHOWN] for measured in self.measured if measured is not None]
        self.write_report(
            trainer,
            results,
            title=f"Learning from rewards: {method}",
            description=f"a chat model that learned from rewards ({names}) with {method}, from `{self.base}`{called}.",
            data=", ".join(self.sources),
            samples=before_and_after(*texts) if len(texts) > 1 else [],
            columns=[summary.line() for summary in self.summaries],
            datasets=self.sources,
            base_model=self.base,
            chat=True,
            loss_label=f"loss ({method})",
        )


def check_settings(arguments: GRPOArguments, *, use_peft: bool) -> None:
    """Raises `ConfigError` for settings that there are not, that do nothing, or that contradict one another."""
    if arguments.loss_type not in LOSSES:
        raise ConfigError(f"--loss_type {arguments.loss_type} is unknown; choose from {', '.join(LOSSES)}.")
    for item in dataclasses.fields(arguments):
        if item.name in NOT_USED and getattr(arguments, item.name) != item.default:
            raise ConfigError(f"--{item.name} does nothing here: {NOT_USED[item.name]}. Leave it out.")
    rloo = arguments.loss_type == RLOO
    for name in ("normalize_advantages", "reward_clip_range"):
        if getattr(arguments, name) and not rloo:
            raise ConfigError(f"--{name} is for --loss_type rloo: leave it out.")
    for name, choices in (
        ("scale_rewards", ("group", "batch", "none")),
        ("importance_sampling_level", ("token", "sequence")),
        ("multi_objective_aggregation", ("sum_then_normalize", "normalize_then_sum")),
    ):
        value = getattr(arguments, name)
        if value not in choices:
            raise ConfigError(f"--{name} {value} is unknown; choose from {', '.join(choices)}.")
    for item in dataclasses.fields(arguments):
        if rloo and item.name in _ONLY_GROUPS and getattr(arguments, item.name) != item.default:
            raise ConfigError(f"--{item.name} does nothing with --loss_type rloo: leave it out.")
    if not arguments.beta >= 0:
        raise ConfigError(f"--beta is {arguments.beta}: give 0, or how much a divergence from the reference costs.")
    if not arguments.temperature > 0:
        raise ConfigError(
            f"--temperature is {arguments.temperature}: give a number above 0; all answers would be equal."
        )
    if not arguments.max_completion_length or arguments.max_completion_length < 1:
        raise ConfigError(f"--max_completion_length is {arguments.max_completion_length}: give 1 or more tokens.")
    if arguments.sync_ref_model:
        if not arguments.beta or use_peft:
            raise ConfigError(
                "--sync_ref_model needs a reference in memory: give --beta above 0 and no --use_peft, or leave it out."
            )
        if resumes(arguments):
            raise ConfigError(
                "--sync_ref_model changes the reference during the training, and checkpoints do not hold it: such a run cannot be "
                "resumed. Start a new one."
            )
    steps = steps_of_generation(arguments)
    if arguments.save_strategy == "steps" and steps > 1 and (arguments.save_steps < 1 or arguments.save_steps % steps):
        raise ConfigError(
            f"--save_steps {arguments.save_steps:g}: a batch of answers is learned in {steps} steps, and no run can resume exactly in "
            f"the middle of it. Give a multiple of {steps}."
        )


# Fields of `GRPOConfig` that `RLOOConfig` does not have.
_ONLY_GROUPS = (
    *("scale_rewards", "importance_sampling_level", "multi_objective_aggregation", "delta", "top_entropy_quantile"),
    *("entropy_coef", "use_adaptive_entropy", "off_policy_mask_threshold", "use_bias_correction_kl"),
)


def steps_of_generation(arguments: GRPOArguments) -> int:
    """Steps of the optimizer in which one batch of answers is learned.

    Raises:
        ConfigError: If a batch ends within a step.
    """
    batches = int(arguments.steps_per_generation or 1) * arguments.num_iterations
    if batches % arguments.gradient_accumulation_steps:
        raise ConfigError(
            f"--steps_per_generation {arguments.steps_per_generation} times --num_iterations {arguments.num_iterations} is not a multiple "
            f"of --gradient_accumulation_steps {arguments.gradient_accumulation_steps}: a batch of answers would end within a step."
        )
    return batches // arguments.gradient_accumulation_steps


def check_at_border(checkpoint: Path, steps: int) -> None:
    """Raises `CheckpointError` if a checkpoint was saved while a batch of answers was being learned.

    Args:
        steps: See `steps_of_generation`.
    """
    done = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME)).global_step
    if done % steps:
        raise CheckpointError(
            f"{checkpoint} was saved in the middle of a batch of answers, which is learned in {steps} steps, and does not hold them: "
            f"resume from a checkpoint whose step is a multiple of {steps} (--resume_from_checkpoint), or start a new run."
        )


def largest_loss(arguments: GRPOArguments, vocab_size: int) -> float:
    """A loss that no sound training begins above; infinite where the scale of the rewards decides.

    Args:
        vocab_size: A model that guesses gives a token the log-probability -ln(vocab_size).
    """
    if arguments.loss_type == RLOO or arguments.scale_rewards != "group":
        return math.inf
    # Of one answer among many, in deviations.
    advantage = math.sqrt(int(arguments.num_generations or 1))
    factor = 1.0
    if arguments.loss_type in ("cispo", "vespo"):
        factor = 2 * math.log(vocab_size)
    elif arguments.loss_type == "luspo":
        factor = float(arguments.max_completion_length or 1)
    return advantage * factor
