"""Derives a recipe from `--depth` by published scaling rules, and computes what a model of a shape costs to train.

Every rule has a formula and a fit from the literature. If the fit is from much larger models than one machine can
train, the rule uses only its exponent, through a point that is known to be good here:
`recipes/pretrain-quickstart.yaml` (4 layers of width 192, vocabulary 4,096, rows of 256, 480 steps of 2,048 tokens,
Muon at 0.005). docs/scaling.md says what was verified.
"""

import json
import math
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoModelForCausalLM

from ..errors import ConfigError
from ..model.configuration_chatgpt import ChatGPTConfig
from ..model.loss_chatgpt import LOSS_CHUNK_ROWS
from ..model.modeling_chatgpt import ChatGPTForCausalLM
from .hardware import free_memory, training_device

HEAD_SIZE = 64

# Compute-optimal number of tokens per matrix parameter.
TOKENS_PER_PARAMETER = 10.5
# The power laws go through this point: recipes/pretrain-quickstart.yaml.
REFERENCE_LAYER_PARAMETERS = 12 * 192**2 * 4
REFERENCE_VOCAB_PARAMETERS = 4096 * 192
REFERENCE_TOKENS = 480 * 2048
REFERENCE_BATCH = 2048
REFERENCE_FLOPS = 1.74e13
REFERENCE_LEARNING_RATE = {"muon": 0.005, "adamw": 0.0015}

VOCAB_EXPONENT = 0.83
BATCH_EXPONENT = 0.383
LEARNING_RATE_EXPONENT = {"muon": -0.03, "adamw": -0.125}

# On a CPU a larger micro-batch was not faster; on an accelerator memory is the limit.
CPU_MICRO_BATCH_TOKENS = 2048
MEMORY_SHARE = 0.7


@dataclass(frozen=True)
class ParameterCounts:
    """A model's number of parameters.

    Attributes:
        total: All parameters; a tied head counts once.
        non_embedding: Without the embedding tables and the head (Kaplan et al. 2020).
        matrices: Parameters that multiply each token: the matrices of the layers and the head, tied or not.
    """

    total: int
    non_embedding: int
    matrices: int


@dataclass(frozen=True)
class Memory:
    """Peak memory of a training process in bytes, by purpose.

    Attributes:
        weights: The parameters.
        gradients: One for each parameter.
        optimizer: The optimizer's state.
        activations: Tensors that the layers keep for the backward pass of one micro-batch.
        loss: Logits of one chunk, and the accumulated gradient of the head.
        update: Muon's temporary tensors; never at the same time as activations and loss.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    loss: int
    update: int

    @property
    def total(self) -> int:
        """The peak."""
        return self.weights + self.gradients + self.optimizer + max(self.activations + self.loss, self.update)


def count_parameters(config: ChatGPTConfig) -> ParameterCounts:
    """Counts a model's parameters exactly, without allocating them."""
    model = _meta_model(config)
    modules = list(model.modules())
    tables = {id(module.weight) for module in modules if isinstance(module, nn.Embedding)} | {id(model.lm_head.weight)}
    parameters = list(model.parameters())
    return ParameterCounts(
        total=sum(parameter.numel() for parameter in parameters),
        non_embedding=sum(parameter.numel() for parameter in parameters if id(parameter) not in tables),
        matrices=sum(module.weight.numel() for module in modules if isinstance(module, nn.Linear)),
    )


def flops_per_token(config: ChatGPTConfig, block_size: int | None = None) -> float:
    """Floating-point operations of a training step per token, forward and backward.

    Six for each matrix parameter, including the head, and `12 * heads * head_dim * keys` for each layer's attention
    (Chowdhery et al. 2022, "PaLM", appendix B, as in nanoGPT). By this convention attention counts every key of the
    row, even the half behind the causal mask that kernels may skip; a sliding layer counts its window. Norms,
    activations, embeddings and the optimizer do not count.

    Args:
        block_size: Tokens per row; None means the model's context.
    """
    length = block_size or config.max_position_embeddings
    sliding = [kind == "sliding_attention" for kind in config.attention_types]
    keys = sum(min(length, (config.sliding_window or length) if slides else length) for slides in sliding)
    return 6 * count_parameters(config).matrices + 12 * config.num_attention_heads * (config.head_dim or 0) * keys


