"""Graphs for other runtimes, made by transformers' exporters, and run here to see that they compute the same."""

import io
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
from transformers.integrations.executorch import TorchExportableModuleWithStaticCache

from ..configuration_chatgpt import ChatGPTConfig
from ..errors import ConversionError
from ..modeling_chatgpt import ChatGPTForCausalLM

GRAPH_FORMATS = ("onnx", "openvino", "executorch", "torch-export")
# Memories that a cache of keys and values has no place for.
_WITHOUT_PLACE: dict[str, Any] = {"ngram_vocab_sizes": None, "conv_kernel_size": None}
# The last tokens of a check go in one at a time, the others at once.
_STEPS = 8


def export_graph(model: ChatGPTForCausalLM, export_format: str) -> ExportedModel:
    """The model and its cache as a graph, in float32.

    Graphs for ONNX Runtime, OpenVINO and torch take `input_ids` and `position_ids` (batch, seq), `attention_mask`
    (batch, past + seq) and a cache whose keys and values (batch, heads, past, head_dim) may be empty, and give logits
    (batch, seq, vocab) and the longer cache. ExecuTorch's keeps a cache of `max_position_embeddings` places inside: it takes
    `input_ids` (1, seq) and `cache_position` (seq,) and gives logits (1, seq, vocab), as its own runner of language models
    wants it.

    Args:
        model: In float32; its parameters are taken out of training.
        export_format: One of `GRAPH_FORMATS`.

    Raises:
        ConversionError: Naming the field that a graph cannot express, or the package that is missing.
    """
    for name, value in _WITHOUT_PLACE.items():
        if getattr(model.config, name) != value:
            raise ConversionError(
                f"{export_format} cannot express `{name}={getattr(model.config, name)!r}`: the cache of a graph holds keys "
                "and values alone."
            )
    model.requires_grad_(False)
    config, module, inputs = (_static if export_format == "executorch" else _dynamic)(model, export_format)
    try:
        exporter = AutoHfExporter.from_config(config)
    except ImportError as error:
        raise ConversionError(
            f"{export_format} needs packages that are missing: pip install 'chatgpt-hf[export]'"
        ) from error
    with _quiet(), torch.no_grad():
        exported = exporter.export(module, inputs, config)
    if isinstance(exported.program, ExportedProgram):
        # They hold a cache, an object of transformers', and torch would unpickle it whenever the file is read.
        exported.program._example_inputs = None
    exported.config, exported.generation_config = model.config, model.generation_config
    return exported


def load_graph(folder: Path) -> ExportedModel:
    """A saved graph, to be run by its own runtime on the CPU in float32."""
    with _quiet():
        exported = ExportedModel.from_pretrained(folder)
        if exported.export_format == "openvino":
            # On CPUs with units for it, OpenVINO computes in bfloat16 unless it is told not to.
            exported.to("cpu", config={"INFERENCE_PRECISION_HINT": "f32"})
    return exported


def graph_logits(exported: ExportedModel, config: ChatGPTConfig, ids: torch.Tensor) -> torch.Tensor:
    """A graph's logits (1, seq, vocab) of ids (1, seq), the last of which it gets one at a time, by its cache."""
    start = max(1, ids.shape[1] - _STEPS)
    pieces = [ids[:, :start], *ids[:, start:].split(1, dim=1)]
    positions = torch.arange(ids.shape[1]).split([piece.shape[1] for piece in pieces])
    cache, logits = empty_cache(config, 1), []
    for piece, position in zip(pieces, positions, strict=True):
        if exported.export_format == "executorch":
            logits.append(exported(input_ids=piece, cache_position=position))
            continue
        outputs = exported(
            input_ids=piece,
            attention_mask=torch.ones(1, int(position[-1]) + 1, dtype=torch.int64),
            position_ids=position[None],
            past_key_values=cache,
        )
        cache = outputs.past_key_values
        logits.append(outputs.logits)
    return torch.cat(logits, dim=1)


def empty_cache(config: ChatGPTConfig, batch_size: int) -> DynamicCache:
    """What a graph with a dynamic cache gets at the beginning: keys and values of no positions."""
    nothing = torch.zeros(batch_size, config.num_key_value_heads or 1, 0, config.head_dim or 1)
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
    ids = torch.zeros(2, 12, dtype=torch.int64)
    with torch.no_grad():
        model(ids[:, :9], past_key_values=cache)
    inputs = {
        "input_ids": ids[:, 9:],
        "attention_mask": torch.ones_like(ids),
        "position_ids": torch.arange(9, 12).expand(2, -1),
        "past_key_values": cache,
    }
    if export_format == "openvino":
        # With a state inside, transformers' runner could not give the cache back.
        return OpenVINOConfig(dynamic=True, stateful=False), model, inputs
    return (OnnxConfig if export_format == "onnx" else DynamoConfig)(dynamic=True), model, inputs


def _static(
    model: ChatGPTForCausalLM, export_format: str
) -> tuple[ExportConfigMixin, torch.nn.Module, dict[str, Any]]:
    """The same of a graph for one row, whose cache is inside and has one size."""
    length = model.config.max_position_embeddings
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
