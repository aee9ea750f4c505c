"""Trains a chat model on preferences with TRL's `DPOTrainer` (pairs) or `KTOTrainer` (judged answers)."""

import copy
import json
import logging
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel, Trainer

from ..checkpoints import load_model, sample_of
from ..errors import ConfigError
from ..evaluation.mode import evaluating
from ..extras import needed_by
from .adapters import lora_config, quantization
from .chat_run import before_and_after
from .preference_arguments import DPOArguments, PreferenceArguments, PreferenceModelArguments
from .preference_losses import BATCH_LOSSES, JUDGED_LOSSES, check_losses, choose_losses, first_loss
from .preferences import PreferenceRun, PreferenceTrainer, accuracy_figures, silence_attention_dropout
from .resuming import ResumableTrainer, text_fingerprint
from .run import resumes
from .samples import separate_randomness
from .weights import loading

with needed_by("Training"):
    from trl import DPOTrainer, KTOTrainer
    from trl.trainer.dpo_trainer import DataCollatorForPreference
    from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

logger = logging.getLogger(__name__)

# What a resumed run has to share with the run before, besides its data: with another loss the curve would be of two trainings.
_LOSS_SETTINGS = (
    *("loss_type", "loss_weights", "beta", "label_smoothing", "ld_alpha", "f_divergence_type"),
    *("f_alpha_divergence_coef", "use_weighting", "discopop_tau", "desirable_weight", "undesirable_weight"),
    *("disable_dropout", "max_length"),
)


class PairCollator(DataCollatorForPreference):
    """TRL's collator, which scores whole answers, with masks for answers of several turns: what a user says in between is not."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Returns TRL's batch: the chosen answers and, below them, the rejected ones."""
        batch = super().torch_call(examples)
        masks = [example[f"{side}_mask"] for side in ("chosen", "rejected") for example in examples]
        batch["completion_mask"] *= _padded_masks(
            [example["prompt_ids"] for example in examples] * 2, masks, batch["input_ids"]
        )
        return batch


class JudgedCollator(DataCollatorForUnpairedPreference):
    """The same for judged answers."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Returns TRL's batch."""
        batch = super().torch_call(examples)
        prompts = [example["prompt_ids"] for example in examples]
        for prefix in ("", "KL_"):
            if f"{prefix}completion_mask" in batch:
                masks = [example[f"{prefix}completion_mask"] for example in examples]
                batch[f"{prefix}completion_mask"] *= _padded_masks(prompts, masks, batch[f"{prefix}input_ids"])
        return batch


def _padded_masks(prompts: list[list[int]], masks: list[list[int]], like: torch.Tensor) -> torch.Tensor:
    """The masks of answers, each after its prompt, in the shape of a batch; (batch, seq)."""
    padded = torch.zeros_like(like)
    for row, prompt, mask in zip(padded, prompts, masks, strict=True):
        # KTO's other answers may be cut, so that they fit after this prompt.
        room = max(0, len(row) - len(prompt))
        row[len(prompt) : len(prompt) + len(mask)] = torch.tensor(mask[:room])
    return padded


class PairTrainer(PreferenceTrainer, DPOTrainer):
    """`DPOTrainer` on rows with `prompt_ids`, `chosen_ids` and `rejected_ids`, whose checkpoints are sealed."""

    def _prepare_dataset(self, dataset: Dataset, *args: Any) -> Dataset:
        # TRL would render the messages again: it ends answers with a line break that fine-tuning does not learn, and turns
        # text that looks like a special token into that token.
        return dataset


class JudgedTrainer(PreferenceTrainer, KTOTrainer):
    """`KTOTrainer` on rows with `prompt_ids`, `completion_ids`, `label`, and for `kto` `KL_completion_ids`."""

    def _prepare_dataset(self, dataset: Dataset, *args: Any) -> Dataset:
        return dataset  # as above


