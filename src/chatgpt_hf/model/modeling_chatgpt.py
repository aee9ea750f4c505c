"""How a chatgpt model computes: one decoder for GPT-2 and for the modern recipe.

Reads in the order of transformers' own model files: norm, positions, feed-forward, attention, layer, body, heads. Travels
to the Hub as remote code with the three modules of ours that it imports; of others it imports torch and transformers.
"""

import math
import sys
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache, LinearAttentionCacheLayerMixin
from transformers.generation import GenerationMixin
from transformers.loss.loss_utils import ForCausalLMLoss
from transformers.masking_utils import (
    create_causal_mask,
    create_sliding_window_causal_mask,
    find_packed_sequence_indices,
)
from transformers.modeling_layers import (
    GenericForQuestionAnswering,
    GenericForSequenceClassification,
    GenericForTokenClassification,
    GradientCheckpointingLayer,
)
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    SequenceClassifierOutputWithPast,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, dynamic_rope_update
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple
from transformers.utils.generic import is_flash_attention_requested, merge_with_config_defaults
from transformers.utils.import_utils import is_tracing
from transformers.utils.output_capturing import capture_outputs

from .configuration_chatgpt import ChatGPTConfig
from .local_context_chatgpt import ChatGPTCausalConv, ChatGPTNgramEmbedding, with_history
from .loss_chatgpt import chunked_causal_lm_loss

try:
    from transformers.modeling_utils import slice_logits_to_keep
except ImportError:

    def slice_logits_to_keep(hidden_states: torch.Tensor, logits_to_keep: int | torch.Tensor) -> torch.Tensor:
        """What transformers before 5.23 did at this place; vLLM 0.33 needs such a release."""
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        return hidden_states[:, kept, :]


# transformers 5.24 calls `cache` what was `past_key_values` before, in calls and in outputs.
CACHE_NAME = "cache" if any(item.name == "cache" for item in fields(BaseModelOutputWithPast)) else "past_key_values"


def take_cache(past_key_values: Cache | None, kwargs: dict[str, Any]) -> Any:
    """The cache that a call was given under either name, taken out of the other keyword arguments.

    Before 5.24 a `cache` there is that of continuous batching, which the attention function takes.
    """
    return kwargs.pop("cache", None) if past_key_values is None and CACHE_NAME == "cache" else past_key_values


class ChatGPTRMSNorm(nn.Module):
    """Root mean square norm (Zhang & Sennrich 2019) over the last dimension of any shape."""

    def __init__(self, size: int, eps: float, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size)) if bias else None
        self.variance_epsilon = eps

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        # Under autocast the heads' queries and keys come in half precision, and the fused kernel takes one dtype only.
        weight = self.weight.to(hidden_states.dtype)
        normed = nn.functional.rms_norm(hidden_states, weight.shape, weight, self.variance_epsilon)
        return normed if self.bias is None else normed + self.bias.to(normed.dtype)

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, eps={self.variance_epsilon}, bias={self.bias is not None}"


def make_norm(config: ChatGPTConfig) -> nn.Module:
    """The norm of the residual stream that `config.norm_type` names."""
    if config.norm_type == "layernorm":
        return nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=config.norm_bias)
    return ChatGPTRMSNorm(config.hidden_size, config.norm_eps, config.norm_bias)


