"""CoNLL files as they occur: index columns, tag schemes, comments, odd spaces; refused where the meaning is unclear."""

import json
import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatgpt_hf.errors import DataError
from chatgpt_hf.tasks.token_classification.rows import load_tagged
from chatgpt_hf.tasks.token_classification.tags import bio_names, find_scheme, to_bio

CASES = "cases/train"
TOM = [("Tom", "B-PER"), ("van", "I-PER"), ("Hardy", "I-PER"), ("left", "O"), ("Oslo", "B-LOC")]


def entities(source: str, **options: object) -> list[list[tuple[str, str]]]:
    """Returns the words and tags of all sentences."""
    splits = load_tagged(source, **options)
    rows = zip(splits.train["tokens"], splits.train["tags"], strict=True)
    return [[(w, splits.label_names[t]) for w, t in zip(words, tags, strict=True)] for words, tags in rows]


def conll(folder: Path, text: str, name: str = "a.conll") -> str:
    (folder / name).write_bytes(text.encode())
    return str(folder / name)


def refused(source: str, **options: object) -> str:
    with pytest.raises(DataError) as error:
        load_tagged(source, **options)
    return str(error.value)


def test_the_files_of_others(shared_data: Path) -> None:
    folder = shared_data / CASES
    assert entities(str(folder / "germeval.tsv")) == [
        [("Muster", "B-PER"), ("sagte", "O"), ("dem", "O"), ("Beobachter", "B-ORG")],
        [("Berlin", "B-LOC"), ("ruft", "O")],
    ]
    assert entities(str(folder / "id_first.conll")) == [
        [("Tom", "B-PER"), ("lives", "O"), ("in", "O"), ("Oslo", "B-LOC")],
        [("Ann", "B-PER"), ("ran", "O")],
    ]
    nbsp = entities(str(folder / "nbsp.conll"))
    assert [len(sentence) for sentence in nbsp] == [5, 2]
    assert nbsp[0][2] == ("20\u00a0000", "O")
    oslo = [("Oslo", "B-LOC"), ("is", "O"), ("nice", "O")]
    assert entities(str(folder / "bioes.conll")) == [oslo, [("Tom", "B-PER"), ("Hardy", "I-PER"), ("ran", "O")]]
    assert entities(str(folder / "bmes.conll"))[1] == [*TOM[:3], ("ran", "O")]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.tsv", "sentence_id\tword\ttag\n1\tTom\tB-PER\n1\tran\tO\n2\tAnn\tB-PER\n2\t,\tO\n"),
        ("a.conll", "sent_id token ner\na Tom B-PER\na ran O\n\nb Ann B-PER\nb , O\n"),
        (
            "a.csv",
            'Sentence #,Word,POS,Tag\nSentence: 1,Tom,NNP,B-PER\n,ran,VB,O\nSentence: 2,Ann,NNP,B-PER\n,",",",",O\n',
        ),
        ("a.csv", "id;Sentence_ID;Word;Tag\n0;1;Tom;B-PER\n1;1;ran;O\n2;2;Ann;B-PER\n3;2;,;O\n"),
        ("a.csv", 'word,tag\nTom,B-PER\nran,O\n,\nAnn,B-PER\n",",O\n'),
    ],
)
def test_a_column_that_numbers_sentences_divides_them(tmp_path: Path, name: str, text: str) -> None:
    assert entities(conll(tmp_path, text, name)) == [[("Tom", "B-PER"), ("ran", "O")], [("Ann", "B-PER"), (",", "O")]]


def test_a_csv_with_lists(tmp_path: Path) -> None:
    source = conll(tmp_path, "tokens,ner_tags\n\"['Tom', 'ran']\",\"['B-PER', 'O']\"\n", "a.csv")
    assert "give them as jsonl or parquet" in refused(source)


