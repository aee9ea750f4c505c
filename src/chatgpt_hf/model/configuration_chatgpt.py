"""What a chatgpt model is: the one configuration, from GPT-2 to the modern recipe.

Travels to the Hub beside `modeling_chatgpt.py` as remote code, so it imports transformers and nothing of this package.
"""

from collections.abc import Callable
from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers.activations import ACT2FN
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

# No `from __future__ import annotations` here: `@strict` checks types only where annotations are not strings.

# Radford et al. 2019, table 2, as published in the checkpoints' own config.json.
GPT2_SIZES: dict[str, dict[str, int]] = {
    "gpt2": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
    "gpt2-medium": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16},
    "gpt2-large": {"hidden_size": 1280, "num_hidden_layers": 36, "num_attention_heads": 20},
    "gpt2-xl": {"hidden_size": 1600, "num_hidden_layers": 48, "num_attention_heads": 25},
}

# What makes a decoder GPT-2's, beside its size.
GPT2_ARCHITECTURE: dict[str, Any] = {
    "position_embedding_type": "learned",
    "norm_type": "layernorm",
    "norm_eps": 1e-5,
    "norm_bias": True,
    "hidden_act": "gelu_new",
    "gated_mlp": False,
    "attention_bias": True,
    "mlp_bias": True,
    "qk_norm": False,
    "embedding_norm": False,
    "embedding_residual": False,
    "zero_init_residual": False,
    "conv_kernel_size": None,
    "ngram_vocab_sizes": None,
    "tie_word_embeddings": True,
}

# Which class of the files beside a saved model each Auto class is to load, for whoever has not installed the package.
AUTO_MAP: dict[str, str] = {
    "AutoConfig": "configuration_chatgpt.ChatGPTConfig",
    "AutoModel": "modeling_chatgpt.ChatGPTModel",
    "AutoModelForCausalLM": "modeling_chatgpt.ChatGPTForCausalLM",
    "AutoModelForSequenceClassification": "modeling_chatgpt.ChatGPTForSequenceClassification",
    "AutoModelForTokenClassification": "modeling_chatgpt.ChatGPTForTokenClassification",
    "AutoModelForQuestionAnswering": "modeling_chatgpt.ChatGPTForQuestionAnswering",
}


