"""All of it for one text or answer: what the page shows."""

from collections.abc import Callable, Sequence
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
from .ablation import AblationEffects, ablation_effects, all_parts
from .attention_maps import AttentionMaps, HeadScores, attention_flow, attention_maps, attention_rollout, head_scores
from .attribution import METHODS, Attribution, attribute
from .lens import Lens, look_through, train_tuned_lens
from .passage import Passage
from .surprise import TokenProbability, token_probabilities

# A maximum flow for each token, through a network of as many nodes in each layer: minutes beyond this.
MAX_FLOW_TOKENS = 128
# Of the texts that lens and ablation are measured on.
_ROW_LENGTH = 128
_LENS_ROWS = 64
_ABLATION_ROWS = 16


@dataclass(frozen=True)
class Texts:
    """Rows of ids from a corpus.

    Attributes:
        source: Of the corpus.
        lens_rows: A tuned lens learns from them.
        ablation_rows: The effects of parts are measured on them; of other documents than the lens's.
    """

    source: str
    lens_rows: tuple[tuple[int, ...], ...]
    ablation_rows: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Explanation:
    """What was found out about one passage. None where a technique does not go with the model: `notes` says why.

    Attributes:
        name: Of the model.
        surprise: Of each token from `passage.begin` on, (tokens,).
        rollout: (query, key) after the last layer.
        flow: (key,), from the last position.
        target: The text that the attributions explain: the answer, or the token that the model would say next.
        attributions: By method.
        heads: On random tokens that come again.
        tuned_lens, ablation: Where there were texts of a corpus, `source`.
        notes: What was done otherwise, or not at all, and why.
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
    """Rows of up to 128 tokens of a corpus, documents end to end; what the corpus holds out is for the ablation.

    Raises:
        DataError: When the corpus cannot be used, or is too short.
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
            f"{source} is too short: the tuned lens and the ablation need two stretches of {length} tokens each, from "
            "different documents. Name a larger corpus."
        )
    return Texts(source, *rows)


def _rows(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], length: int, count: int
) -> tuple[tuple[int, ...], ...]:
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    ids: list[int] = []
    for text in texts:
        if len(ids) >= length * count:
            break
        ids += bos + tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
    return tuple(tuple(ids[begin : begin + length]) for begin in range(0, len(ids) - length + 1, length))[:count]


def explain(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    passage: Passage,
    *,
    name: str,
    texts: Texts | None = None,
    report: Callable[[str], None] = lambda sentence: None,
    progress: bool = False,
) -> Explanation:
    """Everything about one passage.

    Args:
        texts: For the tuned lens and the ablation, which are left out without.
        report: Is told what is being done.
        progress: Whether the ablation, which takes an evaluation for each part, shows a bar.
    """
    notes: list[str] = []
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
    maps = attempt("Attention", lambda: attention_maps(model, ids))
    rollout = flow = None
    if maps is not None:
        if maps.switched_from is not None:
            notes.append(
                f"The model's {maps.switched_from} attention gives no weights: they are those of eager attention, which computes "
                "the same."
            )
        rollout = attention_rollout(maps.weights)[-1]
        if len(passage.ids) <= MAX_FLOW_TOKENS:
            flow = attempt("Attention flow", lambda: attention_flow(maps.weights))
        else:
            notes.append(
                f"Attention flow is left out: it takes minutes for more than {MAX_FLOW_TOKENS} tokens, and there are {len(passage.ids)}."
            )
    lens = attempt("Logit lens", lambda: look_through(model, ids))
    # A text is followed by what the model would say next; an answer is explained itself.
    explained, begin = list(passage.ids), passage.begin
    if not passage.is_answer:
        with torch.no_grad(), evaluating(model):
            begin, following = len(explained), model(input_ids=ids, use_cache=False).logits[0, -1].argmax()
        explained.append(int(following))
    baseline = _baseline_id(tokenizer)
    attributions = {}
    for method in METHODS:
        found = attempt(
            f"Attribution by {method.replace('_', ' ')}",
            partial(attribute, model, explained, begin, method, baseline_id=baseline),
        )
        if found is not None:
            attributions[method] = found
    special = set(tokenizer.all_special_ids)
    vocabulary = [token_id for token_id in range(len(tokenizer)) if token_id not in special]
    heads = attempt("The heads", lambda: head_scores(model, vocabulary, first=tokenizer.bos_token_id))
    tuned = ablation = None
    if texts is not None:
        tuned = attempt(
            "Tuned lens",
            lambda: look_through(model, ids, tuned=train_tuned_lens(model, texts.lens_rows)),
        )
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


def _baseline_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that says nothing: eos, or what else the tokenizer has in its place."""
    candidates = (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id)
    return next((token_id for token_id in candidates if token_id is not None), 0)