class ChatGPTRotaryEmbedding(nn.Module):
    """Rotary positions (Su et al. 2021) with every scaling that transformers' `ROPE_INIT_FUNCTIONS` knows."""

    inv_freq: torch.Tensor

    def __init__(self, config: ChatGPTConfig) -> None:
        super().__init__()
        self.max_seq_len_cached = config.max_position_embeddings
        self.original_max_seq_len = config.max_position_embeddings
        self.config = config
        self.rope_type = config.rope_parameters["rope_type"]
        rope_init_fn: Callable = self.compute_default_rope_parameters
        if self.rope_type != "default":
            rope_init_fn = ROPE_INIT_FUNCTIONS[self.rope_type]
        inv_freq, self.attention_scaling = rope_init_fn(config)
        self.register_buffer("inv_freq", inv_freq, persistent=False)
        self.register_buffer("original_inv_freq", inv_freq.clone(), persistent=False)

    @staticmethod
    def compute_default_rope_parameters(config: ChatGPTConfig, **kwargs: Any) -> tuple[torch.Tensor, float]:
        """Inverse frequencies `theta ** (-2i / head_dim)`, shape (head_dim / 2,), and the scale of sines and cosines."""
        exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float) / config.head_dim
        return 1.0 / (config.rope_parameters["rope_theta"] ** exponents), 1.0

    def _apply(self, fn: Callable, recurse: bool = True) -> nn.Module:
        # `model.bfloat16()` must not round the frequencies: far positions would turn by wrong angles.
        exact = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, buffer in exact.items():
            if self._buffers[name].dtype != torch.float32:
                self._buffers[name] = buffer.to(self._buffers[name].device)
        return self

    @torch.no_grad()
    @dynamic_rope_update
    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines, each (batch, seq, head_dim), in the dtype of `x`."""
        freqs = position_ids[..., None].float() * self.inv_freq.to(device=x.device, dtype=torch.float)
        angles = torch.cat((freqs, freqs), dim=-1)
        return (
            (angles.cos() * self.attention_scaling).to(x.dtype),
            (angles.sin() * self.attention_scaling).to(x.dtype),
        )


class ChatGPTSinusoidalEmbedding(nn.Module):
    """Fixed sines and cosines of each position (Vaswani et al. 2017, section 3.5), sine and cosine interleaved."""

    table: torch.Tensor

    def __init__(self, config: ChatGPTConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("table", self.compute_table(config), persistent=False)

    @staticmethod
    def compute_table(config: ChatGPTConfig) -> torch.Tensor:
        """`sin(pos / 10000**(2i/d))` in even columns, the cosine in odd ones: (max_position_embeddings, hidden_size)."""
        positions = torch.arange(config.max_position_embeddings, dtype=torch.float)[:, None]
        exponents = torch.arange(0, config.hidden_size, 2, dtype=torch.float) / config.hidden_size
        angles = positions * 10000.0**-exponents
        return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)

    def forward(self, position_ids: torch.Tensor) -> torch.Tensor:
        return self.table[position_ids]


def rotate_half(x: torch.Tensor) -> torch.Tensor:
    """`(a, b) -> (-b, a)` on the halves of the last dimension."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def apply_rotary_pos_emb(
    query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotates queries and keys, each (batch, heads, seq, head_dim), by angles (batch, seq, head_dim)."""
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return query * cos + rotate_half(query) * sin, key * cos + rotate_half(key) * sin


class ChatGPTMLP(nn.Module):
    """The feed-forward layer, gated (Shazeer 2020) or plain."""

    def __init__(self, config: ChatGPTConfig) -> None:
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.gate_proj = None
        if config.gated_mlp:
            self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)
        self.down_proj._writes_residual = True
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        up = self.up_proj(hidden_states)
        if self.gate_proj is None:
            return self.down_proj(self.act_fn(up))
        return self.down_proj(self.act_fn(self.gate_proj(hidden_states)) * up)


def repeat_kv(hidden_states: torch.Tensor, n_rep: int) -> torch.Tensor:
    """(batch, num_key_value_heads, seq, head_dim) to one copy for each query head."""
    return hidden_states if n_rep == 1 else hidden_states.repeat_interleave(n_rep, dim=1)


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Unpack[TransformersKwargs],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scaled dot-product attention written out (Vaswani et al. 2017, equation 1): the reference for the other backends.

    Returns:
        The output (batch, seq, heads, head_dim) and the weights (batch, heads, seq, keys).
    """
    scores = torch.matmul(query, repeat_kv(key, module.num_key_value_groups).transpose(2, 3)) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    # Half-precision softmax loses digits; float64 must not be rounded to float32 on the way.
    softmax_dtype = torch.promote_types(query.dtype, torch.float32)
    weights = nn.functional.softmax(scores, dim=-1, dtype=softmax_dtype).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    output = torch.matmul(weights, repeat_kv(value, module.num_key_value_groups))
    return output.transpose(1, 2).contiguous(), weights


