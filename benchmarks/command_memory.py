"""Peak memory of the commands that read a model, against the size of its checkpoint, and the time of a step of alignment.

Each command runs in a separate process, because a process never gives its peak back. Two figures: the peak of the whole
process, and how far it rises above a process that has only imported the libraries, divided by the size of the weights on disk. File pages
that are read through a mapping count too, although the system can drop them. The script fails where `convert` rises to twice the checkpoint.

`dpo` and `reward` learn pairs of `rasbt_preference_1100.json`, two at a time, of at most 256 tokens; `grpo` learns short answers to sums, from eight
answers of at most 32 tokens. All train adapters (LoRA), once for one step and once for ten more: the difference is the time of ten steps.

    python benchmarks/command_memory.py
    python benchmarks/command_memory.py my-model
    python benchmarks/command_memory.py --commands dpo reward grpo
"""

import json
import random
import sys
import tempfile
from pathlib import Path

import harness

IMPORTS = [sys.executable, "-c", "import chatgpt_hf.checkpoints, chatgpt_hf.model"]
# Words of the command line; {model} is the source, {out} a new folder, {ours} what the first of them wrote.
COMMANDS = {
    "convert": "convert {model} {ours}",
    "convert --to llama": "convert {ours} {out} --to llama",
    "chat": "chat {model} --prompt Hi --max_new_tokens 32",
    "generate": "generate {model} --prompt Hi --max_new_tokens 32",
    "generate --quantize int8": "generate {model} --prompt Hi --max_new_tokens 32 --quantize int8",
    "quantize --to int8": "quantize {model} {out} --to int8",
    "quantize --to int4": "quantize {model} {out} --to int4",
    "export gguf f32": "export {model} --format gguf --output_dir {out}",
    "export gguf q8_0": "export {model} --format gguf --outtype q8_0 --output_dir {out} --no-check",
    "export onnx": "export {model} --format onnx --output_dir {out}",
}
# Those that train, without what all of them share.
TRAININGS = {
    "dpo": "--dataset {pairs} --per_device_train_batch_size 2 --max_length 256 --sample_answers 0",
    "reward": "--dataset {pairs} --per_device_train_batch_size 2 --max_length 256",
    "grpo": "--dataset {sums} --per_device_train_batch_size 8 --max_completion_length 32 --num_generations 8 "
    "--rewards {reward} --evaluate_prompts 0",
}
SHARED = "--use_peft true --test_fraction 0 --logging_steps 1 --save_strategy no --disable_tqdm true --seed 0"
STEPS = 10
# Rewards that differ within nearly every group: a group of equal rewards would save the time of its gradient.
REWARD = '{"name":"length","most":8}'
PAIRS = harness.SHARED_DATA / "preference" / "rasbt_preference_1100.json"
# Largest rise above the libraries, in checkpoints.
LIMITS = {"convert": 2.0, "convert --to llama": 2.0}


def write_sums(file: Path) -> Path:
    """Writes 200 questions with sums."""
    draw = random.Random(0)
    pairs = [(draw.randrange(10, 100), draw.randrange(10, 100)) for _ in range(200)]
    rows = [{"question": f"What is {one} + {other}?"} for one, other in pairs]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def measure(name: str, places: dict[str, object]) -> dict[str, float]:
    """The peak of a command in MB; for those that train also the CPU seconds of a step, and its seconds by the clock."""
    if name in COMMANDS:
        words = (word.format(**places) for word in COMMANDS[name].split())
        return {"megabytes": harness.usage([*harness.CLI, *words]).megabytes}
    words = [word.format(**places) for word in f"{name} {TRAININGS[name]} {SHARED}".split()]
    words += ["--model_name_or_path", str(places["model"])]
    short, long = (
        harness.usage([*harness.CLI, *words, "--output_dir", f"{places['out']}-{steps}", "--max_steps", str(steps)])
        for steps in (1, 1 + STEPS)
    )
    return {
        "megabytes": long.megabytes,
        "step_cpu_seconds": (long.cpu_seconds - short.cpu_seconds) / STEPS,
        "step_seconds": (long.seconds - short.seconds) / STEPS,
    }


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument(
        "model",
        nargs="?",
        help="folder of a Llama-like model with a chat template (default: SmolLM2-135M in bfloat16)",
    )
    parser.add_argument(
        "--commands",
        nargs="+",
        choices=[*COMMANDS, *TRAININGS],
        default=list(COMMANDS),
        help="which to run (default: those that do not train)",
    )
    args = parser.parse_args()
    if {"dpo", "reward"} & set(args.commands) and not PAIRS.is_file():
        harness.skip(f"{PAIRS} is missing: CHATGPT_HF_DATA names the folder that has preference/{PAIRS.name}.")
    args.model = args.model or harness.real_model("bfloat16")
    checkpoint = harness.megabytes(Path(args.model))
    libraries = harness.usage(IMPORTS).megabytes
    print(f"{args.model}: {checkpoint:.0f} MB of weights; a process with the libraries takes {libraries:.0f} MB\n")
    titles = ("command", "peak, MB", "above the libraries, in checkpoints", "a step, CPU seconds", "by the clock")
    print(harness.markdown_head(*titles))
    figures, beyond = {}, []
    with tempfile.TemporaryDirectory() as folder:
        shared = {"model": args.model, "ours": Path(folder, "ours"), "pairs": PAIRS, "reward": REWARD}
        shared["sums"] = write_sums(Path(folder, "sums.jsonl"))
        if "convert" not in args.commands and "convert --to llama" in args.commands:
            args.commands.insert(0, "convert")
        for name in args.commands:
            found = measure(name, {**shared, "out": Path(folder, name.replace(" ", ""))})
            peak, *times = found.values()
            rise = (peak - libraries) / checkpoint
            figures[name] = {**found, "checkpoints": rise}
            shown = [f"{time:.2f}" for time in times] or ["", ""]
            print(harness.markdown_row(name, f"{peak:,.0f}", f"{rise:.2f}", *shown), flush=True)
            if rise >= LIMITS.get(name, float("inf")):
                beyond.append(name)
    ratios = {f"checkpoint/{name}": 1 / figure["checkpoints"] for name, figure in figures.items()}
    harness.write_json(
        args.json, ratios, model=args.model, checkpoint=checkpoint, libraries=libraries, results=figures
    )
    if beyond:
        raise SystemExit(f"Too much memory: {', '.join(beyond)}")


if __name__ == "__main__":
    main()
