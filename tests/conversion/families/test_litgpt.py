"""Converts litgpt's `lit_model.pth` in both directions; the reference here has litgpt's names."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn
from transformers import AutoModelForCausalLM

from chatgpt_hf import ChatGPTConfig, ChatGPTForCausalLM, convert_checkpoint
from chatgpt_hf.conversion.families.litgpt import read_litgpt_config, to_litgpt_config
from chatgpt_hf.errors import CheckpointError, ConversionError

VOCAB = 259
SIZES: dict[str, Any] = {
    "name": "tiny",
    "hf_config": {"org": "nobody", "name": "tiny"},
    "block_size": 48,
    "vocab_size": 250,
    "padded_vocab_size": VOCAB,
    "padding_multiple": 512,
    "n_layer": 2,
    "n_head": 4,
    "n_query_groups": 4,
    "head_size": 8,
    "n_embd": 32,
    "intermediate_size": 72,
    "rotary_percentage": 1.0,
    "parallel_residual": False,
    "norm_eps": 1e-5,
    "rope_base": 10000,
    "rope_condense_ratio": 1,
    "rope_n_elem": 8,
    "n_expert": 0,
    "scale_embeddings": False,
    "norm_1": True,
    "norm_2": True,
}
GPT2_LIKE = {**SIZES, "norm_class_name": "LayerNorm", "mlp_class_name": "GptNeoxMLP", "bias": True}
LLAMA_LIKE = {**SIZES, "norm_class_name": "RMSNorm", "mlp_class_name": "LLaMAMLP", "bias": False, "n_query_groups": 2}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_seq_len": 16}


class Norm(nn.Module):
    def __init__(self, size: int, kind: str, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size)) if kind == "LayerNorm" else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.bias is None:
            return x / (x.pow(2).mean(-1, keepdim=True) + self.eps).sqrt() * self.weight
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.pow(2).mean(-1, keepdim=True) + self.eps).sqrt() * self.weight + self.bias


class Block(nn.Module):
    """Attention head by head; rotates each pair of dimensions, `i` and `i + size / 2`, as a complex number."""

    def __init__(self, config: dict[str, Any], layer: int) -> None:
        super().__init__()
        self.config = config
        width, size, kind, bias = config["n_embd"], config["head_size"], config["norm_class_name"], config["bias"]
        heads = config["n_head"] + 2 * config["n_query_groups"]
        self.norm_1, self.norm_2 = (Norm(width, kind, config["norm_eps"]) for _ in range(2))
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, heads * size, bias or config.get("attn_bias", False))})
        self.attn["proj"] = nn.Linear(config["n_head"] * size, width, bias)
        if config.get("norm_qk"):
            self.attn["norm_q"], self.attn["norm_k"] = (Norm(size, kind, config["norm_eps"]) for _ in range(2))
        wide = config["intermediate_size"]
        names = ("fc",) if config["mlp_class_name"] == "GptNeoxMLP" else ("fc_1", "fc_2")
        self.mlp = nn.ModuleDict({name: nn.Linear(width, wide, bias) for name in names})
        self.mlp["proj"] = nn.Linear(wide, width, bias)
        slides = config.get("sliding_window_indices") or [0] * config["n_layer"]
        self.window = config["sliding_window_size"] if slides[layer] else None

    def turned(self, x: torch.Tensor) -> torch.Tensor:
        half = x.shape[-1] // 2
        turns = torch.empty(x.shape[1], half)
        for index in range(half):
            speed = self.config["rope_base"] ** (-2 * index / x.shape[-1]) / self.config["rope_condense_ratio"]
            scaling = self.config.get("rope_adjustments") or {}
            if "low_freq_factor" in scaling:
                length = 2 * math.pi / speed
                low = scaling["original_max_seq_len"] / scaling["low_freq_factor"]
                high = scaling["original_max_seq_len"] / scaling["high_freq_factor"]
                if length > low:
                    speed /= scaling["factor"]
                elif length > high:
                    share = scaling["original_max_seq_len"] / length - scaling["low_freq_factor"]
                    share /= scaling["high_freq_factor"] - scaling["low_freq_factor"]
                    speed = (1 - share) * speed / scaling["factor"] + share * speed
            elif scaling:
                speed /= scaling["factor"]
            turns[:, index] = torch.arange(x.shape[1]) * speed
        numbers = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(turns), turns)
        return torch.cat((numbers.real, numbers.imag), dim=-1)

    def attention(self, x: torch.Tensor) -> torch.Tensor:
        size, queries, groups = (self.config[name] for name in ("head_size", "n_head", "n_query_groups"))
        parts = self.attn["qkv"](x).split(size, dim=-1)
        outputs = []
        for head in range(queries):
            group = head // (queries // groups)
            query, key, value = parts[head], parts[queries + group], parts[queries + groups + group]
            if "norm_q" in self.attn:
                query, key = self.attn["norm_q"](query), self.attn["norm_k"](key)
            scores = self.turned(query) @ self.turned(key).transpose(1, 2) / math.sqrt(size)
            for row in range(x.shape[1]):
                scores[:, row, row + 1 :] = -math.inf
                if self.window is not None:
                    scores[:, row, : max(0, row - self.window + 1)] = -math.inf
            outputs.append(scores.softmax(-1) @ value)
        return self.attn["proj"](torch.cat(outputs, dim=-1))

    def feed_forward(self, x: torch.Tensor) -> torch.Tensor:
        def gelu(x: torch.Tensor) -> torch.Tensor:
            if self.config.get("gelu_approximate", "none") == "tanh":
                return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
            return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))

        if "fc" in self.mlp:
            return self.mlp["proj"](gelu(self.mlp["fc"](x)))
        gate = self.mlp["fc_1"](x)
        gate = gate * gate.sigmoid() if self.config["mlp_class_name"] == "LLaMAMLP" else gelu(gate)
        return self.mlp["proj"](gate * self.mlp["fc_2"](x))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm_1(x))
        return x + self.feed_forward(self.norm_2(x))


class LitGPT(nn.Module):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = config
        width, vocab = config["n_embd"], config["padded_vocab_size"]
        self.lm_head = nn.Linear(width, vocab, bias=False)
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(vocab, width),
                "h": nn.ModuleList(Block(config, layer) for layer in range(config["n_layer"])),
                "ln_f": Norm(width, config["norm_class_name"], config["norm_eps"]),
            }
        )
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(std=0.2, generator=generator)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.transformer["wte"](ids)
        for block in self.transformer["h"]:
            x = block(x)
        logits = self.lm_head(self.transformer["ln_f"](x))
        cap = self.config.get("final_logit_softcapping")
        return logits if cap is None else cap * torch.tanh(logits / cap)


def interleaved(state: dict[str, torch.Tensor], config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Converts to the layout used before 2025: `attn.attn`, each group's queries followed by its key and value."""
    older = {}
    queries, groups = config["n_head"], config["n_query_groups"]
    for name, tensor in state.items():
        if ".attn.qkv." in name:
            heads = tensor.split(config["head_size"])
            per_group = queries // groups
            order = []
            for group in range(groups):
                order += heads[group * per_group : (group + 1) * per_group]
                order += [heads[queries + group], heads[queries + groups + group]]
            tensor = torch.cat(order)
        older[name.replace(".attn.qkv.", ".attn.attn.")] = tensor
    return older


