"""Quantizes weights with transformers' own `TorchAoConfig`, so that a quantized folder is an ordinary model folder."""

import math
import re
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TorchAoConfig
from transformers.quantizers import AutoHfQuantizer

from ..checkpoints import check_tokenizer_fits, context_length, load_model, refuse_adapter
from ..conversion.heads import check_language_model
from ..errors import ConfigError, DataError
from ..evaluation.scoring import negative_log_likelihoods
from ..extras import require
from ..files import check_new_folder, new_folder
from ..stored import carry_origin, copy_licence, warn_of_calibration
from ..tokenization_chatgpt import encode_texts, load_tokenizer
from .cpu.packed_linear import use_cpu_kernels
from .four_bits import GROUP_SIZE, quantize_layers

if TYPE_CHECKING:
    from torchao.core.config import AOBaseConfig

# The most that each may cost in perplexity, relative to the original, to be called good.
GOOD = {"int8": 0.02, "int8-weight-only": 0.02, "int4": 0.05}
QUANTIZATIONS = tuple(GOOD)

# Tokens in a row of the user's text, and the most rows that 4-bit weights are chosen with and the cost is measured on.
_ROW, _MOST_ROWS = 512, 16


@dataclass(frozen=True)
class QuantizationCost:
    """Perplexity before and after on the same text, of which the quantization has seen nothing.

    Attributes:
        quantization: One of `QUANTIZATIONS`.
        original: The perplexity of the original weights in float32.
        quantized: The perplexity of the quantized model, computed as the commands will compute it.
        tokens: How many tokens were predicted.
        vocab_size: Size of the vocabulary; a model that knows nothing has a perplexity of this. None if unknown.
    """

    quantization: str
    original: float
    quantized: float
    tokens: int
    vocab_size: int | None = None

    @property
    def increase(self) -> float:
        """The relative increase of the perplexity."""
        return self.quantized / self.original - 1

    @property
    def good(self) -> bool:
        """True if the perplexity grew by at most 2 percent (int8) or 5 percent (int4), of a model that is not broken."""
        return not self.broken and round(self.increase, 4) <= GOOD[self.quantization]

    @property
    def broken(self) -> bool:
        """True if the original predicts this text worse than a model that gives all tokens the same probability."""
        return self.vocab_size is not None and self.original > self.vocab_size

    def __str__(self) -> str:
        figures = f"perplexity {self.original:.3f} became {self.quantized:.3f} ({self.increase:+.2%}) on {self.tokens} tokens"
        if self.broken:
            return (
                f"{figures}: says nothing. A perplexity above {self.vocab_size}, the size of the vocabulary, is worse than "
                "guessing: the original model is broken, has another model's tokenizer, or has learned nothing like this text."
            )
        if self.good:
            return f"{figures}: good."
        remedy = "a larger --corpus of the same kind, or --to int8" if self.quantization == "int4" else "the original"
        return f"{figures}: NOT good, since more than {GOOD[self.quantization]:+.0%} is lost. Use {remedy}."


def _int8() -> "AOBaseConfig":
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, MappingType

    # The largest activations have one sign. Levels that are symmetric around zero leave half of them unused: a model of
    # 135 million parameters then loses 4.1 percent of perplexity instead of 1.3 (docs/log.md).
    return Int8DynamicActivationInt8WeightConfig(act_mapping_type=MappingType.ASYMMETRIC)


def _int8_weight_only() -> "AOBaseConfig":
    from torchao.quantization import Int8WeightOnlyConfig

    return Int8WeightOnlyConfig()


def _int4(device: torch.device) -> "AOBaseConfig":
    from torchao.quantization import Int4WeightOnlyConfig, IntxWeightOnlyConfig, MappingType, PerGroup

    if device.type == "cuda":
        # PyTorch's own kernel; torchao's default packing needs one more package (mslk).
        return Int4WeightOnlyConfig(group_size=GROUP_SIZE, int4_packing_format="tile_packed_to_4d")  # type: ignore[arg-type]
    # The config above has kernels only for GPUs. This one stores a byte per weight in the file.
    return IntxWeightOnlyConfig(torch.int4, PerGroup(GROUP_SIZE), MappingType.ASYMMETRIC)  # type: ignore[attr-defined]


