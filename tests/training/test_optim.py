"""Muon and AdamW as one optimizer, against torch's own of each kind."""

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from torch import nn
from transformers import Trainer, TrainingArguments, default_data_collator

from chatgpt_hf import ChatGPTConfig, ChatGPTForCausalLM
from chatgpt_hf.training.optim import MuonAdamW, MuonFactory, orthogonalize


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 8, 32), (2, 32, 8)])
def test_orthogonalize_brings_every_singular_value_near_one(shape: tuple[int, ...]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalize(matrices, steps=8))
    assert values.min() > 0.6
    assert values.max() < 1.3


def test_a_batch_gives_what_each_matrix_gives_alone() -> None:
    matrices = torch.randn(4, 8, 24, generator=torch.Generator().manual_seed(0))
    alone = torch.cat([orthogonalize(matrix[None]) for matrix in matrices])
    torch.testing.assert_close(orthogonalize(matrices), alone, atol=1e-6, rtol=1e-5)


def twins(*shapes: tuple[int, ...]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    generator = torch.Generator().manual_seed(1)
    values = [torch.randn(shape, generator=generator) for shape in shapes]
    return [nn.Parameter(value.clone()) for value in values], [nn.Parameter(value.clone()) for value in values]


def descend(first: torch.optim.Optimizer, second: torch.optim.Optimizer, pairs: tuple, steps: int = 5) -> None:
    generator = torch.Generator().manual_seed(2)
    for _ in range(steps):
        for a, b in zip(*pairs, strict=True):
            a.grad = torch.randn(a.shape, generator=generator)
            b.grad = a.grad.clone()
        first.step()
        second.step()


def test_the_adamw_half_is_adamw() -> None:
    ours, theirs = twins((8, 4), (16,))
    settings = {"lr": 0.01, "betas": (0.9, 0.95), "weight_decay": 0.1}
    descend(MuonAdamW(ours, **settings), torch.optim.AdamW(theirs, **settings), (ours, theirs))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)


def test_the_muon_half_is_torch_muon_up_to_its_bfloat16() -> None:
    ours, theirs = twins((8, 8), (8, 8), (4, 16))
    settings = {"lr": 0.01, "weight_decay": 0.1}
    muon = MuonAdamW([{"params": ours, "muon": True}], momentum=0.95, **settings)
    reference = torch.optim.Muon(theirs, momentum=0.95, nesterov=True, adjust_lr_fn="match_rms_adamw", **settings)
    start = [parameter.detach().clone() for parameter in ours]
    descend(muon, reference, (ours, theirs))
    for a, b, before in zip(ours, theirs, start, strict=True):
        # torch rounds the iteration to bfloat16, which is worth a few percent of each step.
        assert (a - b).norm() < 0.06 * (a - before).norm()


def test_muon_refuses_vectors() -> None:
    with pytest.raises(ValueError, match="matrices"):
        MuonAdamW([{"params": [nn.Parameter(torch.zeros(3))], "muon": True}])


def tiny_model(**changes: object) -> ChatGPTForCausalLM:
    torch.manual_seed(0)
    shape = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return ChatGPTForCausalLM(ChatGPTConfig(**{**shape, **changes}))


@pytest.mark.parametrize("tied", [True, False])
def test_the_factory_gives_muon_the_hidden_matrices_alone(tied: bool) -> None:
    model = tiny_model(tie_word_embeddings=tied)
    optimizer = MuonFactory()(model, lr=0.1, weight_decay=0.3)
    by_rule = {group["muon"]: {id(p) for p in group["params"]} for group in optimizer.param_groups}
    for name, parameter in model.named_parameters():
        hidden = parameter.ndim == 2 and name.startswith("model.layers.")
        assert (id(parameter) in by_rule[True]) == hidden, name
        assert (id(parameter) in by_rule[False]) != hidden, name
    assert {group["muon"]: group["weight_decay"] for group in optimizer.param_groups} == {True: 0.3, False: 0.0}


def trainer(folder: Path, max_steps: int) -> Trainer:
    ids = [[(start + step) % 32 for step in range(12)] for start in range(64)]
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=max_steps,
        per_device_train_batch_size=4,
        save_steps=4,
        logging_steps=1,
        use_cpu=True,
        report_to="none",
        lr_scheduler_type="constant",
        disable_tqdm=True,
        seed=0,
    )
    return Trainer(
        tiny_model(),
        arguments,
        train_dataset=Dataset.from_dict({"input_ids": ids, "labels": ids}),
        data_collator=default_data_collator,
        optimizer_cls_and_kwargs=(MuonFactory, {"lr": 0.02}),
    )


def test_stock_trainer_trains_saves_and_resumes_exactly(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole", 8)
    whole.train()
    losses = [entry["loss"] for entry in whole.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    trainer(tmp_path / "cut", 4).train()
    resumed = trainer(tmp_path / "cut", 8)
    resumed.train(resume_from_checkpoint=True)
    for (name, a), b in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b), name
