"""Converts GPT-2 in both directions and compares it with transformers' GPT2LMHeadModel.

The random weights are large enough to reveal errors.
"""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

from chatgpt_hf import ChatGPTConfig, ChatGPTForCausalLM
from chatgpt_hf.conversion.families.gpt2 import read_gpt2_config, to_gpt2_config, to_gpt2_state_dict
from chatgpt_hf.errors import ConversionError
from chatgpt_hf.model.modeling_chatgpt import ChatGPTForSequenceClassification, ChatGPTModel

VOCAB = 259
PAD, EOS = 256, 257


def gpt2(**overrides: Any) -> GPT2LMHeadModel:
    """A tiny GPT-2 without dropout; all weights and biases are random with std 0.2."""
    no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    sizes = {"vocab_size": VOCAB, "n_positions": 64, "n_embd": 48, "n_layer": 3, "n_head": 4}
    ids = {"bos_token_id": EOS, "eos_token_id": EOS, "pad_token_id": PAD}
    model = GPT2LMHeadModel(GPT2Config(**{**sizes, **no_dropout, **ids, **overrides}))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2, generator=generator)
    return model.eval()


def some_ids(rows: int = 2, length: int = 20) -> torch.Tensor:
    return torch.randint(0, 256, (rows, length), generator=torch.Generator().manual_seed(3))


def assert_same_logits(ours: torch.nn.Module, theirs: torch.nn.Module, tolerance: float = 1e-4) -> None:
    with torch.no_grad():
        difference = (ours(some_ids()).logits - theirs(some_ids()).logits).abs().max().item()
    assert difference <= tolerance


def keys_on_disk(folder: Path) -> set[str]:
    keys: set[str] = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            keys |= set(opened.keys())
    return keys


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gpt2")
    gpt2().save_pretrained(path)
    return path


VARIANTS: list[dict[str, Any]] = [
    {},
    {"scale_attn_by_inverse_layer_idx": True},
    {"n_inner": 72},
    {"tie_word_embeddings": False},
    {"layer_norm_epsilon": 0.1},
    {"n_head": 1},
    *({"activation_function": name} for name in ("gelu", "relu", "silu", "tanh", "gelu_pytorch_tanh", "gelu_fast")),
]


@pytest.mark.parametrize("overrides", VARIANTS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_logits_equal(overrides: dict[str, Any], dtype: torch.dtype, attention: str, tmp_path: Path) -> None:
    gpt2(**overrides).save_pretrained(tmp_path)
    how = {"dtype": dtype, "attn_implementation": attention}
    theirs = GPT2LMHeadModel.from_pretrained(tmp_path, **how)
    ours = ChatGPTForCausalLM.from_pretrained(tmp_path, **how)
    assert_same_logits(ours, theirs, 1e-4 if dtype == torch.float32 else 1e-9)


def test_the_comparison_would_notice(folder: Path) -> None:
    ours, theirs = ChatGPTForCausalLM.from_pretrained(folder), GPT2LMHeadModel.from_pretrained(folder)
    with torch.no_grad():
        theirs.transformer.h[1].attn.c_attn.bias[100] += 0.1
    with pytest.raises(AssertionError):
        assert_same_logits(ours, theirs)


@pytest.mark.parametrize("skip_logits", [False, True], ids=["whole logits", "chunked loss"])
@pytest.mark.parametrize(
    "overrides", [{}, {"tie_word_embeddings": False}, {"scale_attn_by_inverse_layer_idx": True}], ids=str
)
def test_loss_and_every_gradient_equal(overrides: dict[str, Any], skip_logits: bool, tmp_path: Path) -> None:
    gpt2(**overrides).save_pretrained(tmp_path)
    theirs = GPT2LMHeadModel.from_pretrained(tmp_path).train()
    ours = ChatGPTForCausalLM.from_pretrained(tmp_path).train()
    labels = some_ids().masked_fill(torch.arange(20) < 5, -100)
    expected = theirs(some_ids(), labels=labels).loss
    loss = ours(some_ids(), labels=labels, skip_logits=skip_logits).loss
    expected.backward()
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)

    # Put the gradients in place of the weights, so that the same mapping converts them.
    gradients = copy.deepcopy(ours)
    for holder, source in zip(gradients.parameters(), ours.parameters(), strict=True):
        holder.data = source.grad
    found = to_gpt2_state_dict(gradients)
    for name, parameter in theirs.named_parameters():
        assert (found[name] - parameter.grad).norm() <= 1e-5 * parameter.grad.norm() + 1e-9, name


