"""Converts nanoGPT's `ckpt.pt` in both directions; the reference here is GPT-2 with nanoGPT's names."""

import json
import math
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from chatgpt_hf import ChatGPTConfig, ChatGPTForCausalLM, convert_checkpoint
from chatgpt_hf.conversion.families.nanogpt import read_nanogpt_config, to_nanogpt_config
from chatgpt_hf.errors import CheckpointError, ConversionError, TokenizerError

VOCAB, EOS = 259, 257
ARGS = {"n_layer": 2, "n_head": 4, "n_embd": 32, "block_size": 48, "bias": True, "vocab_size": VOCAB, "dropout": 0.1}


class Norm(nn.Module):
    """`(x - mean) / sqrt(variance + 1e-5) * weight`, plus a bias if there is one."""

    def __init__(self, size: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size)) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        normed = centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * self.weight
        return normed if self.bias is None else normed + self.bias


class Block(nn.Module):
    def __init__(self, width: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = Norm(width, bias), Norm(width, bias)
        self.attn = nn.ModuleDict(
            {"c_attn": nn.Linear(width, 3 * width, bias), "c_proj": nn.Linear(width, width, bias)}
        )
        self.mlp = nn.ModuleDict(
            {"c_fc": nn.Linear(width, 4 * width, bias), "c_proj": nn.Linear(4 * width, width, bias)}
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        width = x.shape[-1]
        size = width // self.heads
        fused = self.attn["c_attn"](self.ln_1(x))
        outputs = []
        for head in range(self.heads):
            query, key, value = (fused[..., part * width + head * size :][..., :size] for part in range(3))
            scores = torch.einsum("bqd,bkd->bqk", query, key) / math.sqrt(size)
            scores = scores + torch.full(scores.shape[-2:], -math.inf).triu(1)
            outputs.append(torch.einsum("bqk,bkd->bqd", scores.softmax(-1), value))
        x = x + self.attn["c_proj"](torch.cat(outputs, dim=-1))
        wide = self.mlp["c_fc"](self.ln_2(x))
        return x + self.mlp["c_proj"](wide * 0.5 * (1 + torch.erf(wide / math.sqrt(2))))


class NanoGPT(nn.Module):
    """Logits of every position; the head is the embedding."""

    def __init__(self, args: dict[str, Any]) -> None:
        super().__init__()
        width, bias = args["n_embd"], args["bias"]
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(args["vocab_size"], width),
                "wpe": nn.Embedding(args["block_size"], width),
                "h": nn.ModuleList(Block(width, args["n_head"], bias) for _ in range(args["n_layer"])),
                "ln_f": Norm(width, bias),
            }
        )
        self.lm_head = nn.Linear(width, args["vocab_size"], bias=False)
        self.lm_head.weight = self.transformer["wte"].weight
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(std=0.2, generator=generator)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.transformer["wte"](ids) + self.transformer["wpe"](torch.arange(ids.shape[1]))
        for block in self.transformer["h"]:
            x = block(x)
        return self.lm_head(self.transformer["ln_f"](x))


def save(file: Path, module: nn.Module, prefix: str = "", **changes: Any) -> None:
    """A checkpoint as nanoGPT's train.py writes it."""
    state = {prefix + name: tensor for name, tensor in module.state_dict().items()}
    optimizer = torch.optim.AdamW(module.parameters()).state_dict()
    checkpoint = {"model": state, "optimizer": optimizer, "model_args": ARGS, "iter_num": 5}
    more = {"best_val_loss": torch.tensor(1.5), "config": {"dataset": "shakespeare", "compile": True}}
    torch.save({**checkpoint, **more, **changes}, file)


@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
@pytest.mark.parametrize("bias", [True, False], ids=["biases", "no biases"])
def test_parity_both_ways(
    bias: bool, prefix: str, assert_parity: Callable[..., None], byte_tokenizer: Any, tmp_path: Path
) -> None:
    args = {**ARGS, "bias": bias}
    theirs = NanoGPT(args)
    save(tmp_path / "ckpt.pt", theirs, prefix, model_args=args)
    byte_tokenizer.save_pretrained(tmp_path / "tokenizer")
    assert convert_checkpoint(tmp_path / "ckpt.pt", tmp_path / "ours", tokenizer=tmp_path / "tokenizer") <= 1e-4
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert type(ours) is ChatGPTForCausalLM
    assert any("bias" in name for name in ours.state_dict()) == bias
    assert (ours.config.residual_dropout, ours.config.eos_token_id) == (0.1, EOS)
    assert_parity(theirs, ours)

    assert convert_checkpoint(tmp_path / "ours", tmp_path / "again", "nanogpt") <= 1e-4
    again = torch.load(tmp_path / "again" / "ckpt.pt", weights_only=True)
    assert again["model_args"] == args
    loaded = NanoGPT(again["model_args"])
    loaded.load_state_dict(again["model"])
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in theirs.state_dict().items())
    assert_parity(loaded, ours)
    # Convert back, this time by the folder's name, which also finds the tokenizer.
    convert_checkpoint(tmp_path / "again", tmp_path / "once more")
    assert_parity(theirs, AutoModelForCausalLM.from_pretrained(tmp_path / "once more"))
    assert len(AutoTokenizer.from_pretrained(tmp_path / "once more")) == VOCAB


