"""Renders an explanation as one HTML file, which makes no network requests and can be printed completely."""

import base64
import json
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from transformers import PreTrainedTokenizerBase

from ..errors import OutputError
from ..files import write_atomically
from .explanation import Explanation
from .lens import Lens
from .passage import token_text, visible
from .surprise import percent

MAX_BYTES = 5_000_000
# The lens has a row for each position; the page shows the last ones.
MAX_LENS_ROWS = 256


def check_page_file(file: str | Path) -> Path:
    """Returns the path if a page can be written there.

    Raises:
        OutputError: If it is a folder, or its parent is not a folder or not writable.
    """
    path = Path(file)
    try:
        if path.is_dir():
            raise OutputError(f"{path} is a folder: name a file for the page, such as {path / 'report.html'}")
        parent = next(parent for parent in path.absolute().parents if parent.exists())
        if not parent.is_dir():
            raise OutputError(f"{path} cannot be written: {parent} is a file. Name another file for the page.")
        # Try writing before the slow computation. Permissions are not enough, for example on a read-only disk.
        tempfile.TemporaryFile(dir=parent).close()
    except OSError as error:
        raise OutputError(f"The page cannot be written to {path}: {error.strerror}. Name another file.") from error
    return path


def write_page(explanation: Explanation, tokenizer: PreTrainedTokenizerBase, file: str | Path) -> Path:
    """Writes the page of an explanation.

    Raises:
        OutputError: If it cannot be written, or would be larger than 5 MB.
    """
    path = check_page_file(file)
    content = render_page(explanation, tokenizer)
    write_atomically(path, lambda temporary: temporary.write_text(content, encoding="utf-8"))
    return path


