"""Draws the results of the other modules with matplotlib: each function returns a figure to show or to save."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

# No pyplot: it would pick a window system and keep the figures alive.
from transformers import PreTrainedTokenizerBase

from ..errors import ConfigError
from ..extras import needed_by
from .ablation import AblationEffects
from .attention_maps import AttentionMaps, HeadScores
from .attribution import Attribution
from .lens import Lens
from .passage import token_text, visible
from .surprise import TokenProbability

with needed_by("A plot"):
    from matplotlib import font_manager, rc_context
    from matplotlib.figure import Figure

# Fonts with Chinese characters, in order of preference; only installed ones are used.
_CHINESE_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei",
    "PingFang SC",
    "Hiragino Sans GB",
    "Microsoft YaHei",
    "SimHei",
)


@contextmanager
def _fonts() -> Iterator[None]:
    installed = set(font_manager.get_font_names())
    with rc_context({"font.family": ["DejaVu Sans", *(name for name in _CHINESE_FONTS if name in installed)]}):
        yield


def draw_surprise(tokens: Sequence[TokenProbability]) -> Figure:
    """Draws each token's surprise as a bar, and the expected surprise (the entropy) as a line."""
    with _fonts():
        figure, axes = _figure(0.3 * len(tokens) + 1.5, 3)
        axes.bar(range(len(tokens)), [token.surprise for token in tokens], color="tab:orange", label="surprise")
        axes.plot([token.entropy for token in tokens], "k.--", linewidth=0.8, label="entropy")
        _name_tokens(axes.xaxis, [token.text for token in tokens], rotation=90)
        axes.set_ylabel("nats")
        axes.legend()
        return _fixed(figure)


def draw_attention(maps: AttentionMaps, labels: Sequence[str], layer: int, head: int | None = None) -> Figure:
    """Draws the maps of one layer's heads, or of one head: queries downwards, keys to the right.

    Raises:
        ConfigError: If there is no such layer or head.
    """
    layers, heads = maps.weights.shape[:2]
    for name, number, count in (("layer", layer, layers), ("head", head, heads)):
        if number is not None and not 0 <= number < count:
            raise ConfigError(f"There is no {name} {number}: there are {count}, from 0 to {count - 1}.")
    shown = range(heads) if head is None else (head,)
    size = min(max(0.18 * len(labels), 2.2), 8)
    with _fonts():
        figure = Figure(figsize=(size * len(shown) + 1.2, size + 0.6), layout="constrained")
        panels = figure.subplots(1, len(shown), squeeze=False)[0]
        for axes, number in zip(panels, shown, strict=True):
            axes.imshow(maps.weights[layer, number], vmin=0, vmax=1, cmap="Blues")
            axes.set_title(f"layer {layer}, head {number}", fontsize=9)
            _name_tokens(axes.xaxis, labels, rotation=90)
            if axes is panels[0]:
                _name_tokens(axes.yaxis, labels)
            else:
                axes.set_yticks([])
        return _fixed(figure)


def draw_tokens(labels: Sequence[str], scores: Mapping[str, npt.NDArray[np.float64]], ylabel: str = "") -> Figure:
    """Draws scores of the tokens, each (position,), in one panel each: rollout, flow, attributions."""
    with _fonts():
        figure = Figure(figsize=(min(0.3 * len(labels) + 1.5, 20), 1.2 + 1.3 * len(scores)), layout="constrained")
        panels = figure.subplots(len(scores), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (name, values) in zip(panels, scores.items(), strict=True):
            axes.bar(range(len(values)), values, color=["tab:blue" if value >= 0 else "tab:red" for value in values])
            axes.axhline(0, color="black", linewidth=0.5)
            axes.set_title(name, fontsize=9)
            axes.set_ylabel(ylabel)
        _name_tokens(panels[-1].xaxis, labels, rotation=90)
        return _fixed(figure)


def draw_attributions(labels: Sequence[str], attributions: Mapping[str, Attribution]) -> Figure:
    """Draws the attributions of each method over the tokens."""
    scores = {name.replace("_", " "): found.scores[: len(labels)] for name, found in attributions.items()}
    return draw_tokens(labels, scores, "nats")


def draw_head_scores(scores: HeadScores) -> Figure:
    """Draws the three scores of each head: layers downwards, heads to the right."""
    figure = Figure(figsize=(10, 1 + 0.5 * len(scores.induction)), layout="constrained")
    for axes, name in zip(figure.subplots(1, 3), ("previous_token", "first_token", "induction"), strict=True):
        values = getattr(scores, name)
        axes.imshow(values, vmin=0, vmax=1, cmap="Blues", aspect="auto")
        for (layer, head), value in np.ndenumerate(values):
            axes.text(head, layer, f"{value:.2f}", ha="center", va="center", fontsize=7, color=_on(value))
        axes.set(title=name.replace("_", " "), xlabel="head", xticks=range(values.shape[1]), yticks=range(len(values)))
        axes.set_ylabel("layer")
    return figure


def draw_lens(lens: Lens, labels: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> Figure:
    """Draws the likeliest next token after each layer, colored by probability: positions rightwards, layers upwards."""
    likeliest, probabilities = lens.top_ids[..., 0], lens.top_probabilities[..., 0]
    layers, positions = likeliest.shape
    with _fonts():
        figure, axes = _figure(0.75 * positions + 1.5, 0.32 * layers + 1.2)
        axes.imshow(probabilities, vmin=0, vmax=1, cmap="Blues", aspect="auto", origin="lower")
        for (layer, position), value in np.ndenumerate(probabilities):
            text = _plain(token_text(tokenizer, int(likeliest[layer, position])))
            axes.text(position, layer, text[:8], ha="center", va="center", fontsize=7, color=_on(value))
        axes.set_yticks(range(layers), ["embeddings", *map(str, range(1, layers))])
        axes.set_ylabel("layers")
        _name_tokens(axes.xaxis, labels, rotation=90)
        return _fixed(figure)


def draw_ablation(effects: AblationEffects, top: int = 20) -> Figure:
    """Draws the parts whose removal raises the loss most, with 95 % confidence intervals."""
    order = np.argsort(effects.differences)[::-1][:top]
    names = [" + ".join(map(str, effects.ablations[index])) for index in order]
    values = effects.differences[order]
    figure, axes = _figure(7, 0.28 * len(order) + 1)
    bars = np.abs(np.stack([values - effects.low[order], effects.high[order] - values]))
    axes.barh(range(len(order)), values, xerr=bars, color="tab:blue", ecolor="black", capsize=2)
    axes.set_yticks(range(len(order)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(f"increase of the loss over the whole model's {effects.loss:.3f} (nats per token)")
    return figure


def _figure(width: float, height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(min(width, 20), min(height, 20)), layout="constrained")
    return figure, figure.subplots()


def _fixed(figure: Figure) -> Figure:
    """Draws the figure now, while the fonts are set; otherwise matplotlib draws it when it is shown."""
    figure.draw_without_rendering()
    return figure


def _name_tokens(axis: Any, labels: Sequence[str], **style: Any) -> None:
    axis.set_ticks(range(len(labels)), [_plain(label)[:12] for label in labels], fontsize=8, **style)


def _plain(text: str) -> str:
    # An unescaped dollar sign would begin a formula.
    return visible(text).replace("$", r"\$")


def _on(value: float) -> str:
    """Returns the text color for a cell that gets darker with its value."""
    return "white" if value > 0.6 else "black"