def test_older_checkpoints(assert_parity: Callable[..., None], tmp_path: Path) -> None:
    """A checkpoint in torch's old format, without the flag `bias`, and with causal masks in every layer."""
    theirs = NanoGPT(ARGS)
    state = theirs.state_dict()
    for layer in range(2):
        state[f"transformer.h.{layer}.attn.bias"] = torch.ones(1, 1, 48, 48).tril()
    args = {name: value for name, value in ARGS.items() if name not in ("bias", "dropout")}
    torch.save({"model": state, "model_args": args}, tmp_path / "ckpt.pt", _use_new_zipfile_serialization=False)
    convert_checkpoint(tmp_path, tmp_path / "ours")
    assert_parity(theirs, AutoModelForCausalLM.from_pretrained(tmp_path / "ours"))


CHARACTERS = "\n !,.:?abcdefghijklmnopqrstuvwxyz你👍"


def character_checkpoint(folder: Path) -> dict[str, Any]:
    """A checkpoint of a character model and its character table."""
    args = {**ARGS, "vocab_size": len(CHARACTERS)}
    save(folder / "ckpt.pt", NanoGPT(args), model_args=args)
    table = {character: index for index, character in enumerate(CHARACTERS)}
    return {"vocab_size": len(table), "stoi": table, "itos": {index: character for character, index in table.items()}}


def test_characters(cli: Callable[..., Any], tmp_path: Path) -> None:
    meta = character_checkpoint(tmp_path)
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    assert cli("convert", tmp_path, tmp_path / "ours").code == 0
    named = tmp_path / "table.json"
    (tmp_path / "meta.json").rename(named)
    assert cli("convert", tmp_path / "ckpt.pt", tmp_path / "named", "--tokenizer", named).code == 0
    text = "ab, c?\n  你👍 a."
    for folder in ("ours", "named"):
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / folder)
        ids = tokenizer(text)["input_ids"]
        assert ids == [meta["stoi"][character] for character in text]
        assert tokenizer.decode(ids) == text
        with pytest.raises(Exception, match="UNK"):
            tokenizer("Z")
    result = cli("convert", tmp_path / "ckpt.pt", tmp_path / "weights")
    assert (result.code, "The source has no tokenizer" in result.out) == (0, True)


@pytest.mark.parametrize(
    ("meta", "words"),
    [
        ("{", "cannot be read"),
        ("[]", "no `stoi`"),
        ('{"stoi": {}}', "no `stoi`"),
        ('{"stoi": {"ab": 0}}', "must be one character and its id"),
        ('{"stoi": {"a": "0"}}', "must be one character and its id"),
        ('{"stoi": {"a": 0, "b": 2}}', "must be 0 to 1, each once"),
        ('{"stoi": {"a": 0, "b": 1}, "itos": ["b", "a"]}', "not the inverse"),
        (json.dumps({"stoi": {chr(index + 64): index for index in range(VOCAB + 1)}}), "260 tokens"),
    ],
)
def test_tables_that_are_none(meta: str, words: str, refused: Callable[..., str], tmp_path: Path) -> None:
    save(tmp_path / "ckpt.pt", NanoGPT(ARGS))
    (tmp_path / "meta.json").write_text(meta)
    assert words in refused("convert", tmp_path, tmp_path / "new")
    assert not (tmp_path / "new").exists()


