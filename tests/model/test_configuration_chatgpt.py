"""The configuration: each field does what it says, alone and with others, and what cannot be built is refused."""

import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from chatgpt_hf import ChatGPTConfig, ChatGPTForCausalLM

TINY: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}


def build(**overrides: Any) -> ChatGPTForCausalLM:
    """A tiny model whose weights are wide enough for every part to show in the logits."""
    return ChatGPTForCausalLM(ChatGPTConfig(**{**TINY, "initializer_range": 0.2, **overrides})).eval()


def some_ids(rows: int = 2, length: int = 12) -> torch.Tensor:
    return torch.randint(0, TINY["vocab_size"], (rows, length), generator=torch.Generator().manual_seed(7))


def logits_of(model: ChatGPTForCausalLM) -> torch.Tensor:
    with torch.no_grad():
        return model(some_ids()).logits


STRUCTURE: list[tuple[dict[str, Any], Callable[[ChatGPTForCausalLM], Any], Any]] = [
    ({"vocab_size": 70}, lambda m: (m.model.embed_tokens.num_embeddings, m.lm_head.out_features), (70, 70)),
    ({"hidden_size": 48}, lambda m: (m.model.norm.weight.numel(), m.config.head_dim), (48, 12)),
    ({"intermediate_size": 40}, lambda m: m.model.layers[1].mlp.up_proj.out_features, 40),
    ({"num_hidden_layers": 3}, lambda m: (len(m.model.layers), len(m.config.layer_types)), (3, 3)),
    ({"num_attention_heads": 8}, lambda m: m.model.layers[0].self_attn.q_norm.weight.numel(), 4),
    ({"num_key_value_heads": 2}, lambda m: m.model.layers[0].self_attn.k_proj.out_features, 16),
    ({"num_key_value_heads": 1}, lambda m: m.model.layers[0].self_attn.v_proj.out_features, 8),
    ({"head_dim": 16}, lambda m: m.model.layers[0].self_attn.q_proj.out_features, 64),
    (
        {"position_embedding_type": "learned", "max_position_embeddings": 17},
        lambda m: (m.model.embed_positions.num_embeddings, m.model.rotary_emb),
        (17, None),
    ),
    ({"position_embedding_type": "sinusoidal"}, lambda m: m.model.embed_positions.table.shape, (64, 32)),
    (
        {"position_embedding_type": "rope"},
        lambda m: (m.model.embed_positions, len(m.model.rotary_emb.inv_freq)),
        (None, 4),
    ),
    ({"norm_type": "layernorm"}, lambda m: type(m.model.norm), nn.LayerNorm),
    ({"norm_type": "layernorm", "norm_bias": True}, lambda m: m.model.norm.bias.numel(), 32),
    ({"norm_type": "layernorm"}, lambda m: m.model.norm.bias, None),
    ({"norm_bias": True}, lambda m: m.model.layers[0].post_attention_layernorm.bias.numel(), 32),
    (
        {"hidden_act": "silu"},
        lambda m: m.model.layers[0].mlp.act_fn(torch.tensor(1.0)).item(),
        pytest.approx(0.731059),
    ),
    ({"gated_mlp": True}, lambda m: m.model.layers[0].mlp.gate_proj.weight.shape, (128, 32)),
    ({"gated_mlp": True, "hidden_size": 96}, lambda m: m.config.intermediate_size, 256),
    ({"gated_mlp": False}, lambda m: m.model.layers[0].mlp.gate_proj, None),
    ({"attention_bias": True}, lambda m: m.model.layers[0].self_attn.o_proj.bias.numel(), 32),
    ({"attention_bias": False}, lambda m: m.model.layers[0].self_attn.q_proj.bias, None),
    ({"mlp_bias": True}, lambda m: m.model.layers[0].mlp.down_proj.bias.numel(), 32),
    ({"qk_norm": False}, lambda m: m.model.layers[0].self_attn.k_norm, None),
    ({"tie_word_embeddings": True}, lambda m: m.lm_head.weight is m.model.embed_tokens.weight, True),
    ({"tie_word_embeddings": False}, lambda m: m.lm_head.weight is m.model.embed_tokens.weight, False),
    ({"sliding_window": 5}, lambda m: [layer.self_attn.sliding_window for layer in m.model.layers], [5, 5]),
    (
        {"sliding_window": 5, "layer_types": ["full_attention", "sliding_attention"]},
        lambda m: [layer.self_attn.sliding_window for layer in m.model.layers],
        [None, 5],
    ),
    ({"use_cache": False}, lambda m: m(some_ids()).past_key_values, None),
]


