"""Rows of similar length are computed together: the same log-probabilities and gradients with less padding."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from trl import GRPOTrainer, RLOOTrainer

from chatgpt_hf import load_model, load_tokenizer
from chatgpt_hf.training.grpo_arguments import GRPOArguments
from chatgpt_hf.training.rollouts import GroupTrainer, LeaveOneOutTrainer


@pytest.mark.parametrize(("ours", "trl"), [(GroupTrainer, GRPOTrainer), (LeaveOneOutTrainer, RLOOTrainer)])
def test_padding_is_left_out(ours: Any, trl: Any, base_folder: Path, tmp_path: Path, gate: Any) -> None:
    trainer = ours(
        model=load_model(base_folder),
        reward_funcs=[lambda completions, **columns: [0.0] * len(completions)],
        args=GRPOArguments(output_dir=str(tmp_path), num_generations=2, use_cpu=True, loss_type="grpo"),
        train_dataset=Dataset.from_dict({"prompt": [[{"role": "user", "content": "Hi"}]] * 8}),
        processing_class=load_tokenizer(base_folder),
    )
    ids = torch.randint(9, 290, (16, 6 + 30), generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([30, 3, 5, 1, 4, 8, 2, 9, 30, 6, 7, 12, 11, 3, 0, 2])
    answers = torch.arange(30) < lengths[:, None]
    mask = torch.cat((torch.ones(16, 6, dtype=torch.bool), answers), 1).long()
    # Prompts of other lengths.
    mask[::3, :2] = 0
    found = []
    for kind in (ours, trl):
        watched = gate(trainer.model)
        log_probs, entropies, _ = kind._get_per_token_logps_and_entropies(
            trainer, trainer.model, ids, mask, 30, compute_entropy=True
        )
        (log_probs * answers * torch.arange(16)[:, None]).sum().backward()
        gradients = torch.cat([parameter.grad.flatten() for parameter in trainer.model.parameters()])
        trainer.model.zero_grad()
        found.append((log_probs[answers], entropies[answers], gradients, watched.tokens))
    for own, expected in zip(found[0][:3], found[1][:3], strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-4)
    # In parts of four rows, of which the longest have 2, 5, 9 and 30 tokens.
    assert found[0][3] == 4 * (4 * 6 + 2 + 5 + 9 + 30)
    assert found[1][3] == 16 * 36
