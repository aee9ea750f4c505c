"""Writes GGUF files for llama.cpp in the layouts of GPT-2, Llama, and Qwen3 (for QK norm)."""

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
from transformers import GenerationConfig, PreTrainedTokenizerBase

from ..conversion.families import MODEL_FAMILIES
from ..errors import ConversionError
from ..extras import require
from ..model.configuration_chatgpt import ChatGPTConfig
from ..model.modeling_chatgpt import ChatGPTForCausalLM
from ..tokenization_chatgpt import IM_END
from .gguf_tokenizer import add_tokenizer, check_ids, check_tokenizer, texts_to_check

OUTTYPES = ("f32", "f16", "bf16", "q8_0")


def check_llama_cpp() -> None:
    """Raises `MissingDependency` if llama.cpp, which the check needs, is missing."""
    require("The check of a GGUF file (--no-check skips it)", "llama_cpp")


def check_gguf(model: ChatGPTForCausalLM, tokenizer: PreTrainedTokenizerBase, outtype: str) -> None:
    """Checks that llama.cpp can express a model and its tokenizer.

    Raises:
        ConversionError: If it cannot; names the field.
        MissingDependency: If the package that writes the files is missing.
    """
    require("--format gguf", "gguf")
    config = model.config
    name = _family_of(config)
    try:
        MODEL_FAMILIES[name].config_out(config)
    except ConversionError as error:
        raise ConversionError(
            f"None of llama.cpp's layouts fits this model. The nearest is {name}: {error}"
        ) from error
    # Options that llama.cpp does not implement for this family.
    refusals = {
        "hidden_act": config.hidden_act != ("gelu_new" if name == "gpt2" else "silu"),
        "attention_bias": name == "qwen3" and config.attention_bias,
        "sliding_window": config.sliding_window is not None,
        "rope_parameters": (config.rope_parameters or {}).get("rope_type", "default") not in ("default", "linear"),
        "scale_attn_by_inverse_layer_idx": config.scale_attn_by_inverse_layer_idx,
    }
    for field, refused in refusals.items():
        if refused:
            raise ConversionError(f"llama.cpp's {name} cannot express `{field}={getattr(config, field)!r}`.")
    block = _block_size(outtype)
    for key, tensor in model.named_parameters():
        if _is_matrix(key, tensor) and tensor.shape[-1] % block:
            raise ConversionError(
                f"--outtype {outtype} has blocks of {block} weights, but {key} has rows of {tensor.shape[-1]}: use f16."
            )
    check_tokenizer(tokenizer)


@torch.no_grad()
def round_weights(model: ChatGPTForCausalLM, outtype: str) -> None:
    """Rounds the model's matrices like a file of this type does."""
    import gguf

    kind = gguf.GGMLQuantizationType[outtype.upper()]
    for key, parameter in model.named_parameters():
        if _is_matrix(key, parameter):
            rounded = gguf.dequantize(gguf.quantize(parameter.numpy(), kind), kind)
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(rounded)))


def write_gguf(
    model: ChatGPTForCausalLM, tokenizer: PreTrainedTokenizerBase, file: Path, outtype: str, name: str
) -> None:
    """Writes model, tokenizer, chat template and sampling parameters to one file.

    Args:
        model: A model in float32; it and the tokenizer must have passed `check_gguf`.
        tokenizer: A byte-level BPE.
        file: The new file.
        outtype: Type of the matrices, by its name in llama.cpp's own converter; vectors and positions stay float32.
        name: The model's name in the file.
    """
    import gguf

    config, architecture = model.config, _family_of(model.config)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.upper()], config.num_hidden_layers)
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType["ALL_F32" if outtype == "f32" else f"MOSTLY_{outtype.upper()}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_config(writer, config, architecture)
    add_tokenizer(writer, tokenizer, config.vocab_size)
    _add_generation(writer, tokenizer, model.generation_config)
    for key, tensor in _tensors(MODEL_FAMILIES[architecture].tensors_out(model), config, architecture):
        target = names.get_name(key, try_suffixes=(".weight", ".bias"))
        assert target is not None, key
        kind = gguf.GGMLQuantizationType["F32" if tensor.ndim < 2 or "position" in target else outtype.upper()]
        writer.add_tensor(target, gguf.quantize(tensor.numpy(), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def run_gguf(file: Path, ids: list[int], tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """Returns llama.cpp's logits (seq, vocab) of ids, with a float32 cache, and checks how it splits text.

    Raises:
        ConversionError: If llama.cpp fails on the file, or splits text differently from the tokenizer.
    """
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "result.npz")
        process = subprocess.run(
            [sys.executable, "-P", str(Path(__file__).with_name("llama_cpp_logits.py")), str(file), str(result)],
            input=json.dumps({"ids": ids, "texts": [text for text, _ in texts_to_check(tokenizer)]}),
            capture_output=True,
            text=True,
        )
        if process.returncode:
            last = (process.stderr.strip().splitlines() or ["no message"])[-1]
            reason = f"it was ended by signal {-process.returncode}" if process.returncode < 0 else last
            raise ConversionError(f"llama.cpp fails on the written file, which was deleted: {reason}.")
        with np.load(result) as arrays:
            found = {key: arrays[key] for key in arrays}
    check_ids(tokenizer, found)
    return torch.from_numpy(found["logits"])


def _family_of(config: ChatGPTConfig) -> str:
    if config.position_embedding_type == "learned":
        return "gpt2"
    return "qwen3" if config.qk_norm else "llama"


def _is_matrix(key: str, tensor: torch.Tensor) -> bool:
    return tensor.ndim == 2 and "embed_positions" not in key


def _block_size(outtype: str) -> int:
    import gguf

    return gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[outtype.upper()]][0]


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
    """Yields the family's tensors in llama.cpp's layout."""
    for key, tensor in state.items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        tensor = tensor.detach().float()
        if name == "gpt2" and key.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
            tensor = tensor.T
        # Llama's rotary positions rotate pairs of neighbors in llama.cpp, but the two halves of a head in transformers.
        elif name == "llama" and (match := re.search(r"\.([qk])_proj\.(?:weight|bias)$", key)):
            heads = config.num_attention_heads if match[1] == "q" else config.num_key_value_heads
            assert heads is not None
            halves = tensor.unflatten(0, (heads, 2, -1))
            tensor = halves.transpose(1, 2).reshape(tensor.shape)
        yield key, tensor.contiguous()


def _add_generation(writer: Any, tokenizer: PreTrainedTokenizerBase, config: GenerationConfig | None) -> None:
    """Adds the tokens that end an answer, and the sampling parameters.

    Raises:
        ConversionError: If the model has more end tokens than llama.cpp supports.
    """
    configured = getattr(config, "eos_token_id", None)
    ends = [configured] if isinstance(configured, int) else list(configured or ())
    named = [tokenizer.eos_token_id, tokenizer.get_vocab().get(IM_END)]
    ends = list(dict.fromkeys(end for end in (*named, *ends) if end is not None))
    writers = (writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id)
    if len(ends) > len(writers):
        raise ConversionError(f"llama.cpp supports {len(writers)} end tokens, but `eos_token_id` has {ends}.")
    for add, end in zip(writers, ends, strict=False):
        add(end)
    for name, add in (
        ("temperature", writer.add_sampling_temp),
        ("top_k", writer.add_sampling_top_k),
        ("top_p", writer.add_sampling_top_p),
        ("min_p", writer.add_sampling_min_p),
        ("repetition_penalty", writer.add_sampling_penalty_repeat),
    ):
        if (value := getattr(config, name, None)) is not None:
            add(value)
