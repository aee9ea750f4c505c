"""Exports graphs for other runtimes by transformers' exporters, and runs them to check the results."""

import io
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim, ExportedProgram
from transformers import DynamicCache, GenerationConfig
from transformers.exporters import (
    DynamoConfig,
    ExecutorchConfig,
    ExportConfigMixin,
    ExportedModel,
    OnnxConfig,
    OpenVINOConfig,
)
from transformers.exporters.auto import AutoHfExporter
from transformers.exporters.base import EXPORT_MANIFEST_FILE
from transformers.integrations.executorch import TorchExportableModuleWithStaticCache

from ..conversion.families.family import refuse_other
from ..errors import ConversionError
from ..extras import require
from ..model.configuration_chatgpt import ChatGPTConfig
from ..model.modeling_chatgpt import ChatGPTForCausalLM

# Each format's packages, including its own runtime.
_PACKAGES: dict[str, tuple[str, ...]] = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("openvino",),
    "executorch": ("executorch",),
    "torch-export": (),
}
GRAPH_FORMATS = tuple(_PACKAGES)
# Features that need more memory of the past than a cache of keys and values.
_FIXED: dict[str, Any] = {"ngram_vocab_sizes": None, "conv_kernel_size": None}
# Rotary types whose frequencies depend on the length; Python code chooses them, but a graph has one fixed choice.
_CHANGING_ROPE = ("dynamic", "longrope")
# The check feeds this many last tokens one at a time, the others at once.
_STEPS = 8


def check_graph(config: ChatGPTConfig, export_format: str) -> None:
    """Raises `ConversionError` with the field that a graph cannot express, or `MissingDependency`."""
    refuse_other(export_format, config, _FIXED)
    if (config.rope_parameters or {}).get("rope_type") in _CHANGING_ROPE:
        raise ConversionError(
            f"{export_format} cannot express `rope_parameters={config.rope_parameters!r}`: a graph has the same frequencies "
            "for every length."
        )
    require(f"--format {export_format}", *_PACKAGES[export_format])


def export_graph(model: ChatGPTForCausalLM, export_format: str, max_cache_len: int | None = None) -> ExportedModel:
    """Exports the model and its cache as a graph, in float32.

    Graphs for ONNX Runtime, OpenVINO and torch take `input_ids` and `position_ids` (batch, seq), `attention_mask`
    (batch, past + seq) and a cache whose keys and values (batch, heads, past, head_dim) may be empty; they return logits
    (batch, seq, vocab) and the longer cache. ExecuTorch's graph has its cache inside: it takes `input_ids` (1, seq) and
    `cache_position` (seq,) and returns logits (1, seq, vocab), as its own runner of language models expects.

    Args:
        model: A model in float32 that passed `check_graph`; `requires_grad` is turned off for its parameters.
        export_format: One of `GRAPH_FORMATS`.
        max_cache_len: Positions in the cache of ExecuTorch's graph; at most, and by default, `max_position_embeddings`.
    """
    model.requires_grad_(False)
    if export_format == "executorch":
        config, module, inputs = _static(model, max_cache_len or model.config.max_position_embeddings)
    else:
        config, module, inputs = _dynamic(model, export_format)
    with _quiet(), torch.no_grad():
        exported = AutoHfExporter.from_config(config).export(module, inputs, config)
    if isinstance(exported.program, ExportedProgram):
        # The example inputs contain a transformers cache, which torch would unpickle whenever the file is read.
        exported.program.example_inputs = None
    exported.config, exported.generation_config = model.config, model.generation_config
    return exported


def load_graph(folder: Path, **runner_options: Any) -> ExportedModel:
    """Loads a saved graph for its own runtime on the CPU in float32.

    Args:
        folder: A folder that `ExportedModel.save_pretrained` wrote.
        **runner_options: The runtime's options, see `ExportedModel.from_pretrained`; `trust_remote_code` is one.
    """
    with _quiet():
        if json.loads((folder / EXPORT_MANIFEST_FILE).read_text(encoding="utf-8"))["export_format"] == "openvino":
            # On CPUs with bfloat16 units, OpenVINO uses bfloat16 by default.
            runner_options["config"] = {"INFERENCE_PRECISION_HINT": "f32", **runner_options.get("config", {})}
        return ExportedModel.from_pretrained(folder, device="cpu", **runner_options)