@pytest.mark.parametrize(
    ("overrides", "look", "expected"), STRUCTURE, ids=lambda value: "" if callable(value) else str(value)[:60]
)
def test_a_field_shapes_the_model(overrides: dict[str, Any], look: Callable, expected: Any) -> None:
    model = build(**overrides)
    assert look(model) == expected
    assert model(some_ids(), labels=some_ids()).loss.isfinite()


@pytest.mark.parametrize(
    "overrides",
    [
        {"norm_eps": 0.5},
        {"hidden_act": "gelu"},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 50.0}},
        {"final_logit_softcapping": 2.0},
        {"scale_attn_by_inverse_layer_idx": True},
        {"sliding_window": 3},
        {"norm_type": "layernorm"},
        {"position_embedding_type": "sinusoidal"},
    ],
    ids=str,
)
def test_a_field_without_parameters_changes_the_outputs(overrides: dict[str, Any]) -> None:
    plain, changed = build(), build(**overrides)
    changed.load_state_dict(plain.state_dict())
    assert (logits_of(plain) - logits_of(changed)).abs().max() > 1e-3


@pytest.mark.parametrize("field", ["attention_dropout", "residual_dropout", "embedding_dropout"])
def test_a_dropout_acts_while_training_only(field: str) -> None:
    model, plain = build(**{field: 0.5}), build()
    plain.load_state_dict(model.state_dict())
    assert torch.equal(logits_of(model), logits_of(plain))
    model.train()
    assert not torch.equal(logits_of(model), logits_of(model))


def test_softcapping_is_tanh_of_the_logits() -> None:
    plain, capped = build(), build(final_logit_softcapping=1.5)
    capped.load_state_dict(plain.state_dict())
    torch.testing.assert_close(logits_of(capped), 1.5 * torch.tanh(logits_of(plain) / 1.5))
    assert logits_of(plain).abs().max() > 1.5 > logits_of(capped).abs().max()


def test_a_sliding_layer_sees_exactly_its_window() -> None:
    model = build(num_hidden_layers=1, sliding_window=4)
    ids, changed = some_ids(1), some_ids(1)
    changed[0, 2] = (ids[0, 2] + 1) % TINY["vocab_size"]
    with torch.no_grad():
        differs = (model(ids).logits - model(changed).logits).abs().amax(-1)[0] > 1e-6
    assert differs.tolist() == [2 <= position < 6 for position in range(12)]


def test_inverse_layer_scaling_divides_by_the_layer_number() -> None:
    scalings = [layer.self_attn.scaling for layer in build(scale_attn_by_inverse_layer_idx=True).model.layers]
    assert scalings == [8**-0.5, 8**-0.5 / 2]


def test_initializer_range_is_the_standard_deviation() -> None:
    weight = build(initializer_range=0.5, vocab_size=2000).model.embed_tokens.weight
    assert weight.std().item() == pytest.approx(0.5, rel=0.02)


def content(config: ChatGPTConfig) -> dict[str, Any]:
    """Everything that a config says about the model; not where it was read from."""
    return {name: value for name, value in json.loads(config.to_json_string(False)).items() if name != "_name_or_path"}


CHOICES: dict[str, list[Any]] = {
    "position_embedding_type": ["rope", "learned", "sinusoidal"],
    "norm_type": ["rmsnorm", "layernorm"],
    "norm_bias": [False, True],
    "hidden_act": ["relu2", "gelu_new", "silu", "relu"],
    "gated_mlp": [False, True],
    "attention_bias": [False, True],
    "mlp_bias": [False, True],
    "qk_norm": [False, True],
    "tie_word_embeddings": [False, True],
    "num_key_value_heads": [None, 2, 1],
    "head_dim": [None, 6],
    "intermediate_size": [None, 40],
    "sliding_window": [None, 5],
    "final_logit_softcapping": [None, 3.0],
    "scale_attn_by_inverse_layer_idx": [False, True],
}


def combination(seed: int) -> dict[str, Any]:
    """One draw of every field; with a window half the draws mix sliding and full layers."""
    rng = random.Random(seed)
    drawn = {name: rng.choice(values) for name, values in CHOICES.items()}
    if drawn["sliding_window"] and rng.random() < 0.5:
        drawn["layer_types"] = ["full_attention", "sliding_attention"]
    return drawn


