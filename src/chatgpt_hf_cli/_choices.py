"""Options with fixed values, checked before the library is imported. A test compares these lists with the library's."""

from .errors import UsageMistake

CONVERSION_TARGETS = ("chatgpt", "gpt2", "llama", "mistral", "qwen2", "qwen3", "smollm3", "nanogpt", "litgpt")
DTYPES = ("float32", "bfloat16", "float16")
EXPORT_FORMATS = ("onnx", "openvino", "executorch", "torch-export", "gguf")
GGUF_TYPES = ("f32", "f16", "bf16", "q8_0")
PREVIEW_PURPOSES = ("sft", "dpo", "pretrain", "finetune")
QUANTIZATIONS = ("int8", "int8-weight-only", "int4")


# Random seeds: NumPy takes 32 bits.
LARGEST_SEED = 2**32 - 1


def check_choice(option: str, value: str | None, known: tuple[str, ...]) -> None:
    """Raises `UsageMistake` if an option is given and has none of the known values."""
    if value is not None and value not in known:
        raise UsageMistake(f"{option} {value} is unknown; choose from {', '.join(known)}.")
