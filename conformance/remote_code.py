"""Loads models that chatgpt_hf saved in environments without it, with the oldest and the newest supported transformers.

For every variant and every head, compares the outputs there and here, and checks that saving again there gives the same files.
Each environment has only torch and transformers; it is made once, in the cache folder.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import transformers
from packaging.requirements import Requirement
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parent))
from index import CACHE, releases
from variants import VARIANTS, make_config
from without_package import outputs_of

from chatgpt_hf.registration import AUTO_CLASSES

# Older than the package requires: vLLM 0.33 takes transformers 5.16.1 to 5.20.
OLDEST = "5.16.1"
SCRIPT = Path(__file__).with_name("without_package.py")
# N-grams and convolutions are saved with a separate code file, and no other variant has them.
EXTRA = {"short-memories": {"ngram_vocab_sizes": [101, 53], "conv_kernel_size": 4, "embedding_residual": True}}


def save_models(folder: Path) -> None:
    """Saves each variant with each head to VARIANT/AUTO_CLASS, and its outputs to VARIANT/AUTO_CLASS.safetensors."""
    for variant in (*VARIANTS, *EXTRA):
        for auto_class, model_class in AUTO_CLASSES.items():
            torch.manual_seed(0)
            overrides = EXTRA.get(variant, {})
            config = make_config("modern" if overrides else variant, num_labels=3, initializer_range=0.2, **overrides)
            model = model_class(config)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(torch.randn_like(parameter), alpha=0.05)
            ids = torch.randint(3, config.vocab_size, (2, 24))
            name = auto_class.__name__
            model.save_pretrained(folder / variant / name)
            hidden = outputs_of(model.base_model, ids)["0"]
            save_file(
                {"ids": ids, "hidden": hidden, **outputs_of(model, ids)}, folder / variant / f"{name}.safetensors"
            )


def run_without_package(python: Path | str, saved: Path, again: Path, *options: str) -> dict[str, Any]:
    """Runs `without_package.py` with an interpreter that sees none of our folders, and returns its findings."""
    with tempfile.TemporaryDirectory() as home:
        hidden = ("HF_MODULES_CACHE", "HF_HUB_CACHE", "PYTHONPATH", "TRANSFORMERS_CACHE")
        environment = {name: value for name, value in os.environ.items() if name not in hidden}
        result = subprocess.run(
            [str(python), "-I", str(SCRIPT), str(saved), str(again), *options],
            capture_output=True,
            text=True,
            env={**environment, "HF_HOME": home, "HF_HUB_OFFLINE": "1"},
            cwd=home,
        )
    if result.returncode:
        raise RuntimeError(f"{python} {SCRIPT.name} failed:\n{result.stderr[-4000:]}")
    return json.loads(result.stdout.splitlines()[-1])


def load_again(saved: Path, again: Path) -> float:
    """Loads with our classes what was saved elsewhere; returns the largest difference of outputs. Needs no consent."""
    difference = 0.0
    for file in sorted(saved.glob("*/*.safetensors")):
        expected = load_file(file)
        auto_class = getattr(transformers, file.stem)
        model = auto_class.from_pretrained(again / file.parent.name / file.stem)
        if not type(model).__module__.startswith("chatgpt_hf."):
            raise RuntimeError(f"{type(model)} was loaded where chatgpt_hf is installed.")
        for name, value in outputs_of(model, expected["ids"]).items():
            difference = max(difference, float((value - expected[name]).abs().max()))
    return difference


def faults(result: dict[str, Any]) -> list[str]:
    """Describes what went wrong with one model in an environment without the package."""
    found = []
    if not result["class"].startswith("transformers_modules."):
        found.append(f"its class is {result['class']}")
    if not result["refused_without_consent"]:
        found.append("was loaded without consent")
    if result["loading"] or result["missing_outputs"]:
        found.append(f"loaded with {result['loading']}, outputs {result['missing_outputs']}")
    if result["difference"]:
        found.append(f"outputs differ by {result['difference']:.1e}")
    if result["files_that_differ"]:
        found.append(f"saved again, {', '.join(result['files_that_differ'])} differ")
    if not result["code_is_whole"]:
        found.append("saved again, the model files or the auto_map are incomplete")
    return found


def make_environment(version: str) -> Path:
    """Makes an environment with this torch, one release of transformers and nothing else; returns its interpreter."""
    folder = CACHE / f"venv-transformers-{version}"
    python, stamp = folder / "bin" / "python", folder / ".complete"
    if not stamp.is_file():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        packages = [f"torch=={torch.__version__.split('+')[0]}", f"transformers=={version}"]
        subprocess.run(
            [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *packages], check=True
        )
        stamp.touch()
    return python


def supported_range() -> list[str]:
    """The releases of transformers to run: the oldest for saved code, the oldest for the package, and the newest."""
    requirement = next(
        found for text in metadata.requires("chatgpt-hf") or () if (found := Requirement(text)).name == "transformers"
    )
    allowed = [version for version in releases() if version in requirement.specifier]
    return list(dict.fromkeys((OLDEST, str(allowed[0]), str(allowed[-1]))))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--versions",
        nargs="*",
        help="releases of transformers (default: the oldest for saved code, the oldest for the package, and the newest)",
    )
    arguments = parser.parse_args()
    failed = False
    print(f"Saved by chatgpt_hf with transformers {transformers.__version__}; loaded without it:\n")
    print(
        "| transformers | variants × heads | max difference of outputs | files that differ, saved again | max difference, back here |"
    )
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder, "saved")
        save_models(saved)
        for version in arguments.versions or supported_range():
            again = Path(folder, version)
            try:
                report = run_without_package(make_environment(version), saved, again)
            except RuntimeError as error:
                print(f"| {version} | does not work | | | |\n\n{error}\n")
                failed = True
                continue
            results = report["results"]
            back = load_again(saved, again)
            differ = sum(len(result["files_that_differ"]) for result in results)
            furthest = max(result["difference"] for result in results)
            print(f"| {report['transformers']} | {len(results)} | {furthest:.1e} | {differ} | {back:.1e} |")
            for result in results:
                for fault in faults(result):
                    failed = True
                    print(f"  {result['variant']}, {result['head']}: {fault}")
            failed |= back > 0
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
