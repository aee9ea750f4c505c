"""Stored artefacts of an earlier state: from folders to text and arrays, and back.

Nothing stored is a pickle. What a checkpoint holds as one (optimizer, schedule, random states) is kept as JSON that refers to
arrays, and written by `torch.save` when the folder is rebuilt. All arrays of an artefact are in one safetensors file. A text
that several artefacts have is stored once, in `shared/`. Python files get the suffix `.txt`, so that nothing lints them.
"""

import json
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

STORED = Path(__file__).parent / "stored"
INDEX = STORED / "index.json"
EXPECTED = STORED / "expected"
TORCH_SUFFIXES = (".pt", ".pth")
# The report is for people, and TrainingArguments are a pickle that `Trainer` writes and does not read.
LEFT_OUT = ("README.md", "report", "training_args.bin")


def flatten(value: Any, place: str, arrays: dict[str, torch.Tensor]) -> Any:
    """A nested value as JSON; its tensors and arrays go into `arrays`, under names that begin with `place`."""
    if isinstance(value, torch.Tensor):
        arrays[place] = value.detach().clone().contiguous()
        return {"tensor": place}
    if isinstance(value, np.ndarray):
        arrays[place] = torch.from_numpy(value.copy())
        return {"array": place}
    # The state of Python's generator.
    if isinstance(value, tuple) and len(value) > 100 and all(isinstance(item, int) for item in value):
        arrays[place] = torch.tensor(value, dtype=torch.uint32)
        return {"integers": place}
    if isinstance(value, Mapping):
        return {"dict": [[key, flatten(item, f"{place}.{key}", arrays)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [flatten(item, f"{place}.{n}", arrays) for n, item in enumerate(value)]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{place} is a {type(value)}")


def restore(value: Any, arrays: Mapping[str, torch.Tensor]) -> Any:
    """What `flatten` was given."""
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "dict":
        return {key: restore(item, arrays) for key, item in content}
    if kind in ("list", "tuple"):
        items = [restore(item, arrays) for item in content]
        return items if kind == "list" else tuple(items)
    array = arrays[content]
    return {
        "tensor": lambda: array.clone(),
        "array": array.numpy,
        "integers": lambda: tuple(array.tolist()),
    }[kind]()


def store(root: Path, folders: Mapping[str, list[str]], expected: Mapping[str, Any]) -> None:
    """Replaces what is stored by these folders below `root`, each without the paths named beside it."""
    shutil.rmtree(STORED, ignore_errors=True)
    texts: dict[str, dict[str, str]] = {}
    metadata: dict[str, dict[str, Any]] = {}
    for folder, left_out in folders.items():
        arrays: dict[str, torch.Tensor] = {}
        texts[folder], metadata[folder] = {}, {}
        for file in sorted((root / folder).rglob("*")):
            name = file.relative_to(root / folder).as_posix()
            if not file.is_file() or any(name == path or name.startswith(f"{path}/") for path in left_out):
                continue
            if file.suffix == ".safetensors":
                with safe_open(file, "pt") as opened:
                    metadata[folder][name] = opened.metadata()
                arrays |= {f"{name}:{key}": tensor for key, tensor in load_file(file).items()}
            elif file.suffix in TORCH_SUFFIXES:
                content = flatten(torch.load(file, weights_only=False), f"{name}:", arrays)
                texts[folder][name] = json.dumps(content)
            else:
                texts[folder][name] = file.read_bytes().decode()
        if arrays:
            target = STORED / f"{folder}.safetensors"
            target.parent.mkdir(parents=True, exist_ok=True)
            save_file(arrays, target)
    shared = Counter((Path(name).name, text) for files in texts.values() for name, text in files.items())
    places: dict[tuple[str, str], str] = {}
    index: dict[str, Any] = {}
    for folder, files in texts.items():
        index[folder] = {"files": {}, "weights": metadata[folder]}
        for name, text in files.items():
            key = (Path(name).name, text)
            suffix = {".py": ".txt", ".pt": ".json", ".pth": ".json"}.get(Path(name).suffix, "")
            if shared[key] > 1:
                number = sum(place.startswith(f"shared/{key[0]}-") for place in places.values())
                path = places.setdefault(key, f"shared/{key[0]}-{number}{suffix or Path(name).suffix}")
            else:
                path = f"{folder}/{name}{suffix}"
            (STORED / path).parent.mkdir(parents=True, exist_ok=True)
            (STORED / path).write_bytes(text.encode())
            index[folder]["files"][name] = path
    INDEX.write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    arrays = {}
    content = flatten(expected, "expected", arrays)
    EXPECTED.with_suffix(".json").write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")
    save_file(arrays, EXPECTED.with_suffix(".safetensors"))
    for file in STORED.rglob("*.safetensors"):
        file.chmod(0o644)


def read_expected() -> dict[str, Any]:
    """What the earlier state found for the artefacts."""
    content = json.loads(EXPECTED.with_suffix(".json").read_text(encoding="utf-8"))
    return restore(content, load_file(EXPECTED.with_suffix(".safetensors")))


def rebuild_all(root: Path) -> None:
    """Writes every artefact to its place below `root`."""
    for folder in json.loads(INDEX.read_text(encoding="utf-8")):
        rebuild(folder, root)


def rebuild(folder: str, root: Path) -> Path:
    """Writes an artefact to `root / folder`, file by file as the earlier state left it."""
    about = json.loads(INDEX.read_text(encoding="utf-8"))[folder]
    file = STORED / f"{folder}.safetensors"
    arrays = load_file(file) if file.is_file() else {}
    for name, stored in about["files"].items():
        target = root / folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        content = (STORED / stored).read_bytes()
        if target.suffix in TORCH_SUFFIXES:
            torch.save(restore(json.loads(content), arrays), target)
        else:
            target.write_bytes(content)
    for name, metadata in about["weights"].items():
        prefix = f"{name}:"
        weights = {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}
        save_file(weights, root / folder / name, metadata)
    return root / folder


def differences(found: Any, expected: Any, place: str = "") -> list[tuple[str, Any, Any]]:
    """Every pair of leaves of two nested values, with its place; AssertionError where they are not of one shape."""
    if isinstance(expected, Mapping):
        assert isinstance(found, Mapping), place
        assert found.keys() == expected.keys(), f"{place}: {sorted(found.keys() ^ expected.keys())}"
        return [pair for key in expected for pair in differences(found[key], expected[key], f"{place}/{key}")]
    if isinstance(expected, list | tuple):
        assert len(found) == len(expected), f"{place}: {found} in place of {expected}"
        pairs = zip(found, expected, strict=True)
        return [pair for n, (one, other) in enumerate(pairs) for pair in differences(one, other, f"{place}/{n}")]
    return [(place, found, expected)]


def largest_difference(found: Any, expected: Any) -> float:
    """Between all the numbers of two nested values; infinite where anything else differs."""
    largest = 0.0
    for place, one, other in differences(found, expected):
        if isinstance(other, torch.Tensor):
            assert one.shape == other.shape, place
            if other.numel():
                largest = max(largest, (one.double() - other.double()).abs().max().item())
        elif isinstance(other, float):
            largest = max(largest, abs(one - other))
        elif one != other:
            return float("inf")
    return largest


def write_data(root: Path) -> None:
    """The rows that the runs learn from: the same on every machine, and never stored."""
    animals, places = ("cat", "dog", "bird", "horse"), ("the garden", "a house", "the river")
    sentences = [(f"The {animal} sits in {place}.", animal, place) for animal in animals for place in places]
    documents = [
        f"{start} number {number} {verb} {place}.\nIt is {colour}, and {number + 3} others are there too."
        for number, (start, verb, place, colour) in enumerate(
            (f"{start} {animal}", verb, place, colour)
            for start, animal in zip(("A", "The", "One small", "An old"), animals, strict=True)
            for verb in ("sits in", "runs around")
            for place in places
            for colour in ("red", "as blue as the sky above")
        )
    ]
    chats = [("Hello!", "Hi! How are you?"), ("你好", "你好！"), ("Smile", "😀 yes"), ("Count.", "1, 2, 3.")]
    words = dict(zip(animals, "猫狗鸟马", strict=True))
    rows: dict[str, list[Any]] = {
        "corpus": [{"text": text} for text in documents],
        "chats": [
            {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]}
            for asked, said in chats * 2
        ],
        "topics": [{"text": text, "label": animal} for text, animal, _ in sentences * 2],
        "questions": [
            {
                "id": str(number),
                "question": "Who?" if number % 2 else "Where?",
                "context": text,
                "answers": {"text": [answer], "answer_start": [text.index(answer)]},
            }
            for number, (text, animal, place) in enumerate(sentences)
            for answer in [animal if number % 2 else place]
        ],
        "pairs": [{"en": f"The {animal}.", "zh": words[animal]} for animal in animals] * 4,
        "choices": [
            {"query": f"The {animal} is a", "choices": [f" {other}." for other in animals], "gold": number}
            for number, animal in enumerate(animals)
        ]
        * 2,
    }
    for name, content in rows.items():
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in content]
        (root / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    tagged = [
        "\n".join(f"{word} {'B-ANIMAL' if word == animal else 'O'}" for word in text.replace(".", " .").split())
        for text, animal, _ in sentences
    ]
    (root / "tags.conll").write_text("\n\n".join(tagged) + "\n", encoding="utf-8")
