"""CoNLL files of every kind are read as BIO, and errors name the broken line."""

import json
import logging
from collections import Counter
from pathlib import Path

import pytest

from chatgpt_hf.errors import DataError
from chatgpt_hf.tasks.token_classification.rows import TokenSplits, load_tagged

TO_WIKIGOLD = {
    "person": "PER",
    "location": "LOC",
    "corporation": "ORG",
    "group": "ORG",
    "creative-work": "MISC",
    "product": "MISC",
}


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def jsonl(path: Path, *rows: dict[str, object]) -> str:
    return write(path, "".join(json.dumps(row) + "\n" for row in rows))


def read(splits: TokenSplits) -> list[list[tuple[str, str]]]:
    """Returns words with the names of their tags."""
    return [
        [(word, splits.label_names[tag]) for word, tag in zip(row["tokens"], row["tags"], strict=True)]
        for row in splits.train
    ]


def refused(source: str | list[str], **options: object) -> str:
    with pytest.raises(DataError) as error:
        load_tagged(source, **options)
    return str(error.value)


def test_wikigold_becomes_bio(shared_data: Path) -> None:
    splits = load_tagged(str(shared_data / "ner/wikigold_a.conll"))
    assert splits.label_names == ["O", *(f"{p}-{kind}" for kind in ("LOC", "MISC", "ORG", "PER") for p in "BI")]
    sentences = read(splits)
    # The file has 920 blank lines; those after -DOCSTART- do not end a sentence.
    assert len(sentences) == 858
    assert sum(map(len, sentences)) == 20_544 - 62
    assert sentences[0][:8] == [
        ("010", "B-MISC"),
        *((word, "O") for word in ("is", "the", "tenth", "album", "from")),
        ("Japanese", "B-MISC"),
        ("Punk", "O"),
    ]
    assert ("Mad", "I-ORG") in sentences[0]
    for sentence in sentences:
        for (_, before), (_, tag) in zip([("", "O"), *sentence], sentence, strict=False):
            assert not tag.startswith("I-") or before[1:] == tag[1:]


def test_wnut17_is_kept(shared_data: Path) -> None:
    splits = load_tagged(
        str(shared_data / "ner/wnut17_train.conll"), eval_source=str(shared_data / "ner/wnut17_dev.conll")
    )
    assert (len(splits.train), len(splits.test)) == (3394, 1009)
    counts = Counter(tag for sentence in read(splits) for _, tag in sentence)
    assert (counts["O"], counts["B-person"], counts["I-creative-work"]) == (59_570, 660, 206)
    assert ("#photography", "O") in [pair for sentence in read(splits) for pair in sentence]


def test_sources_with_other_kinds_are_joined(shared_data: Path) -> None:
    splits = load_tagged(
        [str(shared_data / "ner/wikigold_a.conll"), str(shared_data / "ner/wnut17_train.conll")],
        label_map=TO_WIKIGOLD,
        eval_source=str(shared_data / "ner/wnut17_dev.conll"),
    )
    assert splits.label_names == ["O", *(f"{p}-{kind}" for kind in ("LOC", "MISC", "ORG", "PER") for p in "BI")]
    assert len(splits.train) == 858 + 3394
    tags = [splits.label_names[tag] for row in splits.test for tag in row["tags"]]
    assert tags.count("B-ORG") == 39 + 34
    assert "'city' that label_map names; it has LOC, MISC" in refused(
        str(shared_data / "ner/wikigold_a.conll"), label_map={"city": "LOC"}
    )


def test_the_forms_of_conll(tmp_path: Path) -> None:
    text = (
        "# sent_id = 1\n-DOCSTART- -X- O\n\n# newpar\n# NN O\nEU NNP B-ORG\nrejects VBZ O\n \t \n"
        "Rome NNP I-LOC\nParis NNP B-LOC\nfell VBD O\n# NN I-MISC"
    )
    splits = load_tagged(write(tmp_path / "a.txt", text))
    assert read(splits) == [
        [("#", "O"), ("EU", "B-ORG"), ("rejects", "O")],
        [("Rome", "B-LOC"), ("Paris", "B-LOC"), ("fell", "O"), ("#", "B-MISC")],
    ]
    # In IOB1, a second entity of the same kind begins with B-, one of another kind with I-.
    iob1 = write(tmp_path / "b.conll", "Rome\tI-LOC\nParis\tB-LOC\nRhine\tI-LOC\nBob\tI-PER\nMay\tI-PER\n")
    assert [tag for _, tag in read(load_tagged(iob1))[0]] == ["B-LOC", "B-LOC", "I-LOC", "B-PER", "I-PER"]
    spaced = write(tmp_path / "c.conll", "New York\tB-LOC\nis\tO\n")
    assert read(load_tagged(spaced))[0][0] == ("New York", "B-LOC")
    dropped = load_tagged(iob1, label_map={"PER": "O"})
    assert [tag for _, tag in read(dropped)[0]][-2:] == ["O", "O"]
    assert len(load_tagged(str(tmp_path / "*.conll")).train) == 2


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("Paris", "'Paris' but no tag"),
        ("Paris B- LOC", "3 fields"),
        ("Paris LOC", "'LOC'"),
        ("Paris X-LOC", "'X-LOC'"),
        ("Paris 0", "the letter O"),
        ("Paris B-LOC|B-ORG", "several tags in one"),
    ],
)
def test_a_broken_line(tmp_path: Path, caplog: pytest.LogCaptureFixture, broken: str, said: str) -> None:
    source = write(tmp_path / "a.conll", f"Rome B-LOC\nis O\n\nand O\n{broken}\nfell O\n\nBonn B-LOC\n")
    message = refused(source)
    assert f"Line 5 of {source}" in message
    assert said in message
    with caplog.at_level(logging.WARNING):
        splits = load_tagged(source, skip_invalid=True)
    assert [sentence[0][0] for sentence in read(splits)] == ["Rome", "Bonn"]
    assert f"1 lines of {source} are left out" in caplog.text


