"""Graphs for other runtimes compute what the model computes: with a cache, with padding, in plain runtimes."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.exporters import ExportedModel

from chatgpt_hf import ChatGPTForCausalLM, load_tokenizer
from chatgpt_hf.errors import ConversionError
from chatgpt_hf.export import graphs
from chatgpt_hf.export.export import export_model
from chatgpt_hf.export.graphs import GraphSession, empty_cache, load_graph

# What is checked by hand below: the next id, with nothing but onnxruntime and NumPy.
PLAIN_ONNX = """
import json, sys
import numpy as np
import onnxruntime as ort

session = ort.InferenceSession(sys.argv[1])
ids = json.loads(sys.argv[2])
cache = {i.name: np.zeros((1, int(i.shape[1]), 0, int(i.shape[3])), np.float32)
         for i in session.get_inputs() if "past_key_values" in i.name}
new, start = ids, 0
for _ in range(8):
    feed = {"input_ids": np.array([new]), "attention_mask": np.ones((1, start + len(new)), np.int64),
            "position_ids": np.arange(start, start + len(new))[None], **cache}
    outputs = dict(zip([o.name for o in session.get_outputs()], session.run(None, feed)))
    cache = {name: outputs[name.replace("input.", "output.")] for name in cache}
    start += len(new)
    new = [int(outputs["logits"][0, -1].argmax())]
    ids = ids + new
assert "torch" not in sys.modules
print(json.dumps(ids))
"""


@pytest.fixture(scope="module")
def exported(
    saved: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], tuple[Path, Path]]:
    """Folders of a model and of its graph, each made once."""
    made: dict[tuple[str, str], tuple[Path, Path]] = {}

    def export(export_format: str, variant: str) -> tuple[Path, Path]:
        if (export_format, variant) not in made:
            folder = saved(variant)
            output = tmp_path_factory.mktemp("graph") / "graph"
            export_model(folder, output, export_format)
            made[export_format, variant] = folder, output
        return made[export_format, variant]

    return export


def greedy(graph: ExportedModel, model: ChatGPTForCausalLM, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Eight more ids (batch, seq + 8) by the graph and its cache."""
    cache, new = empty_cache(model.config, len(ids)), ids
    for _ in range(8):
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -new.shape[1] :]
        outputs = graph(input_ids=new, attention_mask=mask, position_ids=positions, past_key_values=cache)
        cache, new = outputs.past_key_values, outputs.logits[:, -1:].argmax(-1)
        ids = torch.cat((ids, new), dim=1)
        mask = torch.cat((mask, torch.ones_like(new)), dim=1)
    return ids


@pytest.mark.works_with(
    "ONNX Runtime", "`chatgpt-hf export --format onnx`: greedy ids, batches, left padding", ("onnxruntime", "onnx")
)
@pytest.mark.works_with(
    "OpenVINO", "`chatgpt-hf export --format openvino`: greedy ids, batches, left padding", ("openvino",)
)
@pytest.mark.works_with(
    "torch.export", "`chatgpt-hf export --format torch-export`: greedy ids, batches, left padding", ("torch",)
)
@pytest.mark.slow
@pytest.mark.parametrize(
    ("export_format", "variant"),
    [
        ("onnx", "modern"),
        ("onnx", "gpt2"),
        ("openvino", "sliding"),
        ("openvino", "gpt2"),
        ("torch-export", "sinusoidal"),
        ("torch-export", "sliding"),
    ],
)
def test_greedy_ids_are_those_of_the_model(
    export_format: str, variant: str, exported: Callable[[str, str], tuple[Path, Path]]
) -> None:
    folder, output = exported(export_format, variant)
    model, graph = ChatGPTForCausalLM.from_pretrained(folder).eval(), load_graph(output)
    # More than the window of 16 takes.
    ids = torch.randint(4, model.config.vocab_size, (1, 24))
    mask = torch.ones_like(ids)
    expected = model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=8, eos_token_id=None)
    assert greedy(graph, model, ids, mask).tolist() == expected.tolist()
    assert load_tokenizer(output).get_vocab() == load_tokenizer(folder).get_vocab()

    # A batch of another size, whose shorter row is padded on the left.
    rows = torch.cat((ids, ids)), torch.cat((mask, mask))
    rows[0][1, :9], rows[1][1, :9] = 1, 0
    expected = model.generate(
        rows[0], attention_mask=rows[1], do_sample=False, max_new_tokens=8, eos_token_id=None, pad_token_id=1
    )
    assert greedy(graph, model, *rows).tolist() == expected.tolist()


