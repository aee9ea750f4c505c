"""Replaces upstream's file of this name, which the source distribution leaves out: runs our checks of generation."""

import torch
from generation import CHECKS, ready


class GenerationTesterMixin:
    """One test for each check, on a small model with weights large enough for different tokens."""

    def generating_model(self):
        torch.manual_seed(3)
        config = self.model_tester.get_config()
        config.initializer_range = 0.3
        return ready(self.model_tester.causal_lm_class(config))


def _test_of(check):
    def test(self):
        check(self.generating_model())

    return test


for _name, _check in CHECKS.items():
    setattr(GenerationTesterMixin, f"test_generation_{_name}", _test_of(_check))
