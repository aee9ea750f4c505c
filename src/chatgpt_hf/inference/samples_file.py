"""Samples several answers to each prompt of a file; a later run continues an unfinished output file."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.utils import tqdm
from transformers import PreTrainedModel

from ..checkpoints import check_tokenizer_fits, context_length
from ..files import clear_disk_errors
from ..tokenization_chatgpt import load_tokenizer
from .loading import load_for_generation
from .prompt_file import OWN_FIELDS, Prompt, raise_for_faults, read_output, read_prompts
from .sampler import Sample, sample_completions

# As `OWN_FIELDS`.
SAMPLE_FIELDS = (*OWN_FIELDS, "sample", "completion_ids", "mean_log_prob")


def sample_file(
    name_or_path: str | Path,
    prompts: str | Path,
    output: str | Path,
    *,
    samples: int,
    seed: int = 0,
    max_new_tokens: int = 128,
    batch_size: int = 64,
    quantize: str | None = None,
    **parameters: Any,
) -> int:
    """Samples answers to every line of a file of `generate_file`. An unfinished output file is continued.

    The output has one object per answer: those of `generate_file`, and `sample`, its number from 1; `completion_ids`, the tokens
    with the end mark; and `mean_log_prob`, the mean of their log-probabilities. Of the model's generation config, only the end
    marks count.

    Args:
        name_or_path: Folder or Hub id of a causal language model.
        prompts: The file with the prompts.
        output: The file to write or continue.
        samples: Answers to each prompt.
        seed: The answers to a line depend on it, on the number of the line and on nothing that was drawn before.
        max_new_tokens: Maximum length of an answer, in tokens.
        batch_size: Answers that are computed at once.
        quantize: See `load_for_generation`.
        **parameters: `temperature`, `top_k`, `top_p` and `min_p` of `sample_completions`.

    Returns:
        The number of answers in the output.

    Raises:
        DataError: If the file cannot be read. Also if some lines cannot be used, after all others were answered.
        OutputError: If the output belongs to other prompts, or has more samples of each.
        ConfigError: If a parameter is out of range, or the model keeps another state than keys and values.
    """
    model, tokenizer = load_for_generation(name_or_path, quantize, many_rows=True), load_tokenizer(str(name_or_path))
    check_tokenizer_fits(model, tokenizer)
    rows, faults = read_prompts(Path(prompts), tokenizer, context_length(model), max_new_tokens, own=SAMPLE_FIELDS)
    total, target = len(rows) + len(faults), Path(output)
    done = read_output(target, {row.line: row.row for row in rows}, samples)
    left = [row for row in rows if any((row.line, number + 1) not in done for number in range(samples))]
    options = {"samples": samples, "max_new_tokens": max_new_tokens, "batch_size": batch_size, **parameters}
    # Checks the parameters and the model before the file is opened.
    sample_completions(model, [], end_ids=(), generator=[], **options)
    target.parent.mkdir(parents=True, exist_ok=True)
    with (
        clear_disk_errors(target),
        target.open("a", encoding="utf-8") as file,
        tqdm(total=len(rows), initial=len(rows) - len(left), desc="Sampling", unit="prompt") as progress,
    ):
        for row, answers in _sampled(model, left, seed, options):
            for number, answer in enumerate(answers, start=1):
                if (row.line, number) not in done:
                    record = {
                        **row.row,
                        "line": row.line,
                        "sample": number,
                        "completion": tokenizer.decode(answer.ids, skip_special_tokens=True),
                        "finish_reason": "stop" if answer.ended else "length",
                        "completion_ids": answer.ids,
                        "mean_log_prob": round(sum(answer.log_probs) / len(answer.ids), 5),
                    }
                    file.write(json.dumps(record, ensure_ascii=False) + "\n")
            file.flush()
            progress.update()
    raise_for_faults(faults, total, prompts, output)
    return len(rows) * samples


def _sampled(
    model: PreTrainedModel, rows: Sequence[Prompt], seed: int, options: dict[str, Any]
) -> Iterator[tuple[Prompt, list[Sample]]]:
    """Yields each row with its samples, short prompts first."""
    eos = model.generation_config.eos_token_id
    ends = {eos} if isinstance(eos, int) else set(eos or ())
    order = sorted(rows, key=lambda row: len(row.ids))
    together = max(1, options["batch_size"] // options["samples"])
    for begin in range(0, len(order), together):
        part = order[begin : begin + together]
        found = sample_completions(
            model,
            [row.ids for row in part],
            end_ids=ends,
            generator=[_generator(seed, row.line) for row in part],
            **options,
        )
        yield from zip(part, found, strict=True)


def _generator(seed: int, line: int) -> torch.Generator:
    # PyTorch's generator takes 32 bits of a seed, so numbers that are put together have to be mixed.
    mixed = hashlib.blake2b(f"{seed} {line}".encode(), digest_size=4).digest()
    return torch.Generator().manual_seed(int.from_bytes(mixed, "big"))
