"""What vLLM's transformers backend asks of a model that is not its own, checked without vLLM.

Written after `vllm/model_executor/models/transformers` of vLLM 0.33.0: an empty body is made by `AutoModel.from_config` with
the attention called "vllm", layers are found and scaled by the source of their `forward`, weights are assigned by name, and
all sequences of a step come as one row of tokens with their positions. `Engine` does the same with a plain attention.
"""

import ast
import inspect
import json
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from chatgpt_hf import ChatGPTConfig, ChatGPTForCausalLM, ChatGPTModel
from chatgpt_hf.model.configuration_chatgpt import GPT2_ARCHITECTURE

LAYERS, WINDOW = 4, 5
TINY = {"vocab_size": 67, "hidden_size": 32, "num_hidden_layers": LAYERS, "num_attention_heads": 4}
VARIANTS: dict[str, dict[str, Any]] = {
    "modern": {},
    "grouped, untied": {"num_key_value_heads": 2, "tie_word_embeddings": False},
    "wide heads, gated": {"head_dim": 12, "gated_mlp": True, "hidden_act": "silu", "qk_norm": False},
    "gpt2": {**GPT2_ARCHITECTURE, "scale_attn_by_inverse_layer_idx": True},
    "sinusoidal": {"position_embedding_type": "sinusoidal"},
    "window": {"sliding_window": WINDOW},
    "mixed windows": {
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"],
    },
    "softcapped": {"final_logit_softcapping": 2.0},
    "yarn": {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}},
    "embeddings again": {"embedding_norm": True, "embedding_residual": True},
}
WHERE = "requirements checked on CPU; the engine not run: it needs a GPU and transformers < 5.21"
VERSIONS = ("vllm==0.33.0",)