@pytest.mark.parametrize("seed", range(14))
def test_combinations_train_save_and_generate(seed: int, tmp_path: Path) -> None:
    model = build(**combination(seed))
    model.train()
    model(some_ids(), labels=some_ids()).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        # A bias of the keys moves all scores of a query alike, which softmax does not see.
        assert name.endswith("k_proj.bias") or parameter.grad.abs().max() > 0, name
    model.eval()

    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert content(again.config) == content(model.config)
    assert torch.equal(logits_of(model), logits_of(again))

    def generate(**how: Any) -> list[list[int]]:
        return model.generate(some_ids(length=6), max_new_tokens=10, do_sample=False, pad_token_id=0, **how).tolist()

    assert generate() == generate(use_cache=False) == generate(cache_implementation="static")


def test_the_combinations_cover_every_choice() -> None:
    drawn = [combination(seed) for seed in range(14)]
    missing = [
        (name, value) for name, values in CHOICES.items() for value in values if all(d[name] != value for d in drawn)
    ]
    assert missing == []


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            {"n_embd": 64, "n_head": 4},
            {"hidden_size": 64, "num_attention_heads": 4, "head_dim": 16, "intermediate_size": 256},
        ),
        ({"n_layer": 3}, {"num_hidden_layers": 3, "layer_types": ["full_attention"] * 3}),
        ({"n_positions": 99}, {"max_position_embeddings": 99}),
        ({"n_inner": 77}, {"intermediate_size": 77}),
        ({"n_embd": 64, "n_head": 2, "num_key_value_heads": 1}, {"head_dim": 32, "num_key_value_heads": 1}),
        ({"n_inner": None, "n_embd": 24, "n_head": 2}, {"intermediate_size": 96}),
    ],
    ids=str,
)
def test_gpt2_names_in_the_constructor(given: dict[str, Any], expected: dict[str, Any]) -> None:
    config = ChatGPTConfig(**given)
    assert {name: getattr(config, name) for name in expected} == expected


@pytest.mark.parametrize(("alias", "name"), list(ChatGPTConfig.attribute_map.items()))
def test_gpt2_names_as_attributes(alias: str, name: str) -> None:
    config = ChatGPTConfig(**TINY)
    assert getattr(config, alias) == getattr(config, name)
    setattr(config, alias, 12)
    assert getattr(config, name) == 12
    assert alias not in config.to_dict()


REFUSED: list[tuple[dict[str, Any], list[str]]] = [
    ({"hidden_size": 10, "num_attention_heads": 3}, ["hidden_size", "10", "num_attention_heads", "3", "head_dim"]),
    ({"n_embd": 64, "n_head": 3}, ["hidden_size", "64", "num_attention_heads"]),
    ({"num_attention_heads": 0}, ["num_attention_heads", "0"]),
    ({"num_key_value_heads": 3}, ["num_attention_heads", "4", "num_key_value_heads", "3"]),
    ({"vocab_size": 0}, ["vocab_size"]),
    ({"num_hidden_layers": 0}, ["num_hidden_layers"]),
    ({"intermediate_size": -1}, ["intermediate_size", "-1"]),
    ({"max_position_embeddings": 0}, ["max_position_embeddings"]),
    ({"head_dim": 7}, ["position_embedding_type", "rope", "head_dim", "7"]),
    (
        {"position_embedding_type": "sinusoidal", "hidden_size": 33, "num_attention_heads": 3},
        ["sinusoidal", "hidden_size", "33"],
    ),
    ({"hidden_act": "swoosh"}, ["hidden_act", "swoosh", "gelu_new"]),
    ({"attention_dropout": 1.0}, ["attention_dropout", "1.0"]),
    ({"residual_dropout": -0.1}, ["residual_dropout"]),
    ({"embedding_dropout": 2}, ["embedding_dropout"]),
    ({"norm_eps": -1.0}, ["norm_eps"]),
    ({"final_logit_softcapping": 0.0}, ["final_logit_softcapping"]),
    ({"sliding_window": 0}, ["sliding_window", "0"]),
    ({"layer_types": ["sliding_attention"] * 2}, ["layer_types", "sliding_window", "None"]),
    ({"sliding_window": 4, "layer_types": ["full_attention"] * 2}, ["sliding_window", "layer_types"]),
    ({"layer_types": ["full_attention"]}, ["layer_types", "num_hidden_layers", "2"]),
    ({"layer_types": ["full_attention", "chunked_attention"]}, ["layer_types", "chunked_attention"]),
    (
        {"position_embedding_type": "learned", "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
        ["rope_parameters", "position_embedding_type", "learned"],
    ),
    (
        {"rope_parameters": {"rope_type": "spiral", "rope_theta": 1e4}},
        ["rope_parameters", "rope_type", "spiral", "yarn"],
    ),
    ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}}, ["rope_parameters", "linear", "factor"]),
    ({"partial_rotary_factor": 0.5}, ["rope_parameters", "partial_rotary_factor"]),
    ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, ["rope_parameters", "rope_type"]),
]


