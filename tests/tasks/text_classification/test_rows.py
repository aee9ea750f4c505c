"""Labeled texts are read from the files that people have, and errors name the place that cannot be learned."""

import json
import logging
from collections import Counter
from pathlib import Path

import pytest

from chatgpt_hf.errors import ConfigError, DataError
from chatgpt_hf.tasks.text_classification.rows import load_labelled

AG_NEWS = ["World", "Sports", "Business", "Sci/Tech"]
ROWS = [("good fun", "pos"), ("a bore", "neg"), ("so good", "pos"), ("so dull", "neg")]


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def jsonl(path: Path, rows: list[dict[str, object]]) -> str:
    return write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def refused(source: str, **options: object) -> str:
    with pytest.raises(DataError) as error:
        load_labelled(source, **options)
    return str(error.value)


def test_ag_news_as_it_lies(shared_data: Path) -> None:
    splits = load_labelled(
        str(shared_data / "classification/ag_news_5000.csv"), label_names=AG_NEWS, test_fraction=0.1
    )
    assert (splits.text_columns, splits.label_column) == (("column1", "column2"), "column0")
    assert splits.train[0]["text"].startswith("Fears for T N pension after talks\nUnions representing workers")
    assert splits.label_names == AG_NEWS
    assert splits.train[0]["label"] == AG_NEWS.index("Business")  # written as 3, counted from 1
    assert len(splits.train) + len(splits.test) == 5000
    assert 400 < len(splits.test) < 600
    # A text is only on one side, however often it occurs.
    assert not set(splits.train["text"]) & set(splits.test["text"])
    counts = Counter([*splits.train["label"], *splits.test["label"]])
    assert [counts[index] for index in range(4)] == [1286, 1270, 1204, 1240]
    assert load_labelled(str(shared_data / "classification/ag_news_5000.csv")).label_names == ["1", "2", "3", "4"]


def test_sst2_as_it_lies(shared_data: Path) -> None:
    folder = shared_data / "classification"
    splits = load_labelled(str(folder / "sst2_train.tsv"), eval_source=str(folder / "sst2_dev.tsv"))
    assert (splits.text_columns, splits.label_column) == (("column0",), "column1")
    assert (len(splits.train), len(splits.test)) == (6920, 872)
    assert splits.label_names == ["0", "1"]
    assert splits.problem_type == "single_label_classification"
    assert splits.test[0] == {"text": "one long string of cliches", "label": 0}


def test_thucnews_as_it_lies(shared_data: Path) -> None:
    folder = shared_data / "classification"
    splits = load_labelled(str(folder / "thucnews_dev.txt"), label_names=folder / "thucnews_class.txt")
    assert splits.test is None
    assert len(splits.train) == 10_000
    assert splits.train[0] == {"text": "体验2D巅峰 倚天屠龙记十大创新概览", "label": splits.label_names.index("game")}


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("a.csv", "text,label"),
        ("a.csv", "Sentiment,Review"),
        ("a.csv", "id,content,class"),
        ("a.tsv", "sentence\tlabel"),
    ],
)
def test_columns_are_found_by_their_names(tmp_path: Path, name: str, header: str) -> None:
    separator = "\t" if name.endswith("tsv") else ","
    cells = {"id": "7", **dict.fromkeys(("text", "Review", "content", "sentence"), 0)}
    lines = [header]
    for row in ROWS:
        lines.append(separator.join(str(row[cells.get(c, 1)]) if c != "id" else "7" for c in header.split(separator)))
    splits = load_labelled(write(tmp_path / name, "\n".join(lines)))
    assert splits.label_names == ["neg", "pos"]
    assert list(zip(splits.train["text"], splits.train["label"], strict=True)) == [
        (text, int(label == "pos")) for text, label in ROWS
    ]


def test_named_columns_win(tmp_path: Path) -> None:
    rows = [{"text": "wrong", "label": "x", "body": text, "head": f"On {text}", "kind": label} for text, label in ROWS]
    source = jsonl(tmp_path / "a.jsonl", rows)
    splits = load_labelled(source, text_column=["head", "body"], label_column="kind")
    assert splits.train[0] == {"text": "On good fun\ngood fun", "label": 1}
    csv = write(tmp_path / "a.csv", "body,kind\ngood,yes\nbad,no\n")
    assert load_labelled(csv, text_column="body", label_column="kind").label_names == ["no", "yes"]
    bare = write(tmp_path / "b.tsv", "yes\tgood\tx\nno\tbad\ty\n")
    splits = load_labelled(bare, text_column="column1", label_column="column0")
    assert splits.train[1] == {"text": "bad", "label": 0}