@pytest.mark.parametrize(
    "how",
    [
        {"do_sample": False},
        {"do_sample": False, "num_beams": 4},
        {"do_sample": True, "temperature": 0.8, "top_k": 50},
        {"do_sample": True, "num_beams": 2, "top_p": 0.9},
    ],
    ids=["greedy", "beam", "sampling", "beam sampling"],
)
@pytest.mark.parametrize("texts", [["Once upon"], ["Once upon a time", "Ein", "四"]], ids=["one", "left-padded"])
def test_generation_gives_the_same_ids_and_text(
    how: dict[str, Any], texts: list[str], byte_tokenizer: PreTrainedTokenizerFast, folder: Path
) -> None:
    tokenizer = byte_tokenizer
    assert len(tokenizer) == VOCAB
    batch = tokenizer(texts, return_tensors="pt", padding=True, return_token_type_ids=False)
    results = []
    for model_class in (GPT2LMHeadModel, ChatGPTForCausalLM):
        torch.manual_seed(11)
        ids = model_class.from_pretrained(folder).generate(**batch, max_new_tokens=16, **how)
        results.append((ids.tolist(), tokenizer.batch_decode(ids)))
    assert results[0] == results[1]
    assert texts[0] in results[1][1][0]


def old_checkpoint(folder: Path, prefix: str, file_format: str, dtype: torch.dtype = torch.float32) -> GPT2LMHeadModel:
    """Writes a checkpoint as in repositories of 2019 to 2023: mask buffers in every layer, maybe a prefix, no head."""
    model = gpt2()
    state = {
        prefix + name.removeprefix("transformer."): tensor.to(dtype)
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"
    }
    for layer in range(3):
        state[f"{prefix}h.{layer}.attn.bias"] = torch.ones(1, 1, 64, 64, dtype=torch.uint8).tril()
        state[f"{prefix}h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    if file_format == "bin":
        torch.save(state, folder / "pytorch_model.bin")
    else:
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "model_type": "gpt2",
        "vocab_size": VOCAB,
        "n_ctx": 64,
        "n_positions": 64,
        "n_embd": 48,
        "n_layer": 3,
        "n_head": 4,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return model


@pytest.mark.parametrize("file_format", ["bin", "safetensors"])
@pytest.mark.parametrize("prefix", ["", "transformer."], ids=["bare", "prefixed"])
@pytest.mark.parametrize("model_class", [ChatGPTForCausalLM, ChatGPTModel])
def test_old_checkpoints(file_format: str, prefix: str, model_class: type, tmp_path: Path) -> None:
    theirs = old_checkpoint(tmp_path, prefix, file_format)
    ours, report = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert {name: found for name, found in report.items() if found} == {}
    with torch.no_grad():
        if model_class is ChatGPTModel:
            found, expected = ours(some_ids()).last_hidden_state, theirs.transformer(some_ids()).last_hidden_state
        else:
            found, expected = ours(some_ids()).logits, theirs(some_ids()).logits
    assert (found - expected).abs().max() <= 1e-4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("file_format", ["bin", "safetensors"])
def test_half_precision_storage(dtype: torch.dtype, file_format: str, tmp_path: Path) -> None:
    old_checkpoint(tmp_path, "transformer.", file_format, dtype)
    ours = ChatGPTForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert_same_logits(ours, GPT2LMHeadModel.from_pretrained(tmp_path, dtype=torch.float32))
    assert {p.dtype for p in ours.parameters()} == {torch.float32}
    kept = ChatGPTForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert {p.dtype for p in kept.parameters()} == {dtype}


@pytest.mark.parametrize("tied", [True, False])
def test_sharded_checkpoints(tied: bool, tmp_path: Path) -> None:
    theirs = gpt2(tie_word_embeddings=tied)
    theirs.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    ours = ChatGPTForCausalLM.from_pretrained(tmp_path)
    assert_same_logits(ours, theirs)
    assert (ours.lm_head.weight is ours.model.embed_tokens.weight) == tied


def test_a_classifier_keeps_its_head(tmp_path: Path) -> None:
    config = GPT2Config(
        vocab_size=VOCAB, n_positions=64, n_embd=48, n_layer=2, n_head=4, num_labels=3, pad_token_id=PAD
    )
    theirs = GPT2ForSequenceClassification(config).eval()
    theirs.save_pretrained(tmp_path)
    ours = ChatGPTForSequenceClassification.from_pretrained(tmp_path)
    assert ours.config.num_labels == 3
    assert_same_logits(ours, theirs)


@pytest.mark.parametrize("overrides", VARIANTS[:5], ids=str)
def test_the_way_back_is_exact(overrides: dict[str, Any], tmp_path: Path) -> None:
    theirs = gpt2(**overrides)
    theirs.save_pretrained(tmp_path)
    ours = ChatGPTForCausalLM.from_pretrained(tmp_path)
    found, expected = to_gpt2_state_dict(ours), theirs.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    # A second call gives the same result and leaves the model unchanged.
    assert to_gpt2_state_dict(ours).keys() == expected.keys()
    assert_same_logits(ours, theirs)


@pytest.mark.parametrize("overrides", VARIANTS, ids=str)
def test_a_model_of_ours_becomes_gpt2(overrides: dict[str, Any], tmp_path: Path) -> None:
    config = ChatGPTConfig(**read_gpt2_config(gpt2(**overrides).config.to_dict()))
    ours = ChatGPTForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.normal_(std=0.2)
    theirs_config = to_gpt2_config(config)
    theirs_config.save_pretrained(tmp_path)
    tensors = {name: tensor.clone() for name, tensor in to_gpt2_state_dict(ours).items()}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    theirs, report = GPT2LMHeadModel.from_pretrained(tmp_path, output_loading_info=True)
    assert {name: found for name, found in report.items() if found} == {}
    assert_same_logits(ours, theirs)
    assert (theirs_config.bos_token_id, theirs_config.pad_token_id) == (EOS, PAD)


def test_the_config_survives_both_ways() -> None:
    original = GPT2Config(
        vocab_size=300,
        n_embd=24,
        n_head=3,
        n_layer=5,
        n_inner=50,
        n_positions=17,
        activation_function="relu",
        resid_pdrop=0.11,
        embd_pdrop=0.12,
        attn_pdrop=0.13,
        layer_norm_epsilon=1e-3,
        initializer_range=0.5,
        scale_attn_by_inverse_layer_idx=True,
        tie_word_embeddings=False,
        use_cache=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
        id2label={0: "a", 1: "b", 2: "c"},
        dtype="float16",
    )
    ours = ChatGPTConfig(**read_gpt2_config(original.to_dict()))
    assert (ours.residual_dropout, ours.embedding_dropout, ours.attention_dropout) == (0.11, 0.12, 0.13)
    again = to_gpt2_config(ours).to_dict()
    assert again.pop("architectures") == ["GPT2LMHeadModel"]
    assert again == {name: value for name, value in original.to_dict().items() if name != "architectures"}


def test_missing_fields_have_gpt2s_defaults() -> None:
    ours = ChatGPTConfig(**read_gpt2_config({"model_type": "gpt2", "torch_dtype": "bfloat16"}))
    expected = ChatGPTConfig.gpt2("gpt2").to_dict()
    assert {name for name, value in ours.to_dict().items() if expected[name] != value} == {"dtype"}
    assert ours.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("field", "value"),
    [("reorder_and_upcast_attn", True), ("add_cross_attention", True), ("scale_attn_weights", False)],
)
def test_unsupported_checkpoints_are_refused(field: str, value: bool, tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=VOCAB, n_positions=8, n_embd=8, n_layer=1, n_head=1, **{field: value})
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    with pytest.raises(ConversionError, match=f"{field}={value}"):
        ChatGPTForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("overrides", "field"),
    [
        ({"position_embedding_type": "rope"}, "position_embedding_type"),
        ({"position_embedding_type": "sinusoidal"}, "position_embedding_type"),
        ({"norm_type": "rmsnorm"}, "norm_type"),
        ({"norm_bias": False}, "norm_bias"),
        ({"gated_mlp": True}, "gated_mlp"),
        ({"attention_bias": False}, "attention_bias"),
        ({"mlp_bias": False}, "mlp_bias"),
        ({"qk_norm": True}, "qk_norm"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"head_dim": 32}, "head_dim"),
        ({"head_dim": 32, "hidden_size": 770}, "head_dim"),
        ({"sliding_window": 16}, "sliding_window"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
    ],
    ids=str,
)
def test_what_gpt2_cannot_express_is_refused(overrides: dict[str, Any], field: str) -> None:
    with pytest.raises(ConversionError, match=f"`{field}="):
        to_gpt2_config(ChatGPTConfig.gpt2("gpt2", **overrides))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("loader", [ChatGPTForCausalLM, AutoModelForCausalLM])
def test_saving_writes_our_own_format(tied: bool, loader: type, tmp_path: Path) -> None:
    theirs = gpt2(tie_word_embeddings=tied)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = ChatGPTForCausalLM.from_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    fresh = ChatGPTForCausalLM(ours.config)
    fresh.save_pretrained(tmp_path / "fresh")
    expected = {name for name in ours.state_dict() if not (tied and name == "lm_head.weight")}
    assert keys_on_disk(tmp_path / "ours") == keys_on_disk(tmp_path / "fresh") == expected
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("chatgpt", ["ChatGPTForCausalLM"])
    again = loader.from_pretrained(tmp_path / "ours")
    assert type(again) is ChatGPTForCausalLM
    for one, other in ((ours, again), (fresh.eval(), loader.from_pretrained(tmp_path / "fresh"))):
        with torch.no_grad():
            assert torch.equal(one(some_ids()).logits, other(some_ids()).logits)
    # Writing our own format again changes nothing.
    again.save_pretrained(tmp_path / "again")
    assert load_file(tmp_path / "again" / "model.safetensors").keys() == expected


def test_loading_gpt2_leaves_transformers_own_class_alone(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert type(model) is GPT2LMHeadModel
