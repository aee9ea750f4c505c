"""The engines that decode.py compares: what each needs on disk, its answers, and what it costs in perplexity."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import harness

# The package of an engine that is not ours, and bytes per weight.
ARMS = {
    "stock float32": (None, 4.0),
    "stock bfloat16": (None, 2.0),
    "plain float32": (None, 4.0),
    "plain bfloat16": (None, 2.0),
    "ours float32": (None, 4.0),
    "ours bfloat16": (None, 2.0),
    "ours int8": ("torchao", 1.0),
    "ours int8-weight-only": ("torchao", 1.0),
    # 4 bits, and a scale and a middle of 16 bits for 32 weights; the head has 8 bits.
    "ours int4": ("torchao", 0.5 + 4 / 32),
    "compiled float32": (None, 4.0),
    "compiled bfloat16": (None, 2.0),
    "compiled int8": ("torchao", 1.0),
    "compiled int4": ("torchao", 0.5 + 4 / 32),
    "ctranslate2 float32": ("ctranslate2", 4.0),
    "ctranslate2 int8": ("ctranslate2", 1.0),
    "llama.cpp float32": ("llama_cpp", 4.0),
    "llama.cpp f16": ("llama_cpp", 2.0),
    "llama.cpp q8_0": ("llama_cpp", 1.0 + 2 / 32),
    "llama.cpp q4_0": ("llama_cpp", 0.5 + 2 / 32),
    "llama.cpp q4_1": ("llama_cpp", 0.5 + 4 / 32),
}

Answer = Callable[[list[list[int]], int], list[list[int]]]


class Engine(NamedTuple):
    """A loaded model.

    Attributes:
        answer: Maps prompts of one length and a number of tokens to greedy tokens.
        nats: Maps a row of tokens to the negative log-likelihood of all but its first.
    """

    answer: Answer
    nats: Callable[[list[int]], float]

    def perplexity(self, rows: list[list[int]]) -> float:
        return math.exp(sum(map(self.nats, rows)) / sum(len(row) - 1 for row in rows))


def write_weights(folder: Path, arms: list[str], small: bool) -> None:
    """Saves the same weights for all engines: `ours`, `stock` in GPT-2's layout, and those of the chosen arms."""
    import torch
    from transformers import PreTrainedTokenizerFast

    from chatgpt_hf import ChatGPTConfig, ChatGPTForCausalLM, convert_checkpoint, load_builtin, train_tokenizer

    torch.manual_seed(0)
    sizes = {**harness.TINY, "vocab_size": 2048} if small else {}
    model = ChatGPTForCausalLM(ChatGPTConfig.gpt2("gpt2", **sizes))
    # Large weights, so that the likeliest tokens stand out: otherwise sums in another order choose others.
    torch.nn.init.normal_(model.model.embed_tokens.weight, std=0.2)
    texts = load_builtin("builtin:python-docs")["train"]["text"][:300]
    tokenizer = train_tokenizer(texts, 1024, max_digits=3, show_progress=False)
    model.save_pretrained(folder / "ours")
    tokenizer.save_pretrained(folder / "ours")
    convert_checkpoint(folder / "ours", folder / "stock", "gpt2")
    write_quantized(folder, arms)
    if any(arm.startswith("ctranslate2") for arm in arms):
        from ctranslate2.converters import TransformersConverter
        from tokenizers import Tokenizer
        from tokenizers.models import WordLevel

        # CTranslate2 takes strings: each id becomes its digits.
        words = {str(index): index for index in range(model.config.vocab_size)}
        names = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(WordLevel(words, unk_token="0")), unk_token="0", bos_token="0", eos_token="1"
        )
        for file in (folder / "stock").glob("tokenizer*"):
            file.unlink()
        names.save_pretrained(folder / "stock")
        for kind in ("float32", "int8"):
            TransformersConverter(str(folder / "stock")).convert(str(folder / f"ct2-{kind}"), quantization=kind)
    write_gguf(folder, arms)


def write_copies(folder: Path, model: str, arms: list[str]) -> None:
    """Saves the weights of a model folder of a family that all engines know, such as Llama, for all engines."""
    from chatgpt_hf import load_model, load_tokenizer

    loaded = load_model(model)
    for name in ("ours", "stock"):
        loaded.save_pretrained(folder / name)
        load_tokenizer(model).save_pretrained(folder / name)
    del loaded
    write_quantized(folder, arms)
    if any(arm.startswith("ctranslate2") for arm in arms):
        from ctranslate2.converters import TransformersConverter

        for kind in ("float32", "int8"):
            TransformersConverter(str(folder / "stock")).convert(str(folder / f"ct2-{kind}"), quantization=kind)
    write_gguf(folder, arms)


def write_quantized(folder: Path, arms: list[str]) -> None:
    """Saves what the arms with quantized weights need."""
    from chatgpt_hf.inference.quantization import quantize_folder

    for name in sorted({arm.split()[1] for arm in arms if arm.startswith(("ours int", "compiled int"))}):
        quantize_folder(folder / "ours", folder / name, name)


