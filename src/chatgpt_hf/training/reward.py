"""Trains a reward model, which scores answers, on pairs of answers with TRL's `RewardTrainer`."""

from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, PreTrainedModel, Trainer

from ..checkpoints import load_config, load_model
from ..errors import ConfigError
from ..evaluation.mode import evaluating
from ..extras import needed_by
from ..model.modeling_chatgpt import ChatGPTForSequenceClassification
from .adapters import lora_config
from .preference_arguments import PreferenceArguments, RewardArguments, RewardModelArguments
from .preferences import PreferenceRun, PreferenceTrainer, accuracy_figures, silence_attention_dropout
from .resuming import ResumableTrainer
from .run import write_base_sample
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


class RewardRun(PreferenceRun):
    """Trains a reward model on pairs of answers."""

    command = "reward"
    base_role = "the chat model that the reward model starts from"
    arguments: RewardArguments

    def check_arguments(self) -> None:
        if self.model_arguments.load_in_4bit:
            raise ConfigError(
                "--load_in_4bit is for `chatgpt-hf sft` and `dpo`: a reward model's adapters are merged into their base. Leave it out."
            )
        super().check_arguments()

    def kind(self) -> str | None:
        return "pairs"

    def load(self) -> PreTrainedModel:
        is_gpt2 = load_config(self.base).model_type == "gpt2"
        return load_model(
            self.base,
            ChatGPTForSequenceClassification if is_gpt2 else AutoModelForSequenceClassification,
            new_modules=(HEAD,),
            num_labels=1,
            # So that a pipeline returns the score itself.
            problem_type="regression",
            **loading(self.model_arguments),
        )

    def prepare(self) -> None:
        super().prepare()
        self.rows, self.eval_rows = (
            rows and whole_conversations(rows) for rows in (self.read.rows, self.read.eval_rows)
        )
        names = ("max_length", "center_rewards_coefficient", "disable_dropout")
        self.data |= {name: getattr(self.arguments, name) for name in names}

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

    def save(self, trainer: ResumableTrainer) -> None:
        model: Any = trainer.whole_model()
        if self.adapter is not None:
            self.save_model(model, self.folder / ADAPTER_FOLDER)
            write_base_sample(self.folder / ADAPTER_FOLDER, self.base_sample)
            # A pipeline could not find the head in an adapter's folder.
            model, self.adapter = model.merge_and_unload(), None
        self.save_model(model, self.folder)
        self.model = model

    def measure(self, trainer: Trainer, metrics: dict[str, float]) -> dict[str, Any]:
        results = self.training_figures(metrics)
        if self.eval_rows is None or self.read.eval_rows is None:
            return results
        results["held_out_rows"] = len(self.eval_rows)
        scores = score_pairs(trainer, self.model)
        results["held_out_reward_chosen"], results["held_out_reward_rejected"] = scores.mean(dim=0).tolist()
        margins = (scores[:, 0] - scores[:, 1]).tolist()
        return results | accuracy_figures(margins, self.read.rows, self.read.eval_rows)

    def report(self, trainer: Trainer, results: dict[str, Any]) -> None:
        self.write_preference_report(
            trainer,
            results,
            title="Reward model",
            description=f"a reward model, which scores answers, trained on pairs from `{self.base}`.",
            task="text-classification",
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
