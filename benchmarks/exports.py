"""One chat model in every form: size, perplexity, tokens per second, and whether the answers stay the same.

The forms are quantized with transformers' configs (torchao, bitsandbytes) or made by `chatgpt-hf export`. All run in one process
with one thread each and take turns; the median of the rounds counts. Greedy answers are compared with the float32 model's, id
by id up to the end of the answer. The perplexity is that of held-out answers.

    python benchmarks/exports.py --model runs/gguf/chat

Without --model the model has the quickstart's shape and random weights, for which llama.cpp has no layout. For llama.cpp, the
model needs an architecture and a tokenizer that it knows; otherwise its rows say what is missing:

    chatgpt-hf tokenizer train --corpus builtin:python-docs --max_digits 3 --output_dir runs/gguf/tokenizer
    chatgpt-hf pretrain pretrain-quickstart --tokenizer runs/gguf/tokenizer --gated_mlp true --hidden_act silu \\
        --output_dir runs/gguf/base
    chatgpt-hf sft sft-quickstart --model_name_or_path runs/gguf/base --output_dir runs/gguf/chat
"""

import math
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import harness
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TorchAoConfig

from chatgpt_hf import ChatGPTConfig, load_tokenizer
from chatgpt_hf.data.builtin import load_builtin
from chatgpt_hf.errors import ChatGPTError
from chatgpt_hf.export.export import export_model
from chatgpt_hf.export.gguf import OUTTYPES
from chatgpt_hf.export.graphs import GRAPH_FORMATS, GraphSession, graph_logits, load_graph
from chatgpt_hf.tokenization_chatgpt import IM_END, encode_conversation


@dataclass
class Form:
    """A model in one form.

    Attributes:
        logits: Computes (seq, vocab) logits of (1, seq) ids.
        answer: Gives exactly as many greedy ids after a prompt as asked for.
        megabytes: Size of its weights on disk.
    """

    logits: Callable[[torch.Tensor], torch.Tensor]
    answer: Callable[[list[int], int], list[int]]
    megabytes: float


def megabytes(folder: Path) -> float:
    endings = (".safetensors", ".data", ".onnx", ".bin", ".xml", ".pte", ".pt2", ".gguf")
    return harness.megabytes(folder, endings)


def transformers_form(source: str, folder: Path, **options: object) -> Form:
    model = AutoModelForCausalLM.from_pretrained(source, **options).eval()
    model.save_pretrained(folder)

    @torch.inference_mode()
    def logits(ids: torch.Tensor) -> torch.Tensor:
        return model(ids).logits[0].float()

    return Form(logits, partial(harness.greedy_answer, model), megabytes(folder))


def graph_form(source: str, folder: Path, export_format: str, config: ChatGPTConfig) -> Form:
    export_model(source, folder, export_format)
    options: dict[str, Any] = {}
    if export_format == "onnx":
        import onnxruntime

        options["session_options"] = onnxruntime.SessionOptions()
        options["session_options"].intra_op_num_threads = 1
    elif export_format == "openvino":
        options["config"] = {"INFERENCE_NUM_THREADS": 1}
    graph = load_graph(folder, **options)

    def answer(prompt: list[int], count: int) -> list[int]:
        session, new, found = GraphSession(graph, config), torch.tensor([prompt]), []
        for _ in range(count):
            new = session(new)[:, -1:].argmax(-1)
            found.append(int(new))
        return found

    return Form(lambda ids: graph_logits(graph, config, ids)[0], answer, megabytes(folder))


def gguf_form(source: str, folder: Path, outtype: str) -> Form:
    from llama_cpp import Llama

    done = export_model(source, folder, "gguf", outtype=outtype)
    model = Llama(str(done.files[0]), n_ctx=512, n_threads=1, n_threads_batch=1, logits_all=True, verbose=False)

    def logits(ids: torch.Tensor) -> torch.Tensor:
        model.reset()
        model.eval(ids[0].tolist())
        return torch.from_numpy(model.scores[: ids.shape[1]].copy())

    return Form(logits, partial(harness.llama_answer, model), megabytes(folder))


def make_forms(source: str, work: Path, only: list[str] | None) -> dict[str, Form | str]:
    """Makes the forms, by name; one that cannot be made is the reason why."""
    from torchao.quantization import (
        Int8DynamicActivationInt8WeightConfig,
        Int8WeightOnlyConfig,
        IntxWeightOnlyConfig,
        PerGroup,
    )

    config = AutoModelForCausalLM.from_pretrained(source).config
    int4 = IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32))
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    quantized = {
        "torchao int8 weights": TorchAoConfig(Int8WeightOnlyConfig()),
        "torchao int8 weights and activations": TorchAoConfig(Int8DynamicActivationInt8WeightConfig()),
        "torchao int4 weights in groups of 32": TorchAoConfig(int4),
        "bitsandbytes int8": BitsAndBytesConfig(load_in_8bit=True),
        "bitsandbytes nf4": nf4,
    }
    makers: dict[str, Callable[[Path], Form]] = {
        "float32": lambda folder: transformers_form(source, folder, dtype=torch.float32),
        "bfloat16": lambda folder: transformers_form(source, folder, dtype=torch.bfloat16),
    }
    for name, quantization in quantized.items():
        makers[name] = lambda folder, q=quantization: transformers_form(source, folder, quantization_config=q)
    for export_format in GRAPH_FORMATS:
        makers[export_format] = lambda folder, f=export_format: graph_form(source, folder, f, config)
    for outtype in OUTTYPES:
        makers[f"gguf {outtype}"] = lambda folder, o=outtype: gguf_form(source, folder, o)
    forms: dict[str, Form | str] = {}
    for name, make in makers.items():
        if only and name != "float32" and name not in only:
            continue
        folder = work / name.replace(" ", "-")
        print(f"Making {name}", file=sys.stderr)
        try:
            forms[name] = make(folder)
        except (ChatGPTError, ImportError) as error:
            forms[name] = str(error)
    return forms


