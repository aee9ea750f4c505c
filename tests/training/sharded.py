"""One process of a group that trains tiny models in turn, whole or sharded, over gloo; test_sharding.py starts it.

The test passes the name `job`: the `environment` of this process, a `log`, and the `trainings`, each with `arguments` of a
`PretrainArguments`, the `folder` to write into and, if it resumes, the `checkpoint`. The first process writes each training's
losses and whole weights.
"""

import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from datasets import Dataset
from safetensors.torch import save_file
from transformers import default_data_collator, set_seed

from chatgpt_hf import ChatGPTConfig, ChatGPTForCausalLM
from chatgpt_hf.training.arguments import PretrainArguments
from chatgpt_hf.training.resuming import ContinuedSchedule
from chatgpt_hf.training.run import save_model_folder
from chatgpt_hf.training.trainer import PretrainTrainer

job: dict[str, Any] = globals()["job"]


class NoTokenizer:
    def save_pretrained(self, folder: Path) -> None:
        """There is none."""


def rows() -> Dataset:
    ids = torch.randint(64, (256, 16), generator=torch.Generator().manual_seed(1)).tolist()
    return Dataset.from_dict({"input_ids": ids, "labels": ids})


def train(folder: str, arguments: dict[str, Any], checkpoint: str | None = None, tied: bool = False) -> None:
    for state in (AcceleratorState, GradientState, PartialState):
        state._shared_state.clear()
    # accelerate sets it for the whole process.
    os.environ.pop("ACCELERATE_USE_FSDP", None)
    set_seed(0)
    # Widths that the processes cannot share evenly.
    sizes = {"hidden_size": 36, "intermediate_size": 70, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = ChatGPTConfig(vocab_size=64, max_position_embeddings=16, tie_word_embeddings=tied, **sizes)
    common = {"use_cpu": True, "logging_steps": 1, "max_steps": 20, "disable_tqdm": True, "save_steps": 10}
    if "WORLD_SIZE" in os.environ:
        common["ddp_backend"] = "gloo"
    chosen = PretrainArguments(output_dir=folder, **{**common, **arguments})
    model = ChatGPTForCausalLM(config)
    trainer = PretrainTrainer(
        model=model,
        args=chosen,
        train_dataset=rows(),
        data_collator=default_data_collator,
        optimizer_cls_and_kwargs=chosen.optimizer_cls_and_kwargs,
    )
    if checkpoint:
        trainer.add_callback(ContinuedSchedule(trainer, Path(checkpoint)))
    trainer.train(resume_from_checkpoint=checkpoint)
    whole = trainer.whole_model()
    assert trainer.whole_counterpart(model) is whole
    if trainer.is_world_process_zero():
        save_model_folder(whole, NoTokenizer(), Path(folder))  # type: ignore[arg-type]
        save_file({name: value.clone() for name, value in whole.named_parameters()}, f"{folder}/named.safetensors")
        losses = {entry["step"]: entry["loss"] for entry in trainer.state.log_history if "loss" in entry}
        facts = {"sharded": trainer.is_fsdp_enabled, "losses": losses, "type": type(trainer.model).__name__}
        Path(folder, "facts.json").write_text(json.dumps(facts))
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


os.fsync = lambda descriptor: None
gc.freeze()
sys.stdout = sys.stderr = open(job["log"], "a", buffering=1)  # noqa: SIM115
os.environ |= job["environment"]
torch.set_num_threads(1)
try:
    for training in job["trainings"]:
        train(**training)
except BaseException:
    import traceback

    traceback.print_exc()
    raise
