"""Steps by `torch.compile`, in a cache of fixed size, as transformers' `generate` does them."""

import torch
from transformers import CompileConfig, PreTrainedModel, StaticCache

from .cache import PrefixCache


def missing_compiler(device: torch.device) -> str | None:
    """What `torch.compile` lacks to compile for a device; None where it has all."""
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
    """For `generate(past_key_values=StaticCache(...), compile_config=compile_config())`, on a CPU too.

    transformers itself compiles for accelerators alone. Code for one batch size is faster than for any: who answers batches of
    several sizes sets its `dynamic` to False, and each gets its own (windows of attention need None, PyTorch's default).
    """
    config = CompileConfig()
    config._compile_all_devices = True
    return config


class StaticPrefix(PrefixCache):
    """The interface of `PrefixCache` around a cache of one size, so that one compiled step does for all positions.

    Only the memory is used again: a cache of fixed size cannot go back.

    Args:
        model: Any causal language model that can be compiled whole.
        length: Positions of the longest text.
    """

    def __init__(self, model: PreTrainedModel, length: int) -> None:
        super().__init__(model)
        self._static = StaticCache(model.config, max_cache_len=length)

    def take(self, prompt: list[int]) -> StaticCache:
        """The cache, empty."""
        self._static.reset()
        return self._static

    def keep(self, cache: StaticCache, ids: list[int]) -> None:
        """Counts what it has seen."""
        self.processed_tokens += len(ids) - 1