def quantize_model(model: PreTrainedModel, quantization: str, rows: Sequence[Sequence[int]] = ()) -> PreTrainedModel:
    """Quantizes every linear layer of a model in place, including the head, and on a CPU the embedding to 8 bits per row.

    A tied head is separated from the embedding, because reading it is a third of the work of a small model, and the
    head rounds its input too.

    Args:
        model: A model in float32 (bfloat16 weights have lost bits that the quantized ones could use, and layers in
            bfloat16 cast to and from the kernels' float32); int4 on a GPU converts it to bfloat16.
        quantization: `int8` (weights per row; activations per token, dynamically), `int8-weight-only` (per row), or
            `int4` (weights in groups of 32, the head as with `int8`).
        rows: Token ids of texts like those that the model will see, which choose the 4-bit weights on a CPU; see
            `four_bit_weight`. Other quantizations need none.

    Raises:
        ConfigError: If the quantization is unknown, the model is already quantized, its layers are not plain linear ones, or
            a layer's width is not a multiple of the group size.
        MissingDependency: If torchao is not installed.
    """
    _check_model(model, quantization)
    require("Quantizing", "torchao")
    from torchao.quantization import quantize_

    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is not None and head.weight is embedding.weight:
        head.weight = nn.Parameter(embedding.weight.detach().clone(), requires_grad=False)
        model.config.tie_word_embeddings = False
    if quantization == "int4":
        kinds = _quantize_to_4_bits(model, rows)
    else:
        kinds = {"int8": _int8, "int8-weight-only": _int8_weight_only}[quantization]()
        quantize_(model, kinds)
    in_eight_bits = model.device.type == "cpu" and type(embedding) is nn.Embedding
    if in_eight_bits:
        # In float32 it would be the largest part of the file.
        quantize_(model, _int8_weight_only(), filter_fn=lambda module, _: module is embedding)
    # Set as `from_pretrained` does when it quantizes a model; `save_pretrained` needs both.
    config = TorchAoConfig(kinds, modules_to_not_convert=[], include_input_output_embeddings=in_eight_bits)
    model.config.quantization_config = config
    model.hf_quantizer = AutoHfQuantizer.from_config(config, pre_quantized=False)
    return model


def _quantize_to_4_bits(model: PreTrainedModel, rows: Sequence[Sequence[int]]) -> "AOBaseConfig":
    """Quantizes all layers, and returns what says so in the folder's config."""
    from torchao.quantization import FqnToConfig, quantize_

    head = model.get_output_embeddings()
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module is not head]
    layers = _int4(model.device)
    kinds: OrderedDict[str, AOBaseConfig | None] = OrderedDict()
    if model.device.type == "cuda":
        # The kernel takes only bfloat16.
        model.to(torch.bfloat16)
        quantize_(model, layers, filter_fn=lambda module, name: name in names)
    else:
        quantize_layers(model, names, rows)
    for name, module in model.named_modules():
        # The head chooses among tens of thousands of tokens: in 4 bits, it loses as much as all layers together.
        if head is not None and module is head:
            kinds[name] = _int8_weight_only() if model.device.type == "cuda" else _int8()
            quantize_(model, kinds[name], filter_fn=lambda module, _: module is head)
    endings = sorted({name.rpartition(".")[2] for name in names})
    kinds[rf"re:(.*\.)?({'|'.join(map(re.escape, endings))})"] = layers
    return FqnToConfig(kinds)


def _check_name(quantization: str) -> None:
    if quantization not in QUANTIZATIONS:
        raise ConfigError(f"There is no quantization {quantization}; choose from {', '.join(QUANTIZATIONS)}.")


def _check_model(model: PreTrainedModel, quantization: str) -> None:
    """Raises `ConfigError` if a model cannot be quantized in that way."""
    _check_name(quantization)
    if getattr(model.config, "quantization_config", None) is not None:
        raise ConfigError("The model is already quantized: quantize the original instead.")
    _check_layers(model)
    if quantization == "int4":
        _check_groups(model)