@pytest.mark.parametrize(
    "tags",
    [
        "B-PER I-PER I-PER O B-LOC",
        "I-PER I-PER I-PER O I-LOC",
        "B-PER I-PER E-PER O S-LOC",
        "B-PER I-PER L-PER O U-LOC",
        "B-PER M-PER E-PER O W-LOC",
        "B_PER M_PER E_PER O S_LOC",
        "PER-B PER-I PER-I O LOC-B",
        "PER_B PER_I PER_E O LOC_S",
        "PER PER PER O LOC",
        "b-PER i-PER i-PER o b-LOC",
        "I-PER I-PER E-PER O E-LOC",
        "M-PER M-PER E-PER O M-LOC",
    ],
)
def test_schemes(tmp_path: Path, tags: str) -> None:
    lines = [f"{word}\t{tag}" for (word, _), tag in zip(TOM, tags.split(), strict=True)]
    assert entities(conll(tmp_path, "\n".join(lines))) == [TOM]
    rows = json.dumps({"tokens": [word for word, _ in TOM], "tags": tags.split()})
    assert entities(conll(tmp_path, rows, "a.jsonl")) == [TOM]


def test_tags_without_a_kind(tmp_path: Path) -> None:
    assert [tag for _, tag in entities(conll(tmp_path, "Tom B\nHardy I\nran O\n"))[0]] == ["B-ENTITY", "I-ENTITY", "O"]
    source = conll(tmp_path, "Tom B\nHardy E\nran O\nAnn S\n")
    assert [tag for _, tag in entities(source, label_map={"ENTITY": "PER"})[0]] == ["B-PER", "I-PER", "O", "B-PER"]


def test_kinds_that_look_like_letters(tmp_path: Path) -> None:
    assert entities(conll(tmp_path, "Tom person\nran O\nx@y e-mail\n"))[0][2] == ("x@y", "B-e-mail")
    suffix = "a@b E-MAIL-B\nc E-MAIL-I\nran O\nTom PER-B\n"
    assert [tag for _, tag in entities(conll(tmp_path, suffix))[0]] == ["B-E-MAIL", "I-E-MAIL", "O", "B-PER"]
    assert "'PER'" in refused(conll(tmp_path, "Oslo S-LOC\nran O\nTom PER\n"))
    assert "Line 3" in refused(conll(tmp_path, "Oslo B-LOC\nran O\nTom PER-B\n"))


@pytest.mark.parametrize(
    "text",
    [
        "# id 1\n1\tTom\tB-PER\tO\n2\tran\tO\tB-X\n\n1\tAnn\tB-PER\tO\n2\tsat\tO\tO\n",
        "0 Tom NNP B-PER\n1 ran VBD O\n \n0 Ann NNP B-PER\n1 sat VBD O\n",
        "1\tTom\tB-PER\n2\tran\tO\n\n3\tAnn\tB-PER\n4\tsat\tO\n",
        "# text = Tom ran\n1-2\tTom ran\t_\n1\tTom\tB-PER\n2\tran\tO\n2.1\t_\t_\n\n1\tAnn\tB-PER\n2\tsat\tO\n",
        "doc_1 0 0 Tom NNP B-PER\ndoc_1 0 1 ran VBD O\n\ndoc_1 1 0 Ann NNP B-PER\ndoc_1 1 1 sat VBD O\n",
        "1\tTom\tB-PER\n3\tran\tO\n\n1\tAnn\tB-PER\n2\tsat\tO\n",
        "id\tword\tner\n1\tTom\tB-PER\n2\tran\tO\n\n1\tAnn\tB-PER\n2\tsat\tO\n",
        "\ufeffTom\tB-PER\r\nran\tO\r\n\r\nAnn\tB-PER\r\nsat\tO\r\n",
        "-DOCSTART- -X- -X- O\n\nTom NNP B-NP B-PER\nran VBD B-VP O\n\n-DOCSTART- -X- -X- O\nAnn NNP B-NP B-PER\nsat VBD B-VP O\n",
        "B-PER\tTom\nO\tran\n\nB-PER\tAnn\nO\tsat\n",
        "Tom\tB-PER\tO\nran\tO\tO\n\nAnn\tB-PER\tB-PER\nsat\tO\tO\n",
        "1\tTom\t_\tPROPN\t_\t_\t2\tnsubj\t_\tNER=B-PER\n2\tran\t_\tVERB\t_\t_\t0\troot\t_\tSpaceAfter=No\n\n"
        "1\tAnn\t_\tPROPN\t_\t_\t2\tnsubj\t_\tSpaceAfter=No|NER=B-PER\n2\tsat\t_\tVERB\t_\t_\t0\troot\t_\tNER=O\n",
    ],
)
def test_columns(tmp_path: Path, text: str) -> None:
    source = conll(tmp_path, text)
    expected = [[("Tom", "B-PER"), ("ran", "O")], [("Ann", "B-PER"), ("sat", "O")]]
    if "doc_1" in text:  # a document's name is only known from three lines with the same one
        source = conll(tmp_path, text.replace("\n\n", "\ndoc_1 0 2 . . O\n\n", 1))
        expected[0].append((".", "O"))
    if "B-X" in text:
        source = conll(tmp_path, text.replace("B-X", "B-PER"))
    assert entities(source) == expected