class GraphSession:
    """Runs one row of ids through a graph, piece by piece, with its cache.

    Args:
        exported: A graph of any format.
        config: The source model's config.
    """

    def __init__(self, exported: ExportedModel, config: ChatGPTConfig) -> None:
        self.exported = exported
        self.seen = 0
        self._cache = empty_cache(config, 1)

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        """Returns logits (1, seq, vocab) of the next ids (1, seq)."""
        positions = torch.arange(self.seen, self.seen + ids.shape[1])
        self.seen += ids.shape[1]
        if self.exported.export_format == "executorch":
            return self.exported(input_ids=ids, cache_position=positions)
        outputs = self.exported(
            input_ids=ids,
            attention_mask=torch.ones(1, self.seen, dtype=torch.int64),
            position_ids=positions[None],
            past_key_values=self._cache,
        )
        self._cache = outputs.past_key_values
        return outputs.logits


def graph_logits(exported: ExportedModel, config: ChatGPTConfig, ids: torch.Tensor) -> torch.Tensor:
    """Returns a graph's logits (1, seq, vocab) of ids (1, seq); it gets the last ids one at a time, with its cache."""
    start = max(1, ids.shape[1] - _STEPS)
    session = GraphSession(exported, config)
    return torch.cat([session(piece) for piece in (ids[:, :start], *ids[:, start:].split(1, dim=1))], dim=1)


def empty_cache(config: ChatGPTConfig, batch_size: int) -> DynamicCache:
    """Returns the initial cache for a graph with a dynamic cache: keys and values of no positions."""
    assert config.num_key_value_heads is not None
    assert config.head_dim is not None
    nothing = torch.zeros(batch_size, config.num_key_value_heads, 0, config.head_dim)
    cache = DynamicCache()
    # Not by the constructor: torch.export rejects a cache that is built differently from its example.
    for layer in range(config.num_hidden_layers):
        cache.update(nothing, nothing, layer)
    return cache


def _dynamic(
    model: ChatGPTForCausalLM, export_format: str
) -> tuple[ExportConfigMixin, torch.nn.Module, dict[str, Any]]:
    """Returns exporter config, module and example inputs for a graph with free batch size and lengths."""
    # All layers cache the full length, and the mask hides positions outside a window. A sliding cache would take another
    # branch once it is full, but a graph has only one.
    cache = DynamicCache()
    ids = torch.zeros(2, 7, dtype=torch.int64)
    with torch.no_grad():
        model(ids[:, :4], past_key_values=cache)
    inputs = {
        "input_ids": ids[:, 4:],
        "attention_mask": torch.ones_like(ids),
        "position_ids": torch.arange(4, 7).expand(2, -1),
        "past_key_values": cache,
    }
    if export_format == "openvino":
        # A stateful graph could not return its cache to transformers' runner.
        return OpenVINOConfig(dynamic=True, stateful=False), model, inputs
    return (OnnxConfig if export_format == "onnx" else DynamoConfig)(dynamic=True), model, inputs


def _static(model: ChatGPTForCausalLM, length: int) -> tuple[ExportConfigMixin, torch.nn.Module, dict[str, Any]]:
    """Returns the same for a graph of one row with an internal cache of fixed size."""
    generation_config = model.generation_config
    model.generation_config = GenerationConfig(use_cache=True, cache_implementation="static")
    module = TorchExportableModuleWithStaticCache(model, batch_size=1, max_cache_len=length, device=model.device)
    model.generation_config = generation_config
    tokens = Dim("tokens", min=1, max=length - 1)
    inputs = {"input_ids": torch.zeros(1, 3, dtype=torch.int64), "cache_position": torch.arange(3)}
    # Without strict mode, torch treats the cache's tensors as constants, although they are the module's buffers.
    shapes = {"input_ids": {1: tokens}, "cache_position": {0: tokens}}
    return ExecutorchConfig(dynamic_shapes=shapes, strict=True), module, inputs


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences exporter output; the exported graph is verified by running it."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(previous)