@pytest.mark.works_with(
    "ExecuTorch", "`chatgpt-hf export --format executorch`: greedy ids of one row", ("executorch",)
)
@pytest.mark.slow
@pytest.mark.parametrize("variant", ["sliding", "gpt2"])
def test_executorch_runs_one_row_with_its_own_cache(
    variant: str, exported: Callable[[str, str], tuple[Path, Path]]
) -> None:
    folder, output = exported("executorch", variant)
    model, graph = ChatGPTForCausalLM.from_pretrained(folder).eval(), load_graph(output)
    for length in (24, 5):
        # The second text starts over in the same cache.
        ids = torch.randint(4, model.config.vocab_size, (1, length))
        expected = model.generate(ids, do_sample=False, max_new_tokens=8, eos_token_id=None, pad_token_id=1)
        session, new = GraphSession(graph, model.config), ids
        for _ in range(8):
            new = session(new)[:, -1:].argmax(-1)
            ids = torch.cat((ids, new), dim=1)
        assert ids.tolist() == expected.tolist()


@pytest.mark.works_with("ONNX Runtime", "the graph with only onnxruntime and NumPy", ("onnxruntime",))
@pytest.mark.slow
def test_onnxruntime_needs_nothing_else(exported: Callable[[str, str], tuple[Path, Path]], tmp_path: Path) -> None:
    folder, output = exported("onnx", "gpt2")
    model = ChatGPTForCausalLM.from_pretrained(folder).eval()
    ids = list(range(20, 30))
    result = subprocess.run(
        [sys.executable, "-c", PLAIN_ONNX, str(output / "model.onnx"), json.dumps(ids)],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    expected = model.generate(
        torch.tensor([ids]), do_sample=False, max_new_tokens=8, eos_token_id=None, pad_token_id=1
    )
    assert json.loads(result.stdout) == expected[0].tolist()


WITHOUT_THE_PACKAGE = """
import sys
sys.modules["chatgpt_hf"] = None
import torch
from transformers import DynamicCache
from transformers.exporters import ExportedModel

graph = ExportedModel.from_pretrained(sys.argv[1], trust_remote_code=True)
cache = DynamicCache()
for layer in range(graph.config.num_hidden_layers):
    nothing = torch.zeros(1, graph.config.num_key_value_heads, 0, graph.config.head_dim)
    cache.update(nothing, nothing, layer)
ids = torch.arange(20, 30)[None]
logits = graph(input_ids=ids, attention_mask=torch.ones_like(ids), position_ids=torch.arange(10)[None],
               past_key_values=cache).logits
print(logits[0, -1].topk(3).indices.tolist())
"""


@pytest.mark.slow
@pytest.mark.parametrize("export_format", ["torch-export", "onnx"])
def test_a_graph_needs_transformers_and_not_this_package(
    export_format: str, exported: Callable[[str, str], tuple[Path, Path]], tmp_path: Path
) -> None:
    folder, output = exported(export_format, "sliding" if export_format == "torch-export" else "gpt2")
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WITHOUT_THE_PACKAGE, str(output)],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HOME": str(tmp_path)},
    )
    assert result.returncode == 0, result.stderr[-2000:]
    with torch.no_grad():
        logits = ChatGPTForCausalLM.from_pretrained(folder).eval()(torch.arange(20, 30)[None]).logits
    assert json.loads(result.stdout) == logits[0, -1].topk(3).indices.tolist()


def test_a_program_of_torch_holds_no_pickle(exported: Callable[[str, str], tuple[Path, Path]]) -> None:
    _, output = exported("torch-export", "sliding")
    program = torch.export.load(str(output / "model.pt2"))
    assert program.example_inputs is None


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"conv_kernel_size": 4}, "onnx cannot express `conv_kernel_size=4`"),
        ({"ngram_vocab_sizes": [64]}, "onnx cannot express `ngram_vocab_sizes="),
        (
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 5000.0}},
            "onnx cannot express `rope_parameters=",
        ),
    ],
)
def test_what_no_graph_can_express_is_named(
    overrides: dict[str, Any], words: str, saved: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(ConversionError) as caught:
        export_model(saved("qwen3", **overrides), tmp_path / "out", "onnx")
    assert words in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_named(
    saved: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ConversionError, match=r"needs onnx and onnxscript and onnxruntime: pip install 'chatgpt-hf\[export\]'"
    ):
        export_model(saved("sliding"), tmp_path / "out", "onnx")


def test_the_size_of_executorchs_cache_is_checked(saved: Callable[..., Path], tmp_path: Path) -> None:
    for length in (4, 65):
        with pytest.raises(ConversionError, match=f"--max_cache_len is {length}: name 8 to 64 places"):
            export_model(saved("sliding"), tmp_path / "out", "executorch", max_cache_len=length)