def render_page(explanation: Explanation, tokenizer: PreTrainedTokenizerBase) -> str:
    """Returns the page. To keep it small, the page of a long text shows each layer's mean attention instead of each head's."""
    environment = Environment(
        loader=PackageLoader("chatgpt_hf", "interpretability"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(visible=visible, percent=percent)
    template = environment.get_template("page.html.jinja")
    lenses = {
        name: lens
        for name, lens in (("Logit lens", explanation.lens), ("Tuned lens", explanation.tuned_lens))
        if lens is not None
    }
    labels = _labels(explanation)
    variables = {
        "it": explanation,
        "units": _units(explanation),
        "labels": labels,
        "attributions": _attributions(explanation),
        "flows": _flows(explanation),
        "lenses": [_lens_table(name, lens, explanation, tokenizer) for name, lens in lenses.items()],
        "heads": _heads(explanation),
        "ablation": _ablation(explanation),
    }
    details = {
        "labels": [visible(label) for label in labels],
        "begin": explanation.passage.begin,
        "surprise": [
            [token.surprise, token.entropy, [[visible(other.text), other.probability] for other in token.alternatives]]
            for token in explanation.surprise
        ],
        "lenses": [_lens_details(lens, tokenizer) for lens in lenses.values()],
    }
    for attention in _attention_choices(explanation):
        page = template.render(**variables, attention=attention, payload=_packed({**details, "attention": attention}))
        if len(page.encode()) < MAX_BYTES:
            return page
    raise OutputError(
        f"The page would be larger than {MAX_BYTES // 1_000_000} MB with {len(explanation.passage.ids)} tokens: explain a shorter text."
    )


def _attention_choices(explanation: Explanation) -> list[dict[str, Any] | None]:
    """Returns the maps with all heads, with each layer's mean, and none: the page uses the first that keeps it small."""
    if explanation.maps is None:
        return [None]
    weights, rollout = explanation.maps.weights, explanation.rollout
    mean = weights.mean(axis=1, keepdims=True)
    shown: list[dict[str, Any] | None] = [
        {
            "layers": len(maps),
            "heads": maps.shape[1],
            "all_heads": maps.shape[1] == weights.shape[1],
            "weights": _bytes(maps),
            "rollout": None if rollout is None else _bytes(rollout),
        }
        for maps in (weights, mean)
    ]
    return [*shown, None]


def _bytes(weights: np.ndarray) -> str:
    """Encodes weights (..., query, key) in steps of 1/255; only keys up to the query, because later ones have no weight."""
    length = weights.shape[-1]
    lower = weights[..., *np.tril_indices(length)]
    return base64.b64encode(np.round(255 * lower).astype(np.uint8).tobytes()).decode()


def _packed(content: dict[str, Any]) -> str:
    # JSON has no infinity for an infinite surprise.
    text = json.dumps(_finite(content), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(zlib.compress(text.encode(), 9)).decode()


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{min(value, 999.0):.4g}")
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list) else value


def _labels(explanation: Explanation) -> list[str]:
    """Returns each token's label; if several tokens make a character, the last one's label adds it: `<A0>=你`."""
    labels = list(explanation.passage.labels)
    for first, end, text in explanation.passage.units:
        if end - first > 1:
            labels[end - 1] += f"={text}"
    return labels


def _units(explanation: Explanation) -> list[dict[str, Any]]:
    """Returns the passage in pieces of whole characters: start, end, text, surprise and shade of each."""
    begin = explanation.passage.begin
    nats = [0.0] * begin + [token.surprise for token in explanation.surprise]
    nats += [0.0] * (len(explanation.passage.ids) - len(nats))
    return [
        {
            "first": first,
            "end": end,
            "text": text,
            "prompt": end <= begin,
            "nats": sum(nats[first:end]),
            # Ten nats mean a chance of 1 in 22,026.
            "shade": min(sum(nats[first:end]) / 10, 1),
        }
        for first, end, text in explanation.passage.units
    ]


def _attributions(explanation: Explanation) -> list[dict[str, Any]]:
    """Returns the attributions, summed over the tokens of each unit."""
    found = []
    for method, result in explanation.attributions.items():
        note = f"They add up to {result.scores.sum():.3f} nats. "
        note += f"The log-probability is {result.log_probability:.3f}, and {result.baseline_log_probability:.3f} with nothing before it"
        if method == "integrated_gradients":
            note += f": the sum is off by {result.error:.2%} of the difference, with {result.steps} steps"
        found.append(_strip(method.replace("_", " ").capitalize(), result.scores, explanation, note + "."))
    return found


def _strip(name: str, scores: np.ndarray, explanation: Explanation, note: str) -> dict[str, Any]:
    values = [float(scores[first:end].sum()) for first, end, _ in explanation.passage.units]
    largest = max(map(abs, values)) or 1.0
    return {
        "name": name,
        "note": note,
        "values": [{"value": value, "shade": abs(value) / largest, "negative": value < 0} for value in values],
    }


def _flows(explanation: Explanation) -> list[dict[str, Any]]:
    """Returns rollout and flow from the last position, as strips."""
    scores = {
        "Rollout": explanation.rollout[-1] if explanation.rollout is not None else None,
        "Flow": explanation.flow,
    }
    return [_strip(name, values, explanation, "") for name, values in scores.items() if values is not None]


def _lens_table(name: str, lens: Lens, explanation: Explanation, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    positions = len(lens.targets)
    first = max(0, positions - MAX_LENS_ROWS)
    rows = [
        {
            "position": position,
            "cells": [
                {
                    "text": token_text(tokenizer, int(lens.top_ids[layer, position, 0])),
                    "shade": float(lens.top_probabilities[layer, position, 0]),
                    "hit": bool(lens.top_ids[layer, position, 0] == lens.targets[position]),
                }
                for layer in range(len(lens.top_ids))
            ],
        }
        for position in range(first, positions)
    ]
    return {"name": name, "rows": rows, "layers": len(lens.top_ids), "left_out": first}


def _lens_details(lens: Lens, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Returns the details for tapped cells; each text is stored once."""
    ids = sorted({*lens.top_ids[:, -MAX_LENS_ROWS:].flatten().tolist(), *lens.targets.tolist()})
    places = {token_id: place for place, token_id in enumerate(ids)}
    tail = slice(-MAX_LENS_ROWS, None)
    return {
        "texts": [visible(token_text(tokenizer, token_id)) for token_id in ids],
        "first": max(0, len(lens.targets) - MAX_LENS_ROWS),
        "targets": [places[token_id] for token_id in lens.targets[tail].tolist()],
        "top": [[[places[i] for i in cell] for cell in row] for row in lens.top_ids[:, tail].tolist()],
        "p": lens.top_probabilities[:, tail].tolist(),
        "rank": lens.ranks[:, tail].tolist(),
        "target_p": lens.probabilities[:, tail].tolist(),
        "kl": lens.divergences[:, tail].tolist(),
    }


def _heads(explanation: Explanation) -> list[dict[str, Any]]:
    if explanation.heads is None:
        return []
    notes = {
        "previous_token": "How much a head looks at the previous token: such heads combine neighbors.",
        "first_token": "How much a head looks at the very first token, as idle heads often do.",
        "induction": "How much a head looks at the token that followed the same token earlier: such heads continue repetitions.",
    }
    return [
        {"name": name.replace("_", " "), "note": note, "rows": getattr(explanation.heads, name).tolist()}
        for name, note in notes.items()
    ]


def _ablation(explanation: Explanation) -> list[dict[str, Any]]:
    """Returns each part with its bar in percent of the axis, largest effect first."""
    effects = explanation.ablation
    if effects is None:
        return []
    low, high = min(0.0, float(effects.low.min())), max(float(effects.high.max()), 1e-9)

    def place(value: float) -> float:
        return 100 * (value - low) / (high - low)

    return [
        {
            "name": " + ".join(map(str, effects.ablations[index])),
            "value": float(effects.differences[index]),
            "low": float(effects.low[index]),
            "high": float(effects.high[index]),
            "bar": sorted((place(0), place(float(effects.differences[index])))),
            "whisker": (place(float(effects.low[index])), place(float(effects.high[index]))),
        }
        for index in np.argsort(-effects.differences)
    ]
