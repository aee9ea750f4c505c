"""Many texts through a pipeline, as fast as its batches allow."""

from collections.abc import Iterator, Sequence
from typing import Any

from tqdm.auto import tqdm
from transformers import Pipeline


def run_pipeline(pipe: Pipeline, texts: Sequence[str], *, desc: str, progress: bool, **options: Any) -> list[Any]:
    """What the pipeline makes of each text, in their order; with a progress bar.

    Args:
        pipe: With the `batch_size` that it is to have.
        **options: Of its call.
    """
    # Texts of one length together waste the least padding.
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))

    def sorted_texts() -> Iterator[str]:
        for index in order:
            yield texts[index]

    found: list[Any] = [None] * len(texts)
    outputs = pipe(sorted_texts(), **options)
    for index, output in tqdm(zip(order, outputs, strict=True), desc, len(order), disable=not progress):
        found[index] = output
    return found