def _check_layers(model: PreTrainedModel) -> None:
    """Raises unless the model's layers are `nn.Linear`: the kernels replace its weights, which another `forward` may not take."""
    head = model.get_output_embeddings()
    plain = [module for module in model.modules() if type(module) is nn.Linear and module is not head]
    own = {type(module) for module in model.modules() if isinstance(module, nn.Linear)}
    own = {kind for kind in own if kind.forward is not nn.Linear.forward}
    if own or not plain:
        layers = f"custom layers ({', '.join(sorted(kind.__name__ for kind in own))})" if own else "no linear layers"
        raise ConfigError(
            f"A {model.config.model_type} model cannot be quantized: it computes with {layers}, and only torch's own linear "
            "layers can be. Models of other families, such as llama, can."
        )


def _check_groups(model: PreTrainedModel) -> None:
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module.in_features % GROUP_SIZE:
            raise ConfigError(
                f"int4 has one scale per {GROUP_SIZE} weights, but {name} has rows of {module.in_features}: hidden_size, "
                f"intermediate_size and head_dim x num_attention_heads must be multiples of {GROUP_SIZE}. Use int8 instead."
            )


def quantize_folder(
    source: str | Path, folder: str | Path, quantization: str, corpus: str | None = None
) -> QuantizationCost | None:
    """Writes a model folder with quantized weights, which `from_pretrained` loads if torchao is installed.

    Args:
        source: Folder or Hub id of a causal language model. Whatever it is stored in, it is quantized from float32.
        folder: A folder that does not exist or is empty.
        quantization: See `quantize_model`.
        corpus: Text like that the model will see, as in pretraining: a file, folder, glob, Hub id or `builtin:` name. Its
            second half measures the cost; its first half chooses 4-bit weights. Of each, up to 8,192 tokens are used.

    Returns:
        What it costs on the corpus; None without one.

    Raises:
        ConfigError: If `quantize_model` raises it.
        ConversionError: If the source is an adapter, or a model with the head of another task.
        CheckpointError: If there is no model, or it is incomplete.
        DataError: If the corpus cannot be read, or is too short to measure on.
        TokenizerError: If there is no tokenizer, or it does not fit the model.
        OutputError: If the folder is not empty.
    """
    _check_name(quantization)
    target = check_new_folder(folder)
    refuse_adapter(source)
    tokenizer = load_tokenizer(str(source))
    model = load_model(source, dtype=torch.float32).eval()
    check_language_model(model, source, "be quantized")
    check_tokenizer_fits(model, tokenizer)
    _check_model(model, quantization)
    seen, unseen = ([], []) if corpus is None else _halves(tokenizer, corpus, min(_ROW, context_length(model)))
    original = _perplexity(model, unseen) if unseen else 0.0
    quantize_model(model, quantization, seen)
    carry_origin(model.config, source)
    with new_folder(target) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        copy_licence(source, temporary)
        # Before the folder appears: one that cannot be measured must not stay behind. The kernels pack the weights, so they
        # come after the weights are saved.
        quantized = _perplexity(use_cpu_kernels(model), unseen) if unseen else 0.0
    warn_of_calibration(source)
    if not unseen:
        return None
    vocab_size = model.config.get_text_config().vocab_size
    return QuantizationCost(quantization, original, quantized, sum(len(row) - 1 for row in unseen), vocab_size)


def _halves(tokenizer: PreTrainedTokenizerBase, corpus: str, length: int) -> tuple[list[list[int]], list[list[int]]]:
    """Rows of a corpus: some from its first half, and some from its second."""
    # Here, so that commands that load a model do not wait for the import of `datasets`.
    from ..data.corpus import load_corpus

    texts = [text for split in load_corpus(corpus).values() for text in split["text"]]
    ids = [token for document in encode_texts(tokenizer, texts, with_end=True) for token in document]
    rows = [ids[begin : begin + length] for begin in range(0, len(ids) - length + 1, length)]
    if len(rows) < 2:
        raise DataError(
            f"--corpus {corpus} has {len(ids)} tokens: give at least {2 * length}, since one half measures what the other has not "
            "seen."
        )
    half = len(rows) // 2
    return rows[:half][:_MOST_ROWS], rows[half:][:_MOST_ROWS]


def _perplexity(model: PreTrainedModel, rows: Sequence[Sequence[int]]) -> float:
    nats = negative_log_likelihoods(
        model, [(row, 1) for row in rows], pad_token_id=0, batch_size=1, desc="Measuring what it costs"
    )
    return math.exp(nats.sum() / sum(len(row) - 1 for row in rows))