def dpo(
    model_arguments: PreferenceModelArguments,
    preference_arguments: PreferenceArguments,
    arguments: DPOArguments,
) -> dict[str, Any]:
    """Trains a chat model on preferences and writes a plain model folder, or an adapter.

    Returns:
        The run's figures, as in its results.json: for pairs the share of held-out ones that the model ranks right, with its
        interval, beside that of the length of the answers.

    Raises:
        ChatGPTError: If data, model or folder cannot be used.
    """
    return DPORun(model_arguments, preference_arguments, arguments).execute()


class DPORun(PreferenceRun):
    """Trains a chat model on pairs of answers, or on judged answers."""

    command = "dpo"
    base_role = "the chat model to train, such as one that `sft` made"
    arguments: DPOArguments
    model_arguments: PreferenceModelArguments

    def check_arguments(self) -> None:
        super().check_arguments()
        arguments = self.arguments
        check_losses(arguments, use_peft=self.model_arguments.use_peft)
        if arguments.sample_answers < 0:
            raise ConfigError(f"--sample_answers is {arguments.sample_answers}: give 0 to skip them, or more.")
        if arguments.sync_ref_model and resumes(arguments):
            raise ConfigError(
                "--sync_ref_model changes the reference during the training, and checkpoints do not hold it: such a run cannot be "
                "resumed. Start a new one."
            )

    def kind(self) -> str | None:
        # These take pairs too, each as two answers.
        return "judged" if set(self.arguments.loss_type) & set(JUDGED_LOSSES) else None

    def check_rows(self) -> None:
        choose_losses(self.arguments, judged=self.read.judged)

    def load(self) -> PreTrainedModel:
        return load_model(self.base, **loading(self.model_arguments), **quantization(self.model_arguments))

    def prepare(self) -> None:
        super().prepare()
        arguments = self.arguments
        named = self.model_arguments.ref_model_name_or_path
        self.reference = None if named is None else self.load_other("ref_model_name_or_path", named)
        if self.read.judged and arguments.loss_type == ["kto"]:
            self.rows, self.eval_rows = (
                rows and with_other_answers(rows, arguments.per_device_train_batch_size)
                for rows in (self.rows.shuffle(seed=arguments.seed), self.eval_rows)
            )
        in_batches = bool(BATCH_LOSSES & set(arguments.loss_type))
        self.data |= {
            # The reference is the base model, which no checkpoint holds.
            "base": text_fingerprint(json.dumps(self.base_sample)),
            "ref_model_name_or_path": self.reference and text_fingerprint(json.dumps(sample_of(self.reference))),
            **{name: getattr(arguments, name) for name in _LOSS_SETTINGS},
            **({"per_device_train_batch_size": arguments.per_device_train_batch_size} if in_batches else {}),
        }

    def make_trainer(self) -> ResumableTrainer:
        arguments = copy.copy(self.arguments)
        self.adapter = lora_config(self.model_arguments, self.model)
        if arguments.disable_dropout:
            for model in (self.model, self.reference):
                silence_attention_dropout(model)
        if self.reference is None and self.adapter is None and not arguments.precompute_ref_log_probs:
            # TRL would load the folder that the config names, and the model may have changed since.
            self.reference = copy.deepcopy(self.model).requires_grad_(False)
        # The collators take the masks.
        arguments.remove_unused_columns = False
        kinds = (JudgedTrainer, JudgedCollator) if self.read.judged else (PairTrainer, PairCollator)
        trainer_class, collator_class = kinds
        if self.read.judged:
            # KTOConfig's type of this field.
            (loss,) = self.arguments.loss_type
            arguments.loss_type = loss  # type: ignore[assignment]
            if loss == "kto":
                arguments.train_sampling_strategy = "sequential"
        trainer = trainer_class(
            model=self.model,
            ref_model=self.reference,
            args=arguments,
            data_collator=collator_class(
                pad_token_id=self.tokenizer.pad_token_id,
                max_length=arguments.max_length,
                pad_to_multiple_of=arguments.pad_to_multiple_of,
            ),
            train_dataset=self.rows,
            eval_dataset=self.eval_rows,
            processing_class=self.tokenizer,
            peft_config=self.adapter,
        )
        # TRL's constructors take no such argument here, as `SFTTrainer` does.
        trainer.optimizer_cls_and_kwargs = arguments.optimizer_cls_and_kwargs
        self.answers = [self._answers("Answering before training")]
        self.before = None
        if isinstance(trainer, PairTrainer) and self.eval_rows is not None:
            self.before = answer_logps(trainer, self.reference or self.model)
        return trainer

    def references(self) -> int:
        is_asked_once = self.arguments.precompute_ref_log_probs or self.model_arguments.use_peft
        return int(self.model_arguments.ref_model_name_or_path is not None or not is_asked_once)

    def first_loss(self) -> float | None:
        return first_loss(self.arguments, self.model.config.vocab_size)

    def measure(self, trainer: Trainer, metrics: dict[str, float]) -> dict[str, Any]:
        results = self.training_figures(metrics)
        self.answers.append(self._answers("Answering after training"))
        if self.eval_rows is None:
            return results
        results["held_out_rows"] = len(self.eval_rows)
        measured = trainer.evaluate()
        results["held_out_preference_loss"] = measured["eval_loss"]
        for name in ("chosen", "rejected", "margins"):
            if (value := measured.get(f"eval_rewards/{name}")) is not None:
                results[f"held_out_reward_{name}"] = value
        if self.before is not None:
            gained = answer_logps(trainer, trainer.model) - self.before
            results |= accuracy_figures((gained[:, 0] - gained[:, 1]).tolist(), self.rows, self.eval_rows)
        return results

    def _answers(self, desc: str) -> list[str]:
        """Answers some held-out prompts, or prompts of the training if none are held out; returns the texts."""
        rows = self.rows if self.eval_rows is None else self.eval_rows
        prompts = list(dict.fromkeys(map(tuple, rows["prompt_ids"])))[: self.arguments.sample_answers]
        return self.answer_samples(prompts, desc)

    def report(self, trainer: Trainer, results: dict[str, Any]) -> None:
        method = "KTO" if self.read.judged else "DPO"
        losses = ", ".join(self.arguments.loss_type)
        self.write_preference_report(
            trainer,
            results,
            title=f"Learning from preferences ({method})",
            description=f"a chat model that learned preferences with {method} ({losses}), from `{self.base}`.",
            samples=before_and_after(*self.answers),
            chat=True,
            loss_label=f"loss ({losses})",
        )


