"""Computes everything that the page shows for one text or answer."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..checkpoints import context_length
from ..data.corpus import load_corpus
from ..errors import ConfigError, DataError
from ..evaluation.mode import evaluating
from ..tokenization_chatgpt import document_marks, encode_texts
from .ablation import AblationEffects, ablation_effects, all_parts
from .attention_maps import AttentionMaps, HeadScores, attention_flow, attention_maps, attention_rollout, head_scores
from .attribution import METHODS, Attribution, attribute
from .lens import Lens, look_through, train_tuned_lens
from .passage import Passage
from .surprise import TokenProbability, token_probabilities

# The flow needs one maximum flow per token, through a network with a node for every token in each layer: beyond this, minutes.
MAX_FLOW_TOKENS = 128
# Rollout says nothing if the first token has more than this share of the last one, as it has after many layers: each layer
# mixes in a little more of it, whatever the text (Abnar & Zuidema 2020 had six layers).
MAX_FIRST_SHARE = 0.9
# The parts that can be left out.
PARTS = ("attention", "lens", "attribution", "heads", "tuned_lens", "ablation")
# Length and numbers of the rows for the tuned lens and the ablation.
_ROW_LENGTH = 128
_LENS_ROWS = 64
_ABLATION_ROWS = 16


@dataclass(frozen=True)
class Texts:
    """Rows of ids from a corpus.

    Attributes:
        source: Name of the corpus.
        lens_rows: Rows to train the tuned lens.
        ablation_rows: Rows to measure the effects of parts, from other documents than `lens_rows`.
    """

    source: str
    lens_rows: tuple[tuple[int, ...], ...]
    ablation_rows: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Explanation:
    """The results for one passage. A result is None if its technique does not work with the model (`notes` says why), or was
    to be left out.

    Attributes:
        name: Name of the model.
        surprise: One entry for each token from `passage.begin` on.
        rollout: (query, key) after the last layer; None if the first token has nearly everything.
        flow: (key,), from the last position.
        target: The text that the attributions explain: the answer, or the model's next token.
        attributions: By method.
        heads: Scores on repeated random tokens.
        tuned_lens, ablation: None without texts from a corpus (`source`).
        notes: Steps that were done differently or left out, with the reasons.
    """

    name: str
    passage: Passage
    surprise: tuple[TokenProbability, ...]
    maps: AttentionMaps | None
    rollout: npt.NDArray[np.float64] | None
    flow: npt.NDArray[np.float64] | None
    lens: Lens | None
    tuned_lens: Lens | None
    target: str
    attributions: dict[str, Attribution]
    heads: HeadScores | None
    ablation: AblationEffects | None
    source: str | None
    notes: tuple[str, ...]


def corpus_texts(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: str) -> Texts:
    """Returns rows of up to 128 tokens from a corpus, with documents end to end; held-out documents are for the ablation.

    Raises:
        DataError: If the corpus cannot be used, or is too short.
    """
    splits = load_corpus(source)
    length = min(context_length(model), _ROW_LENGTH)
    train, held_out = splits["train"], splits.get("test")
    if held_out is None:
        held_out = train.select(range(len(train) // 2, len(train)))
        train = train.select(range(len(train) // 2))
    rows = [
        _rows(tokenizer, split.shuffle(seed=0)["text"], length, count) if len(split) else ()
        for split, count in ((train, _LENS_ROWS), (held_out, _ABLATION_ROWS))
    ]
    if min(map(len, rows)) < 2:
        raise DataError(
            f"{source} is too short: the tuned lens and the ablation each need two rows of {length} tokens, from different "
            "documents. Name a larger corpus."
        )
    return Texts(source, *rows)


def _rows(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], length: int, count: int
) -> tuple[tuple[int, ...], ...]:
    ids: list[int] = []
    for text in texts:
        if len(ids) >= length * count:
            break
        ids += encode_texts(tokenizer, [text])[0]
    return tuple(tuple(ids[begin : begin + length]) for begin in range(0, len(ids) - length + 1, length))[:count]


def explain(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    passage: Passage,
    *,
    name: str,
    texts: Texts | None = None,
    without: Collection[str] = (),
    report: Callable[[str], None] = lambda sentence: None,
    progress: bool = False,
) -> Explanation:
    """Computes the explanation of one passage.

    Args:
        texts: Texts for the tuned lens and the ablation; without them, both are left out.
        without: Names in `PARTS` to leave out.
        report: Called with the name of each step.
        progress: Show progress bars.

    Raises:
        ConfigError: If a part to leave out has an unknown name.
    """
    check_parts(without)
    notes: list[str] = []
    if without:
        left_out = ", ".join(part.replace("_", " ") for part in PARTS if part in without)
        notes.append(f"Left out as asked: {left_out}.")
    ids = passage.tensor(model)

    def attempt(what: str, compute: Callable[[], Any]) -> Any:
        report(what)
        try:
            return compute()
        except (ConfigError, DataError) as error:
            notes.append(f"{what} is left out. {error}")
            return None

    report("Surprise")
    surprise = token_probabilities(
        model, tokenizer, passage.ids[: passage.begin], passage.ids[passage.begin :] if passage.begin else ()
    )
    maps = attempt("Attention", lambda: attention_maps(model, ids)) if "attention" not in without else None
    rollout = flow = None
    if maps is not None:
        if maps.switched_from is not None:
            notes.append(
                f"The model's {maps.switched_from} attention gives no weights: these are from eager attention, which computes "
                "the same."
            )
        rollout = attention_rollout(maps.weights)[-1]
        first = float(rollout[-1, 0])
        if len(passage.ids) > 2 and first > MAX_FIRST_SHARE:
            rollout = None
            notes.append(
                f"Attention rollout is left out: after {len(maps.weights)} layers it gives the first token {first:.0%} of the last "
                "one, and would do so for almost any text."
            )
        if len(passage.ids) <= MAX_FLOW_TOKENS:
            flow = attempt("Attention flow", lambda: attention_flow(maps.weights, progress=progress))
        else:
            notes.append(
                f"Attention flow is left out: it takes minutes for more than {MAX_FLOW_TOKENS} tokens, and there are {len(passage.ids)}."
            )
    lens = None
    if "lens" not in without:
        lens = attempt("Logit lens", lambda: look_through(model, ids, progress=progress))
    # For a text, the attributions explain the model's next token; for an answer, the answer itself.
    explained, begin = list(passage.ids), passage.begin
    if not passage.is_answer:
        with torch.no_grad(), evaluating(model):
            begin, following = len(explained), model(input_ids=ids, use_cache=False).logits[0, -1].argmax()
        explained.append(int(following))
    baseline = _baseline_id(tokenizer)
    attributions = {}
    for method in METHODS if "attribution" not in without else ():
        found = attempt(
            f"Attribution by {method.replace('_', ' ')}",
            partial(attribute, model, explained, begin, method, baseline_id=baseline, progress=progress),
        )
        if found is not None:
            attributions[method] = found
    special = set(tokenizer.all_special_ids)
    vocabulary = [token_id for token_id in range(len(tokenizer)) if token_id not in special]
    heads = tuned = ablation = None
    if "heads" not in without:
        heads = attempt(
            "The heads",
            lambda: head_scores(
                model, vocabulary, first=next(iter(document_marks(tokenizer).begin), None), progress=progress
            ),
        )
    if texts is not None and "tuned_lens" not in without:
        tuned = attempt(
            "Tuned lens",
            lambda: look_through(
                model, ids, tuned=train_tuned_lens(model, texts.lens_rows, progress=progress), progress=progress
            ),
        )
    if texts is not None and "ablation" not in without:
        ablation = attempt(
            "Ablation",
            lambda: ablation_effects(
                model, texts.ablation_rows, [(part,) for part in all_parts(model)], progress=progress
            ),
        )
    return Explanation(
        name=name,
        passage=passage,
        surprise=tuple(surprise),
        maps=maps,
        rollout=rollout,
        flow=flow,
        lens=lens,
        tuned_lens=tuned,
        target=str(tokenizer.decode(explained[begin:])),
        attributions=attributions,
        heads=heads,
        ablation=ablation,
        source=texts.source if texts is not None else None,
        notes=tuple(dict.fromkeys(notes)),
    )


def check_parts(names: Collection[str]) -> None:
    """Raises `ConfigError` for a name that is not in `PARTS`."""
    if unknown := [name for name in names if name not in PARTS]:
        raise ConfigError(f"There is no part {unknown[0]!r} to leave out; choose from {', '.join(PARTS)}.")


def _baseline_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Returns the token that stands for missing input: eos, or another special token if there is no eos."""
    candidates = (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id)
    return next((token_id for token_id in candidates if token_id is not None), 0)