class ChatGPTAttention(nn.Module):
    """Causal self-attention, with grouped keys and values, per-head norms and a window where the config has them."""

    def __init__(self, config: ChatGPTConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = self.head_dim**-0.5
        if config.scale_attn_by_inverse_layer_idx:
            self.scaling /= layer_idx + 1
        self.is_causal = True
        sliding = config.attention_types[layer_idx] == "sliding_attention"
        self.sliding_window = config.sliding_window if sliding else None

        query_size = config.num_attention_heads * self.head_dim
        key_value_size = config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query_size, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, key_value_size, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, key_value_size, bias=config.attention_bias)
        self.o_proj = nn.Linear(query_size, config.hidden_size, bias=config.attention_bias)
        self.o_proj._writes_residual = True
        self.q_norm = ChatGPTRMSNorm(self.head_dim, config.norm_eps) if config.qk_norm else None
        self.k_norm = ChatGPTRMSNorm(self.head_dim, config.norm_eps) if config.qk_norm else None
        self.attention_dropout = nn.Dropout(config.attention_dropout)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        input_shape = hidden_states.shape[:-1]
        head_shape = (*input_shape, -1, self.head_dim)
        query = self.q_proj(hidden_states).view(head_shape)
        key = self.k_proj(hidden_states).view(head_shape)
        if self.q_norm is not None and self.k_norm is not None:
            query, key = self.q_norm(query), self.k_norm(key)
        query, key = query.transpose(1, 2), key.transpose(1, 2)
        value = self.v_proj(hidden_states).view(head_shape).transpose(1, 2)
        if position_embeddings is not None:
            query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        if isinstance(past_key_values, Cache):
            key, value = past_key_values.update(key, value, self.layer_idx)
        elif past_key_values is not None:
            # Continuous batching's, since transformers 5.24: it reads in the keyword arguments which positions, and writes to them.
            key, value = past_key_values.update(key, value, self.layer_idx, kwargs=kwargs)

        attention = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        output, weights = attention(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.attention_dropout.p if self.training else 0.0,
            scaling=self.scaling,
            sliding_window=self.sliding_window,
            **kwargs,
        )
        return self.o_proj(output.reshape(*input_shape, -1).contiguous()), weights