def with_other_answers(rows: Dataset, batch_size: int) -> Dataset:
    """Adds `KL_completion_ids` for `KTOTrainer`: the answer to another prompt of the batch, as its own preparation does.

    Args:
        rows: In the order of the training, with `completion_ids` and `completion_mask`.
        batch_size: Rows of a batch.
    """
    names = ("completion_ids", "completion_mask")
    return rows.map(
        lambda batch: {f"KL_{name}": batch[name][-1:] + batch[name][:-1] for name in names},
        batched=True,
        batch_size=batch_size,
        load_from_cache_file=False,
        desc="Pairing prompts with other answers",
    )


@torch.no_grad()
def answer_logps(trainer: PairTrainer, model: torch.nn.Module) -> torch.Tensor:
    """Log-probabilities of the held-out answers.

    Args:
        trainer: Its constructor has replaced the model's forward pass by one that computes the head only on answers.
        model: The trained model, or its reference.

    Returns:
        Sums over the tokens of the chosen and of the rejected answer, in nats, (pairs, 2).
    """
    found = []
    # The loader of data draws a random number.
    with evaluating(model), separate_randomness(trainer.args.device, 0), trainer.compute_loss_context_manager():
        for batch in trainer.get_eval_dataloader():
            inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
            labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
            scores = model(**inputs, labels=labels, use_cache=False, fused_lm_head=True).log_probs.sum(dim=1)
            found.append(trainer.accelerator.gather_for_metrics(torch.stack(scores.chunk(2), dim=1)))
    return torch.cat(found).float().cpu()