def save(folder: Path, config: dict[str, Any], state: dict[str, Any]) -> None:
    folder.mkdir(exist_ok=True)
    torch.save(state, folder / "lit_model.pth")
    (folder / "model_config.yaml").write_text(yaml.safe_dump(config))


VARIANTS: list[dict[str, Any]] = [
    GPT2_LIKE,
    {**GPT2_LIKE, "gelu_approximate": "tanh", "n_query_groups": 2, "rope_condense_ratio": 4},
    LLAMA_LIKE,
    {**LLAMA_LIKE, "n_query_groups": 1, "rope_adjustments": LLAMA3, "head_size": 12, "rope_n_elem": 12},
    {**LLAMA_LIKE, "norm_qk": True, "norm_qk_type": "default", "rope_adjustments": {"factor": 2.0}},
    {**LLAMA_LIKE, "attn_bias": True, "final_logit_softcapping": 15.0, "attention_scores_scalar": 8},
    {**LLAMA_LIKE, "mlp_class_name": "GemmaMLP", "sliding_window_size": 6, "sliding_window_indices": [0, 1]},
]


@pytest.mark.parametrize("layout", ["today's", "older"])
@pytest.mark.parametrize("config", VARIANTS, ids=range(len(VARIANTS)))
def test_parity_both_ways(
    config: dict[str, Any], layout: str, assert_parity: Callable[..., None], byte_tokenizer: Any, tmp_path: Path
) -> None:
    theirs = LitGPT(config)
    state = theirs.state_dict() if layout == "today's" else interleaved(theirs.state_dict(), config)
    save(tmp_path / "theirs", config, state if layout == "today's" else {"model": state})
    byte_tokenizer.save_pretrained(tmp_path / "theirs")
    assert convert_checkpoint(tmp_path / "theirs", tmp_path / "ours") <= 1e-4
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert type(ours) is ChatGPTForCausalLM
    assert_parity(theirs, ours)
    if layout == "older":
        return
    assert convert_checkpoint(tmp_path / "ours", tmp_path / "again", "litgpt") <= 1e-4
    written = yaml.safe_load((tmp_path / "again" / "model_config.yaml").read_text())
    loaded = LitGPT(written)
    loaded.load_state_dict(torch.load(tmp_path / "again" / "lit_model.pth", weights_only=True)["model"])
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in state.items())
    assert_parity(loaded, ours)


