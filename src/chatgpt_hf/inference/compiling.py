"""Compiled generation steps (`torch.compile`) with a cache of fixed size, through transformers' `generate`."""

import torch
from transformers import CompileConfig, PreTrainedModel, StaticCache

from .cache import PrefixCache


def missing_compiler(device: torch.device) -> str | None:
    """Names the compiler that `torch.compile` needs for a device and that is missing; None if nothing is missing."""
    if device.type == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except InvalidCxxCompiler:
            return "a C++ compiler (g++ or clang++)"
        return None
    from torch.utils._triton import has_triton

    return None if has_triton() else "Triton"


def compile_config() -> CompileConfig:
    """A config for `generate(past_key_values=StaticCache(...), compile_config=compile_config())`, also on a CPU.

    By default, transformers compiles only for accelerators. Code for one batch size is faster than code for any size:
    for batches of several sizes, set `dynamic` to False, and each size gets its own code (attention windows need None,
    PyTorch's default).
    """
    config = CompileConfig()
    config._compile_all_devices = True
    return config


class StaticPrefix(PrefixCache):
    """Has the interface of `PrefixCache`, but a cache of fixed size, so that one compiled step serves all positions.

    Reuses only the memory: a cache of fixed size cannot be cropped.

    Args:
        model: Any causal language model that compiles without graph breaks.
        length: Positions of the longest text.
    """

    def __init__(self, model: PreTrainedModel, length: int) -> None:
        super().__init__(model)
        self._static = StaticCache(model.config, max_cache_len=length)

    def take(self, prompt: list[int]) -> StaticCache:
        """Returns the cache, emptied."""
        self._static.reset()
        return self._static

    def keep(self, cache: StaticCache, ids: list[int]) -> None:
        """Counts the computed tokens."""
        self.processed_tokens += len(ids) - 1
