"""Evaluates how a model completes prompts: the likelihood of the right completions, and its own completions."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...evaluation.figures import Measure
from ...evaluation.generation import generate_completions
from ...evaluation.metrics import measures
from ...evaluation.record import Evaluation
from ...evaluation.scoring import negative_log_likelihoods
from ...model.pipelines import fit_prompt
from .triples import relation_measures

logger = logging.getLogger(__name__)

LIKELIHOOD = "likelihood"

# Metrics of each generative task, unless a recipe names others.
DEFAULT_METRICS: dict[str, dict[str, dict[str, Any]]] = {
    "translation": {"bleu": {}, "chrf": {}, "exact_match": {}},
    "summarization": {"rouge": {}},
    "text-generation": {"exact_match": {}, "token_f1": {}},
}


class EncodedPair(NamedTuple):
    """Ids of a prompt and of its completion with the end mark, and what did not fit."""

    prompt: list[int]
    completion: list[int]
    prompt_cut: bool
    completion_cut: bool


def encode_completion(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    completion: str,
    *,
    suffix: str = "",
    max_length: int,
    max_new_tokens: int,
) -> EncodedPair:
    """Returns the ids of a prompt, shortened to leave room, and of its completion with the end mark.

    Args:
        suffix: The end of the prompt, which is kept when the prompt is shortened.

    Returns:
        Prompt and completion: together at most `max_length` tokens, the completion at most `max_new_tokens`. A longer
        completion is cut, and then has no end mark.
    """
    shortened = fit_prompt(tokenizer, prompt, max_length - max_new_tokens, suffix=suffix)
    before = tokenizer(shortened)["input_ids"]
    after = [*tokenizer(completion, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    return EncodedPair(before, after[:max_new_tokens], shortened != prompt, len(after) > max_new_tokens)


def scored_bytes(tokenizer: PreTrainedTokenizerBase, completion: str, tokens: int) -> int:
    """Returns how many bytes of a completion its first tokens stand for; half a character counts as none."""
    offsets = tokenizer(completion, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    if tokens >= len(offsets):
        return len(completion.encode())
    # A byte-level token may be a part of a character, whose other tokens then have the same end.
    end = min(offsets[tokens - 1][1], offsets[tokens][0]) if tokens else 0
    return len(completion[:end].encode())


def count_cut(
    prompts: Sequence[bool], completions: Sequence[bool], *, max_length: int, max_new_tokens: int, effect: str
) -> dict[str, int]:
    """Counts the prompts and completions that were cut, and warns about them.

    Args:
        prompts, completions: True for each one that was cut.
        effect: What it means that a completion was cut.
    """
    cut = {"cut_prompts": sum(prompts), "cut_completions": sum(completions)}
    if cut["cut_prompts"]:
        room = max_length - max_new_tokens
        logger.warning(
            "%d of %d prompts were cut to %d tokens (--max_length %d less --max_new_tokens %d).",
            cut["cut_prompts"], len(prompts), room, max_length, max_new_tokens,
        )  # fmt: skip
    if cut["cut_completions"]:
        logger.warning(
            "%d of %d completions were cut at --max_new_tokens %d: %s.",
            cut["cut_completions"], len(completions), max_new_tokens, effect,
        )  # fmt: skip
    return cut


def evaluate_likelihood(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    *,
    data: str,
    batch_size: int = 8,
    progress: bool = True,
    **lengths: Any,
) -> Evaluation:
    """Measures the perplexity and bits per byte of completions, given their prompts.

    A completion that is too long is cut; only the bytes that were scored count. The settings say how many prompts and
    completions were cut.

    Args:
        rows: Rows with columns `prompt` and `completion`.
        **lengths: The keyword arguments of `encode_completion`.
    """
    pairs = [
        encode_completion(tokenizer, prompt, completion, **lengths)
        for prompt, completion in zip(rows["prompt"], rows["completion"], strict=True)
    ]
    nats = negative_log_likelihoods(
        model,
        [(pair.prompt + pair.completion, len(pair.prompt)) for pair in pairs],
        pad_token_id=tokenizer.pad_token_id,
        batch_size=batch_size,
        desc="Scoring completions",
        progress=progress,
    )
    cut = count_cut(
        [pair.prompt_cut for pair in pairs],
        [pair.completion_cut for pair in pairs],
        max_length=lengths["max_length"],
        max_new_tokens=lengths["max_new_tokens"],
        effect="perplexity and bits per byte are of what was kept",
    )
    tokens = np.array([len(pair.completion) for pair in pairs])
    sizes = np.array(
        [
            scored_bytes(tokenizer, text, len(pair.completion)) if pair.completion_cut else len(text.encode())
            for text, pair in zip(rows["completion"], pairs, strict=True)
        ]
    )
    found = {
        "perplexity": Measure("perplexity", np.stack([nats, tokens], axis=1), higher_is_better=False),
        "bits_per_byte": Measure("bits", np.stack([nats, sizes], axis=1), higher_is_better=False),
    }
    examples = [
        {"text": prompt, "reference": completion}
        for prompt, completion in zip(rows["prompt"], rows["completion"], strict=True)
    ]
    limits = {name: lengths[name] for name in ("max_length", "max_new_tokens")}
    return Evaluation(LIKELIHOOD, data, found, examples, {**limits, **cut})


def evaluate_completions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    *,
    task: str,
    data: str,
    metrics: Mapping[str, Mapping[str, Any]] | None = None,
    suffix: str = "",
    max_length: int,
    max_new_tokens: int,
    batch_size: int = 32,
    progress: bool = True,
) -> Evaluation:
    """Compares what the model writes after each prompt, greedily, with the completions.

    Args:
        rows: Rows with columns `prompt` and `completion`.
        metrics: Names in `chatgpt_hf.evaluation.metrics`, or `relations`, with their options; None uses the task's
            defaults.
    """
    prompts = [fit_prompt(tokenizer, prompt, max_length - max_new_tokens, suffix=suffix) for prompt in rows["prompt"]]
    written = generate_completions(
        model,
        tokenizer,
        [tokenizer(prompt)["input_ids"] for prompt in prompts],
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        progress=progress,
        desc="Writing",
        do_sample=False,
    )
    said, right = [completion.text.strip() for completion in written], [text.strip() for text in rows["completion"]]
    chosen = DEFAULT_METRICS[task] if metrics is None else metrics
    found: dict[str, Measure] = {}
    for name, options in chosen.items():
        found |= relation_measures(said, right) if name == "relations" else measures(name, said, right, **options)
    found |= measures("diversity", said)
    ended = np.array([completion.ended for completion in written], dtype=float)
    found["ended"] = Measure("mean", np.stack([ended, np.ones(len(ended))], axis=1))
    examples = [
        {"text": prompt, "prediction": answer, "reference": reference}
        for prompt, answer, reference in zip(rows["prompt"], said, right, strict=True)
    ]
    return Evaluation(task, data, found, examples, {"metrics": {name: dict(value) for name, value in chosen.items()}})
