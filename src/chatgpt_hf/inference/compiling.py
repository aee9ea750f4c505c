"""Compiled generation steps (`torch.compile`) with a cache of fixed size, through transformers' `generate`."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from transformers import CompileConfig, GenerationConfig, PreTrainedModel, StaticCache
from transformers.cache_utils import StaticLayer

from ..checkpoints import context_length
from ..errors import ConfigError
from ..model.modeling_chatgpt import CACHE_NAME
from .cache import PrefixCache, keeps_keys_and_values, shared_length

# Positions of a cache, unless a text needs more or the context is shorter. Unused positions cost no memory and hardly any time:
# the system gives pages when they are written, and attention reads what is filled.
_POSITIONS = 8192


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


class CompiledPrefix(PrefixCache):
    """A `PrefixCache` with compiled steps, for a process that answers many times: all answers share one compilation.

    What a prompt shares with the last text is not computed again, unless the model has layers whose cache
    forgets (sliding windows).

    Args:
        model: A causal language model that compiles without graph breaks.

    Raises:
        ConfigError: If the model keeps no keys and values, so that it has no cache of fixed size.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        if not keeps_keys_and_values(model):
            raise ConfigError(
                f"--compile needs a model that caches keys and values, which {type(model).__name__} does not: leave it out."
            )
        super().__init__(model)
        self._static: StaticCache | None = None
        self._size = min(_POSITIONS, context_length(model))

    def warm_up(self) -> None:
        """Compiles the step, so that the first answer need not wait for it."""
        config = GenerationConfig(max_new_tokens=3, min_new_tokens=3, do_sample=False)
        self.generate(torch.zeros((1, 2), dtype=torch.long, device=self._model.device), generation_config=config)
        self.processed_tokens = 0

    def generate(self, input_ids: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """`model.generate` for one row.

        Args:
            input_ids: (1, seq).
            **kwargs: Passed to `generate`; `generation_config` must be among them and have `max_new_tokens`.

        Returns:
            (1, seq + new), as from `generate`.
        """
        config = copy.deepcopy(kwargs.pop("generation_config"))
        config.compile_config = compile_config()
        longest = input_ids.shape[1] + config.max_new_tokens
        cache = self._take_static(input_ids[0].tolist(), longest)
        sequence = self._model.generate(input_ids, generation_config=config, **{CACHE_NAME: cache}, **kwargs)
        self._static, self._ids = cache, sequence[0, : int(cache.get_seq_length())].tolist()
        self.processed_tokens += len(self._ids)
        return sequence

    def _take_static(self, prompt: list[int], longest: int) -> StaticCache:
        """A cache for `longest` positions with the known beginning of the prompt, at most all but its last token."""
        cache, ids, self._static, self._ids = self._static, self._ids, None, []
        if cache is None or longest > self._size:
            while self._size < longest:
                self._size *= 2
            self._size = min(self._size, context_length(self._model))
            return StaticCache(self._model.config, max_cache_len=self._size)
        if any(type(layer) is not StaticLayer for layer in cache.layers):
            cache.reset()
            return cache
        common = shared_length(ids, prompt)
        for layer in cache.layers:
            # Positions behind these hold an earlier text, which the causal mask hides until they are overwritten.
            layer.cumulative_length.fill_(common)
        self.processed_tokens -= common
        return cache


def compiled_prefix(model: PreTrainedModel, report: Callable[[str], object]) -> CompiledPrefix | None:
    """Compiles a model's step and returns the cache to generate with; without a compiler, says so and returns None.

    Args:
        model: See `CompiledPrefix`.
        report: Called with a sentence before the step is compiled, or if it cannot be.

    Raises:
        ConfigError: If the model has no cache of fixed size.
    """
    if missing := missing_compiler(model.device):
        report(f"Not compiled, because {missing} is missing: the text is the same.")
        return None
    prefix = CompiledPrefix(model)
    report("Compiling the model's step: 10 to 60 seconds, less when repeated.")
    prefix.warm_up()
    return prefix
