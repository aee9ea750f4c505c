"""GGUF files for llama.cpp, in the layouts of the families that it knows: GPT-2, Llama, and Qwen3 for QK norm."""

import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from ..configuration_chatgpt import ChatGPTConfig
from ..conversion.families import MODEL_FAMILIES
from ..errors import ConversionError
from ..modeling_chatgpt import ChatGPTForCausalLM
from ..tokenization_chatgpt import IM_END, pre_tokenization

OUTTYPES = ("f32", "f16", "bf16", "q8_0")
# Weights in a block of q8_0, which has one scale.
_BLOCK = 32
# llama.cpp's name for a pre-tokenization, which it has compiled in (`llama-vocab.cpp`): by how a Split cuts.
_LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PRE_TOKENIZATIONS = {
    pre_tokenization(1): "qwen2",
    pre_tokenization(3): "llama-bpe",
    _LLAMA_3 % "": "qwen2",
    _LLAMA_3 % "{1,3}": "llama-bpe",
}
# What only training needs, and no template engine but transformers' knows; a comment keeps its whitespace control.
_GENERATION_TAG = re.compile(r"\{%(-?)\s*(?:end)?generation\s*(-?)%\}")


def write_gguf(
    model: ChatGPTForCausalLM, tokenizer: PreTrainedTokenizerBase, file: Path, outtype: str = "f32"
) -> None:
    """Writes model, tokenizer and chat template as one file.

    Args:
        model: In float32.
        tokenizer: A byte-level BPE.
        file: To be written.
        outtype: Of the matrices, as llama.cpp's own converter calls it; vectors and positions stay float32.

    Raises:
        ConversionError: Naming what llama.cpp cannot express, or the package that is missing.
    """
    try:
        import gguf
    except ImportError as error:
        raise ConversionError("gguf needs a package that is missing: pip install 'chatgpt-hf[export]'") from error
    config = model.config
    name = _family_of(config)
    family = MODEL_FAMILIES[name]
    try:
        family.config_out(config)
    except ConversionError as error:
        raise ConversionError(
            f"No layout that llama.cpp knows fits this model. The nearest is {name}: {error}"
        ) from error
    _check(config, name, outtype)
    architecture = {text: arch for arch, text in gguf.MODEL_ARCH_NAMES.items()}[name]
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    quantization = gguf.GGMLQuantizationType[outtype.upper()]

    writer = gguf.GGUFWriter(file, name)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_file_type(
        {
            "f32": gguf.LlamaFileType.ALL_F32,
            "f16": gguf.LlamaFileType.MOSTLY_F16,
            "bf16": gguf.LlamaFileType.MOSTLY_BF16,
            "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
        }[outtype]
    )
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_config(writer, config, name)
    _add_tokenizer(writer, tokenizer, model)
    for key, tensor in _tensors(family.tensors_out(model), config, name):
        target = names.get_name(key, try_suffixes=(".weight", ".bias"))
        if target is None:
            raise ConversionError(f"gguf knows no name for `{key}` of {name}.")
        exact = tensor.ndim < 2 or target.startswith("position_embd")
        kind = gguf.GGMLQuantizationType.F32 if exact else quantization
        array = gguf.quantize(np.ascontiguousarray(tensor.numpy()), kind)
        writer.add_tensor(target, array, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_logits(file: Path, ids: list[int]) -> torch.Tensor:
    """llama.cpp's logits (seq, vocab) of ids, with a cache in float32.

    Raises:
        ConversionError: When llama-cpp-python is missing, or fails on the file.
    """
    if importlib.util.find_spec("llama_cpp") is None:
        raise ConversionError(
            "The check of a GGUF file needs llama.cpp: pip install llama-cpp-python, which compiles for some minutes, or "
            "leave the check out with --no-check."
        )
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "logits.npy")
        script = Path(__file__).with_name("llama_cpp_logits.py")
        process = subprocess.run(
            [sys.executable, str(script), str(file), str(result)],
            input=json.dumps(ids),
            capture_output=True,
            text=True,
        )
        if process.returncode:
            last = (process.stderr.strip().splitlines() or ["no message"])[-1]
            reason = f"it was ended by signal {-process.returncode}" if process.returncode < 0 else last
            raise ConversionError(f"llama.cpp fails on what was written, which is not kept: {reason}.")
        return torch.from_numpy(np.load(result))


def _family_of(config: ChatGPTConfig) -> str:
    if config.position_embedding_type == "learned":
        return "gpt2"
    return "qwen3" if config.qk_norm else "llama"


