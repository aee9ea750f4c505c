"""Trains a reward model, which scores answers, on pairs of answers with TRL's `RewardTrainer`."""

from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, PreTrainedModel, Trainer

from ..checkpoints import check_tokenizer_fits, load_config, load_model, sample_of
from ..data.prepare import tokenizer_fingerprint
from ..errors import ConfigError
from ..evaluation.mode import evaluating
from ..extras import needed_by
from ..model.modeling_chatgpt import ChatGPTForSequenceClassification
from .adapters import adapter_record, lora_config
from .preference_arguments import PreferenceArguments, RewardArguments, RewardModelArguments
from .preferences import (
    PreferenceTrainer,
    accuracy_figures,
    check_end_mark,
    check_enough,
    check_preferences,
    load_chat_tokenizer,
    read_rows,
    silence_attention_dropout,
)
from .resuming import ResumableTrainer, template_fingerprint
from .run import Run, check_block_size, write_base_sample
from .samples import separate_randomness
from .weights import loading

with needed_by("Training"):
    from trl import RewardTrainer

# Inside the run's folder: only the adapters, if adapters were trained. The run's folder contains the merged model.
ADAPTER_FOLDER = "adapter"
# The new head, by the name that transformers gives it in all families of chat models.
HEAD = "score"
# ln 2 is the loss of equal scores; those of a new head differ a little. Margins add to it.
_FIRST_LOSS = 1.0


class ScoreTrainer(PreferenceTrainer, RewardTrainer):
    """`RewardTrainer` on rows with `chosen_ids` and `rejected_ids`, whole conversations; its checkpoints are sealed."""


def reward(
    model_arguments: RewardModelArguments,
    preference_arguments: PreferenceArguments,
    arguments: RewardArguments,
) -> dict[str, Any]:
    """Trains a reward model on pairs and writes an ordinary folder of a sequence classifier with one output.

    Returns:
        The run's figures, as in its results.json: the share of held-out pairs that the model ranks right, with its interval,
        beside that of the length of the answers.

    Raises:
        ChatGPTError: If data, model or folder cannot be used.
    """
    return RewardRun(model_arguments, preference_arguments, arguments).execute()


