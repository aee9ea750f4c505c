import json

import pytest

from chatgpt_hf.data.sources import CorpusSource, fill_template, parse_sources, template_columns
from chatgpt_hf.errors import ConfigError, DataError


def test_plain_sources() -> None:
    assert parse_sources("a.txt") == [CorpusSource("a.txt")]
    assert parse_sources(["a.txt", "some/corpus"], text_column="body") == [
        CorpusSource("a.txt", text_column="body"),
        CorpusSource("some/corpus", text_column="body"),
    ]


def test_mappings_and_json_say_the_same() -> None:
    items = [
        {"source": "a.jsonl", "weight": 3, "text_column": "body"},
        {"source": "poems/*.json", "weight": 0.5, "template": "{title}\n{paragraphs}"},
        {"source": "b.txt", "weight": 1, "template": None},
    ]
    expected = [
        CorpusSource("a.jsonl", 3, "body"),
        CorpusSource("poems/*.json", 0.5, "text", "{title}\n{paragraphs}"),
        CorpusSource("b.txt", 1),
    ]
    assert parse_sources(items) == parse_sources([json.dumps(item) for item in items]) == expected
    assert parse_sources(items[0]) == expected[:1]


def test_the_text_column_is_for_items_without_their_own() -> None:
    items = ["a", {"source": "b", "text_column": "own"}, {"source": "c", "template": "{x}"}]
    assert [source.text_column for source in parse_sources(items, text_column="body")] == ["body", "own", "text"]


@pytest.mark.parametrize(
    ("corpus", "message"),
    [
        ([], "name at least one"),
        (["a", " "], "empty item"),
        ([3], "item 3 is neither"),
        (['{"source": "a"'], "is not a JSON object"),
        ([{"source": "a", "wait": 1}], "unknown field wait: the fields are source, weight, text_column, template"),
        ([{"weight": 1}], "needs a non-empty text as its source"),
        ([{"source": "a", "text_column": ""}], "as its text_column"),
        ([{"source": "a", "weight": 0}], "weight 0: give a number above 0"),
        (['{"source": "a", "weight": -0.5}'], "weight -0.5"),
        ([{"source": "a", "weight": "much"}], "weight 'much'"),
        ([{"source": "a", "weight": float("inf")}], "weight inf"),
        ([{"source": "a", "weight": True}], "weight True"),
        ([{"source": "a", "weight": 1}, "b", "c"], "not to b, c: give every source a weight, or none"),
        ([{"source": "a", "template": "{x}", "text_column": "y"}], "both a text_column and a template"),
        ([{"source": "a", "template": "no column"}], "is not a template"),
    ],
)
def test_refused(corpus: list, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_sources(corpus)


@pytest.mark.parametrize("template", ["", "text", "{", "{}", "{a!r}", "{a:>10}", "{{a}}"])
def test_no_template(template: str) -> None:
    with pytest.raises(ConfigError, match="is not a template"):
        template_columns(template)


def test_templates() -> None:
    template = "{title} ({year})\n{lines}\n{{{title}}}"
    assert template_columns(template) == ["title", "year", "lines"]
    row = {"title": "{year}", "year": 1900, "lines": ["one", "two"], "more": object()}
    assert fill_template(template, row, "here") == "{year} (1900)\none\ntwo\n{{year}}"
    assert fill_template("[{a}]", {"a": None}, "here") == "[]"
    # A template names only columns; it cannot reach into an object.
    assert template_columns("{a.__class__}") == ["a.__class__"]
    with pytest.raises(DataError, match="column 'a' of here"):
        fill_template("{a}", {"a": {"b": "c"}}, "here")