@strict
class ChatGPTConfig(PreTrainedConfig):
    """Configuration of a `chatgpt` model. The defaults are the modern recipe at GPT-2's width and depth.

    Args:
        vocab_size: Number of token ids the embedding and the head know.
        hidden_size: Width of the residual stream.
        intermediate_size: Width of the feed-forward layer; `None` means `4 * hidden_size`, or with `gated_mlp` two
            thirds of that, rounded up to a multiple of 64 (the same number of parameters; Shazeer 2020).
        num_hidden_layers: Number of decoder layers.
        num_attention_heads: Query heads per layer.
        num_key_value_heads: Key and value heads per layer (grouped-query attention, Ainslie et al. 2023); `None` means
            one for each query head.
        head_dim: Width of a head; `None` means `hidden_size // num_attention_heads`.
        max_position_embeddings: Longest sequence. A hard limit with learned and sinusoidal positions.
        position_embedding_type: `"rope"` (Su et al. 2021), `"learned"` (GPT-2) or `"sinusoidal"` (Vaswani et al. 2017,
            section 3.5).
        rope_parameters: As in transformers: `rope_type`, `rope_theta` and what the scaling needs, the same for all
            layers. Only with `"rope"`.
        norm_type: `"rmsnorm"` (Zhang & Sennrich 2019) or `"layernorm"`.
        norm_eps: Added to the variance.
        norm_bias: Whether norms have a bias.
        hidden_act: Any name in transformers' `ACT2FN`; `relu2` is the squared ReLU of Primer (So et al. 2021).
        gated_mlp: `down(act(gate(x)) * up(x))` instead of `down(act(up(x)))`; with `silu` that is SwiGLU.
        attention_bias: Bias on the query, key, value and output projections.
        mlp_bias: Bias on the feed-forward projections.
        qk_norm: RMSNorm on each head's queries and keys before the rotation (Dehghani et al. 2023).
        embedding_norm: Apply the norm to the embeddings too, before the first layer.
        embedding_residual: Each layer first adds the embeddings again, times a learned number that starts at 0 (the `x0`
            of modded-nanogpt's records, Jordan et al. 2024).
        zero_init_residual: The projections that write to the residual stream start at 0, so that each layer begins as
            the identity (Zhang et al. 2019, "Fixup"; muP's advice for outputs, Yang et al. 2022).
        ngram_vocab_sizes: Sizes of further embedding tables, looked up by a hash of the last two ids, the last three,
            and so on, and added to the token's (hashed n-gram embeddings, Svenstrup et al. 2017; Clark et al. 2022).
            No id is taken from before the start of a document.
        conv_kernel_size: Before attention and before the feed-forward layer, mix each channel with its own values at the
            `conv_kernel_size - 1` positions before (Canon layers A and C, Allen-Zhu 2025, "Physics of language models 4.1").
            While decoding, the last tokens are kept in the cache of the layers, whose type is then `"hybrid"` or
            `"hybrid_sliding"`.
        tie_word_embeddings: Whether the head uses the embedding matrix.
        attention_dropout: Dropout on attention weights while training.
        residual_dropout: Dropout on what each sublayer adds to the residual stream.
        embedding_dropout: Dropout on the sum of token and position embeddings.
        sliding_window: Number of positions, including its own, that a token attends to in a sliding layer.
        layer_types: `"full_attention"` or `"sliding_attention"` for each layer; `None` means all sliding if
            `sliding_window` is set, and all full otherwise.
        final_logit_softcapping: Caps logits at `±c` by `c * tanh(logits / c)` (Gemma 2); `None` leaves them.
        scale_attn_by_inverse_layer_idx: Divides attention scores by the layer's number (some GPT-2 checkpoints).
        initializer_range: Standard deviation of the initial weights. The projections that write to the residual
            stream start smaller by `sqrt(2 * num_hidden_layers)` (Radford et al. 2019, section 2.3).
        classifier_pooling: Where `ChatGPTForSequenceClassification` reads the class from: the `"last"` token (Radford et al. 2018) or the
            `"mean"` over the text's tokens.

    Raises:
        ValueError: When fields contradict each other; the message names them.
        StrictDataclassFieldValidationError: When a field has the wrong type or none of its values.
    """

    model_type = "chatgpt"
    keys_to_ignore_at_inference = ["past_key_values", "cache"]
    attribute_map = {
        "n_embd": "hidden_size",
        "n_layer": "num_hidden_layers",
        "n_head": "num_attention_heads",
        "n_positions": "max_position_embeddings",
        "n_inner": "intermediate_size",
    }
    # Makes `save_pretrained` put this file beside config.json.
    _auto_class = "AutoConfig"
    # Readers of other families' config.json by their `model_type`, filled by `chatgpt_hf.conversion`: this file must
    # not import the package.
    foreign_config_readers: ClassVar[dict[str, Callable[[dict[str, Any]], dict[str, Any]]]] = {}

    vocab_size: int = 50304
    hidden_size: int = 768
    intermediate_size: int | None = None
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    max_position_embeddings: int = 1024
    position_embedding_type: Literal["rope", "learned", "sinusoidal"] = "rope"
    rope_parameters: dict[str, Any] | None = None
    norm_type: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    norm_eps: float | int = 1e-6
    norm_bias: bool = False
    hidden_act: str = "relu2"
    gated_mlp: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = True
    embedding_norm: bool = False
    embedding_residual: bool = False
    zero_init_residual: bool = False
    ngram_vocab_sizes: list[int] | None = None
    conv_kernel_size: int | None = None
    tie_word_embeddings: bool = True
    attention_dropout: float | int = 0.0
    residual_dropout: float | int = 0.0
    embedding_dropout: float | int = 0.0
    sliding_window: int | None = None
    layer_types: list[str] | None = None
    final_logit_softcapping: float | int | None = None
    scale_attn_by_inverse_layer_idx: bool = False
    initializer_range: float | int = 0.02
    classifier_pooling: Literal["last", "mean"] = "last"
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        # GPT-2's names reach us here, after the fields have their defaults and before anything is derived from them.
        for alias in [name for name in kwargs if name in self.attribute_map]:
            setattr(self, self.attribute_map[alias], kwargs.pop(alias))
        if self.num_attention_heads < 1:
            raise ValueError(f"`num_attention_heads` must be at least 1, got {self.num_attention_heads}.")
        if self.intermediate_size is None:
            wide = 4 * self.hidden_size
            self.intermediate_size = -(-wide * 2 // (3 * 64)) * 64 if self.gated_mlp else wide
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None:
            if self.hidden_size % self.num_attention_heads:
                raise ValueError(
                    f"`hidden_size` ({self.hidden_size}) is not a multiple of `num_attention_heads` "
                    f"({self.num_attention_heads}); change one of them or set `head_dim`."
                )
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.layer_types is None:
            layer_type = "full_attention" if self.sliding_window is None else "sliding_attention"
            self.layer_types = [layer_type] * self.num_hidden_layers
        hybrid = {"full_attention": "hybrid", "sliding_attention": "hybrid_sliding"}
        for index in range(self._hybrid_layers()):
            self.layer_types = list(self.layer_types)
            self.layer_types[index] = hybrid.get(self.layer_types[index], self.layer_types[index])
        if self.position_embedding_type != "rope":
            if self.rope_parameters:
                raise ValueError(
                    f"`rope_parameters` is set and `position_embedding_type` is {self.position_embedding_type!r}: "
                    "leave `rope_parameters` out or use 'rope'."
                )
            kwargs = {name: value for name, value in kwargs.items() if name not in ("rope_theta", "rope_scaling")}
        elif self.rope_parameters:
            # transformers fills in what is missing; the caller's dictionary stays as it is.
            self.rope_parameters = dict(self.rope_parameters)
        super().__post_init__(**kwargs)
        if self.position_embedding_type != "rope":
            self.rope_parameters = None
        # `@strict` calls it too, before saving as well, but wraps its errors in a class that is no ValueError.
        self.validate_architecture()

    def validate_architecture(self) -> None:
        """Refuses what cannot be built. Also called by `@strict` after construction and before saving."""
        if self.num_key_value_heads is None or self.head_dim is None or self.layer_types is None:
            raise ValueError(
                "`num_key_value_heads`, `head_dim` and `layer_types` may be None in the constructor only."
            )
        counts = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        for name in (*counts, "num_key_value_heads", "head_dim", "max_position_embeddings"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"`num_attention_heads` ({self.num_attention_heads}) is not a multiple of `num_key_value_heads` "
                f"({self.num_key_value_heads})."
            )
        if self.position_embedding_type == "rope" and self.head_dim % 2:
            raise ValueError(
                f"`position_embedding_type='rope'` rotates pairs: `head_dim` must be even, got {self.head_dim}."
            )
        if self.position_embedding_type == "rope":
            self._check_rope_parameters()
        if self.position_embedding_type == "sinusoidal" and self.hidden_size % 2:
            raise ValueError(
                "`position_embedding_type='sinusoidal'` pairs sines and cosines: `hidden_size` must be even, got "
                f"{self.hidden_size}."
            )
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"`hidden_act` {self.hidden_act!r} is unknown; transformers has {sorted(ACT2FN)}.")
        for name in ("attention_dropout", "residual_dropout", "embedding_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"`{name}` must be in [0, 1), got {getattr(self, name)}.")
        if self.norm_eps < 0:
            raise ValueError(f"`norm_eps` must not be negative, got {self.norm_eps}.")
        if self.final_logit_softcapping is not None and self.final_logit_softcapping <= 0:
            raise ValueError(
                f"`final_logit_softcapping` must be positive or None, got {self.final_logit_softcapping}."
            )
        if len(self.layer_types) != self.num_hidden_layers:
            raise ValueError(
                f"`layer_types` has {len(self.layer_types)} entries and `num_hidden_layers` is {self.num_hidden_layers}."
            )
        hybrid_layers = self._hybrid_layers()
        if [kind.startswith("hybrid") for kind in self.layer_types] != [
            index < hybrid_layers for index in range(self.num_hidden_layers)
        ]:
            raise ValueError(
                f"`layer_types` is {self.layer_types}: with `ngram_vocab_sizes` {self.ngram_vocab_sizes} and "
                f"`conv_kernel_size` {self.conv_kernel_size} the first {hybrid_layers} are hybrid and no others."
            )
        if self.ngram_vocab_sizes is not None and min(self.ngram_vocab_sizes, default=0) < 1:
            raise ValueError(f"`ngram_vocab_sizes` must be None or sizes of at least 1, got {self.ngram_vocab_sizes}.")
        if self.conv_kernel_size is not None and self.conv_kernel_size < 2:
            raise ValueError(f"`conv_kernel_size` must be None or at least 2, got {self.conv_kernel_size}.")
        attention = set(self.attention_types)
        unknown = attention - {"full_attention", "sliding_attention"}
        if unknown:
            raise ValueError(
                f"`layer_types` holds {sorted(unknown)}; known are 'full_attention' and 'sliding_attention'."
            )
        sliding = "sliding_attention" in attention
        if sliding and (self.sliding_window is None or self.sliding_window < 1):
            raise ValueError(
                f"`layer_types` has sliding layers and `sliding_window` is {self.sliding_window}; it must be at least 1."
            )
        if self.sliding_window is not None and not sliding:
            raise ValueError(
                f"`sliding_window` is {self.sliding_window} and no entry of `layer_types` is 'sliding_attention'."
            )

    def _hybrid_layers(self) -> int:
        """How many layers' caches hold more than keys and values: the first, for n-grams, or all, for convolutions."""
        if self.conv_kernel_size is not None:
            return self.num_hidden_layers
        return 1 if self.ngram_vocab_sizes else 0

    @property
    def number_of_conv_states(self) -> int:
        """States of a hybrid layer's cache, by the name that transformers' caches read."""
        return 1 if self.conv_kernel_size is None else 2

    @property
    def attention_types(self) -> list[str]:
        """`"full_attention"` or `"sliding_attention"` by layer, also where a layer's cache holds more than keys and values."""
        names = {"hybrid": "full_attention", "hybrid_sliding": "sliding_attention"}
        return [names.get(kind, kind) for kind in self.layer_types or ()]

    def _check_rope_parameters(self) -> None:
        rope = self.rope_parameters or {}
        if "rope_type" not in rope:
            raise ValueError(f"`rope_parameters` is the same for all layers and needs a `rope_type`, got {rope}.")
        if rope["rope_type"] not in ("default", *ROPE_INIT_FUNCTIONS):
            raise ValueError(
                f"`rope_parameters` has `rope_type` {rope['rope_type']!r}; transformers has "
                f"{['default', *ROPE_INIT_FUNCTIONS]}."
            )
        if rope.get("partial_rotary_factor", 1.0) != 1.0:
            raise ValueError(
                f"`rope_parameters` has `partial_rotary_factor` {rope['partial_rotary_factor']}: this model rotates "
                "whole heads."
            )
        try:
            self.validate_rope()
        except KeyError as error:
            raise ValueError(error.args[0]) from error

    @property
    def base_model_tp_plan(self) -> dict[str, str]:  # type: ignore[override]
        """Tensor-parallel styles. A property: transformers refuses an entry that no module matches."""
        plan = {f"layers.*.self_attn.{name}_proj": "colwise" for name in "qkv"}
        plan["layers.*.self_attn.o_proj"] = "rowwise"
        if self.qk_norm:
            plan |= {f"layers.*.self_attn.{name}_norm": "replicated_with_grad_allreduce" for name in "qk"}
        plan["layers.*.mlp.up_proj"] = "colwise"
        if self.gated_mlp:
            plan["layers.*.mlp.gate_proj"] = "colwise"
        plan["layers.*.mlp.down_proj"] = "rowwise"
        return plan

    @base_model_tp_plan.setter
    def base_model_tp_plan(self, plan: dict[str, str]) -> None:
        # transformers 5.20, which vLLM 0.33 needs, assigns what it read with the tied embeddings added.
        if {name: style for name, style in plan.items() if name != "embed_tokens"} != self.base_model_tp_plan:
            raise AttributeError("base_model_tp_plan follows from the config: assign to the model's tp_plan instead.")

    base_model_pp_plan = {
        "embed_tokens": (["input_ids"], ["inputs_embeds"]),
        "layers": (["hidden_states", "attention_mask"], ["hidden_states"]),
        "norm": (["hidden_states"], ["hidden_states"]),
    }

    @classmethod
    def gpt2(cls, size: str = "gpt2", **overrides: Any) -> "ChatGPTConfig":
        """The published GPT-2 of that size (Radford et al. 2019).

        Raises:
            ValueError: When `size` is none of `gpt2`, `gpt2-medium`, `gpt2-large`, `gpt2-xl`.
        """
        if size not in GPT2_SIZES:
            raise ValueError(f"`size` {size!r} is unknown; GPT-2 comes as {', '.join(GPT2_SIZES)}.")
        published = {
            "vocab_size": 50257,
            "max_position_embeddings": 1024,
            "bos_token_id": 50256,
            "eos_token_id": 50256,
            "attention_dropout": 0.1,
            "residual_dropout": 0.1,
            "embedding_dropout": 0.1,
        }
        return cls(**{**GPT2_ARCHITECTURE, **published, **GPT2_SIZES[size], **overrides})

    @classmethod
    def from_depth(cls, depth: int, **overrides: Any) -> "ChatGPTConfig":
        """One dial for the size: `depth` layers of width `64 * depth` with `depth` heads of 64.

        Width grows with depth, as in nanochat's ladder of models, so that a deeper model is not a thinner one.

        Raises:
            ValueError: When `depth` is below 1.
        """
        if depth < 1:
            raise ValueError(f"`depth` must be at least 1, got {depth}.")
        dial = {"num_hidden_layers": depth, "hidden_size": 64 * depth, "num_attention_heads": depth}
        return cls(**{**dial, **overrides})

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: Any, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """As in transformers; a config.json of a family that we read is translated on the way."""
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        family = config_dict.get("model_type", "")
        reader = cls.foreign_config_readers.get(family)
        # Stays in the config of whatever is made from it: its first training was not ours.
        return ({**reader(config_dict), "converted_from": {"model_type": family}} if reader else config_dict), kwargs

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> None:
        """As in transformers, with an `auto_map` of every head: whoever loads a saved language model may want a classifier.

        transformers names the saved class alone, the classes of a model from the Hub by the repository they came from, and
        under FSDP2 a class that torch made. Classes of a user's own stay.
        """
        ours = {reference.partition(".")[0] for reference in AUTO_MAP.values()}
        auto_map = dict(getattr(self, "auto_map", None) or {})
        for name, reference in AUTO_MAP.items():
            module = str(auto_map.get(name, reference)).rpartition("--")[2].partition(".")[0]
            if module in ours:
                auto_map[name] = reference
        self.auto_map = auto_map
        super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)


__all__ = ["ChatGPTConfig"]