def write_gguf(folder: Path, arms: list[str]) -> None:
    """Saves what llama.cpp's arms need."""
    from chatgpt_hf.export.export import export_model

    kinds = {arm.split()[1] for arm in arms if arm.startswith("llama.cpp")}
    kinds = {"f32" if kind == "float32" else kind for kind in kinds}
    own = {kind for kind in kinds if kind.startswith("q4")}
    for kind in sorted(kinds - own | ({"f32"} if own else set())):
        export_model(folder / "ours", folder / f"gguf-{kind}", "gguf", outtype=kind, check=False)
    for kind in sorted(own):
        # 4 bits are written by llama.cpp itself.
        import llama_cpp

        options = llama_cpp.llama_model_quantize_default_params()
        options.ftype = {"q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0, "q4_1": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_1}[kind]
        source, target = next((folder / "gguf-f32").glob("*.gguf")), folder / f"gguf-{kind}" / "model.gguf"
        target.parent.mkdir()
        if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), options):
            raise SystemExit(f"llama.cpp could not write {kind}.")


def load_ours(folder: Path, means: str, kind: str) -> Engine:
    import torch
    from transformers import AutoModelForCausalLM

    from chatgpt_hf import GrowingCache, use_cpu_kernels
    from chatgpt_hf.inference.compiling import StaticPrefix, compile_config

    name = "stock" if means == "stock" else kind if kind.startswith("int") else "ours"
    options = {} if kind.startswith("int") else {"dtype": getattr(torch, kind)}
    model = AutoModelForCausalLM.from_pretrained(folder / name, **options).eval()
    if means in ("ours", "compiled"):
        use_cpu_kernels(model)
    # A compiled step is for a cache of one size, which is kept for the next answer.
    caches: dict[tuple[int, int], StaticPrefix] = {}

    def answer(prompts: list[list[int]], count: int) -> list[list[int]]:
        ids = torch.tensor(prompts)
        config = harness.greedy(count)
        cache: Any = None
        if means == "ours":
            cache = GrowingCache(model.config)
        elif means == "compiled":
            config.compile_config = compile_config()
            config.compile_config.dynamic = False
            cache = caches.setdefault(
                (len(ids), ids.shape[1] + count), StaticPrefix(model, ids.shape[1] + count)
            ).take([])
        found = model.generate(
            ids, attention_mask=torch.ones_like(ids), generation_config=config, past_key_values=cache
        )
        return found[:, ids.shape[1] :].tolist()

    @torch.inference_mode()
    def nats(row: list[int]) -> float:
        ids = torch.tensor(row)
        logits = model(ids[None], use_cache=False).logits[0, :-1].float()
        return torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum").item()

    return Engine(answer, nats)


def load_ctranslate2(folder: Path, kind: str, threads: int) -> Engine:
    import ctranslate2

    model = ctranslate2.Generator(str(folder / f"ct2-{kind}"), intra_threads=threads, compute_type=kind)
    names = json.loads((folder / f"ct2-{kind}" / "vocabulary.json").read_text("utf-8"))

    def answer(prompts: list[list[int]], count: int) -> list[list[int]]:
        words = [[names[token] for token in prompt] for prompt in prompts]
        options = {"sampling_topk": 1, "include_prompt_in_result": False, "end_token": [names[2]]}
        found = model.generate_batch(words, max_length=count, min_length=count, **options)
        return [result.sequences_ids[0] for result in found]

    def nats(row: list[int]) -> float:
        return -sum(model.score_batch([[names[token] for token in row]])[0].log_probs)

    return Engine(answer, nats)


def load_llama_cpp(folder: Path, kind: str, threads: int) -> Engine:
    from llama_cpp import Llama

    file = next((folder / f"gguf-{kind}").glob("*.gguf"))
    model = Llama(str(file), n_ctx=1024, n_batch=512, n_threads=threads, n_threads_batch=threads, verbose=False)
    scorers: dict[str, Any] = {}

    def answer(prompts: list[list[int]], count: int) -> list[list[int]]:
        (prompt,) = prompts
        return [harness.llama_answer(model, prompt, count)]

    def nats(row: list[int]) -> float:
        import numpy as np

        # Another one, because keeping all logits takes memory that answers do not need.
        scorer = scorers.setdefault(
            "", Llama(str(file), n_threads=threads, verbose=False, n_ctx=1024, logits_all=True)
        )
        scorer.reset()
        scorer.eval(row)
        logits = scorer.scores[: len(row) - 1].astype(np.float64)
        logits -= logits.max(axis=-1, keepdims=True)
        chosen = logits[np.arange(len(row) - 1), row[1:]]
        return float((np.log(np.exp(logits).sum(axis=-1)) - chosen).sum())

    return Engine(answer, nats)


def load_engine(arm: str, folder: Path, threads: int) -> Engine:
    means, kind = arm.split()
    if means == "ctranslate2":
        return load_ctranslate2(folder, kind, threads)
    if means == "llama.cpp":
        return load_llama_cpp(folder, {"float32": "f32"}.get(kind, kind), threads)
    return load_ours(folder, means, kind)


def weights_read(folder: Path) -> int:
    """The weights that a token reads: those of all linear layers, of which the head may be tied to the embedding."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    return sum(layer.weight.numel() for layer in model.modules() if isinstance(layer, torch.nn.Linear))