def test_another_column_is_chosen(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = conll(tmp_path, "1\tAC Milan\tB-ORG\tO\n2\tMilan\tI-ORG\tB-LOC\n3\tBonn\tB-LOC\tO\n")
    with caplog.at_level(logging.INFO):
        assert [tag for _, tag in entities(source)[0]] == ["B-ORG", "I-ORG", "B-LOC"]
    assert "read column1 (word), column2 (tag); not used: column0, column3" in caplog.text
    assert "column3 also has tags; --label_column" in caplog.text
    for name in ("column3", "3"):
        assert [tag for _, tag in entities(source, label_column=name)[0]] == ["O", "B-LOC", "O"]
    assert "no column 'inner'; it has column0" in refused(source, label_column="inner")
    assert "no column '4'" in refused(source, label_column="4")
    named = conll(tmp_path, "token\tpos\touter\tner\nMilan\tNNP\tB-ORG\tB-LOC\nwon\tVBD\tO\tO\n")
    assert entities(named)[0][0] == ("Milan", "B-LOC")
    assert entities(named, label_column="outer")[0][0] == ("Milan", "B-ORG")


def test_columns_that_are_refused(tmp_path: Path) -> None:
    assert "count words" in refused(conll(tmp_path, "1 B-PER\n2 O\n\n1 O\n2 O\n"))
    message = refused(conll(tmp_path, "9\tTom\tB-PER\n7\tran\tO\n\n8\tAnn\tB-PER\n8\tsat\tO\n"))
    assert "only numbers in column0" in message
    assert "column0, its first" in refused(conll(tmp_path, "B-PER NNP Tom\nO VBD ran\nO . .\n"))
    chosen = entities(conll(tmp_path, "B-PER NNP Tom\nO VBD ran\n"), text_column="2", label_column="0")
    assert chosen == [[("Tom", "B-PER"), ("ran", "O")]]
    assert "'NNP'" in refused(conll(tmp_path, "Tom B-PER NNP\nran O VBD\n"), label_column="2")
    assert "Entity=" in refused(conll(tmp_path, "1\tTom\tEntity=(person-1)\n2\tran\t_\n"))
    assert "'(PERSON*)'" in refused(conll(tmp_path, "Tom (PERSON*)\nran *\n"))
    rows = conll(tmp_path, json.dumps({"tokens": ["Tom"], "mine": ["B-PER"]}), "a.jsonl")
    # Where rows have the column, a file without names of columns needs none.
    both = load_tagged([rows, conll(tmp_path, "Ann B-PER\n")], label_column="mine")
    assert [row["tokens"] for row in both.train] == [["Tom"], ["Ann"]]


def test_spaces_that_belong_to_words(tmp_path: Path) -> None:
    spaces = "20\u00a0000", "5\u202f%", "東\u3000京", "a\u2009b", "\u00a0"
    text = "".join(f"{word} O\n" for word in spaces) + "Tom B-PER\n"
    assert [word for word, _ in entities(conll(tmp_path, text))[0]] == [*spaces, "Tom"]
    assert [w for w, _ in entities(conll(tmp_path, text.replace(" O", "\tO").replace(" B", "\tB")))[0]][
        1
    ] == "5\u202f%"
    # In a file with a character per line, a line may begin with a space that is the character.
    assert [w for w, _ in entities(conll(tmp_path, "北 B-LOC\n京 I-LOC\n  O\n好 O\n"))[0]] == ["北", "京", " ", "好"]
    assert "Line 2" in refused(conll(tmp_path, "Tom\tB-PER\n\tO\nran\tO\n"))


def test_entities_in_texts(tmp_path: Path) -> None:
    def rows(*rows: dict[str, object]) -> str:
        return conll(tmp_path, "\n".join(json.dumps(row) for row in rows), "a.jsonl")

    oslo = [("Ann", "B-PER"), ("Lee", "I-PER"), ("saw", "O"), ("Oslo", "B-LOC"), (".", "O")]
    text = "Ann Lee saw Oslo."
    places = [[12, 16, "LOC"], [0, 7, "PER"]]
    for name in ("label", "labels", "entities", "spans"):
        assert entities(rows({"text": text, name: places}, {"text": "So.", name: []}))[0] == oslo
    named = [{"start": 12, "end": 16, "label": "LOC"}, {"start": 0, "end": 7, "label": "PER"}]
    assert entities(rows({"text": text, "spans": named}))[0] == oslo
    doccano = [{"id": 1, "start_offset": 0, "end_offset": 2, "label": "LOC"}]
    chinese = entities(rows({"id": 1, "data": "北京欢迎你", "entities": doccano}))[0]
    assert chinese == [("北", "B-LOC"), ("京", "I-LOC"), ("欢", "O"), ("迎", "O"), ("你", "O")]
    good = {"text": text, "label": places}
    assert "Row 2" in refused(rows(good, {"text": "Ann", "label": [[0, 9, "PER"]]}))
    assert "overlap" in refused(rows(good, {"text": text, "label": [[0, 7, "PER"], [4, 7, "PER"]]}))
    assert "not a start, an end" in refused(rows(good, {"text": text, "label": [["PER", 0, 7]]}))


def test_numbers_belong_to_the_names_given(tmp_path: Path) -> None:
    source = conll(tmp_path, json.dumps({"tokens": ["Tom", "ran"], "tags": [1, 0]}), "a.jsonl")
    assert entities(source, label_names=["O", "S-PER", "B-PER", "E-PER"]) == [[("Tom", "B-PER"), ("ran", "O")]]
    text = conll(tmp_path, json.dumps({"tokens": ["Tom", "ran"], "tags": ["1", "0"]}), "b.jsonl")
    assert entities(text, label_names=["O", "B-PER"]) == [[("Tom", "B-PER"), ("ran", "O")]]
    assert "--class_names" in refused(text)
    assert entities(conll(tmp_path, "Tom 1\nran 0\n"), label_names=["O", "B-PER"])[0][0] == ("Tom", "B-PER")
    ignored = conll(tmp_path, json.dumps({"tokens": ["Tom", "ran"], "tags": [1, -100]}), "c.jsonl")
    assert "tag -100" in refused(ignored, label_names=["O", "B-PER"])
    assert bio_names(["O", "S-B", "B-A"]) == ["O", "B-B", "I-B", "B-A", "I-A"]
    assert bio_names(["I-A", "O", "B-A"]) == ["O", "I-A", "B-A"]


SPANS = st.lists(st.tuples(st.sampled_from(["O", "PER", "LOC", "x-y"]), st.integers(1, 4)), min_size=1, max_size=8)


@given(SPANS, st.sampled_from(["BIO", "IOB1", "BIOES", "BMES", "BILOU", "IOE2"]), st.booleans(), st.booleans())
def test_spans_come_back_from_every_scheme(
    spans: list[tuple[str, int]], scheme: str, is_suffix: bool, is_lower: bool
) -> None:
    expected: list[str] = []
    written: list[tuple[str, str]] = []
    before = ""
    inside = "M" if scheme == "BMES" else "I"
    begin, end, single = {
        "BIO": "BIB", "IOB1": "IIB", "BIOES": "BES", "BMES": "BES", "BILOU": "BLU", "IOE2": "IEE"
    }[scheme]  # fmt: skip
    for kind, length in spans:
        if kind == "O":
            expected += ["O"] * length
            written += [("O", "")] * length
        else:
            expected += [f"B-{kind}", *[f"I-{kind}"] * (length - 1)]
            letters = [begin, *[inside] * (length - 2), end] if length > 1 else [single]
            if scheme == "IOB1":
                # Only an entity right after another of its kind begins with B.
                letters[0] = "B" if before == kind else "I"
            written += [(letter, kind) for letter in letters]
        before = kind
    cased = [(letter.lower() if is_lower else letter, kind) for letter, kind in written]
    tags = [letter if not kind else f"{kind}-{letter}" if is_suffix else f"{letter}-{kind}" for letter, kind in cased]
    # Lower case is only known by an `o`, or by a `b-` or `i-`.
    found = find_scheme({*tags, "o" if is_lower else "O"})
    assert to_bio([found.parse(tag) or ("?", "") for tag in tags])[0] == expected