def activation_bytes(
    config: ChatGPTConfig,
    batch: int,
    block_size: int,
    dtype: torch.dtype = torch.float32,
    *,
    cast_weights: bool = False,
) -> int:
    """Bytes that the body keeps for the backward pass, from the tensors that autograd saves on fake tensors.

    Counts the tensors of the CPU's kernels. Packed rows add a mask of `batch * block_size ** 2` booleans.

    Args:
        cast_weights: The weights have this dtype already, as under FSDP2; without it, autocast casts them.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    # A storage is one Python object as long as somebody holds it.
    saved: dict[int, torch.UntypedStorage] = {}

    def remember(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        saved[id(storage)] = storage
        return tensor

    with FakeTensorMode():
        stored = dtype if cast_weights else torch.float32
        model = AutoModelForCausalLM.from_config(config, dtype=stored).train()
        weights = {id(storage): storage for storage in map(torch.Tensor.untyped_storage, model.parameters())}
        ids = torch.zeros(batch, block_size, dtype=torch.long)
        half = dtype != torch.float32 and not cast_weights
        with saved_tensors_hooks(remember, lambda tensor: tensor), torch.autocast("cpu", dtype, enabled=half):
            model.model(input_ids=ids, use_cache=False)
        return sum(storage.nbytes() for key, storage in saved.items() if key not in weights)


def memory_bytes(
    config: ChatGPTConfig, batch: int, block_size: int, optim: str = "muon", dtype: torch.dtype = torch.float32
) -> Memory:
    """Estimates the peak memory of training from exact counts, and from formulas for the loss and Muon.

    Args:
        batch: Rows per micro-batch.
        block_size: Tokens per row.
        optim: With `muon`, the optimizer keeps one number for each parameter of the layers' matrices; with AdamW, and
            for all other parameters, two.
        dtype: Dtype of the activations. Weights, gradients and optimizer are float32, as in mixed precision.
    """
    model = _meta_model(config)
    total = sum(parameter.numel() for parameter in model.parameters())
    by_shape: dict[torch.Size, int] = {}
    for module in model.model.layers.modules():
        if isinstance(module, nn.Linear):
            by_shape[module.weight.shape] = by_shape.get(module.weight.shape, 0) + module.weight.numel()
    hidden = sum(by_shape.values()) if optim == "muon" else 0
    rows = min(LOSS_CHUNK_ROWS, batch * block_size)
    return Memory(
        weights=4 * total,
        gradients=4 * total,
        optimizer=4 * hidden + 8 * (total - hidden),
        activations=activation_bytes(config, batch, block_size, dtype),
        loss=4 * (2 * rows * config.vocab_size + config.vocab_size * config.hidden_size),
        # The stacked momenta, the iterate, its product with the Gram matrix, and their sum.
        update=4 * 4 * max(by_shape.values()) if hidden else 0,
    )


def dial(depth: int, *, world_size: int = 1, **set_by_hand: Any) -> dict[str, Any]:
    """Returns the recipe for a depth: its fields, except those that are set by hand.

    A field that is set by hand replaces the result of its rule, and the other rules use its value.

    - **Shape**: width `64 * depth` in heads of 64, as `ChatGPTConfig.from_depth` (nanochat's ladder).
    - **Context** `block_size`: the power of two nearest to the width, from 256 to 2,048. No published rule: it keeps attention's
      share of the FLOPs, `block_size / (6 * width)`, at about a sixth of the layers'.
    - **Vocabulary** (only a suggestion: a tokenizer set by hand decides): `vocab * width ~ layer_parameters ** 0.83`
      (Tao et al. 2024, "Scaling laws with vocabulary", fitted from 33 M to 1.1 B parameters), through the reference,
      rounded to a power of two.
    - **Horizon** D = 10.5 tokens for each matrix parameter, including the head: nanochat's fit (dev/LOG.md,
      2026-01-27: 10.3 to 11.2 from 1e18 to 1e19 FLOPs), with Muon and a model like this one; Hoffmann et al. 2022
      found about 20 per parameter of any kind, with AdamW. The rule ignores the size of your corpus.
    - **Batch** B = 2,048 tokens * (D / 0.98 M) ** 0.383: exponent of Bergsma et al. 2025, "Power lines" (111 M to 3.3 B
      parameters), through the reference; their absolute batch is about six times as large, and Zhang et al. 2024
      measured 0.47 for the critical batch. Rounded to a power of two of rows; the micro-batch is the largest that
      fits.
    - **Learning rate** 0.005 * (C / 1.74e13) ** -0.03 * sqrt(B / B of the rule), where C is the FLOPs of the run: the
      line from the reference to nanochat's depth 12, whose 0.02 is 0.0036 in our unit (our steps are 0.2 * sqrt(768)
      times as large), and the square root of Malladi et al. 2022 for a batch set by hand. The width has no factor:
      Muon's step here has the root mean square of AdamW's (Liu et al. 2025). With AdamW 0.0015 * (C / 1.74e13) **
      -0.125, exponent of Bi et al. 2024, "DeepSeek LLM" (1e17 to 2e19 FLOPs), through the best of two sweeps at the
      reference's size (docs/log.md); DeepSeek's own constant gives 0.0068 there.
    - **Weight decay** 1 / (learning rate * steps * timescale), timescale = 1.084 * (D / matrix parameters) ** -0.527: Bergsma
      et al. 2025, after Wang & Aitchison 2024; fitted with AdamW.

    Args:
        depth: Number of layers.
        world_size: Number of processes that share a step.
        **set_by_hand: Fields of the recipe by name. If a tokenizer is set by hand, pass its size as `vocab_size`: the
            rules use it.

    Returns:
        Values for the fields that are not in `set_by_hand`.

    Raises:
        ConfigError: If the depth is below 1, the width does not divide into heads, or the shape is impossible.
    """
    if depth < 1:
        raise ConfigError(f"--depth must be at least 1, got {depth}.")
    recipe: dict[str, Any] = _shape(depth, set_by_hand)
    block_size = recipe["block_size"] = set_by_hand.get("block_size", _power_of_two(recipe["hidden_size"], 256, 2048))
    recipe["vocab_size"] = set_by_hand.get("vocab_size")
    if recipe["vocab_size"] is None:
        layers = count_parameters(model_config(recipe | set_by_hand | {"vocab_size": 1})).non_embedding
        best = REFERENCE_VOCAB_PARAMETERS * (layers / REFERENCE_LAYER_PARAMETERS) ** VOCAB_EXPONENT
        recipe["vocab_size"] = _power_of_two(best / recipe["hidden_size"], 512, 2**17)
    config = model_config(recipe | set_by_hand)
    parameters = count_parameters(config).matrices

    steps = max(0, set_by_hand.get("max_steps", 0))
    tokens = _tokens_of_steps(steps) if steps else TOKENS_PER_PARAMETER * parameters
    rows = best_batch(tokens) / block_size / world_size
    micro_batch, accumulation = _split_rows(rows, config, block_size, set_by_hand)
    recipe |= {"per_device_train_batch_size": micro_batch, "gradient_accumulation_steps": accumulation}
    batch = micro_batch * accumulation * world_size * block_size
    if steps:
        tokens = steps * batch
    steps = steps or math.ceil(tokens / batch)
    if "num_train_epochs" not in set_by_hand:
        recipe["max_steps"] = steps

    optim = "muon" if set_by_hand.get("optim", "muon") == "muon" else "adamw"
    compute = flops_per_token(config, block_size) * tokens
    rate = REFERENCE_LEARNING_RATE[optim] * (compute / REFERENCE_FLOPS) ** LEARNING_RATE_EXPONENT[optim]
    recipe["learning_rate"] = _two_digits(rate * math.sqrt(batch / best_batch(tokens)))
    rate = set_by_hand.get("learning_rate", recipe["learning_rate"])
    timescale = 1.084 * (tokens / parameters) ** -0.527
    # A rate of 0 decays nothing either.
    recipe["weight_decay"] = _two_digits(1 / (rate * steps * timescale)) if rate else 0.0
    return {name: value for name, value in recipe.items() if name not in set_by_hand}


def best_batch(tokens: float) -> float:
    """The best number of tokens per step for a run of `tokens` tokens; see `dial`."""
    return REFERENCE_BATCH * (tokens / REFERENCE_TOKENS) ** BATCH_EXPONENT


def model_config(recipe: dict[str, Any]) -> ChatGPTConfig:
    """Returns the config of a recipe's model; ignores the recipe's other fields.

    Raises:
        ConfigError: If the shape is impossible.
    """
    known = {item.name for item in fields(ChatGPTConfig)}
    shape = {name: value for name, value in recipe.items() if name in known and value is not None}
    shape.setdefault("max_position_embeddings", recipe["block_size"])
    try:
        if isinstance(shape.get("rope_parameters"), str):
            shape["rope_parameters"] = json.loads(shape["rope_parameters"])
        return ChatGPTConfig(**shape)
    except Exception as error:
        raise ConfigError(f"No model has this shape: {error}") from error


def resized(config: ChatGPTConfig, layers: int, vocab_size: int | None = None) -> ChatGPTConfig:
    """A config with another number of layers, and of tokens if given."""
    shape = {item.name: getattr(config, item.name) for item in fields(ChatGPTConfig) if item.init}
    # The first kinds of layers in their order, the last one repeated.
    kinds = (config.layer_types or [])[:layers]
    kinds += kinds[-1:] * (layers - len(kinds))
    shape |= {"num_hidden_layers": layers, "layer_types": kinds}
    if not any("sliding" in kind for kind in kinds):
        shape["sliding_window"] = None
    if vocab_size is not None:
        shape["vocab_size"] = vocab_size
    return ChatGPTConfig(**shape)


def _meta_model(config: ChatGPTConfig) -> ChatGPTForCausalLM:
    with torch.device("meta"):
        return ChatGPTForCausalLM(config)


def _shape(depth: int, set_by_hand: dict[str, Any]) -> dict[str, Any]:
    width = set_by_hand.get("hidden_size", HEAD_SIZE * depth)
    head = set_by_hand.get("head_dim", HEAD_SIZE)
    if width % head and "num_attention_heads" not in set_by_hand:
        raise ConfigError(
            f"--hidden_size {width} does not divide into heads of {head}: give --num_attention_heads too."
        )
    return {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": width // head}


def _tokens_of_steps(steps: int) -> float:
    """Tokens of a run of `steps` steps whose batch is the best one for its tokens."""
    return (steps * REFERENCE_BATCH * REFERENCE_TOKENS**-BATCH_EXPONENT) ** (1 / (1 - BATCH_EXPONENT))


def _split_rows(rows: float, config: ChatGPTConfig, block_size: int, set_by_hand: dict[str, Any]) -> tuple[int, int]:
    """Splits the rows of a process per step into rows per micro-batch and number of micro-batches."""
    micro_batch = set_by_hand.get("per_device_train_batch_size")
    accumulation = set_by_hand.get("gradient_accumulation_steps")
    if micro_batch is None and accumulation is None:
        rows = _power_of_two(rows, 1)
        micro_batch = min(rows, _rows_that_fit(config, block_size, set_by_hand))
    if micro_batch is None:
        micro_batch = max(1, round(rows / (accumulation or 1)))
    return micro_batch, accumulation or max(1, round(rows / micro_batch))


def _rows_that_fit(config: ChatGPTConfig, block_size: int, set_by_hand: dict[str, Any]) -> int:
    """The largest useful micro-batch, in rows: a power of two."""
    device = training_device()
    if device.type == "cpu":
        rows = CPU_MICRO_BATCH_TOKENS / block_size
    else:
        dtype = torch.bfloat16 if set_by_hand.get("bf16") else torch.float32
        memory = memory_bytes(config, 1, block_size, set_by_hand.get("optim", "muon"), dtype)
        rows = (MEMORY_SHARE * free_memory(device) - memory.total) / memory.activations + 1
    return 2 ** int(math.log2(max(1.0, rows)))


def _power_of_two(value: float, low: int, high: float = math.inf) -> int:
    return int(min(high, max(low, 2 ** round(math.log2(value)))))


def _two_digits(value: float) -> float:
    return float(f"{value:.2g}")
