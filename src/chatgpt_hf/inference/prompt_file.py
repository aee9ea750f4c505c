"""Answers many prompts from a file with continuous batching; a later run continues an unfinished output file."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub.utils import tqdm
from jinja2.exceptions import TemplateError
from transformers import ContinuousBatchingConfig, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..chat_templates import encode_chat_prompt
from ..checkpoints import check_tokenizer_fits, context_length
from ..errors import ChatGPTError, DataError, OutputError, TemplateTimeout
from ..evaluation.generation import PLAIN_GREEDY, generate_completions
from ..files import clear_disk_errors, write_atomically
from ..parsing import parse_json, read_file, special_kind
from ..tokenization_chatgpt import load_tokenizer
from .abstention import Abstention, choose_abstention
from .continuous import check_continuous_batching, prepare_batching
from .generate import encode_prompt
from .loading import load_for_generation
from .parameters import generation_config_with, sampling

# Fields that an answer adds to its line. They replace existing ones: files for fine-tuning already have a
# `completion`.
OWN_FIELDS = ("line", "completion", "finish_reason")
# Added too if the model may abstain.
_JUDGED_FIELDS = ("confidence", "abstained")
_JUDGED_AT_A_TIME = 16


@dataclass(frozen=True)
class Prompt:
    """One line of the prompt file.

    Attributes:
        line: Line number, from 1.
        row: The line's fields, without those that the output sets itself.
        ids: The model's input.
        max_new_tokens: Maximum length of the answer.
    """

    line: int
    row: dict[str, Any]
    ids: list[int]
    max_new_tokens: int


def generate_file(
    name_or_path: str | Path,
    prompts: str | Path,
    output: str | Path,
    *,
    max_new_tokens: int = 128,
    max_concurrent: int = 16,
    quantize: str | None = None,
    abstain: Abstention | float | bool | None = None,
    abstain_text: str | None = None,
    **parameters: Any,
) -> int:
    """Answers every line of a file. An unfinished output file is continued.

    A line is a JSON object with `prompt`, a text to continue, or `messages`, a conversation to answer. The output has
    one object per line, in the order in which they finished: the line's own fields, its number as `line`,
    `completion`, and `finish_reason`, which is `stop` or `length`. If the model may abstain, lines have `messages`, all of
    them are judged before the first is answered, and each object also has `confidence` and `abstained`.

    Args:
        name_or_path: Folder or Hub id of a causal language model.
        prompts: The file with the prompts.
        output: The file to write or continue.
        max_new_tokens: Maximum length of a completion, in tokens.
        max_concurrent: Number of prompts that share the model's steps.
        quantize: See `load_for_generation`.
        abstain: See `choose_abstention`.
        abstain_text: See `choose_abstention`.
        **parameters: Sampling parameters of `GenerationConfig`; a temperature of 0 means greedy.

    Returns:
        The number of lines in the output.

    Raises:
        DataError: If the file cannot be read. Also if some lines cannot be used, after all others were answered.
        OutputError: If the output belongs to other prompts.
        ConfigError: If a parameter cannot be used, or continuous batching does not support the model.
    """
    model, tokenizer = load_for_generation(name_or_path, quantize), load_tokenizer(str(name_or_path))
    check_tokenizer_fits(model, tokenizer)
    abstention = choose_abstention(name_or_path, tokenizer, abstain, abstain_text, quantize=quantize)
    parameters |= {**sampling(parameters.pop("temperature", None)), "max_new_tokens": max_new_tokens}
    config = generation_config_with(model.generation_config, **parameters)
    check_continuous_batching(model, config, "without --prompts, one text at a time is continued")
    context = context_length(model)
    rows, faults = read_prompts(Path(prompts), tokenizer, context, max_new_tokens, judged=abstention is not None)
    total = len(rows) + len(faults)
    target = Path(output)
    done = {line for line, _ in read_output(target, {row.line: row.row for row in rows})}
    left = [row for row in rows if row.line not in done]
    # First, because continuous batching replaces the model's attention.
    confidences = {} if abstention is None else _confidences(abstention, model, tokenizer, left)
    ends = {config.eos_token_id} if isinstance(config.eos_token_id, int) else set(config.eos_token_id or ())
    batching = ContinuousBatchingConfig(use_cuda_graph=False, **prepare_batching(model, context, max_concurrent))
    target.parent.mkdir(parents=True, exist_ok=True)
    with (
        clear_disk_errors(target),
        target.open("a", encoding="utf-8") as file,
        tqdm(total=len(rows), initial=len(done), desc="Generating", unit="prompt") as progress,
    ):

        def write(row: Prompt, completion: str, finish_reason: str, abstained: bool = False) -> None:
            said = {"line": row.line, "completion": completion, "finish_reason": finish_reason}
            if abstention is not None:
                said |= {"confidence": confidences[row.line], "abstained": abstained}
            file.write(json.dumps({**row.row, **said}, ensure_ascii=False) + "\n")
            file.flush()
            progress.update()

        if abstention is not None:
            withheld = [row for row in left if confidences[row.line] < abstention.threshold]
            for row in withheld:
                write(row, abstention.text, "stop", abstained=True)
            left = [row for row in left if confidences[row.line] >= abstention.threshold]
        for row, ids, error in answers(model, left, config, batching):
            if error is not None:
                faults.append(f"line {row.line}: {error}")
                continue
            completion = tokenizer.decode(ids, skip_special_tokens=True)
            write(row, completion, "stop" if ids and ids[-1] in ends else "length")
    raise_for_faults(faults, total, prompts, output)
    return len(rows)


def raise_for_faults(faults: Sequence[str], total: int, prompts: str | Path, output: str | Path) -> None:
    """Raises `DataError` if some of the lines have not been answered."""
    if faults:
        raise DataError(
            f"{prompts}: {len(faults)} of {total} lines were not answered: {'; '.join(faults[:10])}{', and others' if len(faults) > 10 else ''}. "
            f"The other answers are in {output}; correct these lines, and run the same command again."
        )


def _confidences(
    abstention: Abstention, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[Prompt]
) -> dict[int, float]:
    """Returns how sure the model is of its greedy answer to each row, by line."""
    completions = generate_completions(
        model,
        tokenizer,
        [row.ids for row in rows],
        max_new_tokens=abstention.max_new_tokens,
        batch_size=_JUDGED_AT_A_TIME,
        progress=True,
        desc="Judging",
        confidence=True,
        **PLAIN_GREEDY,
    )
    return {row.line: done.confidence or 0.0 for row, done in zip(rows, completions, strict=True)}


def read_prompts(
    file: Path,
    tokenizer: PreTrainedTokenizerBase,
    context: int,
    max_new_tokens: int,
    own: Sequence[str] = OWN_FIELDS,
    *,
    judged: bool = False,
) -> tuple[list[Prompt], list[str]]:
    """Returns the usable lines without the fields `own`, and the faults of the others.

    Args:
        judged: The answers are judged, so lines with `prompt` are faults.

    Raises:
        DataError: If the file cannot be read, or is empty.
        TemplateTimeout: If the tokenizer's chat template does not end.
    """
    try:
        lines = read_file(file, "utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--prompts {file} cannot be read: {error}") from error
    own = (*own, *_JUDGED_FIELDS) if judged else own
    rows, faults = [], []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            ids = _ids(row := parse_json(line), tokenizer)
            if judged and "messages" not in row:
                raise DataError("it has a prompt, and --abstain judges answers to messages")
            if len(ids) >= context:
                raise DataError(f"it takes {len(ids)} tokens, but the model's context is {context}")
        except json.JSONDecodeError as error:
            faults.append(f"line {number}: not JSON ({error.msg} at character {error.pos + 1})")
        except TemplateTimeout as error:
            raise TemplateTimeout(f"{file}: line {number}: {error}") from error
        except (ValueError, ChatGPTError, TemplateError) as error:
            faults.append(f"line {number}: {error}")
        else:
            kept = {name: value for name, value in row.items() if name not in own}
            rows.append(Prompt(number, kept, ids, min(max_new_tokens, context - len(ids))))
    if not rows and not faults:
        raise DataError(f"--prompts {file} is empty: give a JSON object with prompt or messages on each line.")
    return rows, faults


def read_output(file: Path, rows: dict[int, dict[str, Any]], samples: int | None = None) -> set[tuple[int, int]]:
    """Returns line and sample of each answer; removes an incomplete last record from the file.

    Args:
        file: The output; may be missing.
        rows: The fields of each line.
        samples: The largest number of a sample; None for one answer to each line, whose number is 1.

    Raises:
        OutputError: If it contains anything but answers to these rows.
    """
    if not file.exists():
        return set()
    if kind := special_kind(file):
        raise OutputError(f"{file} is {kind}, not a file: name another --output.")
    *whole, cut = file.read_bytes().split(b"\n")
    done = set()
    for text in whole:
        try:
            record = parse_json(text)
            row = rows[record["line"]]
            same = row.items() <= record.items() and "completion" in record
            if samples is None:
                # One answer, not several.
                number, same = 1, same and ("sample" in record) == ("sample" in row)
            else:
                number = record["sample"]
                same = same and 1 <= number <= samples
        except (ValueError, KeyError, TypeError):
            same = False
        if not same:
            raise OutputError(
                f"{file} contains answers to other prompts, or something else. Nothing was written; name another --output."
            )
        done.add((record["line"], number))
    if cut:
        write_atomically(file, lambda temporary: temporary.write_bytes(b"".join(line + b"\n" for line in whole)))
    return done


def _ids(row: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Encodes a row for the model.

    Raises:
        DataError: If the row has neither a text nor a conversation, or has both.
    """
    if not isinstance(row, dict) or ("prompt" in row) == ("messages" in row):
        raise DataError("not an object with either prompt or messages")
    if "prompt" in row:
        if not isinstance(row["prompt"], str):
            raise DataError("prompt is not a string")
        return encode_prompt(tokenizer, row["prompt"])
    return encode_chat_prompt(tokenizer, row["messages"])


def answers(
    model: PreTrainedModel, rows: list[Prompt], config: GenerationConfig, batching: ContinuousBatchingConfig
) -> Iterator[tuple[Prompt, list[int], str | None]]:
    """Yields each row when it is finished, with the ids of its answer and the error, if any."""
    if not rows:
        return
    by_request = {str(row.line): row for row in rows}
    with model.continuous_batching_context_manager(
        generation_config=config, continuous_batching_config=batching, warmup=False
    ) as manager:
        for row in rows:
            manager.add_request(row.ids, request_id=str(row.line), max_new_tokens=row.max_new_tokens)
        while by_request:
            result = manager.get_result(timeout=1)
            if result is not None and result.is_finished():
                yield by_request.pop(result.request_id), result.generated_tokens, result.error
            elif result is None and not manager.is_running():
                raise RuntimeError("transformers' generation thread ended before all requests were finished.")