def _check(config: ChatGPTConfig, name: str, outtype: str) -> None:
    """Refuses what the family has and llama.cpp's implementation of it has not.

    Raises:
        ConversionError: Naming the field.
    """
    scaling = (config.rope_parameters or {}).get("rope_type", "default")
    refusals = {
        "hidden_act": name == "gpt2" and config.hidden_act != "gelu_new",
        "attention_bias": name == "qwen3" and config.attention_bias,
        "sliding_window": config.sliding_window is not None,
        "rope_parameters": scaling not in ("default", "linear"),
    }
    for field, refused in refusals.items():
        if refused:
            raise ConversionError(f"llama.cpp's {name} cannot express `{field}={getattr(config, field)!r}`.")
    if outtype == "q8_0":
        for field in ("hidden_size", "intermediate_size"):
            if getattr(config, field) % _BLOCK:
                raise ConversionError(
                    f"--outtype q8_0 has blocks of {_BLOCK} weights, which do not divide `{field}={getattr(config, field)}`: "
                    "use f16."
                )


def _add_config(writer: Any, config: ChatGPTConfig, name: str) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    if name == "gpt2":
        writer.add_layer_norm_eps(config.norm_eps)
        return
    writer.add_vocab_size(config.vocab_size)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    rope = config.rope_parameters or {}
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope.get("rope_type") == "linear":
        import gguf

        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])


def _tensors(state: dict[str, torch.Tensor], config: ChatGPTConfig, name: str) -> Iterator[tuple[str, torch.Tensor]]:
    """The family's tensors as llama.cpp lays them out."""
    for key, tensor in state.items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        tensor = tensor.detach().float()
        if name == "gpt2" and key.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
            tensor = tensor.T
        # In llama.cpp, Llama's rotary positions turn neighbours; in transformers, the halves of a head.
        elif name == "llama" and (match := re.search(r"\.([qk])_proj\.(?:weight|bias)$", key)):
            heads = config.num_attention_heads if match[1] == "q" else config.num_key_value_heads
            halves = tensor.unflatten(0, (heads or 1, 2, -1))
            tensor = halves.transpose(1, 2).reshape(tensor.shape)
        yield key, tensor.contiguous()


def _add_tokenizer(writer: Any, tokenizer: PreTrainedTokenizerBase, model: ChatGPTForCausalLM) -> None:
    """The byte-level BPE, its special tokens and its template.

    Raises:
        ConversionError: When it is no such tokenizer, or llama.cpp cuts text otherwise.
    """
    import gguf

    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = json.loads(backend.to_str()) if backend is not None else {"model": {}}
    if content["model"].get("type") != "BPE" or content["model"].get("byte_fallback"):
        raise ConversionError("llama.cpp gets a byte-level BPE from this package, and the tokenizer is none.")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_pre_tokenization_name(content))
    tokens = {index: token for token, index in content["model"]["vocab"].items()}
    types = dict.fromkeys(tokens, gguf.TokenType.NORMAL)
    for token in content["added_tokens"]:
        tokens[token["id"]] = token["content"]
        types[token["id"]] = gguf.TokenType.CONTROL if token["special"] else gguf.TokenType.USER_DEFINED
    size = model.config.vocab_size
    writer.add_token_list([tokens.get(index, f"[PAD{index}]") for index in range(size)])
    writer.add_token_types([types.get(index, gguf.TokenType.UNUSED) for index in range(size)])
    merges = content["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    if tokenizer.bos_token_id is not None:
        writer.add_bos_token_id(tokenizer.bos_token_id)
    if tokenizer.eos_token_id is not None:
        writer.add_eos_token_id(tokenizer.eos_token_id)
    if tokenizer.pad_token_id is not None:
        writer.add_pad_token_id(tokenizer.pad_token_id)
    # Every document begins with bos, here as in training.
    writer.add_add_bos_token(tokenizer.bos_token_id is not None)
    writer.add_add_space_prefix(False)
    template = tokenizer.chat_template
    if isinstance(template, str):
        writer.add_chat_template(_GENERATION_TAG.sub(r"{#\1 \2#}", template))
        if IM_END in tokenizer.get_vocab():
            writer.add_eot_token_id(tokenizer.convert_tokens_to_ids(IM_END))


def _pre_tokenization_name(content: dict[str, Any]) -> str:
    """llama.cpp's name for how the tokenizer cuts text before it merges.

    Raises:
        ConversionError: When it has none.
    """
    pre = content.get("pre_tokenizer") or {}
    if content.get("normalizer"):
        raise ConversionError("llama.cpp does not normalize text, and the tokenizer has a `normalizer`.")
    if pre.get("type") == "ByteLevel" and pre.get("use_regex", True) and not pre.get("add_prefix_space"):
        return "gpt-2"
    parts = pre.get("pretokenizers") or []
    if [part["type"] for part in parts] == ["Split", "ByteLevel"] and parts[0]["behavior"] == "Isolated":
        pattern = parts[0]["pattern"].get("Regex")
        if pattern in _PRE_TOKENIZATIONS:
            return _PRE_TOKENIZATIONS[pattern]
        if pattern == pre_tokenization(2):
            raise ConversionError(
                "llama.cpp has no tokenizer that cuts digits in groups of two, as this one does. Train one with "
                "chatgpt-hf tokenizer train --max_digits 1 or 3, and the model with it."
            )
    raise ConversionError("llama.cpp has no name for how this tokenizer cuts text (its `pre_tokenizer`).")
