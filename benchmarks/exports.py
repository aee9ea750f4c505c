"""One chat model in every form that it can take: size, perplexity, tokens per second, and whether it gives the same answers.

Quantized by transformers' configs (torchao, bitsandbytes), and exported by `chatgpt-hf export`. All forms are held in one
process with one thread each, and answer in turn, three times; the median counts. Answers are greedy and are compared with
those of the float32 model, id by id up to the end of the answer. The perplexity is that of held-out answers.

    python benchmarks/exports.py --model runs/gguf/chat

Without --model its shape is the quickstart's and its weights are random, and llama.cpp has no layout for it. The folder needs an architecture and a tokenizer that llama.cpp knows, or its rows say why they are missing:

    chatgpt-hf tokenizer train --corpus builtin:python-docs --max_digits 3 --output_dir runs/gguf/tokenizer
    chatgpt-hf pretrain pretrain-quickstart --tokenizer runs/gguf/tokenizer --gated_mlp true --hidden_act silu \\
        --output_dir runs/gguf/base
    chatgpt-hf sft sft-quickstart --model_name_or_path runs/gguf/base --output_dir runs/gguf/chat
"""

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from serving import random_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TorchAoConfig
from transformers.utils import logging as transformers_logging

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
        logits: Of ids (1, seq): (seq, vocab).
        answer: The greedy ids after a prompt's, as many as asked, and no end before.
        megabytes: Of its weights on the disk.
    """

    logits: Callable[[torch.Tensor], torch.Tensor]
    answer: Callable[[list[int], int], list[int]]
    megabytes: float
    seconds: list[float] = field(default_factory=list)
    answers: list[list[int]] = field(default_factory=list)


def megabytes(folder: Path) -> float:
    suffixes = (".safetensors", ".data", ".onnx", ".bin", ".xml", ".pte", ".pt2", ".gguf")
    return sum(file.stat().st_size for file in folder.iterdir() if file.name.endswith(suffixes)) / 1e6


def transformers_form(source: str, folder: Path, **options: object) -> Form:
    model = AutoModelForCausalLM.from_pretrained(source, **options).eval()
    model.save_pretrained(folder)

    @torch.inference_mode()
    def logits(ids: torch.Tensor) -> torch.Tensor:
        return model(ids).logits[0].float()

    def answer(prompt: list[int], count: int) -> list[int]:
        ids = torch.tensor([prompt])
        mask = torch.ones_like(ids)
        options = {"do_sample": False, "repetition_penalty": 1.0, "eos_token_id": None, "pad_token_id": 0}
        return model.generate(ids, attention_mask=mask, max_new_tokens=count, **options)[0, len(prompt) :].tolist()

    return Form(logits, answer, megabytes(folder))


def graph_form(source: str, folder: Path, export_format: str, config: ChatGPTConfig) -> Form:
    export_model(source, folder, export_format)
    options: dict[str, Any] = {}
    if export_format == "onnx":
        import onnxruntime

        options["session_options"] = onnxruntime.SessionOptions()
        options["session_options"].intra_op_num_threads = 1
    elif export_format == "openvino":
        options["config"] = {"INFERENCE_NUM_THREADS": 1}
    graph = load_graph(folder, trust_remote_code=True, **options)

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

    def answer(prompt: list[int], count: int) -> list[int]:
        model.reset()
        found: list[int] = []
        for token in model.generate(prompt, temp=0.0, repeat_penalty=1.0):
            found.append(token)
            if len(found) == count:
                break
        return found

    return Form(logits, answer, megabytes(folder))


def make_forms(source: str, work: Path, only: list[str] | None) -> dict[str, Form | str]:
    """Every form by name, or the reason why there is none."""
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
    """Of what the assistant says."""
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
    return ids[: next((index for index, token in enumerate(ids) if token in ends), len(ids))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", help="folder of a chat model (default: the quickstart's shape, with random weights)"
    )
    parser.add_argument("--conversations", type=int, default=64, help="held out (default: %(default)s)")
    parser.add_argument("--questions", type=int, default=20, help="held-out questions (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=64, help="of an answer (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--only", nargs="*", help="forms to make beside float32 (default: all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    source = args.model or random_model()
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
        for round_index in range(args.rounds):
            print(f"Round {round_index + 1} of {args.rounds}", file=sys.stderr)
            for form in made.values():
                begun = time.perf_counter()
                form.answers = [form.answer(prompt, args.tokens) for prompt in prompts]
                form.seconds.append(time.perf_counter() - begun)
        reference = [up_to_end(answer, ends) for answer in made["float32"].answers]
        expected = [made["float32"].logits(row["input_ids"]) for row in short[:8]]
        results = {}
        for name, form in made.items():
            speed = len(prompts) * args.tokens / statistics.median(form.seconds)
            same = [up_to_end(answer, ends) == wanted for answer, wanted in zip(form.answers, reference, strict=True)]
            differences = [
                (form.logits(row["input_ids"]) - want).abs().max().item()
                for row, want in zip(short[:8], expected, strict=True)
            ]
            results[name] = {
                "megabytes": form.megabytes,
                "perplexity": perplexity(form, short),
                "logits": max(differences),
                "same_answers": sum(same),
                "tokens_per_second": speed,
            }
    print(f"torch {torch.__version__}, one thread; {len(short)} conversations, {len(prompts)} questions\n")
    print(
        "| form | MB | perplexity | largest difference of a logit | same answers | tokens/s | ratio |\n"
        "|---|---|---|---|---|---|---|"
    )
    first = results["float32"]["tokens_per_second"]
    for name, form in forms.items():
        if isinstance(form, str):
            print(f"| {name} | {form} | | | | | |")
            continue
        row = results[name]
        print(
            f"| {name} | {row['megabytes']:.1f} | {row['perplexity']:.3f} | {row['logits']:.1e} "
            f"| {row['same_answers']} of {len(prompts)} | {row['tokens_per_second']:.0f} "
            f"| {row['tokens_per_second'] / first:.2f} |"
        )
    if args.json:
        ratios = {}
        for name, row in results.items():
            if name != "float32":
                ratios[f"{name}/float32 tokens per second"] = row["tokens_per_second"] / first
                ratios[f"{name}: same answers"] = row["same_answers"] / len(prompts)
        figures = {"results": results, "ratios": ratios}
        args.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
