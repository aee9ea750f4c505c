"""One call for every format: load, convert, compare the result with the model, and write."""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from ..checkpoints import check_tokenizer_fits, load_model, refuse_adapter
from ..conversion.convert import find_tokenizer, known_config
from ..conversion.heads import check_language_model
from ..errors import ConversionError, TokenizerError
from ..files import check_new_folder, new_folder
from ..model.modeling_chatgpt import ChatGPTForCausalLM
from .gguf import OUTTYPES, check_gguf, check_llama_cpp, round_weights, run_gguf, write_gguf
from .graphs import GRAPH_FORMATS, check_graph, export_graph, graph_logits, load_graph

FORMATS = (*GRAPH_FORMATS, "gguf")
# Largest relative error of the logits (norms over all logits) from rounded activations: llama.cpp rounds them to the type of
# the matrices, and looks GELU up in a float16 table. Weights are rounded on both sides.
TOLERANCES = {"f32": 2e-5, "f32 with GELU": 2e-3, "f16": 5e-3, "bf16": 3e-2, "q8_0": 5e-2}


@dataclass(frozen=True)
class Export:
    """The result of an export.

    Attributes:
        files: The written files, largest first.
        error: Relative error of the exported model's logits (norms over all logits) compared with the source's; for a GGUF
            file, with the source's weights rounded in the same way. None if the check is skipped.
    """

    files: list[Path]
    error: float | None


def export_model(
    source: str | Path,
    output_dir: str | Path,
    export_format: str,
    *,
    outtype: str = "f32",
    max_cache_len: int | None = None,
    check: bool = True,
) -> Export:
    """Exports a model and its tokenizer, and runs the result before it appears in `output_dir`.

    Args:
        source: Folder or Hub id of a model of ours, or of a family that `ChatGPTForCausalLM.from_pretrained` reads.
        output_dir: A folder that does not exist or is empty.
        export_format: One of `FORMATS`.
        outtype: Type of the matrices in a GGUF file; graphs are float32.
        max_cache_len: Positions in the cache of an ExecuTorch program; by default the model's context.
        check: Compare the logits of random ids, which needs the format's own runtime.

    Raises:
        ConversionError: If the format cannot express the model, a package is missing, or the logits differ.
        OutputError: If the folder is not empty.
        CheckpointError: If the model cannot be read.
        TokenizerError: If the tokenizer cannot be read or does not fit, or is missing for a GGUF file.
    """
    if export_format not in FORMATS:
        raise ConversionError(f"--format {export_format} is unknown; choose from {', '.join(FORMATS)}.")
    if outtype not in OUTTYPES:
        raise ConversionError(f"--outtype {outtype} is unknown; choose from {', '.join(OUTTYPES)}.")
    if outtype != "f32" and export_format != "gguf":
        raise ConversionError(f"--outtype {outtype} is for --format gguf; {export_format} is written in float32.")
    if max_cache_len is not None and export_format != "executorch":
        raise ConversionError(f"--max_cache_len is for --format executorch; the cache of {export_format} grows.")
    folder = check_new_folder(output_dir)
    model, tokenizer = _read(source)
    length = model.config.max_position_embeddings
    if max_cache_len is not None and not 8 <= max_cache_len <= length:
        raise ConversionError(
            f"--max_cache_len is {max_cache_len}: give 8 to {length} positions (`max_position_embeddings`)."
        )
    if export_format == "gguf":
        if tokenizer is None:
            raise TokenizerError(f"{source} has no tokenizer, but a GGUF file needs one: save one there.")
        check_gguf(model, tokenizer, outtype)
        if check:
            check_llama_cpp()
        round_weights(model, outtype)
    else:
        check_graph(model.config, export_format)
    length = min(max_cache_len or length, max(64, (model.config.sliding_window or 0) + 16))
    ids = torch.randint(model.config.vocab_size, (1, length), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = model(ids).logits[0]
    error = None
    with new_folder(folder) as temporary:
        if tokenizer is not None and export_format == "gguf":
            kind = "f32 with GELU" if outtype == "f32" and "gelu" in model.config.hidden_act else outtype
            file = temporary / f"model-{outtype.upper()}.gguf"
            write_gguf(model, tokenizer, file, outtype, Path(source).resolve().name)
            found = run_gguf(file, ids[0].tolist(), tokenizer) if check else None
        else:
            kind = "f32"
            export_graph(model, export_format, max_cache_len).save_pretrained(temporary)
            if tokenizer is not None:
                tokenizer.save_pretrained(temporary)
            # Trusted, because it was written here a moment ago: transformers 5.24 asks before it reads a program of torch.
            found = (
                graph_logits(load_graph(temporary, trust_remote_code=True), model.config, ids)[0] if check else None
            )
        if found is not None:
            error = ((found - expected).norm() / expected.norm()).item()
            if not error <= TOLERANCES[kind]:
                raise ConversionError(
                    f"The exported model's logits differ from the source's by a relative error of {error:.1e} (rounding "
                    f"explains at most {TOLERANCES[kind]:.0e}). Nothing was written."
                )
    files = sorted((file for file in folder.rglob("*") if file.is_file()), key=lambda file: -file.stat().st_size)
    return Export(files, error)


def _read(source: str | Path) -> tuple[ChatGPTForCausalLM, PreTrainedTokenizerBase | None]:
    """Returns the language model in float32, and its tokenizer, if it has one.

    Raises:
        ConversionError: If the source is an adapter, a model of an unknown family, or one with another head.
    """
    refuse_adapter(source)
    known_config(source)
    model = load_model(source, ChatGPTForCausalLM, dtype=torch.float32).eval()
    check_language_model(model, source, "be exported")
    tokenizer = find_tokenizer(source)
    if tokenizer is not None:
        check_tokenizer_fits(model, tokenizer)
    return model, tokenizer