def test_a_column_that_is_not_there(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "a.jsonl", [{"text": text, "kind": label} for text, label in ROWS])
    assert "no column 'label'; it has text, kind" in refused(source, label_column="label")
    assert "no column 'body'; it has text, kind" in refused(source, text_column="body", label_column="kind")
    assert "columns text, kind" in refused(source)
    assert "--label_column" in refused(source)
    source = jsonl(tmp_path / "b.jsonl", [{"a": text, "b": text, "label": label} for text, label in ROWS])
    assert "--text_column" in refused(source)
    numbers = jsonl(tmp_path / "c.jsonl", [{"text": 3, "label": label} for _, label in ROWS])
    assert "Row 1 of" in refused(numbers)


def test_quotation_marks_that_are_text(tmp_path: Path) -> None:
    said = '"Is he right?" "I don\'t think so."'
    splits = load_labelled(write(tmp_path / "a.tsv", f'{said}\tno\n"Yes."\tyes\n"unclosed\tno\n'))
    assert splits.train["text"][:] == [said, '"Yes."', '"unclosed']
    splits = load_labelled(write(tmp_path / "b.tsv", f'text\tlabel\n{said}\tno\n"unclosed\tyes\n'))
    assert splits.train["text"][:] == [said, '"unclosed']
    splits = load_labelled(write(tmp_path / "c.tsv", '"a\tb."\tno\n"c ""d"""\tyes\n'))
    assert splits.train["text"][:] == ["a\tb.", 'c "d"']


def test_several_labels(tmp_path: Path) -> None:
    named = jsonl(
        tmp_path / "a.jsonl",
        [{"text": "x", "labels": ["b", "a"]}, {"text": "y", "labels": []}, {"text": "z", "labels": ["c"]}],
    )
    splits = load_labelled(named)
    assert splits.problem_type == "multi_label_classification"
    assert splits.label_names == ["a", "b", "c"]
    assert splits.train["label"][:] == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]
    assert "list of labels" in refused(named, problem_type="single_label_classification")
    vectors = jsonl(tmp_path / "b.jsonl", [{"text": "x", "labels": [0, 1, 1]}, {"text": "y", "labels": [0, 0, 1]}])
    splits = load_labelled(vectors, label_names=["a", "b", "c"])
    assert splits.train["label"][:] == [[0, 1, 1], [0, 0, 1]]
    indices = jsonl(tmp_path / "c.jsonl", [{"text": "x", "labels": [0, 2]}, {"text": "y", "labels": [1]}])
    assert load_labelled(indices, label_names=["a", "b", "c"]).train["label"][:] == [[1, 0, 1], [0, 1, 0]]
    cells = write(tmp_path / "d.tsv", 'text\tlabels\nx\ta, b\ny\t["b"]\nz\t[broken\n')
    assert "Row 3" in refused(cells, problem_type="multi_label_classification")
    cells = write(tmp_path / "d.tsv", "text\tlabels\nx\ta, b\ny\tb\n")
    splits = load_labelled(cells, problem_type="multi_label_classification")
    assert splits.train["label"][:] == [[1, 1], [0, 1]]


def test_amounts_are_for_regression(tmp_path: Path) -> None:
    rows = [{"text": f"text {index}", "score": index / 4} for index in range(8)]
    fractions = jsonl(tmp_path / "a.jsonl", rows)
    splits = load_labelled(fractions)
    assert (splits.problem_type, splits.label_names) == ("regression", [])
    assert splits.train["label"][:] == [index / 4 for index in range(8)]
    message = refused(fractions, problem_type="single_label_classification")
    assert "Row 2 of" in message
    assert "0.25" in message
    assert "--problem_type regression" in message
    whole = jsonl(tmp_path / "b.jsonl", [{**row, "score": float(index)} for index, row in enumerate(rows)])
    assert "--problem_type regression" in refused(whole)
    assert load_labelled(whole, problem_type="regression").train["label"][:3] == [0.0, 1.0, 2.0]
    classes = load_labelled(whole, problem_type="single_label_classification")
    assert classes.label_names == [str(index) for index in range(8)]
    table = write(tmp_path / "c.tsv", "0.5\tsome\n2\tmore\n")
    assert load_labelled(table, problem_type="regression").train[0] == {"text": "some", "label": 0.5}
    words = jsonl(tmp_path / "d.jsonl", [{"text": "x", "score": "1"}, {"text": "y", "score": "much"}])
    assert "'much'" in refused(words, problem_type="regression")