@pytest.mark.parametrize(("overrides", "words"), REFUSED, ids=lambda value: "" if callable(value) else str(value)[:60])
def test_contradictions_are_refused_by_name(overrides: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ValueError, match=words[0]) as refusal:
        ChatGPTConfig(**{**TINY, **overrides})
    assert [word for word in words if word not in str(refusal.value)] == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_size", "wide"),
        ("n_embd", "wide"),
        ("position_embedding_type", "alibi"),
        ("norm_type", "batchnorm"),
        ("gated_mlp", "yes"),
        ("layer_types", "full_attention"),
        ("attention_dropout", "0.1"),
    ],
)
def test_a_wrong_type_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(StrictDataclassFieldValidationError) as refusal:
        ChatGPTConfig(**{field: value})
    assert ChatGPTConfig.attribute_map.get(field, field) in str(refusal.value)


def test_a_contradiction_made_later_is_refused_on_saving(tmp_path: Path) -> None:
    config = ChatGPTConfig(**TINY)
    config.num_key_value_heads = 3
    with pytest.raises(Exception, match="num_key_value_heads"):
        config.save_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("size", "parameters"),
    [("gpt2", 124_439_808), ("gpt2-medium", 354_823_168), ("gpt2-large", 774_030_080), ("gpt2-xl", 1_557_611_200)],
)
def test_gpt2_sizes_have_the_published_parameters(size: str, parameters: int) -> None:
    with torch.device("meta"):
        model = ChatGPTForCausalLM(ChatGPTConfig.gpt2(size))
    assert model.num_parameters() == parameters


def test_gpt2_takes_overrides_and_refuses_unknown_sizes() -> None:
    config = ChatGPTConfig.gpt2("gpt2", attention_dropout=0.0, n_layer=2)
    assert (config.attention_dropout, config.residual_dropout, config.num_hidden_layers) == (0.0, 0.1, 2)
    with pytest.raises(ValueError, match=r"gpt3.*gpt2-xl"):
        ChatGPTConfig.gpt2("gpt3")


@pytest.mark.parametrize("depth", [1, 4, 20])
def test_from_depth_sets_width_and_heads(depth: int) -> None:
    config = ChatGPTConfig.from_depth(depth, vocab_size=100)
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (depth, 64 * depth, depth)
    assert (config.head_dim, config.intermediate_size, config.vocab_size) == (64, 256 * depth, 100)
    with pytest.raises(ValueError, match="depth"):
        ChatGPTConfig.from_depth(0)


@pytest.mark.parametrize("seed", range(6))
def test_json_round_trip(seed: int, tmp_path: Path) -> None:
    config = ChatGPTConfig(**{**TINY, **combination(seed)}, bos_token_id=1, eos_token_id=[2, 3], pad_token_id=0)
    config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["model_type"] == "chatgpt"
    for again in (
        ChatGPTConfig.from_pretrained(tmp_path),
        AutoConfig.from_pretrained(tmp_path),
        ChatGPTConfig(**written),
    ):
        assert type(again) is ChatGPTConfig
        assert content(again) == content(config)


def test_the_caller_keeps_its_rope_parameters() -> None:
    given = {"rope_type": "yarn", "factor": 4.0}
    ChatGPTConfig(**TINY, rope_parameters=given)
    assert given == {"rope_type": "yarn", "factor": 4.0}


