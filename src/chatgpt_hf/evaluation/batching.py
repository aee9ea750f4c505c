"""Runs many texts through a pipeline in efficient batches."""

from collections.abc import Iterator, Sequence
from typing import Any

from tqdm.auto import tqdm
from transformers import Pipeline


def run_pipeline(pipe: Pipeline, texts: Sequence[str], *, desc: str, progress: bool, **options: Any) -> list[Any]:
    """Returns the pipeline's output for each text, in the order of the texts; shows a progress bar.

    Args:
        pipe: A pipeline with its `batch_size` set.
        **options: Options of the pipeline's call.
    """
    # Batches of similarly long texts need the least padding.
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))

    def sorted_texts() -> Iterator[str]:
        for index in order:
            yield texts[index]

    found: list[Any] = [None] * len(texts)
    outputs = pipe(sorted_texts(), **options)
    for index, output in tqdm(zip(order, outputs, strict=True), desc, len(order), disable=not progress):
        found[index] = output
    return found
