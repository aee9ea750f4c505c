"""Graphs for other runtimes, made by transformers' exporters, and run here to see that they compute the same."""

import importlib.util
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
from ..model.configuration_chatgpt import ChatGPTConfig
from ..model.modeling_chatgpt import ChatGPTForCausalLM

# Each format's packages, its own runtime among them.
_PACKAGES: dict[str, tuple[str, ...]] = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("openvino",),
    "executorch": ("executorch",),
    "torch-export": (),
}
GRAPH_FORMATS = tuple(_PACKAGES)
# Memories that a cache of keys and values has no place for.
_FIXED: dict[str, Any] = {"ngram_vocab_sizes": None, "conv_kernel_size": None}
# Frequencies that follow the length of the text are Python's choice, and a graph has made it once.
_CHANGING_ROPE = ("dynamic", "longrope")
# The last tokens of a check go in one at a time, the others at once.
_STEPS = 8


def check_graph(config: ChatGPTConfig, export_format: str) -> None:
    """Raises `ConversionError`, naming the field that a graph cannot express, or the package that is missing."""
    refuse_other(export_format, config, _FIXED)
    if (config.rope_parameters or {}).get("rope_type") in _CHANGING_ROPE:
        raise ConversionError(
            f"{export_format} cannot express `rope_parameters={config.rope_parameters!r}`: a graph has the same frequencies "
            "for every length."
        )
    missing = [name for name in _PACKAGES[export_format] if importlib.util.find_spec(name) is None]
    if missing:
        raise ConversionError(
            f"--format {export_format} needs {' and '.join(missing)}: pip install 'chatgpt-hf[export]'"
        )


def export_graph(model: ChatGPTForCausalLM, export_format: str, max_cache_len: int | None = None) -> ExportedModel:
    """The model and its cache as a graph, in float32.

    Graphs for ONNX Runtime, OpenVINO and torch take `input_ids` and `position_ids` (batch, seq), `attention_mask`
    (batch, past + seq) and a cache whose keys and values (batch, heads, past, head_dim) may be empty, and give logits
    (batch, seq, vocab) and the longer cache. ExecuTorch's keeps a cache inside: it takes `input_ids` (1, seq) and
    `cache_position` (seq,) and gives logits (1, seq, vocab), as its own runner of language models wants it.

    Args:
        model: In float32, and passed by `check_graph`; its parameters are taken out of training.
        export_format: One of `GRAPH_FORMATS`.
        max_cache_len: Places in the cache of ExecuTorch's graph, at most and by default `max_position_embeddings`.
    """
    model.requires_grad_(False)
    if export_format == "executorch":
        config, module, inputs = _static(model, max_cache_len or model.config.max_position_embeddings)
    else:
        config, module, inputs = _dynamic(model, export_format)
    with _quiet(), torch.no_grad():
        exported = AutoHfExporter.from_config(config).export(module, inputs, config)
    if isinstance(exported.program, ExportedProgram):
        # They hold a cache, an object of transformers', and torch would unpickle it whenever the file is read.
        exported.program.example_inputs = None
    exported.config, exported.generation_config = model.config, model.generation_config
    return exported


def load_graph(folder: Path, **runner_options: Any) -> ExportedModel:
    """A saved graph, to be run by its own runtime on the CPU in float32.

    Args:
        folder: As `ExportedModel.save_pretrained` leaves it.
        **runner_options: Of the runtime, as `ExportedModel.from_pretrained` takes them.
    """
    with _quiet():
        if json.loads((folder / EXPORT_MANIFEST_FILE).read_text(encoding="utf-8"))["export_format"] == "openvino":
            # On CPUs with units for it, OpenVINO computes in bfloat16 unless it is told not to.
            runner_options["config"] = {"INFERENCE_PRECISION_HINT": "f32", **runner_options.get("config", {})}
        return ExportedModel.from_pretrained(folder, device="cpu", **runner_options)


class GraphSession:
    """One row of ids through a graph, piece by piece, with its cache.

    Args:
        exported: Of any format.
        config: Of the model that it was made of.
    """

    def __init__(self, exported: ExportedModel, config: ChatGPTConfig) -> None:
        self.exported = exported
        self.seen = 0
        self._cache = empty_cache(config, 1)

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        """Logits (1, seq, vocab) of the ids (1, seq) that come next."""
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
    """A graph's logits (1, seq, vocab) of ids (1, seq), the last of which it gets one at a time, by its cache."""
    start = max(1, ids.shape[1] - _STEPS)
    session = GraphSession(exported, config)
    return torch.cat([session(piece) for piece in (ids[:, :start], *ids[:, start:].split(1, dim=1))], dim=1)


def empty_cache(config: ChatGPTConfig, batch_size: int) -> DynamicCache:
    """What a graph with a dynamic cache gets at the beginning: keys and values of no positions."""
    assert config.num_key_value_heads is not None
    assert config.head_dim is not None
    nothing = torch.zeros(batch_size, config.num_key_value_heads, 0, config.head_dim)
    cache = DynamicCache()
    # Not by the constructor: torch.export takes a cache made otherwise than its example for another kind of object.
    for layer in range(config.num_hidden_layers):
        cache.update(nothing, nothing, layer)
    return cache


def _dynamic(
    model: ChatGPTForCausalLM, export_format: str
) -> tuple[ExportConfigMixin, torch.nn.Module, dict[str, Any]]:
    """Exporter's config, module and example inputs of a graph whose batch and lengths are free."""
    # Layers of full length throughout: what lies outside a window is left to the mask. A cache that forgets takes another
    # branch once it is full, and a graph has one.
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
        # With a state inside, transformers' runner could not give the cache back.
        return OpenVINOConfig(dynamic=True, stateful=False), model, inputs
    return (OnnxConfig if export_format == "onnx" else DynamoConfig)(dynamic=True), model, inputs


def _static(model: ChatGPTForCausalLM, length: int) -> tuple[ExportConfigMixin, torch.nn.Module, dict[str, Any]]:
    """The same of a graph for one row, whose cache is inside and has one size."""
    generation_config = model.generation_config
    model.generation_config = GenerationConfig(use_cache=True, cache_implementation="static")
    module = TorchExportableModuleWithStaticCache(model, batch_size=1, max_cache_len=length, device=model.device)
    model.generation_config = generation_config
    tokens = Dim("tokens", min=1, max=length - 1)
    inputs = {"input_ids": torch.zeros(1, 3, dtype=torch.int64), "cache_position": torch.arange(3)}
    # Not strict, torch takes the cache's tensors for constants, although they are the module's buffers.
    shapes = {"input_ids": {1: tokens}, "cache_position": {0: tokens}}
    return ExecutorchConfig(dynamic_shapes=shapes, strict=True), module, inputs


@contextmanager
def _quiet() -> Iterator[None]:
    """Exporters speak of their own insides; what counts is found out by running what they made."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(previous)