class RewardRun(Run):
    """Trains a reward model on pairs of answers."""

    command = "reward"
    arguments: RewardArguments
    model_arguments: RewardModelArguments

    def __init__(
        self,
        model_arguments: RewardModelArguments,
        preference_arguments: PreferenceArguments,
        arguments: RewardArguments,
    ) -> None:
        super().__init__(arguments, model_arguments, preference_arguments)
        self.model_arguments, self.preference_arguments = model_arguments, preference_arguments

    def check(self) -> None:
        chosen = self.model_arguments
        if chosen.model_name_or_path is None:
            raise ConfigError(
                "--model_name_or_path is missing: name the chat model that the reward model starts from."
            )
        if chosen.load_in_4bit:
            raise ConfigError(
                "--load_in_4bit is for `chatgpt-hf sft` and `dpo`: a reward model's adapters are merged into their base. Leave it out."
            )
        check_preferences(chosen, self.preference_arguments, self.arguments)
        super().check()

    def prepare(self) -> None:
        chosen, arguments = self.model_arguments, self.arguments
        base = str(chosen.model_name_or_path)
        self.tokenizer = load_chat_tokenizer(base)
        self.read = read_rows(
            self.preference_arguments,
            self.tokenizer,
            kind="pairs",
            max_length=arguments.max_length,
            seed=arguments.seed,
            eval_strategy=arguments.eval_strategy,
            shows=arguments.process_index == 0,
        )
        check_enough(self.read, arguments)
        is_gpt2 = load_config(base).model_type == "gpt2"
        self.model = load_model(
            base,
            ChatGPTForSequenceClassification if is_gpt2 else AutoModelForSequenceClassification,
            new_modules=(HEAD,),
            num_labels=1,
            # So that a pipeline returns the score itself.
            problem_type="regression",
            **loading(chosen),
        )
        check_tokenizer_fits(self.model, self.tokenizer)
        check_end_mark(self.read, self.model, self.tokenizer)
        if arguments.max_length is not None:
            check_block_size(arguments.max_length, self.model, field="max_length")
        self.base_sample = sample_of(self.model)
        self.rows = whole_conversations(self.read.rows)
        self.eval_rows = None if self.read.eval_rows is None else whole_conversations(self.read.eval_rows)
        self.data = {
            **self.read.record,
            "tokenizer": tokenizer_fingerprint(self.tokenizer),
            "template": template_fingerprint(self.tokenizer.chat_template),
            "seed": arguments.seed,
            **adapter_record(chosen, self.base_sample),
            **{
                name: getattr(arguments, name)
                for name in ("max_length", "center_rewards_coefficient", "disable_dropout")
            },
        }

    def make_trainer(self) -> ResumableTrainer:
        if self.arguments.disable_dropout:
            silence_attention_dropout(self.model)
        self.adapter = lora_config(self.model_arguments, self.model, task_type="SEQ_CLS", heads=(HEAD,))
        return ScoreTrainer(
            model=self.model,
            args=self.arguments,
            train_dataset=self.rows,
            eval_dataset=self.eval_rows,
            processing_class=self.tokenizer,
            optimizer_cls_and_kwargs=self.arguments.optimizer_cls_and_kwargs,
            peft_config=self.adapter,
        )

    def first_loss(self) -> float | None:
        margins = self.rows["margin"] if "margin" in self.rows.column_names else [0.0]
        return _FIRST_LOSS + max(0.0, *margins)

    def save(self, trainer: Trainer) -> None:
        model: Any = trainer.accelerator.unwrap_model(trainer.model)
        if self.adapter is not None:
            self.save_model(model, self.folder / ADAPTER_FOLDER)
            write_base_sample(self.folder / ADAPTER_FOLDER, self.base_sample)
            # A pipeline could not find the head in an adapter's folder.
            model = model.merge_and_unload()
        self.save_model(model, self.folder)
        self.model = model

    def measure(self, trainer: Trainer, metrics: dict[str, float]) -> dict[str, Any]:
        results: dict[str, Any] = {
            "parameters": self.model.num_parameters(),
            "train_rows": len(self.rows),
            **({"preferences": self.read.notes} if self.read.notes else {}),
            **{name: value for name, value in metrics.items() if name.startswith("train_") or name == "epoch"},
        }
        if self.eval_rows is None or self.read.eval_rows is None:
            return results
        results["held_out_rows"] = len(self.eval_rows)
        scores = score_pairs(trainer, self.model)
        results["held_out_reward_chosen"], results["held_out_reward_rejected"] = scores.mean(dim=0).tolist()
        margins = (scores[:, 0] - scores[:, 1]).tolist()
        return results | accuracy_figures(margins, self.read.rows, self.read.eval_rows)

    def report(self, trainer: Trainer, results: dict[str, Any]) -> None:
        self.write_report(
            trainer,
            results,
            title="Reward model",
            description=f"a reward model, which scores answers, trained on pairs from `{self.model_arguments.model_name_or_path}`.",
            data=", ".join(self.read.sources),
            columns=[summary.line() for summary in self.read.summaries],
            task="text-classification",
            datasets=self.read.sources,
            base_model=self.model_arguments.model_name_or_path,
            loss_label="loss of pairs",
        )


def whole_conversations(rows: Dataset) -> Dataset:
    """Returns pairs as `RewardTrainer` takes them: each side with its prompt, and the margin where every pair has one."""
    columns = {
        side: [prompt + answer for prompt, answer in zip(rows["prompt_ids"], rows[side], strict=True)]
        for side in ("chosen_ids", "rejected_ids")
    }
    margins = rows["margin"][:] if "margin" in rows.column_names else [None]
    if all(margin is not None for margin in margins):
        columns["margin"] = margins
    return Dataset.from_dict({**columns, "length": rows["length"][:]})


@torch.no_grad()
def score_pairs(trainer: Trainer, model: PreTrainedModel) -> torch.Tensor:
    """Scores the held-out pairs.

    Returns:
        Scores of the chosen and of the rejected answer, (pairs, 2).
    """
    found = []
    # The loader of data draws a random number.
    with evaluating(model), separate_randomness(trainer.args.device, 0), trainer.compute_loss_context_manager():
        for batch in trainer.get_eval_dataloader():
            scores = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.squeeze(-1)
            found.append(trainer.accelerator.gather_for_metrics(torch.stack(scores.chunk(2), dim=1)))
    return torch.cat(found).float().cpu()
