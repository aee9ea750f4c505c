"""TRL's trainers of rewards with our prompts and sampler; answers that teach nothing take no part in a step."""

import logging
from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from itertools import groupby
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from torch.utils.data import Sampler
from transformers import PreTrainedModel

from ..data.conversations import conversation_key
from ..errors import ConfigError
from ..extras import needed_by
from ..inference.cpu.packed_linear import packed_copy
from ..inference.sampler import Sample, sample_completions
from ..inference.tools import Tools, check_names
from .grpo_arguments import GRPOArguments
from .preferences import PreferenceTrainer
from .resuming import EpochSampler

with needed_by("Training"):
    from trl import GRPOTrainer, RLOOTrainer

logger = logging.getLogger(__name__)

RLOO = "rloo"
# Losses that are means over rows, over tokens of a batch, and over tokens of all batches of a step.
ROW_LOSSES = ("grpo", "sapo", "dr_grpo", "luspo", RLOO)
TOKEN_LOSSES = ("bnpo",)
STEP_LOSSES = ("dapo", "cispo", "vespo")
# A batch is computed in up to so many parts of rows of similar length, of at least so many rows.
_PARTS, _LEAST_ROWS = 4, 4
# After this many steps in a row in which nothing could be learned, the log says so.
PATIENCE = 20