def test_rows(tmp_path: Path) -> None:
    named = jsonl(tmp_path / "a.jsonl", {"tokens": ["In", "Rome"], "ner_tags": ["O", "I-LOC"]})
    assert read(load_tagged(named)) == [[("In", "O"), ("Rome", "B-LOC")]]
    numbered = jsonl(tmp_path / "b.jsonl", {"words": ["In", "Rome"], "tags": [2, 0]})
    splits = load_tagged(numbered, label_names=["B-LOC", "I-LOC", "O"])
    assert splits.label_names == ["O", "B-LOC", "I-LOC"]
    assert read(splits) == [[("In", "O"), ("Rome", "B-LOC")]]
    assert "--class_names" in refused(numbered)
    assert "Row 1" in refused(numbered, label_names=["O", "B-LOC"])
    other = jsonl(tmp_path / "c.jsonl", {"text": ["In", "Rome"], "ner": ["O", "B-LOC"]})
    assert len(load_tagged(other, text_column="text", label_column="ner").train) == 1
    assert "no column tokens or words; it has text, ner" in refused(other)
    assert "no column 'tag'" in refused(other, text_column="text", label_column="tag")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"tokens": ["a", "b"], "tags": ["O"]}, "2 words and 1 tags"),
        ({"tokens": [], "tags": []}, "not a list of non-empty texts"),
        ({"tokens": ["a", ""], "tags": ["O", "O"]}, "not a list of non-empty texts"),
        ({"tokens": ["a"], "tags": None}, "tags are not a list"),
        ({"tokens": ["a"], "tags": ["LOC"]}, "'LOC'"),
    ],
)
def test_rows_that_cannot_be_used(tmp_path: Path, row: dict[str, object], said: str) -> None:
    good = {"tokens": ["In", "Rome"], "tags": ["O", "B-LOC"]}
    source = jsonl(tmp_path / "a.jsonl", good, row)
    message = refused(source)
    assert f"Row 2 of {source}" in message
    assert said in message
    assert len(load_tagged(source, skip_invalid=True).train) == 1


@pytest.mark.parametrize(
    ("text", "entity", "said"),
    [
        ("Tom lives in Oslo", {"start": 0, "end": 2, "label": "PER", "text": "Tom"}, "is 'To' in its text, but 'Tom'"),
        (
            "Tom lives in Oslo",
            {"start": 0, "end": 2, "label": "PER", "value": "Tom"},
            "is 'To' in its text, but 'Tom'",
        ),
        # Places of JavaScript count an emoji twice.
        ("😀 Tom in Oslo", {"start": 3, "end": 6, "label": "PER", "word": "Tom"}, "is 'om ' in its text, but 'Tom'"),
        ("Tom in Oslo", {"start": 0, "end": 3, "label": "PER", "word": "Tim"}, "is 'Tom' in its text, but 'Tim'"),
    ],
)
def test_entities_whose_places_contradict_their_texts(
    tmp_path: Path, text: str, entity: dict[str, object], said: str
) -> None:
    good = {"text": "Ann Hardy left", "entities": [{"start": 0, "end": 9, "label": "PER", "text": "ann  hardy"}]}
    source = jsonl(tmp_path / "a.jsonl", good, {"text": text, "entities": [entity]})
    message = refused(source)
    assert f"Row 2 of {source}" in message
    assert said in message
    assert read(load_tagged(source, skip_invalid=True)) == [[("Ann", "B-PER"), ("Hardy", "I-PER"), ("left", "O")]]


def test_the_value_of_an_entity_may_be_another_name(tmp_path: Path) -> None:
    entity = {"start": 3, "end": 6, "entity": "city", "value": "New York"}
    splits = load_tagged(jsonl(tmp_path / "a.jsonl", {"text": "to NYC", "entities": [entity]}))
    assert read(splits) == [[("to", "O"), ("NYC", "B-city")]]
    assert splits.summaries[0].unused == {}


def test_an_unknown_tag_in_the_validation_file(tmp_path: Path) -> None:
    source = write(tmp_path / "a.conll", "Rome B-LOC\nfell O\n")
    held_out = write(tmp_path / "b.conll", "so O\n\nBonn B-LOC\nBob B-PER\n")
    message = refused(source, eval_source=held_out)
    assert f"Line 4 of {held_out}" in message
    assert "'B-PER'" in message
    assert "O, B-LOC, I-LOC" in message


def test_nothing_to_learn(tmp_path: Path) -> None:
    assert "no entity" in refused(write(tmp_path / "a.conll", "all O\nquiet O\n"))
    assert "empty" in refused(write(tmp_path / "b.conll", ""))
    assert "no line" in refused(write(tmp_path / "c.conll", "\n\n"))
    assert "is a folder" in refused(str(tmp_path))
    assert "is not a file" in refused(str(tmp_path / "none.conll"))
    (tmp_path / "d.conll").write_bytes("Köln B-LOC\n".encode("latin-1"))
    assert "not UTF-8" in refused(str(tmp_path / "d.conll"))


def test_held_out_by_hash(shared_data: Path) -> None:
    source = str(shared_data / "ner/wnut17_dev.conll")
    splits = load_tagged(source, test_fraction=0.2)
    assert len(splits.train) + len(splits.test) == 1009
    assert 150 < len(splits.test) < 250
    train, test = ({" ".join(words) for words in part["tokens"]} for part in (splits.train, splits.test))
    assert not train & test
