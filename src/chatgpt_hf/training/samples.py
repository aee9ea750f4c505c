"""Samples of the model's text during training: the learning curve that everybody understands."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from ..checkpoints import context_length
from ..errors import ConfigError
from ..evaluation.mode import evaluating
from ..evaluation.padding import pad
from ..files import write_atomically
from ..reporting.report import FOLDER_NAME, SAMPLES_HISTORY_NAME, read_samples
from ..terminal import visible
from ..tokenization_chatgpt import encode_prompts


@contextmanager
def separate_randomness(device: torch.device, seed: int) -> Iterator[None]:
    """Seeds the block, and restores the random state of the CPU and of `device` afterwards."""
    forked = [] if device.type in ("cpu", "mps") else [device]
    # `fork_rng` passes an index to the device's module, but `torch.mps` takes none.
    mps_state = torch.mps.get_rng_state() if device.type == "mps" else None
    with torch.random.fork_rng(forked, device_type=device.type):
        torch.manual_seed(seed)
        try:
            yield
        finally:
            if mps_state is not None:
                torch.mps.set_rng_state(mps_state)


def sample_text(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.8,
    top_k: int = 50,
    seed: int = 0,
) -> list[str]:
    """Continues each prompt as the beginning of a document; "" starts an empty document.

    Leaves the random state and the model's mode unchanged, so that a run with samples is bit-identical to a run
    without.

    Raises:
        ConfigError: If a prompt fills the model's context.
    """
    rows = encode_prompts(tokenizer, list(prompts))
    longest, limit = max(map(len, rows)), context_length(model)
    if longest >= limit:
        raise ConfigError(
            f"A sample's prompt takes {longest} tokens, but the model's context is {limit} (`max_position_embeddings`): "
            "shorten the prompt."
        )
    batch = pad(rows, side="left", pad_token_id=tokenizer.pad_token_id)
    with evaluating(model), separate_randomness(model.device, seed):
        output = model.generate(
            **{name: value.to(model.device) for name, value in batch.items()},
            max_new_tokens=min(max_new_tokens, limit - longest),
            do_sample=True,
            temperature=temperature,
            top_k=top_k,
            # A diverged model may write nonsense, but must not fail here: `DivergenceGuard` decides whether to stop.
            remove_invalid_values=True,
            # For the model's own `stop_strings`.
            tokenizer=tokenizer,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        )
    return tokenizer.batch_decode(output, skip_special_tokens=True)


class SampleText(TrainerCallback):
    """Lets the model continue a few prompts at each evaluation; prints and adds the texts to `report/samples.jsonl`.

    A resumed run drops the samples after its checkpoint and writes them again. All processes generate, because a
    sharded model needs all of them; the first one writes.

    Args:
        prompts: Beginnings of documents; "" is an empty document.
        max_new_tokens: Length of a continuation, as far as the context allows.
        seed: The same at each evaluation, so that only the model makes a difference.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], *, max_new_tokens: int = 64, seed: int = 0
    ) -> None:
        self.tokenizer = tokenizer
        self.prompts = list(prompts)
        self.max_new_tokens = max_new_tokens
        self.seed = seed
        self._done_step: int | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._done_step = None
        if state.is_world_process_zero:
            history = read_samples(Path(args.output_dir))
            kept = [row for row in history if row["step"] <= state.global_step]
            if kept != history:
                _write_samples(Path(args.output_dir), kept)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # With several held-out sets, one step has several evaluations.
        if state.global_step == self._done_step:
            return
        self._done_step = state.global_step
        texts = sample_text(
            kwargs["model"], self.tokenizer, self.prompts, max_new_tokens=self.max_new_tokens, seed=self.seed
        )
        if not state.is_world_process_zero:
            return
        folder = Path(args.output_dir)
        rows = [
            {"step": state.global_step, "prompt": prompt, "text": text}
            for prompt, text in zip(self.prompts, texts, strict=True)
        ]
        _write_samples(folder, [row for row in read_samples(folder) if row["step"] != state.global_step] + rows)
        for text in texts:
            tqdm.write(f"[step {state.global_step}] {visible(text)}")


def _write_samples(folder: Path, rows: list[dict[str, Any]]) -> None:
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_atomically(
        folder / FOLDER_NAME / SAMPLES_HISTORY_NAME, lambda path: path.write_text(lines, encoding="utf-8")
    )
