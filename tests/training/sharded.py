"""One process of a group that trains tiny models in turn, whole or sharded, over gloo; test_sharding.py starts it.

The test passes the name `job`: the `environment` of this process, a `log`, and the `trainings`, each with `arguments` of a
`PretrainArguments`, the `folder` to write into and, if it resumes, the `checkpoint`. The first process writes each training's
losses and whole weights. With `owners`, a file, it also writes there how far Muon on owners is from Muon on whole matrices.
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
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from transformers import default_data_collator, set_seed

from chatgpt_hf import ChatGPTConfig, ChatGPTForCausalLM
from chatgpt_hf.training import muon_owners
from chatgpt_hf.training.arguments import PretrainArguments
from chatgpt_hf.training.optim import MuonAdamW
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
    common = {"use_cpu": True, "logging_steps": 1, "max_steps": 6, "disable_tqdm": True, "save_steps": 3}
    if "WORLD_SIZE" in os.environ:
        common["ddp_backend"] = "gloo"
    chosen = PretrainArguments(output_dir=folder, **{**common, **arguments})
    model = ChatGPTForCausalLM(config)
    trainer = PretrainTrainer(
        model=model,
        args=chosen,
        train_dataset=rows(),
        eval_dataset=rows().select(range(8)),
        data_collator=default_data_collator,
        optimizer_cls_and_kwargs=chosen.optimizer_cls_and_kwargs,
    )
    if checkpoint:
        trainer.add_callback(ContinuedSchedule(trainer, Path(checkpoint)))
    head_loss_calls = 0
    chunked = model._head_loss

    def counted(*given: Any, **named: Any) -> Any:
        nonlocal head_loss_calls
        head_loss_calls += 1
        return chunked(*given, **named)

    model._head_loss = counted  # type: ignore[method-assign]
    trainer.train(resume_from_checkpoint=checkpoint)
    whole = trainer.whole_model()
    assert trainer.whole_counterpart(model) is whole
    if trainer.is_world_process_zero():
        save_model_folder(whole, NoTokenizer(), Path(folder))  # type: ignore[arg-type]
        save_file({name: value.clone() for name, value in whole.named_parameters()}, f"{folder}/named.safetensors")
        losses = {entry["step"]: entry["loss"] for entry in trainer.state.log_history if "loss" in entry}
        facts = {"sharded": trainer.is_fsdp_enabled, "losses": losses, "head": head_loss_calls}
        Path(folder, "facts.json").write_text(json.dumps(facts))
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


SHAPES = [(5, 7)] * 3 + [(9, 4)] * 5 + [(2, 40)] * 2


def stepped(place: Any, group: Any = None) -> list[torch.Tensor]:
    """Three steps of Muon and AdamW, from the same weights with the same gradients, on tensors that `place` distributes."""
    draw = torch.Generator().manual_seed(0)
    weights = [torch.nn.Parameter(place(torch.randn(shape, generator=draw))) for shape in SHAPES]
    # AdamW gets a mix of plain and distributed tensors.
    others = [torch.nn.Parameter(place(torch.ones(9, 2))), torch.nn.Parameter(torch.ones(3))]
    optimizer = MuonAdamW([{"params": weights, "muon": True}, {"params": others}], lr=0.1, weight_decay=0.1)
    optimizer.process_group = group
    for _ in range(3):
        for parameter in weights:
            parameter.grad = place(torch.randn(parameter.shape, generator=draw))
        for parameter in others:
            parameter.grad = torch.full_like(parameter, 0.5)
        optimizer.step()
    return [value.full_tensor() if isinstance(value, DTensor) else value for value in (*weights, *others)]


def compare_owners(file: str) -> None:
    """Writes the largest difference of each layout on four processes to one process."""
    line, square = init_device_mesh("cpu", (4,)), init_device_mesh("cpu", (2, 2))
    expected = stepped(torch.Tensor.clone)
    # Small enough that the matrices of a shape take several rounds.
    muon_owners.STACK_ELEMENTS = 40
    layouts: dict[str, Any] = {
        "one process": (torch.Tensor.clone, None),
        "ddp": (torch.Tensor.clone, torch.distributed.group.WORLD),
        "fsdp2": (lambda whole: distribute_tensor(whole, line, [Shard(0)]), None),
        "hsdp": (lambda whole: distribute_tensor(whole, square, [Replicate(), Shard(0)]), None),
        "columns": (lambda whole: distribute_tensor(whole, line, [Shard(1)]), None),
    }
    found = {}
    for name, (place, group) in layouts.items():
        pairs = zip(stepped(place, group), expected, strict=True)
        found[name] = max((one - other).abs().max().item() for one, other in pairs)
    if torch.distributed.get_rank() == 0:
        Path(file).write_text(json.dumps(found))


os.fsync = lambda descriptor: None
gc.freeze()
sys.stdout = sys.stderr = open(job["log"], "a", buffering=1)  # noqa: SIM115
os.environ |= job["environment"]
torch.set_num_threads(1)
try:
    for training in job["trainings"]:
        train(**training)
    if "owners" in job:
        compare_owners(job["owners"])
except BaseException:
    import traceback

    traceback.print_exc()
    raise