class ChatGPTDecoderLayer(GradientCheckpointingLayer):
    """Norm, attention, add; norm, feed-forward, add (pre-norm, Radford et al. 2019)."""

    embedding_scale: nn.Parameter | None

    def __init__(self, config: ChatGPTConfig, layer_idx: int) -> None:
        super().__init__()
        self.input_layernorm = make_norm(config)
        self.self_attn = ChatGPTAttention(config, layer_idx)
        self.post_attention_layernorm = make_norm(config)
        self.mlp = ChatGPTMLP(config)
        self.residual_dropout = nn.Dropout(config.residual_dropout)
        self.embedding_scale = nn.Parameter(torch.zeros(1)) if config.embedding_residual else None
        self.attention_conv = self.mlp_conv = None
        if config.conv_kernel_size is not None:
            # The first layer's place in the cache holds the ids where there are n-grams, which see the same neighbors.
            if layer_idx or not config.ngram_vocab_sizes:
                self.attention_conv = ChatGPTCausalConv(config, layer_idx, state_idx=0)
            self.mlp_conv = ChatGPTCausalConv(config, layer_idx, state_idx=1)

    def forward(
        self,
        hidden_states: torch.Tensor,
        embeddings: torch.Tensor | None = None,
        same_document: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        """(batch, seq, hidden) to the same shape; what is not named goes through to `ChatGPTAttention`."""
        past_key_values = take_cache(past_key_values, kwargs)
        if self.embedding_scale is not None:
            hidden_states = hidden_states + self.embedding_scale * embeddings
        normed = self.input_layernorm(hidden_states)
        if self.attention_conv is not None:
            normed = self.attention_conv(normed, same_document, past_key_values)
        attended, _ = self.self_attn(normed, past_key_values=past_key_values, **kwargs)
        hidden_states = hidden_states + self.residual_dropout(attended)
        normed = self.post_attention_layernorm(hidden_states)
        if self.mlp_conv is not None:
            normed = self.mlp_conv(normed, same_document, past_key_values)
        return hidden_states + self.residual_dropout(self.mlp(normed))


class ChatGPTPreTrainedModel(PreTrainedModel):
    config: ChatGPTConfig
    config_class = ChatGPTConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["ChatGPTDecoderLayer"]
    _skip_keys_device_placement = ["past_key_values", "cache"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": ChatGPTDecoderLayer, "attentions": ChatGPTAttention}
    # The causal mask that GPT-2 checkpoints of before 2023 carry in every layer.
    _keys_to_ignore_on_load_unexpected = [r"layers\.\d+\.attn\.(masked_)?bias$"]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.__name__.startswith("FSDP") and cls.__module__.startswith("torch."):
            # FSDP2 makes a subclass in a module of torch's, whose file would be saved as the model's code.
            cls.__module__ = __name__
        elif cls.__module__ != __name__ and "_auto_class" not in vars(cls):
            # A user's own class is saved with its file when it is registered for that, not because ours is.
            cls._auto_class = None

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        # The flag stands on the leaf: transformers considers a module without parameters initialised.
        if getattr(module, "_writes_residual", False):
            std = self.config.initializer_range / math.sqrt(2 * self.config.num_hidden_layers)
            init.normal_(module.weight, mean=0.0, std=0.0 if self.config.zero_init_residual else std)
        elif isinstance(module, ChatGPTDecoderLayer) and module.embedding_scale is not None:
            init.zeros_(module.embedding_scale)
        elif isinstance(module, ChatGPTCausalConv):
            init.zeros_(module.weight)
        elif isinstance(module, ChatGPTSinusoidalEmbedding):
            init.copy_(module.table, module.compute_table(module.config))

    @staticmethod
    def create_masks_for_generate(
        config: ChatGPTConfig,
        inputs_embeds: torch.Tensor,
        attention_mask: Any,
        past_key_values: Cache | None = None,
        position_ids: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The mask of each kind of attention that the layers have, for `forward`, and for `generate` with a static cache.

        transformers' own function of this name gives a hybrid layer with a window a mask without one (5.23).
        """
        past_key_values = take_cache(past_key_values, kwargs)
        create = {"full_attention": create_causal_mask, "sliding_attention": create_sliding_window_causal_mask}
        return {
            kind: create[kind](
                config=config,
                inputs_embeds=inputs_embeds,
                attention_mask=attention_mask,
                position_ids=position_ids,
                **{CACHE_NAME: past_key_values},
            )
            for kind in set(config.attention_types)
        }

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """As in transformers, always under our own parameter names: `save_original_format` would write GPT-2's."""
        super().save_pretrained(*args, **{**kwargs, "save_original_format": False})


def document_bounds(position_ids: torch.Tensor) -> dict[str, Any]:
    """Where packed documents begin in the flattened (batch, seq) rows, as flash attention's kernels take it.

    transformers looks for restarting positions itself, but only in a batch of one row.
    """
    documents = find_packed_sequence_indices(position_ids)
    if documents is None:
        return {}
    starts = nn.functional.pad(documents.diff(dim=-1) != 0, (1, 0), value=True).flatten().nonzero().flatten()
    bounds = torch.cat((starts, starts.new_tensor([documents.numel()]))).to(torch.int32)
    longest = int(bounds.diff().max())
    return {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": longest, "max_length_k": longest}


class ChatGPTModel(ChatGPTPreTrainedModel):
    """The body: token ids or embeddings to hidden states after the last norm."""

    _auto_class = "AutoModel"

    def __init__(self, config: ChatGPTConfig) -> None:
        super().__init__(config)
        self.vocab_size = config.vocab_size
        # No `padding_idx`: where somebody pads with eos it would cut the gradient of eos.
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.embed_positions: nn.Module | None = None
        self.rotary_emb: nn.Module | None = None
        if config.position_embedding_type == "rope":
            self.rotary_emb = ChatGPTRotaryEmbedding(config)
        elif config.position_embedding_type == "learned":
            self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        else:
            self.embed_positions = ChatGPTSinusoidalEmbedding(config)
        # Unit-amplitude sinusoids drown token embeddings of std 0.02 unless these are scaled up (section 3.4).
        self.embed_scale = math.sqrt(config.hidden_size) if config.position_embedding_type == "sinusoidal" else 1.0
        self.ngram_embedding = ChatGPTNgramEmbedding(config) if config.ngram_vocab_sizes else None
        self.embedding_norm = make_norm(config) if config.embedding_norm else None
        self.embedding_dropout = nn.Dropout(config.embedding_dropout)
        self.layers = nn.ModuleList(
            [ChatGPTDecoderLayer(config, layer_idx) for layer_idx in range(config.num_hidden_layers)]
        )
        self.norm = make_norm(config)
        self.gradient_checkpointing = False
        self.post_init()

    def _embed(self, input_ids: torch.LongTensor) -> torch.Tensor:
        """(batch, seq) ids to (batch, seq, hidden); on a CPU, where it costs nothing, with a readable error."""
        if input_ids.device.type == "cpu" and input_ids.numel() and not is_tracing(input_ids):
            low, high = input_ids.min().item(), input_ids.max().item()
            # PEFT's wrappers of an embedding do not have its size.
            size = getattr(self.embed_tokens, "num_embeddings", self.config.vocab_size)
            if low < 0 or high >= size:
                raise ValueError(
                    f"`input_ids` holds ids from {low} to {high}; this model knows 0 to {size - 1} (`vocab_size`). "
                    "Is the tokenizer the model's own?"
                )
        return self.embed_tokens(input_ids)

    def _positions(
        self, inputs_embeds: torch.Tensor, attention_mask: Any, past_key_values: Cache | None
    ) -> torch.Tensor:
        """Positions of the new tokens, (batch or 1, seq): counted in the mask where there is a 2-D one.

        So a left-padded row starts at 0 like the same row alone (transformers' GPT-2 counts the padding:
        huggingface/transformers#18478, #21080).
        """
        seq_length = inputs_embeds.shape[1]
        if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2:
            return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -seq_length:]
        past_length = past_key_values.get_seq_length() if past_key_values is not None else 0
        return (torch.arange(seq_length, device=inputs_embeds.device) + past_length).unsqueeze(0)

    def _check_memory(self, input_ids: torch.LongTensor | None, past_key_values: Any) -> None:
        """Refuses what n-grams and convolutions cannot be right with: they need the tokens before the new ones."""
        if self.ngram_embedding is not None and input_ids is None:
            raise ValueError("A model with `ngram_vocab_sizes` looks ids up: give `input_ids`, not `inputs_embeds`.")
        hybrid = "hybrid" in self.config.layer_types[0]
        if hybrid and isinstance(past_key_values, Cache):
            layers = past_key_values.layers
            if not layers or not isinstance(layers[0], LinearAttentionCacheLayerMixin):
                raise ValueError(
                    "A model with `ngram_vocab_sizes` or `conv_kernel_size` needs a cache with places for more than keys and "
                    "values, `DynamicCache(config=model.config)`: prefix tuning, which gives it keys and values, is not possible."
                )
        # vLLM registers its paged attention under its own name.
        if hybrid and self.config._attn_implementation.startswith(("paged", "vllm")):
            raise ValueError(
                "A model with `ngram_vocab_sizes` or `conv_kernel_size` keeps more of the past than keys and values, which "
                "paged attention does not: generate without continuous batching, and not with vLLM."
            )

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPast:
        """Runs the decoder.

        Args:
            input_ids: (batch, seq); or `inputs_embeds` (batch, seq, hidden), one of the two.
            attention_mask: (batch, past + seq), 1 where a token may be seen.
            position_ids: (batch, seq). Positions that restart, without a mask and a cache, separate packed documents.
            past_key_values: A cache to continue from, also as `cache`; with `use_cache` a new `DynamicCache` where None.

        Raises:
            ValueError: On both or neither input, ids outside the vocabulary (on a CPU), or more positions than a
                learned or sinusoidal table has.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
        past_key_values = take_cache(past_key_values, kwargs)
        self._check_memory(input_ids, past_key_values)
        if inputs_embeds is None:
            inputs_embeds = self._embed(input_ids)

        masks = attention_mask
        if not isinstance(masks, dict):
            # Before a fresh cache: with a cache at hand transformers does not look for packed documents. And with the
            # positions that the user gave: None keeps sdpa's mask-free causal path.
            masks = self.create_masks_for_generate(
                self.config, inputs_embeds, attention_mask, past_key_values, position_ids
            )
        if position_ids is None:
            position_ids = self._positions(inputs_embeds, attention_mask, past_key_values)
        elif attention_mask is None and past_key_values is None and is_flash_attention_requested(self.config):
            kwargs = {**document_bounds(position_ids.expand(inputs_embeds.shape[0], -1)), **kwargs}
        seen = past_key_values.get_seq_length() if isinstance(past_key_values, Cache) else 0
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)

        hidden_states = inputs_embeds * self.embed_scale if self.embed_scale != 1.0 else inputs_embeds
        if self.embed_positions is not None:
            self._check_positions(position_ids, inputs_embeds.shape[1], seen)
            hidden_states = hidden_states + self.embed_positions(position_ids).to(hidden_states.dtype)
        if self.ngram_embedding is not None:
            history = with_history(input_ids[:, None], self.ngram_embedding.context, past_key_values, 0, 0)
            hidden_states = hidden_states + self.ngram_embedding(history[:, 0], position_ids)
        if self.embedding_norm is not None:
            hidden_states = self.embedding_norm(hidden_states)
        hidden_states = self.embedding_dropout(hidden_states)
        embeddings = hidden_states if self.config.embedding_residual else None
        same_document = None
        if self.config.conv_kernel_size is not None:
            distances = torch.arange(1, self.config.conv_kernel_size, device=position_ids.device)
            same_document = (position_ids[..., None] >= distances).to(hidden_states.dtype)
        position_embeddings = self.rotary_emb(hidden_states, position_ids) if self.rotary_emb is not None else None

        # As many as the config says, which `generate` lowers for a while to `assistant_early_exit`. A slice costs 40 microseconds.
        layers = zip(range(self.config.num_hidden_layers), self.layers, self.config.attention_types, strict=False)
        for _, layer, attention_type in layers:
            hidden_states = layer(
                hidden_states,
                embeddings=embeddings,
                same_document=same_document,
                attention_mask=masks[attention_type],
                position_embeddings=position_embeddings,
                position_ids=position_ids,
                use_cache=use_cache,
                **{CACHE_NAME: past_key_values},
                **kwargs,
            )
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden_states), **{CACHE_NAME: past_key_values})

    def _check_positions(self, position_ids: torch.Tensor, new: int, seen: Any) -> None:
        """Refuses positions past the table, which index out of range on a CPU and kill the context on a GPU."""
        limit = self.config.max_position_embeddings
        # Reading the positions makes a GPU wait, so there only an input that may be too long is looked at. It need not
        # be: padding takes no position, and a packed row may be longer than the table.
        suspect = position_ids.device.type == "cpu" or (isinstance(seen, int) and new + seen > limit)
        if suspect and not is_tracing(position_ids) and (longest := int(position_ids.max()) + 1) > limit:
            raise ValueError(
                f"The input reaches position {longest} and this model has {limit} "
                f"{self.config.position_embedding_type} positions (`max_position_embeddings`): shorten the input."
            )


def _is_fully_sharded(head: nn.Module) -> bool:
    """True for a plain matrix that FSDP2 has sharded, which makes a subclass of its class."""
    if type(head) is nn.Linear or not isinstance(head, nn.Linear) or type(head).forward is not nn.Linear.forward:
        return False
    # Imported by whoever shards; importing it here would take half a second of every start.
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and isinstance(head, fsdp.FSDPModule)


class ChatGPTForCausalLM(ChatGPTPreTrainedModel, GenerationMixin):
    """The body with a language-model head."""

    _auto_class = "AutoModelForCausalLM"
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _pp_plan = {"lm_head": (["hidden_states"], ["logits"])}
    _fsdp_plan = {"lm_head": "keep_full_weight"}

    def __init__(self, config: ChatGPTConfig) -> None:
        super().__init__(config)
        self.model = ChatGPTModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def _loss_reads_weight(self) -> bool:
        """Whether the head is the plain matrix that the chunked loss takes it for, and the loss the plain one.

        Adapters, quantized and offloaded heads, and a loss function of the user's own, need the logits. A head that FSDP2
        shards is read in its own forward pass: see `_head_loss`.
        """
        head = self.lm_head
        if _is_fully_sharded(head):
            return self.loss_function is ForCausalLMLoss
        hooked = head._forward_hooks or head._forward_pre_hooks or "forward" in vars(head)
        return (
            type(head) is nn.Linear
            and type(head.weight) in (nn.Parameter, torch.Tensor)
            # DeepSpeed's third stage leaves an empty tensor outside the head's own forward.
            and not hasattr(head.weight, "ds_id")
            and not hooked
            and self.loss_function is ForCausalLMLoss
        )

    def _head_loss(self, hidden_states: torch.Tensor, labels: torch.Tensor | None, **kwargs: Any) -> torch.Tensor:
        """The chunked loss of the head's matrix, which `_loss_reads_weight` allows.

        FSDP2 gathers the matrix before the head's forward pass and sends its gradient after the backward pass, by hooks of the
        call. So the loss takes the place of that forward pass, for this call.
        """
        head = self.lm_head
        if not _is_fully_sharded(head):
            return chunked_causal_lm_loss(hidden_states, head.weight, labels, **kwargs)
        head.forward = lambda hidden: chunked_causal_lm_loss(hidden, head.weight, labels, **kwargs)
        try:
            return head(hidden_states)
        finally:
            del head.forward

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        skip_logits: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CausalLMOutputWithPast:
        """Next-token logits (batch, kept, vocab), and the loss where `labels` are given.

        Args:
            labels: (batch, seq), -100 where nothing is learned; shifted here. Or `shift_labels`, shifted already.
            logits_to_keep: Last positions to keep, or which; 0 keeps all.
            skip_logits: Take the chunked loss and return no logits (the name is Liger kernel's). None means: while
                training with labels. False keeps the whole logits.
        """
        outputs: BaseModelOutputWithPast = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        hidden_states = slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep)
        has_labels = labels is not None or kwargs.get("shift_labels") is not None
        if skip_logits is None:
            skip_logits = self.training
        softcap = self.config.final_logit_softcapping
        logits = loss = None
        if skip_logits and has_labels and self._loss_reads_weight():
            loss = self._head_loss(hidden_states, labels, final_logit_softcapping=softcap, **kwargs)
        else:
            logits = self.lm_head(hidden_states)
            if softcap is not None:
                logits = torch.tanh(logits / softcap) * softcap
            if has_labels:
                loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **{CACHE_NAME: getattr(outputs, CACHE_NAME)},
        )


# The generic heads build their body through AutoModel, which a checkpoint with remote code does not name: these build
# ours, and keep the generic forward where it is right. Their losses are means, which `Trainer` has to divide by the steps
# that it accumulates: without `accepts_loss_kwargs` it believes that what takes `**kwargs` has done so.


class ChatGPTForSequenceClassification(GenericForSequenceClassification, ChatGPTPreTrainedModel):
    """Scores (batch, num_labels) from the last token that is not padding, or from the mean of all that are not."""

    _auto_class = "AutoModelForSequenceClassification"
    accepts_loss_kwargs = False

    def __init__(self, config: ChatGPTConfig) -> None:
        ChatGPTPreTrainedModel.__init__(self, config)
        self.num_labels = config.num_labels
        self.model = ChatGPTModel(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SequenceClassifierOutputWithPast:
        """Scores and the loss where `labels` are given: (batch,), or (batch, num_labels) for several labels or values a row.

        The generic head finds the last token by its id, and so takes a text that ends with the pad token, or with an eos
        that is also the pad token, for a shorter one. A mask says what is padding, on either side; only without one the id does.
        """
        outputs = self.model(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state
        batch, length = hidden_states.shape[:2]
        if attention_mask is not None and attention_mask.dim() == 2:
            is_text = attention_mask[:, -length:] != 0
        elif input_ids is not None and self.config.pad_token_id is not None:
            is_text = input_ids != self.config.pad_token_id
        elif batch == 1 or input_ids is None:
            is_text = torch.ones(batch, length, dtype=torch.bool, device=hidden_states.device)
        else:
            raise ValueError(
                "A batch of several rows needs an `attention_mask`, or a `pad_token_id` in the config, to tell where each ends."
            )
        is_text = is_text.to(hidden_states.device)
        if self.config.classifier_pooling == "mean":
            weights = is_text.to(hidden_states.dtype).unsqueeze(-1)
            pooled = (hidden_states * weights).sum(1) / weights.sum(1).clamp(min=1)
        else:
            last = (is_text * torch.arange(1, length + 1, device=is_text.device)).argmax(-1)
            pooled = hidden_states[torch.arange(batch, device=hidden_states.device), last]
        logits = self.score(pooled)
        # Regression learns standardized targets; the config holds their mean and standard deviation.
        if (mean := getattr(self.config, "target_mean", None)) is not None:
            logits = logits.float() * self.config.target_scale + mean
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=None, labels=labels, pooled_logits=logits, config=self.config)
        return SequenceClassifierOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **{CACHE_NAME: getattr(outputs, CACHE_NAME)},
        )


class ChatGPTForTokenClassification(GenericForTokenClassification, ChatGPTPreTrainedModel):
    """Scores (batch, seq, num_labels)."""

    _auto_class = "AutoModelForTokenClassification"
    accepts_loss_kwargs = False

    def __init__(self, config: ChatGPTConfig) -> None:
        ChatGPTPreTrainedModel.__init__(self, config)
        self.num_labels = config.num_labels
        self.model = ChatGPTModel(config)
        self.dropout = nn.Dropout(config.residual_dropout)
        self.score = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()


class ChatGPTForQuestionAnswering(GenericForQuestionAnswering, ChatGPTPreTrainedModel):
    """Start and end logits of an answer, each (batch, seq)."""

    _auto_class = "AutoModelForQuestionAnswering"

    def __init__(self, config: ChatGPTConfig) -> None:
        ChatGPTPreTrainedModel.__init__(self, config)
        self.model = ChatGPTModel(config)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()


__all__ = [
    "ChatGPTForCausalLM",
    "ChatGPTForQuestionAnswering",
    "ChatGPTForSequenceClassification",
    "ChatGPTForTokenClassification",
    "ChatGPTModel",
    "ChatGPTPreTrainedModel",
]
