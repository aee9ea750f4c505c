"""Low-rank adapters (LoRA), and a base model in 4 bits below them (QLoRA)."""

import json
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Conv1D, PreTrainedConfig, PreTrainedModel

from ..errors import ConfigError
from ..extras import needed_by, require
from .arguments import ChatModelArguments
from .resuming import text_fingerprint

# Layers that LoRA can adapt.
_ADAPTED = (torch.nn.Linear, torch.nn.Embedding, Conv1D)


def quantization(arguments: ChatModelArguments) -> dict[str, Any]:
    """Arguments of `from_pretrained` for QLoRA (Dettmers et al. 2023): 4-bit NormalFloat, double quantization."""
    if not arguments.load_in_4bit:
        return {}
    if arguments.dtype is not None:
        raise ConfigError(
            "--load_in_4bit and --dtype both choose how the base model is loaded: give only one of them."
        )
    if not arguments.use_peft:
        raise ConfigError("--load_in_4bit works only with adapters: add --use_peft, or leave it out.")
    if not torch.cuda.is_available():
        raise ConfigError("--load_in_4bit needs a CUDA GPU: leave it out here.")
    require("--load_in_4bit", "bitsandbytes")
    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    }


def adapter_record(arguments: ChatModelArguments, base_sample: list[float]) -> dict[str, Any]:
    """Returns the settings of the adapters and their base, which must not change when a run resumes."""
    names = ["use_peft"]
    if arguments.use_peft:
        names += [
            "lora_r",
            "lora_alpha",
            "lora_dropout",
            "lora_target_modules",
            "use_rslora",
            "use_dora",
            "load_in_4bit",
        ]
    record = {name: getattr(arguments, name) for name in names}
    # A checkpoint without adapters holds all weights, so nothing depends on what they were at first.
    return {**record, "base": text_fingerprint(json.dumps(base_sample))} if arguments.use_peft else record


def check_target_modules(names: Sequence[str] | None, config: PreTrainedConfig) -> None:
    """Raises `ConfigError` if one of `lora_target_modules` names no layer of a model; PEFT leaves out such a name if others fit."""
    if names is None:
        return
    # Names without weights. The seed of the training is set by now.
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    layers = [name for name, module in model.named_modules() if isinstance(module, _ADAPTED)]
    for wanted in names:
        if not any(f".{name}".endswith(f".{wanted}") for name in layers):
            there = ", ".join(sorted({name.rpartition(".")[2] for name in layers}))
            raise ConfigError(
                f"--lora_target_modules {wanted} names no layer of the model: choose from {there}, or leave it out for all linear layers."
            )


def lora_config(
    arguments: ChatModelArguments,
    model: PreTrainedModel,
    *,
    task_type: str = "CAUSAL_LM",
    heads: Sequence[str] = (),
    added: Sequence[int] = (),
) -> Any:
    """PEFT's `LoraConfig`, or None without `--use_peft`.

    Args:
        task_type: PEFT's name for the model's task.
        heads: New modules of the task, which are trained in full.
        added: Token ids that are new to the model; their embeddings are trained along with the adapters.
    """
    if not arguments.use_peft:
        return None
    with needed_by("--use_peft"):
        from peft import LoraConfig

    table = model.get_input_embeddings()
    name = next(name for name, module in model.named_modules() if module is table).rpartition(".")[2]
    return LoraConfig(
        task_type=task_type,
        r=arguments.lora_r,
        lora_alpha=arguments.lora_alpha,
        lora_dropout=arguments.lora_dropout,
        target_modules=arguments.lora_target_modules or "all-linear",
        exclude_modules=list(heads) or None,
        modules_to_save=list(heads) or None,
        use_rslora=arguments.use_rslora,
        use_dora=arguments.use_dora,
        trainable_token_indices={name: list(added)} if added else None,
    )