class RewardTrainer(PreferenceTrainer):
    """Adapts TRL's `GRPOTrainer` and `RLOOTrainer`. List it before TRL's class among the bases.

    Prompts are encoded by us, and answers sampled without anything that the model's generation config asks for. A group of
    answers to one prompt that all get the same reward has no gradient, not even of a KL term. Such rows, and with no KL term all
    rows without an advantage, are left out of the forward pass.

    TRL's trainers have no public place for this. Both have the same private methods, which are overridden here:
    `_tokenize_prompts`, `_generate_single_turn`, `_calculate_rewards`, `_generate_and_score_completions` and
    `_get_per_token_logps_and_entropies`.

    Attributes:
        prompt_ids: Token ids of every prompt, by `conversation_key`.
        groups: Groups of answers that were sampled for the training.
        dead_groups: Those whose answers all got the same reward.
        idle_steps: Batches of answers in a row of which nothing could be learned.
        toolbox: Answers the calls in the model's answers, if it has tools.
    """

    prompt_ids: dict[str, list[int]]
    toolbox: Tools | None = None
    groups = dead_groups = idle_steps = 0
    _live: torch.Tensor

    @property
    @abstractmethod
    def loss_name(self) -> str:
        """The `--loss_type`."""

    def _get_train_sampler(self, dataset: Dataset | None = None) -> Sampler:
        return EpochSampler(super()._get_train_sampler(dataset), self.args)

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return self._ids_of(prompts), None, {}

    def _ids_of(self, prompts: list[Any]) -> list[list[int]]:
        return [self.prompt_ids[conversation_key(prompt)] for prompt in prompts]

    def _samples_itself(self) -> bool:
        """True if the model is whole in this process, so that our sampler can be used; TRL has a way for the others."""
        sharded = self.is_deepspeed_enabled or self.is_fsdp_enabled
        return not (sharded or self.use_vllm or self.use_transformers_continuous_batching)

    def sample(self, prompt_ids: list[list[int]]) -> list[Sample]:
        """Samples an answer to each prompt, with the random numbers of the training; equal prompts in a row are computed once."""
        groups = [(key, len(list(same))) for key, same in groupby(prompt_ids)]
        count = groups[0][1]
        if any(other != count for _, other in groups):
            groups, count = [(ids, 1) for ids in prompt_ids], 1
        model = self.accelerator.unwrap_model(self.model_wrapped)
        if not (self.args.bf16 or self.args.fp16):
            model = plain_copy(model)
        found = sample_completions(
            model,
            [ids for ids, _ in groups],
            samples=count,
            max_new_tokens=self.max_completion_length,
            end_ids=self.eos_token_ids,
            # A seed from the training's random numbers, which its checkpoints hold.
            generator=torch.Generator().manual_seed(int(torch.randint(2**62, ()).item())),
            temperature=self.temperature,
            top_k=self.top_k or 0,
            top_p=self.top_p,
            replying=self.toolbox,
        )
        return [sample for samples in found for sample in samples]

    def _calculate_rewards(
        self, inputs: list[dict[str, Any]], prompts: list[Any], completions: list[Any], completion_ids_list: list[Any]
    ) -> torch.Tensor:
        if self.toolbox is not None:
            # TRL's log of completions shows the same list.
            completions[:] = [row["completion"] for row in inputs]
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        count = self.num_generations if self.model.training else self.num_generations_eval
        compared = rewards
        if not self._weighs_each():
            compared = (rewards * self.reward_weights.to(rewards.device)).nansum(1, keepdim=True)
            compared[rewards.isnan().all(1)] = torch.nan
        # TRL writes NaN where there is no reward.
        grouped = compared.view(-1, count, compared.shape[1])
        highest, lowest = grouped.nan_to_num(nan=-torch.inf).amax(1), grouped.nan_to_num(nan=torch.inf).amin(1)
        self._live = (highest > lowest).any(1).repeat_interleave(count)
        if self.model.training:
            self._count(grouped, completion_ids_list)
        return rewards

    def _weighs_each(self) -> bool:
        """True if each reward is normalized before they are added: then equal sums may come from unequal parts."""
        return getattr(self, "multi_objective_aggregation", None) == "normalize_then_sum"

    def _count(self, rewards: torch.Tensor, completion_ids: list[list[int]]) -> None:
        """Counts groups, and says when there has long been nothing to learn.

        Args:
            rewards: (groups, answers, rewards).
        """
        alive = int(self._live.sum()) // rewards.shape[1]
        self.groups += len(rewards)
        self.dead_groups += len(rewards) - alive
        self.idle_steps = 0 if alive else self.idle_steps + 1
        if self.idle_steps and self.idle_steps % PATIENCE == 0:
            ended = any(ids and ids[-1] in self.eos_token_ids for ids in completion_ids)
            logger.warning(
                "For %d batches of answers in a row, all answers to a prompt got the same reward (%.4g on average), so nothing is learned: %s.",
                self.idle_steps,
                rewards.nanmean().item(),
                REMEDY if ended else CLIPPED,
            )

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        begin = self.accelerator.process_index * len(inputs)
        live = self._live[begin : begin + len(inputs)].to(output["advantages"].device)
        # Rounding may have left something, which the division by a deviation of nearly 0 makes large.
        output["advantages"] = output["advantages"] * live
        output["live"] = live
        return output

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """TRL's loss, computed on the rows that have one. The metrics of a step are those of these rows."""
        tokens = scored_tokens(inputs)
        kept = inputs["live"] & (tokens > 0)
        if not self.beta or self.loss_name == RLOO:
            # RLOO has the KL divergence in its rewards.
            kept = kept & (inputs["advantages"] != 0)
        rows = kept.nonzero()[:, 0]
        # A batch without such a row still needs a graph, and another process may have one.
        share = 1.0 if len(rows) else 0.0
        rows = rows if len(rows) else rows.new_zeros(1)
        if self.loss_name in ROW_LOSSES:
            share *= len(rows) / len(kept)
        elif self.loss_name in TOKEN_LOSSES:
            share *= (tokens[rows].sum() / tokens.sum().clamp(min=1)).item()
        loss = super().compute_loss(model, part_of(inputs, rows), return_outputs, num_items_in_batch)
        return loss * share

    def _get_per_token_logps_and_entropies(
        self,
        model: nn.Module,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **others: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """TRL's log-probabilities, computed for rows of similar length together: one long answer makes most of a batch padding.

        Only on a CPU, where padding takes as long as tokens; and in one process, since each has other lengths.
        """
        compute = partial(super()._get_per_token_logps_and_entropies, model)
        options = {"compute_entropy": compute_entropy, "compute_aux_loss": compute_aux_loss, **others}
        lengths = attention_mask[:, -logits_to_keep:].sum(1)
        count = min(_PARTS, len(lengths) // _LEAST_ROWS)
        apart = input_ids.device.type == "cpu" and self.accelerator.num_processes == 1 and count > 1
        if batch_size is not None or compute_aux_loss or not apart:
            return compute(input_ids, attention_mask, logits_to_keep, batch_size, **options)
        order = lengths.argsort(stable=True)
        parts = []
        for rows in order.tensor_split(count):
            unused = logits_to_keep - max(1, int(lengths[rows].max()))
            width = input_ids.shape[1] - unused
            found = compute(input_ids[rows, :width], attention_mask[rows, :width], logits_to_keep - unused, **options)
            parts.append([None if values is None else nn.functional.pad(values, (0, unused)) for values in found])
        back = order.argsort()
        log_probs, entropies, _ = zip(*parts, strict=True)
        return torch.cat(log_probs)[back], torch.cat(entropies)[back] if compute_entropy else None, None


class GroupTrainer(RewardTrainer, GRPOTrainer):
    """`GRPOTrainer` on rows with `prompt`, whose checkpoints are sealed."""

    @property
    def loss_name(self) -> str:
        return str(self.loss_type)

    def _generate_single_turn(self, prompt_ids: list[list[int]], *args: Any, **kwargs: Any) -> Any:
        if not self._samples_itself():
            return super()._generate_single_turn(prompt_ids, *args, **kwargs)
        return [sample.ids for sample in self.sample(prompt_ids)], None

    def use_tools(self, toolbox: Tools) -> None:
        """Lets the model call tools in its answers.

        TRL's loop for `tools=` finds what follows a call at the tokenizer's `eos_token`, which is not the end of our turns.
        """
        self.toolbox = toolbox
        self.rollout_func = self._roll_out

    def _roll_out(self, prompts: list[Any], trainer: Any) -> dict[str, list[Any] | None]:
        """Samples answers with calls of tools, in the form that TRL takes from a `rollout_func`."""
        assert self.toolbox is not None
        prompt_ids = self._ids_of(prompts)
        samples = self.sample(prompt_ids)
        return {
            "prompt_ids": prompt_ids,
            "completion_ids": [sample.ids for sample in samples],
            # As without tools: those of the sampler are those of the training.
            "logprobs": None,
            # TRL leaves tokens of 0 out of the loss.
            "env_mask": [sample.tool_mask for sample in samples],
            # Goes into the rows; a column of this name is not passed on to rewards.
            "completion": [self.toolbox.messages(sample) for sample in samples],
        }


class LeaveOneOutTrainer(RewardTrainer, RLOOTrainer):
    """`RLOOTrainer` on rows with `prompt`, whose checkpoints are sealed."""

    @property
    def loss_name(self) -> str:
        return RLOO

    def _generate_single_turn(self, prompt_ids: list[list[int]], *args: Any, **kwargs: Any) -> Any:
        if not self._samples_itself():
            return super()._generate_single_turn(prompt_ids, *args, **kwargs)
        return [sample.ids for sample in self.sample(prompt_ids)]


def check_tools(tools: Sequence[str], arguments: GRPOArguments, *, is_sharded: bool) -> None:
    """Raises `ConfigError` if tools are unknown or cannot be called with these arguments."""
    most = arguments.max_tool_calling_iterations
    if not tools:
        if most is not None:
            raise ConfigError("--max_tool_calling_iterations does nothing without --tools: leave it out.")
        return
    check_names(tools)
    if most is not None and most < 1:
        raise ConfigError(f"--max_tool_calling_iterations is {most}: give 1 or more, or leave --tools out.")
    if arguments.loss_type == RLOO:
        raise ConfigError(
            "--tools does not work with --loss_type rloo, which would learn what the tools write: choose another loss."
        )
    for name in ("use_vllm", "use_transformers_continuous_batching"):
        if getattr(arguments, name):
            raise ConfigError(f"--tools works with our own sampler only: leave --{name} out.")
    if is_sharded:
        raise ConfigError(
            "--tools needs the whole model in each process, and DeepSpeed and FSDP divide it: leave --tools out."
        )


CLIPPED = "no answer ended within --max_completion_length. Raise it, or teach the model to end its answers with `chatgpt-hf sft`"
REMEDY = (
    "if the rewards are the highest possible, the prompts are solved or the reward accepts everything, so look at answers and take "
    "harder prompts; if they are the lowest, take easier prompts, more --num_generations, a higher --temperature, or teach the model "
    "with `chatgpt-hf sft` first"
)


def scored_tokens(inputs: dict[str, Any]) -> torch.Tensor:
    """The number of tokens in each row of a batch that the model wrote itself, (rows,)."""
    mask = inputs["completion_mask"]
    return (mask if (own := inputs.get("tool_mask")) is None else mask * own).sum(1)


def part_of(inputs: dict[str, Any], rows: torch.Tensor) -> dict[str, Any]:
    """Some rows of a batch, without the padding that only the others need.

    Args:
        inputs: What TRL's trainers compute a loss from: `prompt_ids` with padding on the left, `completion_ids` with padding on
            the right, and other tensors by row, some of them also by token of the completion.
        rows: Their indices, (rows,).
    """
    count, width = inputs["completion_ids"].shape
    part = {
        name: value[rows] if isinstance(value, torch.Tensor) and value.ndim and len(value) == count else value
        for name, value in inputs.items()
    }
    longest = max(1, int(part["completion_mask"].sum(1).max()))
    # TRL's own padding may be to a multiple.
    before = int(part["prompt_mask"].sum(1).max())
    for name, value in part.items():
        if isinstance(value, torch.Tensor) and value.ndim == 2:
            if name.startswith("prompt_"):
                part[name] = value[:, -before:]
            elif value.shape[1] == width:
                part[name] = value[:, :longest]
    return part


def plain_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A packed copy of a model for sampling, or the model itself where packing does not pay off."""
    copied = packed_copy(model)
    if copied is not model:
        language_model = copied.get_base_model() if hasattr(copied, "get_base_model") else copied
        # TRL's own forward pass calls that of the model which it was made for.
        vars(language_model).pop("forward", None)
    return copied