def test_label_names(tmp_path: Path) -> None:
    source = write(tmp_path / "a.tsv", "one\t0\ntwo\t1\nthree\t0\n")
    assert load_labelled(source, label_names=["a", "b"]).train["label"][:] == [0, 1, 0]
    names = write(tmp_path / "names.txt", "b\na\n")
    named = write(tmp_path / "b.tsv", "one\ta\ntwo\tb\n")
    assert load_labelled(named, label_names=names).train["label"][:] == [1, 0]
    message = refused(write(tmp_path / "c.tsv", "one\ta\ntwo\tb\nthree\tc\n"), label_names=names)
    assert "Row 3 of" in message
    assert "'c'" in message
    assert "b, a" in message
    assert "no file" in refused(named, label_names=str(tmp_path / "none.txt"))
    assert "each once" in refused(named, label_names=["a", "a"])


def test_an_unknown_label_in_the_validation_file(tmp_path: Path) -> None:
    source = write(tmp_path / "a.tsv", "good fun\tpos\na bore\tneg\nso good\tpos\n")
    held_out = write(tmp_path / "b.tsv", "fine\tpos\nwell\tmixed\n")
    message = refused(source, eval_source=held_out)
    assert f"Row 2 of {held_out}" in message
    assert "'mixed'" in message
    assert "neg, pos" in message


@pytest.mark.parametrize("what", ["label", "text"])
def test_rows_without_a_label_or_a_text(tmp_path: Path, caplog: pytest.LogCaptureFixture, what: str) -> None:
    rows = [{"text": text, "label": label} for text, label in ROWS]
    source = jsonl(tmp_path / "a.jsonl", [*rows, {**rows[0], what: None}, {**rows[0], what: " "}])
    message = refused(source)
    assert f"Row 5 of {source}" in message
    assert f"'{what}'" in message
    assert "--skip_invalid" in message
    with caplog.at_level(logging.WARNING):
        assert len(load_labelled(source, skip_invalid=True).train) == 4
    assert f"2 rows of {source} are left out" in caplog.text
    assert "fewer fields in line 2 (1)" in refused(write(tmp_path / "b.tsv", "fine\tpos\nwell\nbad\tneg\n"))


def test_one_class_only(tmp_path: Path) -> None:
    source = write(tmp_path / "a.tsv", "text\tlabel\nfine\tpos\nwell\tpos\n")
    message = refused(source)
    assert source in message
    assert "'pos'" in message


def test_a_file_that_is_not_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_bytes("schön\tpos\nschlecht\tneg\n".encode("latin-1"))
    message = refused(str(path))
    assert f"{path} is not UTF-8" in message
    assert "line 1" in message


def test_a_line_with_more_fields_than_the_first(tmp_path: Path) -> None:
    assert "line 2" in refused(write(tmp_path / "a.tsv", "fine\tpos\na\tb\tneg\n"))


def test_a_header_of_unknown_names_is_not_taken_for_a_row(tmp_path: Path) -> None:
    source = write(tmp_path / "a.csv", "Statement,Verdict\n" + "".join(f"{text},{label}\n" for text, label in ROWS))
    assert "'Verdict'" in refused(source)
    assert len(load_labelled(source, text_column="Statement", label_column="Verdict").train) == 4


@pytest.mark.parametrize(
    "text",
    [
        "v1,v2\nham,hello\nspam,win now\n",
        "v1,v2,,,\nham,hello,,,\nspam,win now,,,\nham,see you,,,\nspam,so cheap,,,\n",
        "Statement,Status\nI am sad,depressed\nI am ok,normal\nnice,normal\n",
        "utterance,act\nhello,greet\nbye,bye\nhi,greet\n",
        "产品评价,好坏\n很好,好\n很差,坏\n不错,好\n",
        "qid,question1,question2,is_duplicate\n1,Who is it?,Who is there?,0\n",
        "Quality,#1 ID,#1 String,#2 String\n1,70,He was accused,He was blamed\n0,21,They own it,They bought it\n",
        "PassengerId,Survived,Name\n1,0,Tom\n2,1,Ann\n",
        "Body,Mark\nso good,0.5\nso bad,1.5\n",
    ],
)
def test_a_first_line_that_may_be_a_header(tmp_path: Path, text: str) -> None:
    message = refused(write(tmp_path / "a.csv", text))
    assert "Row 1 of" in message
    assert "may be a header" in message
    assert "--label_column" in message