class RunsCode:
    """Its pickle creates a file when it is read."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.file}'",)


@pytest.mark.parametrize("kind", ["torch", "old torch", "plain", "litgpt"])
def test_a_pickle_that_runs_code_is_refused(kind: str, refused: Callable[..., str], tmp_path: Path) -> None:
    made = tmp_path / "made by the pickle"
    content = {"model": NanoGPT(ARGS).state_dict(), "model_args": ARGS, "config": RunsCode(made)}
    file = tmp_path / ("lit_model.pth" if kind == "litgpt" else "ckpt.pt")
    if kind == "plain":
        file.write_bytes(pickle.dumps(content["config"]))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=kind != "old torch")
    (tmp_path / "model_config.yaml").write_text("n_layer: 2\n")
    message = refused("convert", file, tmp_path / "new")
    assert f"{file} is not read: it is a pickle that contains more than tensors and plain values" in message
    assert kind == "plain" or "system`, and" in message
    assert "weights_only=False" not in message, "no advice to run it after all"
    assert not made.exists()
    assert not (tmp_path / "new").exists()
    # Check that the pickle really runs code.
    if kind == "plain":
        pickle.loads(file.read_bytes())
    else:
        torch.load(file, weights_only=False)
    assert made.exists()


def test_a_pickled_table_is_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    save(tmp_path / "ckpt.pt", NanoGPT(ARGS))
    made = tmp_path / "made by the pickle"
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(RunsCode(made)))
    for arguments in ([], ["--tokenizer", tmp_path / "meta.pkl"]):
        message = refused("convert", tmp_path / "ckpt.pt", tmp_path / "new", *arguments)
        assert "meta.pkl is a pickle, which can run code" in message
        assert "meta.json" in message
    assert not made.exists()
    assert not (tmp_path / "new").exists()


def test_checkpoints_that_are_none(tmp_path: Path) -> None:
    model = NanoGPT(ARGS)
    state = model.state_dict()
    save(tmp_path / "whole.pt", model)
    (tmp_path / "cut.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:-2000])
    (tmp_path / "text.pt").write_text("Not a checkpoint, but a text about one.")
    torch.save(state, tmp_path / "bare.pt")
    save(tmp_path / "args.pt", model, model_args={"n_layer": 2})
    save(tmp_path / "shapes.pt", model, model_args={**ARGS, "vocab_size": 300})
    save(tmp_path / "fork.pt", model, model_args={**ARGS, "use_rmsnorm": True})
    save(tmp_path / "more.pt", model, model={**state, "transformer.h.0.moe.weight": torch.ones(1)})
    save(tmp_path / "less.pt", model, model={k: v for k, v in state.items() if "h.1.ln_2" not in k})
    save(tmp_path / "untied.pt", model, model={**state, "lm_head.weight": state["lm_head.weight"] + 1})
    torch.save({"transformer.h.0.attn.c_q.weight": torch.ones(1)}, tmp_path / "nanochat.pt")
    for name, kind, words in (
        ("cut", CheckpointError, "not a complete torch file"),
        ("text", CheckpointError, "not a complete torch file"),
        ("bare", CheckpointError, "no `model` with tensors"),
        ("args", CheckpointError, "`model_args` has no block_size, n_embd, n_head, vocab_size"),
        (
            "shapes",
            CheckpointError,
            "1 weights have other shapes than in the config, including model.embed_tokens.weight",
        ),
        ("fork", ConversionError, "`use_rmsnorm=True`"),
        ("more", ConversionError, "nanoGPT has no tensor transformer.h.0.moe.weight"),
        ("less", CheckpointError, "2 weights are missing"),
        ("untied", ConversionError, "but nanoGPT ties them"),
        ("nanochat", ConversionError, "nanochat checkpoint"),
    ):
        with pytest.raises(kind) as error:
            convert_checkpoint(tmp_path / f"{name}.pt", tmp_path / "new")
        assert words in str(error.value)
    assert not (tmp_path / "new").exists()


def test_a_tokenizer_that_is_not_there(tmp_path: Path) -> None:
    save(tmp_path / "ckpt.pt", NanoGPT(ARGS))
    with pytest.raises(TokenizerError, match="is not a folder"):
        convert_checkpoint(tmp_path / "ckpt.pt", tmp_path / "new", tokenizer=tmp_path / "nothing")


@pytest.mark.parametrize(
    "overrides",
    [
        {"hidden_act": "gelu_new"},
        {"intermediate_size": 100},
        {"norm_eps": 1e-6},
        {"tie_word_embeddings": False},
        {"attention_bias": False},
        {"attention_dropout": 0.2},
        {"position_embedding_type": "rope"},
        {"sliding_window": 8},
        {"num_key_value_heads": 2},
        {"head_dim": 16},
    ],
    ids=str,
)
def test_what_nanogpt_cannot_express_is_refused(overrides: dict[str, Any]) -> None:
    config = ChatGPTConfig(**{**read_nanogpt_config(ARGS), **overrides})
    with pytest.raises(ConversionError, match=f"`{next(iter(overrides))}="):
        to_nanogpt_config(config)
