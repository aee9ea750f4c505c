"""Loads and saves again what chatgpt_hf saved, with only torch and transformers.

Runs in another environment, so it imports nothing of the package. `SAVED` holds a folder for each variant, with a model for each
Auto class and its expected outputs beside it.
"""

import argparse
import filecmp
import importlib.util
import json
import sys
from pathlib import Path


class Hidden:
    """An import hook that hides an installed package."""

    def __init__(self, package):
        self.package = package

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == self.package:
            raise ModuleNotFoundError(f"No module named {name!r} (hidden)", name=name)
        return None


def outputs_of(model, ids):
    """The tensors of a plain forward, by index."""
    import torch

    with torch.no_grad():
        values = model.eval()(ids, use_cache=False).to_tuple()
    return {str(index): value.contiguous() for index, value in enumerate(values)}


def without_version(file):
    content = json.loads(file.read_text(encoding="utf-8"))
    content.pop("transformers_version", None)
    return content


def files_that_differ(one, other):
    """Names of files that only one folder has, or that differ in more than the version of transformers."""
    names = {path.name for folder in (one, other) for path in folder.iterdir() if path.is_file()}
    differ = []
    for name in sorted(names):
        if not (one / name).is_file() or not (other / name).is_file():
            differ.append(name)
        elif not filecmp.cmp(one / name, other / name, shallow=False):
            if name.endswith(".json") and without_version(one / name) == without_version(other / name):
                continue
            differ.append(name)
    return differ


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("saved", type=Path, help="folder with VARIANT/AUTO_CLASS and VARIANT/AUTO_CLASS.safetensors")
    parser.add_argument("again", type=Path, help="where to save it again")
    parser.add_argument("--hide", help="a package to hide, even if it is installed")
    arguments = parser.parse_args()
    if arguments.hide:
        sys.meta_path.insert(0, Hidden(arguments.hide))

    import transformers
    from safetensors.torch import load_file
    from transformers import AutoModel

    try:
        found = importlib.util.find_spec("chatgpt_hf")
    except ModuleNotFoundError:
        found = None
    if found is not None:
        raise SystemExit(f"chatgpt_hf is installed here ({found.origin}), so this shows nothing.")

    results = []
    for expected_file in sorted(arguments.saved.glob("*/*.safetensors")):
        folder, variant, head = expected_file.with_suffix(""), expected_file.parent.name, expected_file.stem
        auto_class = getattr(transformers, head)
        expected = load_file(expected_file)
        ids, hidden = expected.pop("ids"), expected.pop("hidden")
        try:
            auto_class.from_pretrained(folder, trust_remote_code=False)
        except ValueError as error:
            refused = "trust_remote_code" in str(error)
        else:
            refused = False
        model, report = auto_class.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
        outputs = outputs_of(model, ids)
        again = arguments.again / variant / head
        model.save_pretrained(again)
        # The body without a head, and the language model's body with another head, must be complete folders too.
        body = arguments.again / variant / f"{head}-body"
        model.base_model.save_pretrained(body)
        body_model = AutoModel.from_pretrained(body, trust_remote_code=True)
        causal = expected_file.with_name("AutoModelForCausalLM.safetensors")
        other = auto_class.from_pretrained(causal.with_suffix(""), trust_remote_code=True, pad_token_id=0)
        from_causal = arguments.again / variant / f"{head}-from-causal"
        other.save_pretrained(from_causal)
        pairs = [(outputs[name], expected[name]) for name in expected]
        pairs += [(outputs_of(body_model, ids)["0"], hidden)]
        of_causal = load_file(causal)
        pairs += [(outputs_of(other.base_model, of_causal["ids"])["0"], of_causal["hidden"])]
        results.append(
            {
                "variant": variant,
                "head": head,
                "class": f"{type(model).__module__}.{type(model).__qualname__}",
                "refused_without_consent": refused,
                "loading": {name: sorted(map(str, keys)) for name, keys in report.items() if keys},
                "missing_outputs": sorted(expected.keys() ^ outputs.keys()),
                "difference": max(float((a - b).abs().max()) for a, b in pairs),
                "files_that_differ": files_that_differ(folder, again),
                "code_is_whole": all(
                    {path.name: path.read_bytes() for path in place.glob("*.py")}
                    == {path.name: path.read_bytes() for path in folder.glob("*.py")}
                    and json.loads((place / "config.json").read_text())["auto_map"]
                    == json.loads((folder / "config.json").read_text())["auto_map"]
                    for place in (again, body, from_causal)
                ),
            }
        )
    print(json.dumps({"transformers": transformers.__version__, "python": sys.version.split()[0], "results": results}))


if __name__ == "__main__":
    main()