def perplexity(form: Form, conversations: list[dict[str, torch.Tensor]]) -> float:
    """The perplexity of the assistant's messages."""
    nats, count = 0.0, 0
    for row in conversations:
        said = row["assistant_masks"][0, 1:].bool()
        losses = torch.nn.functional.cross_entropy(
            form.logits(row["input_ids"])[:-1], row["input_ids"][0, 1:], reduction="none"
        )
        nats += losses[said].sum().item()
        count += int(said.sum())
    return math.exp(nats / count)


def up_to_end(ids: list[int], ends: set[int]) -> list[int]:
    """The ids before the first that ends an answer."""
    return ids[: next((index for index, token in enumerate(ids) if token in ends), len(ids))]


def main() -> None:
    parser = harness.parser(__doc__, rounds=3)
    parser.add_argument(
        "--model", help="folder of a chat model (default: the quickstart's shape, with random weights)"
    )
    parser.add_argument("--conversations", type=int, default=64, help="held-out conversations (default: %(default)s)")
    parser.add_argument("--questions", type=int, default=20, help="held-out questions (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of an answer (default: %(default)s)")
    parser.add_argument("--only", nargs="*", help="forms to compare with float32 (default: all)")
    args = parser.parse_args()
    harness.prepare(threads=1)
    source = args.model or harness.random_model()
    tokenizer = load_tokenizer(source)
    rows = load_builtin("builtin:python-qa")["test"]["messages"]
    encoded = (encode_conversation(tokenizer, row) for row in rows)
    short = [
        {name: torch.tensor([values]) for name, values in row.items()}
        for row in encoded
        if len(row["input_ids"]) <= 128
    ][: args.conversations]
    prompts = [
        encode_conversation(tokenizer, row[:1], add_generation_prompt=True)["input_ids"]
        for row in rows[: args.questions]
    ]
    ends = {tokenizer.eos_token_id, *tokenizer.convert_tokens_to_ids([IM_END])}
    with tempfile.TemporaryDirectory() as work:
        forms = make_forms(source, Path(work), args.only)
        made = {name: form for name, form in forms.items() if isinstance(form, Form)}

        def answers(form: Form) -> list[list[int]]:
            return [form.answer(prompt, args.tokens) for prompt in prompts]

        rounds = harness.in_turn(
            {name: partial(harness.timed, answers, form) for name, form in made.items()}, args.rounds
        )
        said = {name: [up_to_end(answer, ends) for answer in times[-1].result] for name, times in rounds.items()}
        expected = [made["float32"].logits(row["input_ids"]) for row in short[:8]]
        results = {}
        for name, form in made.items():
            differences = [
                (form.logits(row["input_ids"]) - want).abs().max().item()
                for row, want in zip(short[:8], expected, strict=True)
            ]
            results[name] = {
                "megabytes": form.megabytes,
                "perplexity": perplexity(form, short),
                "logits": max(differences),
                "same_answers": harness.count_equal(said[name], said["float32"]),
                "tokens_per_second": len(prompts) * args.tokens / harness.median_seconds(rounds[name]),
            }
    print(f"torch {torch.__version__}, one thread; {len(short)} conversations, {len(prompts)} questions\n")
    titles = ("MB", "perplexity", "largest difference of a logit", "same answers", "tokens/s", "ratio")
    print(harness.markdown_head("form", *titles))
    first = results["float32"]["tokens_per_second"]
    for name, form in forms.items():
        if isinstance(form, str):
            print(harness.markdown_row(name, form, *[""] * (len(titles) - 1)))
            continue
        row = results[name]
        cells = (
            f"{row['megabytes']:.1f}",
            f"{row['perplexity']:.3f}",
            f"{row['logits']:.1e}",
            f"{row['same_answers']} of {len(prompts)}",
            f"{row['tokens_per_second']:.0f}",
            f"{row['tokens_per_second'] / first:.2f}",
        )
        print(harness.markdown_row(name, *cells))
    ratios = {}
    for name, row in results.items():
        if name != "float32":
            ratios[f"{name}/float32 tokens per second"] = row["tokens_per_second"] / first
            ratios[f"{name}: same answers"] = row["same_answers"] / len(prompts)
    harness.write_json(args.json, ratios, results=results)


if __name__ == "__main__":
    main()