def test_the_same_header_in_several_files(tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv"):
        write(tmp_path / name, "v1,v2\nham,hello\nspam,win now\nham,see you\nspam,so cheap\n")
    assert "may be a header" in refused(str(tmp_path))
    assert load_labelled(str(tmp_path), text_column="v2", label_column="v1").label_names == ["ham", "spam"]


def test_who_names_columns_by_number_says_that_there_is_no_header(tmp_path: Path) -> None:
    source = write(tmp_path / "a.csv", "new,hello\nspam,win now\nham,see you\nspam,so cheap\nham,bye\n")
    assert "may be a header" in refused(source)
    assert load_labelled(source, text_column="column1", label_column="column0").label_names == ["ham", "new", "spam"]
    assert len(load_labelled(source, label_names=["ham", "new", "spam"]).train) == 5
    long = write(tmp_path / "b.csv", "new,It was the best of times.\nold,It was the worst of times.\n")
    assert load_labelled(long).label_names == ["new", "old"]


def test_identifiers_are_not_classes(tmp_path: Path) -> None:
    rows = [f"The food number {n} is good.\t{n % 2}\te{n}xk\n" for n in range(4)]
    source = write(tmp_path / "a.tsv", "".join(rows))
    assert "4 of 4 values in column2 differ" in refused(source)
    splits = load_labelled(source, text_column="column0", label_column="column1")
    assert splits.train["label"][:] == [0, 1, 0, 1]


def test_quantities_of_other_countries_are_not_classes(tmp_path: Path) -> None:
    german = write(tmp_path / "a.csv", "text;score\na;0,5\nb;1,25\nc;2\n")
    assert "decimal comma" in refused(german)
    assert len(load_labelled(german, problem_type="single_label_classification").label_names) == 3
    assert "percent" in refused(write(tmp_path / "b.csv", "text,score\na,50%\nb,20%\n"))
    assert load_labelled(write(tmp_path / "c.csv", "text,label\na,5%\nb,9%\nc,5%\n")).label_names == ["5%", "9%"]


@pytest.mark.parametrize("missing", ["NA", "NaN", "nan", "null", "N/A", "-"])
def test_a_missing_label_is_no_class(tmp_path: Path, missing: str) -> None:
    source = write(tmp_path / "a.csv", f"text,score\na,3.5\nb,{missing}\nc,1\n")
    assert f"Row 2 of {source} cannot be used: {missing!r}" in refused(source)
    splits = load_labelled(source, skip_invalid=True)
    assert (splits.problem_type, splits.train["label"][:]) == ("regression", [3.5, 1.0])
    named = write(tmp_path / "b.csv", f"text,label\na,x\nb,{missing}\n")
    assert load_labelled(named, label_names=["x", missing]).train["label"][:] == [0, 1]


def test_hidden_labels_are_no_classes(tmp_path: Path) -> None:
    def names(*labels: object, **options: object) -> list[str]:
        rows = [{"premise": f"a{n}", "hypothesis": "b", "label": label} for n, label in enumerate(labels)]
        return load_labelled(jsonl(tmp_path / "a.jsonl", rows), **options).label_names

    assert names("entailment", "-", "neutral", skip_invalid=True) == ["entailment", "neutral"]
    assert names(0, -1, 2, 1, skip_invalid=True) == ["0", "1", "2"]
    with pytest.raises(DataError, match=r"Row 2 .* -1 in the column 'label' is no label"):
        names(0, -1, 2)
    signs = jsonl(tmp_path / "b.jsonl", [{"text": f"t{n}", "label": sign} for n, sign in enumerate("+-+")])
    assert load_labelled(signs).label_names == ["+", "-"]
    moods = jsonl(tmp_path / "c.jsonl", [{"text": f"t{n}", "label": n - 1} for n in range(3)])
    assert load_labelled(moods).label_names == ["-1", "0", "1"]


def test_lists_in_cells_and_labels_in_objects(tmp_path: Path) -> None:
    source = write(tmp_path / "a.csv", "text,label\na,\"['x', 'y']\"\nb,['y']\nc,[]\n")
    splits = load_labelled(source)
    assert splits.problem_type == "multi_label_classification"
    assert (splits.label_names, splits.train["label"][:]) == (["x", "y"], [[1, 1], [0, 1], [0, 0]])
    for label in ([{"label": "x"}], {"label": "x", "score": 1}):
        rows = [{"text": "a", "label": label}, {"text": "b", "label": label}]
        assert "a name, a number or a list of these" in refused(jsonl(tmp_path / "b.jsonl", rows))


def test_nothing_held_out_or_nothing_left(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "a.jsonl", [{"text": text, "label": label} for text, label in ROWS])
    alike = jsonl(tmp_path / "b.jsonl", [{"text": "same", "label": label} for label in "ab"])
    for fraction in (1e-6, 1 - 1e-6):
        assert "--eval_dataset" in refused(alike, test_fraction=fraction)
    for wrong in ({"test_fraction": 1.5}, {"problem_type": "ranking"}):
        with pytest.raises(ConfigError):
            load_labelled(source, **wrong)


def test_held_out_texts_that_are_learned_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = jsonl(tmp_path / "a.jsonl", [{"text": text, "label": label} for text, label in ROWS])
    with caplog.at_level(logging.WARNING):
        load_labelled(source, eval_source=source)
    assert "4 of 4 held-out rows" in caplog.text


def test_a_text_without_columns(tmp_path: Path) -> None:
    assert "without columns" in refused(write(tmp_path / "a.txt", "Once upon a time.\nThere was.\n"))


def test_numbers_are_read_by_the_training_rows(tmp_path: Path) -> None:
    names = ["a", "b", "c", "d"]
    from_1 = jsonl(tmp_path / "a.jsonl", [{"text": f"t{n}", "label": n} for n in (1, 2, 3, 4)])
    some = jsonl(tmp_path / "b.jsonl", [{"text": f"u{n}", "label": n} for n in (1, 3)])
    splits = load_labelled(from_1, label_names=names, eval_source=some)
    assert (splits.first_label, splits.test["label"][:]) == (1, [0, 2])
    from_0 = jsonl(tmp_path / "c.jsonl", [{"text": f"t{n}", "label": n} for n in (0, 1, 2, 3)])
    splits = load_labelled(from_0, label_names=names, eval_source=some)
    assert (splits.first_label, splits.test["label"][:]) == (0, [1, 3])
    assert "whether the first of the 4 names, a, is 0 or 1" in refused(some, label_names=names)
    numbered = write(tmp_path / "names.txt", "1\ta\n2\tb\n3\tc\n4\td\n")
    assert load_labelled(some, label_names=numbered).train["label"][:] == [0, 2]
    assert "from 0 or from 1" in refused(some, label_names=write(tmp_path / "n.txt", "2\ta\n3\tb\n"))
    # A model has recorded how its training counted.
    only = jsonl(tmp_path / "d.jsonl", [{"text": "x", "label": 3}])
    for first in (0, 1):
        splits = load_labelled(only, label_names=names, first_label=first, is_training=False)
        assert splits.train["label"][:] == [3 - first]
    message = refused(from_1, label_names=names, first_label=0, is_training=False)
    assert "Row 4" in message
    assert "unknown label 4: known are 0, 1, 2, 3 (a, b, c, d)" in message
    written = jsonl(tmp_path / "e.jsonl", [{"text": "x", "label": "c"}])
    assert load_labelled(written, label_names=names, first_label=1, is_training=False).train["label"][:] == [2]
    unnamed = load_labelled(only, label_names=[f"LABEL_{n}" for n in range(4)], is_training=False)
    assert unnamed.train["label"][:] == [3]


def test_names_that_are_numbers_have_no_other_numbers(tmp_path: Path) -> None:
    zero = jsonl(tmp_path / "a.jsonl", [{"text": "x", "label": 0}])
    assert "unknown label 0: known are 1, 2" in refused(zero, label_names=["1", "2"], is_training=False)
    written = write(tmp_path / "b.csv", "text,label\nx,1.0\ny,2.0\n")
    assert load_labelled(written, label_names=["1", "2"]).train["label"][:] == [0, 1]
    floats = jsonl(tmp_path / "c.jsonl", [{"text": "x", "label": 1.0}, {"text": "y", "label": 0.0}])
    assert load_labelled(floats, label_names=["no", "yes"]).train["label"][:] == [1, 0]
    assert "regression" in refused(
        jsonl(tmp_path / "d.jsonl", [{"text": "x", "label": 0.5}]), label_names=["no", "yes"]
    )


def test_true_and_false(tmp_path: Path) -> None:
    rows = jsonl(tmp_path / "a.jsonl", [{"text": "x", "label": True}, {"text": "y", "label": False}])
    splits = load_labelled(rows)
    assert (splits.label_names, splits.train["label"][:]) == (["false", "true"], [1, 0])
    # Models of earlier versions have Python's names.
    assert load_labelled(rows, label_names=["False", "True"]).train["label"][:] == [1, 0]
    table = write(tmp_path / "b.csv", "text,label\nx,TRUE\ny,FALSE\n")
    assert load_labelled(table, label_names=["false", "true"]).train["label"][:] == [1, 0]
    assert "unknown label True" in refused(rows, label_names=["0", "1"])


def test_zeros_and_ones(tmp_path: Path) -> None:
    def read(*labels: object, names: list[str] | None = None) -> list[list[float]]:
        rows = [{"text": f"t{n}", "labels": label} for n, label in enumerate(labels)]
        source = jsonl(tmp_path / "a.jsonl", rows)
        return load_labelled(
            source, label_names=names, problem_type="multi_label_classification", is_training=False
        ).train["label"][:]

    names = ["a", "b", "c"]
    assert read([0, 1, 1], names=names) == [[0, 1, 1]]
    assert read([0.0, 0.0, 0.0], names=names) == [[0, 0, 0]]
    assert read([True, False, False], names=names) == [[1, 0, 0]]
    assert read("[0, 1, 1]", "0,0,1", names=names) == [[0, 1, 1], [0, 0, 1]]
    assert read([1, 0], [0, 1], names=["a", "b"]) == [[1, 0], [0, 1]]
    assert read([0, 2], [1], names=names) == [[1, 0, 1], [0, 1, 0]]
    with pytest.raises(DataError, match="2 zeros and ones, but there are 3 names"):
        read([1, 0], [0, 0], names=names)
    with pytest.raises(DataError, match="numbers of names or zeros and ones"):
        read([0, 1], names=["a", "b"])


@pytest.mark.parametrize(
    ("header", "text"),
    [
        ("标签,文本", "好"),
        ("内容,类别", "好"),
        ("标题,内容,情感", "好\n差"),
        (" Label , TEXT", "好"),
        ("\ufeff评论,评分", "好"),
        ("id,句子1,句子2,标签", "好\n差"),
    ],
)
def test_headers_of_others(tmp_path: Path, header: str, text: str) -> None:
    names = header.split(",")
    labels = {"标签", "类别", "情感", " Label ", "评分"}
    texts = iter(["好", "差"] * 2)
    lines = [header]
    for label in ("x", "y"):
        lines.append(",".join(label if name in labels else "7" if name == "id" else next(texts) for name in names))
        texts = iter(["差", "好"])
    splits = load_labelled(write(tmp_path / "a.csv", "\n".join(lines)))
    assert splits.label_names == ["x", "y"]
    assert splits.train[0] == {"text": text, "label": 0}
    spaced = write(tmp_path / "b.csv", "\n".join(["id, My Label,Body", *["7,x,a", "8,y,b"]]))
    splits = load_labelled(spaced, text_column="body", label_column="My Label")
    assert splits.train[1] == {"text": "b", "label": 1}


def test_labels_that_only_the_held_out_rows_have(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"text": f"text {n}", "label": ["pos", "neg"][n % 2]} for n in range(40)]
    source = jsonl(tmp_path / "a.jsonl", [*rows, *({"text": f"rare {n}", "label": f"once {n}"} for n in range(20))])
    with caplog.at_level(logging.WARNING):
        splits = load_labelled(source, test_fraction=0.3)
    assert len(splits.label_names) == 22
    assert "occur in held-out rows but in no training row" in caplog.text
    few = jsonl(tmp_path / "b.jsonl", [{"text": "x", "label": "pos"}])
    assert load_labelled(few, label_names=["neg", "pos"], is_training=False).train["label"][:] == [1]
    unknown = jsonl(tmp_path / "c.jsonl", [{"text": "x", "label": "mixed"}])
    assert "'mixed'" in refused(unknown, label_names=["neg", "pos"], is_training=False)
