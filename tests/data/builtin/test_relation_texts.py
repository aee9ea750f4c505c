"""In the constructed set of relations, triples match their texts and held-out names are new."""

import json
import re

from datasets import Dataset

from chatgpt_hf.data.builtin import load_builtin
from chatgpt_hf.data.builtin import relation_texts as relations


def names(rows: Dataset) -> set[str]:
    """Returns every word that is a name; first and last names are separate."""
    parts = {*relations._GIVEN, *relations._FAMILY, *relations._TOWNS, *relations._COUNTRIES, *relations._FIRMS}
    return {word for text in rows["prompt"] for word in re.findall(r"\w+", text)} & parts


def test_triples_are_in_their_texts() -> None:
    corpus = load_builtin("builtin:relations")
    assert len(corpus["train"]) + len(corpus["test"]) > 1950
    assert 150 < len(corpus["test"]) < 250
    counts = dict.fromkeys(relations._RELATIONS, 0)
    lengths = set()
    for row in [*corpus["train"], *corpus["test"]]:
        triples = json.loads(row["completion"])
        lengths.add(len(triples))
        ends = []
        for triple in triples:
            assert list(triple) == ["head", "relation", "tail"]
            assert triple["head"] != triple["tail"]
            assert triple["head"] in row["prompt"]
            assert triple["tail"] in row["prompt"]
            counts[triple["relation"]] += 1
            ends.append(triple["tail"])
        assert len({(t["head"], t["relation"]) for t in triples}) == len(triples)
    assert lengths == {1, 2, 3}
    assert min(counts.values()) > 200


def test_held_out_names_are_new() -> None:
    corpus = load_builtin("builtin:relations")
    train, test = names(corpus["train"]), names(corpus["test"])
    assert len(train) > 200
    assert len(test) > 50
    assert not train & test


def test_wording_varies() -> None:
    texts = load_builtin("builtin:relations")["train"]["prompt"][:]
    assert len(set(texts)) == len(texts)
    assert sum("She " in text or "He " in text or "Her " in text or "His " in text for text in texts) > 50
    for _, _, wordings, with_pronoun in relations._RELATIONS.values():
        for wording in (*wordings, *with_pronoun):
            pattern = re.sub(r"\\\{\w+\\\}", "[A-Z][A-Za-z ]+", re.escape(wording))
            assert any(re.search(pattern, text) for text in texts), wording


def test_it_is_built_anew_the_same() -> None:
    assert relations.build() == relations.build()