@pytest.mark.parametrize(("gated", "qk_norm"), list(itertools.product([False, True], repeat=2)))
@pytest.mark.parametrize("position", ["rope", "learned"])
def test_every_entry_of_the_parallel_plans_has_a_module(gated: bool, qk_norm: bool, position: str) -> None:
    model = build(gated_mlp=gated, qk_norm=qk_norm, position_embedding_type=position)
    modules = dict(model.named_modules())
    for entry in model.config.base_model_tp_plan:
        assert f"model.{entry.replace('*', '1')}" in modules, entry
    for entry in model.config.base_model_pp_plan:
        assert f"model.{entry}" in modules, entry
    for entry in (*model._tp_plan, *model._pp_plan, *model._fsdp_plan):
        assert entry.replace("*", "1") in modules, entry
    # And no projection of a layer is left out: a whole one beside its sharded neighbors does not fit.
    projections = {
        name.removeprefix("model.layers.1.")
        for name in modules
        if name.startswith("model.layers.1.") and name.endswith("_proj")
    }
    assert projections <= {entry.removeprefix("layers.*.") for entry in model.config.base_model_tp_plan}


def test_the_tensor_parallel_plan_is_the_configs_own() -> None:
    """transformers 5.20 assigns it with the tied embeddings added; anything else would be lost."""
    config = ChatGPTConfig(**TINY)
    plan = config.base_model_tp_plan
    config.base_model_tp_plan = {**plan, "embed_tokens": "embedding_rowwise"}
    assert config.base_model_tp_plan == plan
    with pytest.raises(AttributeError, match="tp_plan instead"):
        config.base_model_tp_plan = {**plan, "layers.*.mlp.up_proj": "rowwise"}
    assert "tp_plan" not in config.to_json_string()


ROPE_SCALINGS = [
    {"rope_type": "linear", "factor": 4.0},
    {"rope_type": "dynamic", "factor": 2.0},
    {"rope_type": "yarn", "factor": 4.0},
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    {"rope_type": "longrope", "factor": 2.0, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4},
]


@pytest.mark.parametrize("scaling", ROPE_SCALINGS, ids=lambda scaling: scaling["rope_type"])
@pytest.mark.parametrize("length", [12, 80], ids=["within", "beyond"])
def test_rope_scalings_run_train_and_survive_saving(scaling: dict[str, Any], length: int, tmp_path: Path) -> None:
    model = build(rope_parameters={"rope_theta": 10_000.0, **scaling})
    plain = build()
    plain.load_state_dict(model.state_dict())
    ids = some_ids(1, length)
    model(ids, labels=ids).loss.backward()
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, again(ids).logits)
        changed = (model(ids).logits - plain(ids).logits).abs().max() > 1e-4
    # Only this one leaves a sequence within the trained length alone.
    assert changed == (length == 80 or scaling["rope_type"] != "dynamic")
    prompt = ids[:, :6]
    assert torch.equal(
        model.generate(prompt, max_new_tokens=8, do_sample=False, pad_token_id=0),
        model.generate(prompt, max_new_tokens=8, do_sample=False, pad_token_id=0, use_cache=False),
    )


def test_ngram_tables_make_the_first_layer_keep_ids() -> None:
    config = ChatGPTConfig(num_hidden_layers=3, ngram_vocab_sizes=[64, 128])
    assert config.layer_types == ["hybrid", "full_attention", "full_attention"]
    assert config.attention_types == ["full_attention"] * 3
    sliding = ChatGPTConfig(num_hidden_layers=2, ngram_vocab_sizes=[64], sliding_window=8)
    assert sliding.layer_types == ["hybrid_sliding", "sliding_attention"]
    assert sliding.attention_types[0] == "sliding_attention"
    convolutions = ChatGPTConfig(num_hidden_layers=2, conv_kernel_size=4)
    assert convolutions.layer_types == ["hybrid", "hybrid"]
    assert convolutions.number_of_conv_states == 2
    again = ChatGPTConfig.from_dict(config.to_dict())
    assert again.layer_types == config.layer_types
    assert again.ngram_vocab_sizes == [64, 128]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"ngram_vocab_sizes": [0]}, "ngram_vocab_sizes"),
        ({"layer_types": ["hybrid", "full_attention"]}, "ngram_vocab_sizes"),
        ({"layer_types": ["full_attention", "hybrid"], "ngram_vocab_sizes": [8]}, "layer_types"),
        ({"ngram_vocab_sizes": []}, "ngram_vocab_sizes"),
        ({"conv_kernel_size": 1}, "conv_kernel_size"),
    ],
)
def test_ngram_tables_that_do_not_fit_are_refused(fields: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        ChatGPTConfig(num_hidden_layers=2, **fields)
