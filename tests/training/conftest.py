"""Fixtures of the trainings."""

import pytest


@pytest.fixture
def without_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the reports, whose pictures take longer than such a training."""
    from chatgpt_hf.training.distill import DistillRun
    from chatgpt_hf.training.dpo import DPORun
    from chatgpt_hf.training.grpo import GRPORun
    from chatgpt_hf.training.reward import RewardRun

    for kind in (DistillRun, DPORun, GRPORun, RewardRun):
        monkeypatch.setattr(kind, "report", lambda *arguments: None)
