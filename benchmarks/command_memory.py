"""Peak memory of the commands that read a model, against the size of its checkpoint.

Each command runs in a separate process, because a process never gives its peak back. Two figures: the peak of the whole
process, and how far it rises above a process that has only imported the libraries, divided by the size of the weights on disk. File pages
that are read through a mapping count too, although the system can drop them. The script fails where `convert` rises to twice the checkpoint.

    python benchmarks/command_memory.py
    python benchmarks/command_memory.py my-model
"""

import os
import subprocess
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
# Largest rise above the libraries, in checkpoints.
LIMITS = {"convert": 2.0, "convert --to llama": 2.0}


def peak_megabytes(command: list[str]) -> float:
    """The largest resident set of a process; ends the script if it fails."""
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            raise SystemExit(f"{' '.join(command)} failed:\n{output.read().decode(errors='replace')}")
    # Linux counts kilobytes, macOS bytes.
    return usage.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e6 / 1024)


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument(
        "model",
        nargs="?",
        help="folder of a Llama-like model with a chat template (default: SmolLM2-135M in bfloat16)",
    )
    parser.add_argument(
        "--commands", nargs="+", choices=COMMANDS, default=list(COMMANDS), help="which to run (default: all)"
    )
    args = parser.parse_args()
    args.model = args.model or harness.real_model("bfloat16")
    checkpoint = harness.megabytes(Path(args.model))
    libraries = peak_megabytes(IMPORTS)
    print(f"{args.model}: {checkpoint:.0f} MB of weights; a process with the libraries takes {libraries:.0f} MB\n")
    print(harness.markdown_head("command", "peak, MB", "above the libraries, in checkpoints"))
    figures, beyond = {}, []
    with tempfile.TemporaryDirectory() as folder:
        ours = Path(folder, "ours")
        if "convert" not in args.commands and "convert --to llama" in args.commands:
            args.commands.insert(0, "convert")
        for name in args.commands:
            places = {"model": args.model, "ours": ours, "out": Path(folder, name.replace(" ", ""))}
            peak = peak_megabytes([*harness.CLI, *(word.format(**places) for word in COMMANDS[name].split())])
            rise = (peak - libraries) / checkpoint
            figures[name] = {"megabytes": peak, "checkpoints": rise}
            print(harness.markdown_row(name, f"{peak:,.0f}", f"{rise:.2f}"), flush=True)
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