def test_a_tied_head(assert_parity: Callable[..., None], tmp_path: Path) -> None:
    theirs = LitGPT(LLAMA_LIKE)
    theirs.lm_head.weight = theirs.transformer["wte"].weight
    state = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    save(tmp_path / "theirs", LLAMA_LIKE, state)
    convert_checkpoint(tmp_path / "theirs" / "lit_model.pth", tmp_path / "ours")
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert ours.config.tie_word_embeddings
    assert_parity(theirs, ours)


def test_through_litgpt_to_a_stock_llama(assert_parity: Callable[..., None], tmp_path: Path) -> None:
    theirs = LitGPT(LLAMA_LIKE)
    save(tmp_path / "theirs", LLAMA_LIKE, theirs.state_dict())
    convert_checkpoint(tmp_path / "theirs", tmp_path / "llama", "llama")
    llama = AutoModelForCausalLM.from_pretrained(tmp_path / "llama")
    assert type(llama).__name__ == "LlamaForCausalLM"
    assert_parity(theirs, llama)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rotary_percentage", 0.25),
        ("parallel_residual", True),
        ("shared_attention_norm", True),
        ("scale_embeddings", True),
        ("post_attention_norm", True),
        ("post_mlp_norm", True),
        ("norm_1", False),
        ("lm_head_bias", True),
        ("n_expert", 8),
        ("attention_scores_scalar", 224),
        ("attention_logit_softcapping", 50.0),
        ("rope_local_base_freq", 1e4),
        ("rope_interleave", True),
        ("latent_attention", {"q_lora_rank": 8}),
        ("norm_qk_type", "olmo2"),
        ("mlp_class_name", "LLaMAMoE"),
        ("rope_adjustments", {"factor": 4.0, "beta_fast": 32, "beta_slow": 1, "original_max_seq_len": 16}),
        ("name", "Gemma-2b"),
        ("something_new", True),
    ],
)
def test_what_ours_cannot_express_is_refused(name: str, value: Any, tmp_path: Path) -> None:
    save(tmp_path / "theirs", {**LLAMA_LIKE, name: value}, LitGPT(LLAMA_LIKE).state_dict())
    with pytest.raises(ConversionError, match=f"`{name}="):
        convert_checkpoint(tmp_path / "theirs", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_checkpoints_that_are_none(tmp_path: Path) -> None:
    state = LitGPT(LLAMA_LIKE).state_dict()

    def refuse(kind: type[Exception], words: str, config: Any = LLAMA_LIKE, tensors: Any = state) -> None:
        save(tmp_path / "theirs", config, tensors)
        with pytest.raises(kind) as error:
            convert_checkpoint(tmp_path / "theirs", tmp_path / "new")
        assert words in str(error.value)

    refuse(CheckpointError, "does not contain the fields", config="text")
    refuse(CheckpointError, "not a dict of named tensors", tensors=[1, 2])
    refuse(CheckpointError, "`transformer.wte.weight` is missing", tensors={"x": torch.ones(1)})
    refuse(ConversionError, "merge_lora", tensors={**state, "transformer.h.0.attn.qkv.lora_A": torch.ones(1)})
    refuse(
        ConversionError, "litgpt has no tensor", tensors={**state, "transformer.h.0.attn.new.weight": torch.ones(1)}
    )
    refuse(CheckpointError, "rows, but its config asks for", config={**LLAMA_LIKE, "n_query_groups": 1})
    refuse(CheckpointError, "have other shapes", config={**LLAMA_LIKE, "intermediate_size": 64})
    save(tmp_path / "theirs", LLAMA_LIKE, state)
    (tmp_path / "theirs" / "model_config.yaml").unlink()
    with pytest.raises(CheckpointError, match=r"model_config.yaml cannot be read"):
        convert_checkpoint(tmp_path / "theirs", tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("overrides", "field"),
    [
        ({"position_embedding_type": "learned"}, "position_embedding_type"),
        ({"norm_bias": True}, "norm_bias"),
        ({"norm_type": "layernorm", "norm_bias": True, "qk_norm": True}, "qk_norm"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"hidden_act": "relu2", "gated_mlp": False}, "hidden_act"),
        ({"embedding_norm": True}, "embedding_norm"),
        ({"conv_kernel_size": 3}, "conv_kernel_size"),
        ({"residual_dropout": 0.1}, "residual_dropout"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}}, "rope_parameters"),
    ],
    ids=str,
)
def test_what_litgpt_cannot_express_is_refused(overrides: dict[str, Any], field: str) -> None:
    fields = read_litgpt_config(LLAMA_LIKE)
    if "position_embedding_type" in overrides:
        fields["rope_parameters"] = None
    if "layer_types" in fields and "conv_kernel_size" in overrides:
        fields["layer_types"] = None
    with pytest.raises(ConversionError, match=f"`{field}"):
        to_litgpt_config(ChatGPTConfig(**{**fields, **overrides}))
