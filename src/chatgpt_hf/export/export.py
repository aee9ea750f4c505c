"""One call for every format: load, translate, run what was made against the model, write."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from ..checkpoints import atomic_folder, check_tokenizer_fits, load_model
from ..errors import ConversionError, OutputError, TokenizerError
from ..modeling_chatgpt import ChatGPTForCausalLM
from ..tokenization_chatgpt import load_tokenizer
from .gguf import OUTTYPES, gguf_logits, write_gguf
from .graphs import GRAPH_FORMATS, export_graph, graph_logits, load_graph

FORMATS = (*GRAPH_FORMATS, "gguf")
# Largest difference of logits that rounding may make, as a share of the largest logit; a wrong layout makes about 1.
# llama.cpp looks GELU up in a table of float16, and rounds activations as it does weights.
TOLERANCES = {"f32": 1e-4, "f32 with GELU": 5e-3, "f16": 1e-2, "bf16": 1e-1, "q8_0": 1e-1}


@dataclass(frozen=True)
class Export:
    """What was written.

    Attributes:
        files: In the folder, the largest first.
        difference: The largest difference of a logit between the exported model and its source; None unless checked.
        largest: The largest of the source's logits, in absolute value.
    """

    files: list[Path]
    difference: float | None
    largest: float


def export_model(
    source: str | Path, output_dir: str | Path, export_format: str, *, outtype: str = "f32", check: bool = True
) -> Export:
    """Exports a model and its tokenizer, and runs what was made before it is written for good.

    Args:
        source: Folder or Hub id of a model of ours, or of a family that `ChatGPTForCausalLM.from_pretrained` reads.
        output_dir: A folder that does not exist or is empty.
        export_format: One of `FORMATS`.
        outtype: Of the matrices in a GGUF file; graphs are float32.
        check: Whether to compare the logits of random ids, which takes the format's own runtime.

    Raises:
        ConversionError: When the format cannot express the model, a package is missing, or the logits differ.
        OutputError: When the folder is not empty.
        CheckpointError: When the model cannot be read.
        TokenizerError: When its tokenizer cannot be read or does not fit; a GGUF file needs one.
    """
    if export_format not in FORMATS:
        raise ConversionError(f"--format {export_format} is unknown; known are {', '.join(FORMATS)}.")
    if outtype not in OUTTYPES:
        raise ConversionError(f"--outtype {outtype} is unknown; known are {', '.join(OUTTYPES)}.")
    if outtype != "f32" and export_format != "gguf":
        raise ConversionError(f"--outtype {outtype} is for --format gguf; {export_format} is written in float32.")
    folder = Path(output_dir)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"{folder} is not an empty folder. Nothing was written; name another one.")
    model = load_model(source, ChatGPTForCausalLM, dtype=torch.float32).eval()
    try:
        tokenizer = load_tokenizer(source)
    except TokenizerError:
        if export_format == "gguf":
            raise
        tokenizer = None
    else:
        check_tokenizer_fits(model, tokenizer)
    ids = _check_ids(model)
    with torch.inference_mode():
        expected = model(ids).logits[0].float()
    difference, largest = None, expected.abs().max().item()
    with atomic_folder(folder) as temporary:
        logits: Callable[[], torch.Tensor]
        if export_format == "gguf":
            file = temporary / f"model-{outtype.upper()}.gguf"
            write_gguf(model, tokenizer, file, outtype)
            logits = lambda: gguf_logits(file, ids[0].tolist())  # noqa: E731
            kind = "f32 with GELU" if outtype == "f32" and "gelu" in model.config.hidden_act else outtype
        else:
            exported = export_graph(model, export_format)
            exported.save_pretrained(temporary)
            if tokenizer is not None:
                tokenizer.save_pretrained(temporary)
            logits = lambda: graph_logits(load_graph(temporary), model.config, ids)[0]  # noqa: E731
            kind = "f32"
        if check:
            difference = (logits() - expected).abs().max().item()
            if not difference <= TOLERANCES[kind] * max(1.0, largest):
                raise ConversionError(
                    f"The exported model's logits differ by {difference:.1e} from the source's, whose largest is "
                    f"{largest:.1f} (at most {TOLERANCES[kind]:.0e} of that is rounding). Nothing was written."
                )
    files = sorted((file for file in folder.rglob("*") if file.is_file()), key=lambda file: -file.stat().st_size)
    return Export(files, difference, largest)


def _check_ids(model: ChatGPTForCausalLM) -> torch.Tensor:
    """Random ids (1, seq), more than any window of attention takes."""
    length = min(model.config.max_position_embeddings, max(64, (model.config.sliding_window or 0) + 16))
    return torch.randint(model.config.vocab_size, (1, length), generator=torch.Generator().manual_seed(0))
