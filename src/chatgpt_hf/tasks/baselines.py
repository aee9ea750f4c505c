"""Simple baselines on the same rows, to compare a model with: word counts, and the most frequent answer."""

from collections import Counter

import numpy as np
from datasets import Dataset

from ..evaluation.record import Evaluation
from ..extras import needed_by
from .text_classification.evaluation import classification_record
from .token_classification.evaluation import tagging_record


def classify_by_words(train: Dataset, test: Dataset, label_names: list[str]) -> Evaluation:
    """Logistic regression on TF-IDF of words and word pairs, or of 1 to 4 characters for text without spaces."""
    with needed_by("The baseline"):
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline

    texts = train["text"]
    # Chinese and similar languages have hardly any spaces.
    spaced = np.mean([text.count(" ") / max(1, len(text)) for text in texts]) > 0.05
    options = {"ngram_range": (1, 2)} if spaced else {"analyzer": "char", "ngram_range": (1, 4)}
    model = make_pipeline(TfidfVectorizer(sublinear_tf=True, **options), LogisticRegression(C=10, max_iter=1000))
    model.fit(texts, train["label"])
    scores = np.zeros((len(test), len(label_names)))
    scores[:, model.classes_] = model.predict_proba(test["text"])
    return classification_record(test["text"], scores, test["label"], label_names, data="")


def most_frequent_tags(train: Dataset, test: Dataset, label_names: list[str]) -> Evaluation:
    """Gives each word the tag that it had most often in training, or O if it never occurred there."""
    seen: dict[str, Counter[int]] = {}
    for words, tags in zip(train["tokens"], train["tags"], strict=True):
        for word, tag in zip(words, tags, strict=True):
            seen.setdefault(word, Counter())[tag] += 1
    best = {word: label_names[counts.most_common(1)[0][0]] for word, counts in seen.items()}
    said = [[best.get(word, "O") for word in words] for words in test["tokens"]]
    return tagging_record(test["tokens"], said, _named(test, label_names), data="")


def tag_by_words(train: Dataset, test: Dataset, label_names: list[str]) -> Evaluation:
    """Tags each word separately, by logistic regression on its characters, its shape and the words next to it."""
    with needed_by("The baseline"):
        from sklearn.feature_extraction import DictVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline

    model = make_pipeline(DictVectorizer(), LogisticRegression(C=3, max_iter=300))
    seen = [features for words in train["tokens"] for features in _features(words)]
    model.fit(seen, [tag for tags in train["tags"] for tag in tags])
    said = [[label_names[tag] for tag in model.predict(_features(words))] for words in test["tokens"]]
    return tagging_record(test["tokens"], said, _named(test, label_names), data="")


def _features(words: list[str]) -> list[dict[str, float]]:
    padded = ["<s>", *words, "</s>"]
    rows = []
    for index, word in enumerate(words):
        around = {f"before={padded[index].lower()}": 1.0, f"after={padded[index + 2].lower()}": 1.0}
        shape = {"title": word.istitle(), "upper": word.isupper(), "digit": word.isdigit(), "first": index == 0}
        ends = {f"{side}={part}" for n in (2, 3, 4) for side, part in (("start", word[:n]), ("end", word[-n:]))}
        rows.append(
            {
                f"word={word.lower()}": 1.0,
                **around,
                **dict.fromkeys(ends, 1.0),
                **{name: float(value) for name, value in shape.items()},
            }
        )
    return rows


def _named(rows: Dataset, label_names: list[str]) -> list[list[str]]:
    return [[label_names[tag] for tag in tags] for tags in rows["tags"]]