@pytest.fixture(params=VARIANTS)
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    model = ChatGPTForCausalLM(ChatGPTConfig(**{**TINY, **VARIANTS[request.param]}, initializer_range=0.2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(tmp_path)
    return tmp_path


class PagedAttention:
    """Stands in for vLLM's layer of that name: keys and values of each sequence, and nothing but these, are kept."""

    def __init__(self, num_heads: int, head_size: int, num_kv_heads: int, scale: float, window: int | None) -> None:
        self.num_heads, self.head_size, self.num_kv_heads = num_heads, head_size, num_kv_heads
        self.scale, self.window = scale, window
        self.kept: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self.batch: list[tuple[str, int]] = []
        self.calls = 0

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """(tokens, heads * head size) each, the tokens of all sequences one after another, to the same."""
        self.calls += 1
        query = query.view(-1, self.num_heads, self.head_size)
        key, value = (x.view(-1, self.num_kv_heads, self.head_size) for x in (key, value))
        lengths = [length for _, length in self.batch]
        outputs = []
        for (name, new), q, k, v in zip(
            self.batch, query.split(lengths), key.split(lengths), value.split(lengths), strict=True
        ):
            if name in self.kept:
                k, v = (torch.cat(pair) for pair in zip(self.kept[name], (k, v), strict=True))
            self.kept[name] = (k, v)
            at = torch.arange(len(k) - new, len(k))[:, None]
            seen = torch.arange(len(k)) <= at
            if self.window is not None:
                seen &= torch.arange(len(k)) > at - self.window
            k, v = (x.repeat_interleave(self.num_heads // self.num_kv_heads, dim=1) for x in (k, v))
            scores = torch.einsum("qhd,khd->hqk", q, k) * self.scale
            weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
            outputs.append(torch.einsum("hqk,khd->qhd", weights, v).flatten(1))
        return torch.cat(outputs)


SEEN: list[dict[str, Any]] = []


def vllm_attention_forward(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    """As in vLLM: from (1, heads, tokens, head size) to rows of tokens, without a batch; what is named is not used."""
    assert query.shape[0] == key.shape[0] == value.shape[0] == 1
    SEEN.append({"module": module, "attention_mask": attention_mask, **kwargs})
    tokens = query.shape[-2]
    rows = (x.transpose(1, 2).reshape(tokens, -1) for x in (query, key, value))
    return module.attn.forward(*rows), None


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    SEEN.clear()
    ALL_ATTENTION_FUNCTIONS.register("vllm", vllm_attention_forward)
    yield
    ALL_ATTENTION_FUNCTIONS._global_mapping.pop("vllm")


def interface_call(forward: Any) -> ast.Call | None:
    """The one call of what `ALL_ATTENTION_FUNCTIONS` gave, found in the source as vLLM finds it."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(forward))))
    names = {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Call)
        and ast.unparse(node.value.func).startswith("ALL_ATTENTION_FUNCTIONS.")
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) in names]
    return calls[0] if len(calls) == 1 else None


class Engine:
    """The part of vLLM's backend that touches the model, on a CPU."""

    def __init__(self, folder: Path) -> None:
        self.config = AutoConfig.from_pretrained(folder).get_text_config()
        self.config._attn_implementation = "vllm"
        # vLLM's own context is a copy of this one: parameters are empty, buffers are not.
        with accelerate.init_empty_weights():
            self.body = AutoModel.from_config(self.config).eval()
        assert self.body.is_backend_compatible()
        assert self.body.get_decoder() is self.body
        self._attach_attention()
        self._load(load_file(folder / "model.safetensors"))

    def _attach_attention(self) -> None:
        config, found = self.config, {}
        for module in self.body.modules():
            if "forward" in vars(type(module)) and (call := interface_call(type(module).forward)):
                (scaling,) = (keyword.value for keyword in call.keywords if keyword.arg == "scaling")
                assert ast.unparse(scaling).startswith("self.")
                assert module.is_causal
                assert module.config is config
                assert module.layer_idx not in found
                found[module.layer_idx] = (module, float(getattr(module, ast.unparse(scaling)[len("self.") :])))
        assert sorted(found) == list(range(config.num_hidden_layers))
        kinds = config.layer_types
        assert getattr(config, "attn_logit_softcapping", None) is None
        self.attention = []
        for index, (module, scale) in sorted(found.items()):
            window = config.sliding_window if kinds[index] == "sliding_attention" else None
            module.attn = PagedAttention(
                config.num_attention_heads, config.head_dim, config.num_key_value_heads, scale, window
            )
            self.attention.append(module.attn)

    def _load(self, weights: dict[str, torch.Tensor]) -> None:
        children = "|".join(name for name, _ in self.body.named_children())
        body, head = {}, {}
        for name, weight in weights.items():
            # vLLM's patterns, for the names of weights with and without the prefix of the body.
            name = re.sub(rf"^(?!model\.)(({children}).*)", r"model.\1", name)
            name = re.sub(rf"^(model\.)((?!{children}).+)", r"\2", name)
            (body if name.startswith("model.") else head)[name.removeprefix("model.")] = weight
        self.body.load_state_dict(body, assign=True, strict=True)
        assert set(head) == (set() if self.config.tie_word_embeddings else {"lm_head.weight"})
        self.head = head.get("lm_head.weight", self.body.get_input_embeddings().weight)
        assert self.head.shape == (self.config.vocab_size, self.config.hidden_size)

    def hidden_states(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        inputs = {"input_ids": ids[None], "inputs_embeds": None, "position_ids": positions[None]}
        return self.body(**inputs, use_cache=False, return_dict=False)[0][0]

    @torch.no_grad()
    def step(self, batch: dict[str, list[int]]) -> dict[str, torch.Tensor]:
        """The new ids of each sequence, all in one row, to the logits after each."""
        kept = self.attention[0].kept
        starts = {name: len(kept[name][0]) if name in kept else 0 for name in batch}
        for attention in self.attention:
            attention.batch = [(name, len(ids)) for name, ids in batch.items()]
        positions = [torch.arange(starts[name], starts[name] + len(ids)) for name, ids in batch.items()]
        ids = torch.tensor([token for ids in batch.values() for token in ids])
        logits = self.hidden_states(ids, torch.cat(positions)) @ self.head.T
        if (cap := getattr(self.config, "final_logit_softcapping", None)) is not None:
            logits = torch.tanh(logits / cap) * cap
        return dict(zip(batch, logits.split([len(ids) for ids in batch.values()]), strict=True))


@pytest.mark.works_with(
    "vLLM", "the body under a foreign attention, steps of several sequences: logits", VERSIONS, WHERE
)
def test_steps_of_several_sequences(saved: Path) -> None:
    torch.manual_seed(2)
    rows = {name: torch.randint(0, 67, (length,)).tolist() for name, length in (("a", 17), ("b", 9), ("c", 13))}
    whole = AutoModelForCausalLM.from_pretrained(saved)
    with torch.no_grad():
        expected = {name: whole(torch.tensor([ids])).logits[0] for name, ids in rows.items()}
    engine = Engine(saved)
    # A prompt, a second one that comes in pieces while the first is continued, a third; then all go on token by token.
    steps = [{"a": 6}, {"a": 1, "b": 4}, {"b": 2, "a": 1, "c": 10}, *[{"c": 1, "a": 3, "b": 1}] * 3]
    done = dict.fromkeys(rows, 0)
    for step in steps:
        batch = {name: rows[name][done[name] : done[name] + count] for name, count in step.items()}
        for name, logits in engine.step(batch).items():
            new = expected[name][done[name] : done[name] + step[name]]
            torch.testing.assert_close(logits, new, rtol=1e-4, atol=1e-5)
            done[name] += step[name]
    assert done == {name: len(ids) for name, ids in rows.items()}
    assert [attention.calls for attention in engine.attention] == [len(steps)] * LAYERS


@pytest.mark.works_with("vLLM", "one call per layer, no mask created, each layer's scale and window", VERSIONS, WHERE)
def test_what_attention_is_given(saved: Path) -> None:
    engine = Engine(saved)
    engine.step({"a": [1, 2, 3], "b": [4, 5]})
    assert [seen["module"].layer_idx for seen in SEEN] == list(range(LAYERS))
    assert all(seen["attention_mask"] is None for seen in SEEN)
    config = engine.config
    for index, (seen, attention) in enumerate(zip(SEEN, engine.attention, strict=True)):
        layer = index + 1 if config.scale_attn_by_inverse_layer_idx else 1
        assert seen["scaling"] == attention.scale == pytest.approx(config.head_dim**-0.5 / layer)
        assert seen["sliding_window"] == attention.window
        assert seen["dropout"] == 0
        assert seen["position_ids"].tolist() == [[0, 1, 2, 0, 1]]
        assert seen.get("s_aux") is None
    windows = [attention.window for attention in engine.attention]
    sliding = [kind == "sliding_attention" for kind in config.layer_types]
    assert windows == [WINDOW if slides else None for slides in sliding]


@pytest.mark.works_with(
    "vLLM", "found by `architectures` and `auto_map`; the arguments it compiles by", VERSIONS, WHERE
)
def test_how_it_is_found(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["ChatGPTForCausalLM"]
    for name in ("AutoConfig", "AutoModel", "AutoModelForCausalLM"):
        module, _, _ = config["auto_map"][name].partition(".")
        assert (saved / f"{module}.py").is_file()
    assert ChatGPTForCausalLM.is_backend_compatible()
    assert ChatGPTForCausalLM._can_set_attn_implementation()
    assert {"input_ids", "inputs_embeds", "position_ids"} <= inspect.signature(ChatGPTModel.forward).parameters.keys()
    assert isinstance(AutoConfig.from_pretrained(saved).max_position_embeddings, int)


@pytest.mark.works_with("vLLM", "the tensor-parallel plan covers every matrix in styles it knows", VERSIONS, WHERE)
def test_the_tensor_parallel_plan(saved: Path) -> None:
    with torch.device("meta"):
        body = AutoModel.from_config(AutoConfig.from_pretrained(saved))
    styles = {}
    for name, module in body.named_modules():
        if isinstance(module, nn.Linear):
            # Of several patterns that match vLLM takes the first; what none matches is on every GPU whole.
            styles[name] = next((style for key, style in body.tp_plan.items() if re.match(key, name)), "replicate")
    assert len(styles) == LAYERS * (7 if body.config.gated_mlp else 6)
    for name, style in styles.items():
        assert style == ("rowwise" if name.endswith(("o_proj", "down_proj")) else "colwise"), name


class Missing(nn.Module):
    """What vLLM puts where a part lives on another GPU."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return args[0] if args else next(iter(kwargs.values()))


@pytest.mark.works_with(
    "vLLM",
    "the pipeline plan: two stages compute what one does with rotary positions; the other variants cannot be split",
    VERSIONS,
    WHERE,
)
def test_the_pipeline_plan(saved: Path) -> None:
    ids, positions = torch.tensor([3, 1, 4, 1, 5, 9]), torch.arange(6)
    whole, first, last = Engine(saved), Engine(saved), Engine(saved)
    assert list(whole.body._pp_plan) == ["embed_tokens", "layers", "norm"]
    for engine in (whole, first, last):
        for attention in engine.attention:
            attention.batch = [("a", len(ids))]
    for index in range(LAYERS):
        (first if index >= LAYERS // 2 else last).body.layers[index] = Missing()
    first.body.norm = Missing()
    with torch.no_grad():
        expected = whole.hidden_states(ids, positions)
        between = first.hidden_states(ids, positions)
        given = {"input_ids": None, "inputs_embeds": between[None], "position_ids": positions[None]}
        result = last.body(**given, use_cache=False, return_dict=False)[0][0]
    config = whole.config
    # The later stage takes what comes for embeddings, and does to it again what is done to embeddings.
    once = config.position_embedding_type == "rope" and not config.embedding_norm and not config.embedding_residual
    assert torch.allclose(result, expected, atol=1e-5) == once
