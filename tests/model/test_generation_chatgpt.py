"""Decoding on every path that `generate` has, with every variant of the model; `make conformance` runs the same checks on
transformers' own models. Greedy, static caches, padding, embeddings and compiling are tested beside the model's other parts.
"""

import sys
import unittest
from pathlib import Path

import pytest
import torch

from chatgpt_hf import ChatGPTForCausalLM

sys.path.insert(0, str(Path(__file__).parents[2] / "conformance"))
from generation import CHECKS, ready
from variants import VARIANTS, make_config

ELSEWHERE = {
    "greedy_is_the_reference",
    "a_static_cache_changes_nothing",
    "left_padding_changes_nothing",
    "embeddings_in_place_of_ids",
    "decoding_compiles_to_one_graph",
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("check", sorted(CHECKS.keys() - ELSEWHERE))
def test_decoding(check: str, variant: str) -> None:
    torch.manual_seed(3)
    model = ready(ChatGPTForCausalLM(make_config(variant, initializer_range=0.3)))
    try:
        CHECKS[check](model)
    except unittest.SkipTest as reason:
        pytest.skip(str(reason))
