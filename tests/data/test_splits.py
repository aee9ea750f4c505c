"""What is learned and what is held out: by the names of files, or by a hash that never leaves one part empty."""

import json
import logging
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from chatgpt_hf.data.conversations import load_conversations
from chatgpt_hf.data.corpus import load_corpus, load_rows, stream_corpus
from chatgpt_hf.data.files import source_files
from chatgpt_hf.data.mixture import load_mixture, stream_mixture
from chatgpt_hf.data.sources import parse_sources
from chatgpt_hf.data.splits import hold_out, is_held_out, split_by_hash, split_files, split_rows
from chatgpt_hf.errors import ConfigError, DataError
from chatgpt_hf.tasks.question_answering.rows import load_squad
from chatgpt_hf.tasks.tables import load_tables
from chatgpt_hf.tasks.text_classification.rows import load_labelled
from chatgpt_hf.tasks.token_classification.rows import load_tagged

CARD = "---\nlicense: mit\ntask_categories:\n- text-classification\n---\n# The data\n"
BLOG = "---\ntitle: Hello\ntags: [a, b]\n---\nA post of a blog.\n"


def folder_of(folder: Path, names: str, content: str = "x") -> Path:
    for name in names.split():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")
    return folder


def jsonl(file: Path, rows: Sequence[object]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def divided(folder: Path, pattern: str = "") -> tuple[str, str]:
    """The names of the files for training, and of those held out."""
    source = str(folder / pattern) if pattern else str(folder)
    splits = split_files(source_files(source) or [], source)
    train, test = (
        " ".join(str(file.relative_to(folder)) for file in splits.get(name, [])) for name in ("train", "test")
    )
    return train, test


@pytest.mark.parametrize(
    ("names", "train", "test"),
    [
        ("test.csv train.csv", "train.csv", "test.csv"),
        ("test.csv train.csv validation.csv", "train.csv", "test.csv"),
        ("dev.tsv train.tsv", "train.tsv", "dev.tsv"),
        ("train.jsonl.gz val.jsonl.gz", "train.jsonl.gz", "val.jsonl.gz"),
        (
            "data/test-00000-of-00001.parquet data/train-00000-of-00002.parquet data/train-00001-of-00002.parquet",
            "data/train-00000-of-00002.parquet data/train-00001-of-00002.parquet",
            "data/test-00000-of-00001.parquet",
        ),
        ("data/train/x.jsonl data/valid/x.jsonl", "data/train/x.jsonl", "data/valid/x.jsonl"),
        # As `datasets` publishes ultrachat_200k.
        ("test_sft.jsonl train_gen.jsonl train_sft.jsonl", "train_gen.jsonl train_sft.jsonl", "test_sft.jsonl"),
        ("ag_news_test.csv ag_news_train.csv", "ag_news_train.csv", "ag_news_test.csv"),
        ("ptb.test.txt ptb.train.txt ptb.valid.txt", "ptb.train.txt", "ptb.test.txt"),
        ("Test.csv Train.csv", "Train.csv", "Test.csv"),
        ("train1.csv train2.csv eval1.csv", "train1.csv train2.csv", "eval1.csv"),
        # The folder `dev` is no split where the files in it say what they are.
        ("dev/test.csv dev/train.csv", "dev/train.csv", "dev/test.csv"),
        ("test/x.csv train.csv", "train.csv", "test/x.csv"),
        ("train/dev_notes.csv test/a.csv", "train/dev_notes.csv", "test/a.csv"),
        ("dev_blog_train.csv dev_blog_test.csv", "dev_blog_train.csv", "dev_blog_test.csv"),
        ("微博测试集.csv 微博训练集.csv", "微博训练集.csv", "微博测试集.csv"),
        ("开发集.tsv 训练集.tsv", "训练集.tsv", "开发集.tsv"),
        ("测试数据.csv 训练数据.csv", "训练数据.csv", "测试数据.csv"),
        ("testdata.csv traindata.csv", "traindata.csv", "testdata.csv"),
        ("my_heldout.jsonl my_train.jsonl", "my_train.jsonl", "my_heldout.jsonl"),
        ("held_out.jsonl train.jsonl", "train.jsonl", "held_out.jsonl"),
        ("a.trn.tsv a.tst.tsv", "a.trn.tsv", "a.tst.tsv"),
        # Kaggle: a table of another kind is not training data.
        ("sample_submission.csv test.csv train.csv", "train.csv", "test.csv"),
        # THUCNews: among text files such a name can be a coincidence, so no document is lost.
        ("class.txt dev.txt train.txt", "class.txt train.txt", "dev.txt"),
        (
            "aclImdb/train/pos/0_9.txt aclImdb/test/neg/1_2.txt",
            "aclImdb/train/pos/0_9.txt",
            "aclImdb/test/neg/1_2.txt",
        ),
        # Only one side is named.
        ("a.md b.md test-notes.md", "a.md b.md test-notes.md", ""),
        ("a.csv b.csv test.csv", "a.csv b.csv test.csv", ""),
        ("train-1.csv train-2.csv", "train-1.csv train-2.csv", ""),
        ("contest.csv trainer.csv", "contest.csv trainer.csv", ""),
        # Pages about training and testing.
        ("intro.md testing.md training.md", "intro.md testing.md training.md", ""),
    ],
)
def test_names_of_files_say_the_split(tmp_path: Path, names: str, train: str, test: str) -> None:
    # Names above the source mean nothing.
    folder = folder_of(tmp_path / "train" / "eval", names)
    assert divided(folder) == (train, test)
    assert divided(folder, "**/*.*") == (train, test)


def test_what_was_named_itself_is_for_training(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "test.csv train.csv README.md")
    for name in ("test.csv", "README.md"):
        assert divided(folder, name) == (name, "")
    assert divided(folder, "test*") == ("test.csv", "")


def test_the_log_says_what_is_used_for_what(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = folder_of(tmp_path, "extra.csv test.csv train.csv validation.csv README.md")
    with caplog.at_level(logging.INFO):
        divided(folder)
    assert "Training: train.csv. Held out: test.csv." in caplog.text
    assert "not used, because there is a part named test: validation.csv" in caplog.text
    assert "not used, because the names say no split: extra.csv" in caplog.text
    assert "left out files about the data: README.md" in caplog.text


@pytest.mark.parametrize(
    ("names", "kept"),
    [
        ("README.md a.jsonl", "a.jsonl"),
        ("LICENSE.txt README_zh.md a/b.csv dataset_infos.json", "a/b.csv"),
        # As in LLaMA-Factory's folder of data.
        ("README.md alpaca_zh_demo.json dataset_info.json", "alpaca_zh_demo.json"),
        ("CHANGELOG.md CONTRIBUTING.md dataset-metadata.json rows.parquet", "rows.parquet"),
        ("CITATION.txt Readme.txt x.tsv", "x.tsv"),
        # Documents beside data stay, and so do pages in folders without data.
        ("book.txt rows.jsonl", "book.txt rows.jsonl"),
        ("docs/README.md rows/a.jsonl", "docs/README.md rows/a.jsonl"),
        ("LICENSE.md README.md notes.md", "LICENSE.md README.md notes.md"),
        ("readmes.md reader.txt a.jsonl", "a.jsonl reader.txt readmes.md"),
    ],
)
def test_files_about_the_data_are_no_documents(tmp_path: Path, names: str, kept: str) -> None:
    assert divided(folder_of(tmp_path, names)) == (kept, "")


@pytest.mark.parametrize(("front", "is_card"), [(CARD, True), (BLOG, False), ("# A page\n", False)])
def test_a_card_among_texts_is_known_by_its_front_matter(tmp_path: Path, front: str, is_card: bool) -> None:
    folder_of(tmp_path, "README.md", front)
    folder_of(tmp_path, "a.md b.txt")
    assert divided(folder_of(tmp_path, "a.md b.txt")) == ("a.md b.txt" if is_card else "README.md a.md b.txt", "")


def test_a_folder_with_nothing_but_metadata(tmp_path: Path) -> None:
    folder_of(tmp_path, "README.md", CARD)
    with pytest.raises(DataError, match=r"has no data, only files about them: README\.md"):
        load_corpus(str(tmp_path))


@pytest.mark.parametrize("several", [True, False])
def test_a_folder_of_save_to_disk_is_refused_by_name(tmp_path: Path, several: bool) -> None:
    rows = Dataset.from_dict({"text": ["a", "b"]})
    (DatasetDict(train=rows, test=rows) if several else rows).save_to_disk(tmp_path / "saved")
    for load in (load_corpus, stream_corpus, load_rows):
        with pytest.raises(DataError, match=r"save_to_disk.*load_from_disk\(.*\)\.to_parquet"):
            load(str(tmp_path / "saved"))


def test_every_reader_keeps_the_splits_apart(tmp_path: Path) -> None:
    rows = {"train": ["good", "bad", "fine"], "test": ["well", "poor"]}
    for name, texts in rows.items():
        labels = [{"text": text, "label": text in ("good", "fine", "well")} for text in texts]
        (tmp_path / "csv").mkdir(exist_ok=True)
        Dataset.from_list(labels).to_csv(tmp_path / "csv" / f"{name}.csv")
        jsonl(tmp_path / "jsonl" / name / "a.jsonl", [{"text": text} for text in texts])
        jsonl(tmp_path / "chats" / f"{name}.jsonl", [{"question": text, "answer": "yes"} for text in texts])
        conll = "\n".join(f"{text} B-X\n" for text in texts)
        folder_of(tmp_path, f"conll/{name}.conll", conll)
        answers = {"text": ["a"], "answer_start": [0]}
        questions = [{"id": text, "question": text, "context": "a b", "answers": answers} for text in texts]
        jsonl(tmp_path / "squad" / f"{name}.jsonl", questions)

    def parts(splits: object, column: str) -> dict[str, list[object]]:
        return {name: [row[column] for row in getattr(splits, name)] for name in rows}

    assert {name: split["text"][:] for name, split in load_corpus(str(tmp_path / "jsonl")).items()} == rows
    assert {
        name: [row["text"] for row in split] for name, split in stream_corpus(str(tmp_path / "jsonl")).items()
    } == rows
    assert {
        name: list(split["text"]) for _, splits in load_rows(str(tmp_path / "csv")) for name, split in splits.items()
    } == rows
    tables = load_tables(str(tmp_path / "csv"), header=["text"])
    assert [list(table.splits) for table in tables] == [["train"], ["test"]]
    assert parts(load_labelled(str(tmp_path / "csv"), test_fraction=0.5), "text") == rows
    assert parts(load_squad(str(tmp_path / "squad"), test_fraction=0.5), "id") == rows
    tagged = parts(load_tagged(str(tmp_path / "conll" / "*.conll"), test_fraction=0.5), "tokens")
    assert tagged == {name: [[text] for text in texts] for name, texts in rows.items()}
    chats = load_conversations(parse_sources(str(tmp_path / "chats")), test_fraction=0.5)
    asked = {name: [messages[0]["content"] for messages in split["messages"]] for name, split in chats.items()}
    assert asked == rows
    mixed = load_mixture(parse_sources(str(tmp_path / "jsonl")), test_fraction=0.5)
    assert {name: split["text"][:] for name, split in mixed.items()} == rows
    streamed = stream_mixture(parse_sources(str(tmp_path / "jsonl")), test_fraction=0.5)
    assert streamed.test["text"] == rows["test"]
    assert [row["text"] for row in islice(streamed.train, 3)] == rows["train"]
    elsewhere = load_mixture(parse_sources(str(tmp_path / "jsonl")), eval_corpus=str(tmp_path / "chats/../jsonl/test"))
    assert elsewhere["test"]["text"][:] == rows["test"]


def test_a_part_is_never_empty_and_old_decisions_stand() -> None:
    """Before, 76 % of the corpora with 5 documents had nothing held out at 0.05, and 36 % of those with 20."""
    empty = dict.fromkeys(range(2, 41), 0)
    corpora = 50
    for count in empty:
        for corpus in range(corpora):
            texts = [f"corpus {corpus}, document {number}" for number in range(count)]
            for fraction in (0.05, 0.1, 0.5):
                sides = hold_out(texts, fraction, "corpus")
                before = [is_held_out(text, fraction) for text in texts]
                if any(before) and not all(before):
                    assert sides == before
                else:
                    assert sum(sides) == (count - 1 if all(before) else 1)
                    empty[count] += fraction == 0.05
    assert 0.6 < empty[5] / corpora < 0.9
    assert 0.2 < empty[20] / corpora < 0.5


def test_the_smallest_and_the_largest_hash_decide(caplog: pytest.LogCaptureFixture) -> None:
    texts = [f"text {number}" for number in range(6)]
    few = hold_out(texts, 1e-9, "notes")
    assert sum(few) == 1
    assert "selects none of the 6 rows of notes" in caplog.text
    many = hold_out(texts, 1 - 1e-9, "notes")
    assert sum(many) == 5
    assert "selects all 6 rows of notes" in caplog.text
    # The order does not matter, and equal ones stay together.
    again = dict(zip(reversed(texts), hold_out([*reversed(texts)], 1e-9, "notes"), strict=True))
    assert [again[text] for text in texts] == few
    assert hold_out([*texts, *texts], 1e-9, "notes") == few * 2
    assert hold_out([*texts, *texts], 1 - 1e-9, "notes") == many * 2
    caplog.clear()
    hold_out(texts, 0.5, "notes")
    assert not caplog.text


@pytest.mark.parametrize("keys", [["one"], ["same", "same", "same"]])
def test_a_single_row_cannot_be_divided(keys: list[str]) -> None:
    with pytest.raises(DataError, match="leaves one part empty"):
        hold_out(keys, 0.5, "rows")
    with pytest.raises(DataError, match="--eval_dataset"):
        split_rows({"train": keys}, None, 0.5, str, "rows")
    assert split_rows({"train": keys}, None, 0, str, "rows") == {"train": keys, "test": []}
    with pytest.raises(ConfigError, match="test_fraction is 2"):
        hold_out(keys, 2, "rows")


def test_split_rows_never_leaves_one_part_empty(caplog: pytest.LogCaptureFixture) -> None:
    rows = split_rows({"train": ["a", "b", "c"]}, None, 1e-9, str, "letters")
    assert (len(rows["train"]), len(rows["test"])) == (2, 1)
    split_rows({"train": ["a", "b"]}, {"train": ["b", "c"]}, 0.1, str, "letters")
    assert "1 of 2 held-out rows are also training rows" in caplog.text


@pytest.mark.parametrize("fraction", [1e-9, 0.05, 0.5, 1 - 1e-9])
@pytest.mark.parametrize("count", [2, 3, 21])
def test_a_stream_holds_out_the_documents_of_the_whole_corpus(tmp_path: Path, count: int, fraction: float) -> None:
    for number in range(count):
        (tmp_path / f"note-{number}.md").write_text(f"# Note {number}\n\nIt says {number}.\n", encoding="utf-8")
    (tmp_path / "blank.md").write_text("\n", encoding="utf-8")
    sources = parse_sources(str(tmp_path))
    whole = load_mixture(sources, test_fraction=fraction)
    streamed = stream_mixture(sources, test_fraction=fraction)
    assert streamed.test["text"] == whole["test"]["text"][:]
    assert len(whole["train"]) + len(whole["test"]) == count
    assert [row["text"] for row in islice(streamed.train, len(whole["train"]))] == whole["train"]["text"][:]


def test_a_document_of_two_sources_is_on_one_side(tmp_path: Path) -> None:
    texts = [f"text {number}" for number in range(30)]
    small = jsonl(tmp_path / "small.jsonl", [{"text": text} for text in texts[:3]])
    large = jsonl(tmp_path / "large.jsonl", [{"text": text} for text in texts])
    sources = parse_sources([str(small), str(large)])
    whole, streamed = (load(sources, test_fraction=1e-4) for load in (load_mixture, stream_mixture))
    (least,) = (text for text, held in zip(texts[:3], hold_out(texts[:3], 1e-4, "small"), strict=True) if held)
    assert least in whole["test"]["text"][:]
    assert streamed.test["text"] == whole["test"]["text"][:]
    learned = {row["text"] for row in islice(streamed.train, 90)}
    assert learned == set(whole["train"]["text"]) == set(texts) - set(whole["test"]["text"])


def test_a_stream_of_a_single_row_is_cut_at_a_line(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a.jsonl", [{"text": " "}, {"text": "".join(f"line {n}\n" for n in range(50))}])
    whole, streamed = (load(parse_sources(str(file)), test_fraction=0.1) for load in (load_mixture, stream_mixture))
    assert streamed.test["text"] == whole["test"]["text"][:]
    assert next(iter(streamed.train))["text"] == whole["train"]["text"][0]
    short = jsonl(tmp_path / "b.jsonl", [{"text": "one line"}])
    for load in (load_mixture, stream_mixture):
        with pytest.raises(DataError, match=r"b\.jsonl has no held-out part: .* without a line end"):
            load(parse_sources(str(short)))


@pytest.mark.parametrize("count", [1, 3, 30])
def test_conversations_of_any_number(tmp_path: Path, count: int) -> None:
    rows = [{"prompt": f"How much is {n}?", "completion": str(n)} for n in range(count)]
    sources = parse_sources(str(jsonl(tmp_path / "my-chats.jsonl", rows)))
    assert list(load_conversations(sources)) == ["train"]
    if count == 1:
        with pytest.raises(DataError, match=r"it has a single conversation: .*--eval_dataset"):
            load_conversations(sources, test_fraction=0.05)
        return
    splits = load_conversations(sources, test_fraction=0.05)
    assert len(splits["test"]) >= 1
    assert len(splits["train"]) + len(splits["test"]) == count


def test_the_validation_part_of_a_data_set_is_held_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rows = Dataset.from_dict({"text": ["a"]})
    own = DatasetDict(train=rows, validation=rows.map(lambda row: {"text": "b"}))
    monkeypatch.setattr("chatgpt_hf.data.tables.load_dataset", lambda source, **options: own)
    with caplog.at_level(logging.INFO):
        assert load_corpus("some/corpus")["test"]["text"] == ["b"]
        own["test"] = rows.map(lambda row: {"text": "c"})
        assert load_corpus("some/corpus")["test"]["text"] == ["c"]
    assert "its split validation is held out" in caplog.text
    assert "its split validation is not used" in caplog.text


def test_old_names_still_import() -> None:
    from chatgpt_hf.data import corpus
    from chatgpt_hf.tasks import tables

    assert corpus.split_by_hash is split_by_hash
    assert tables.split_rows is split_rows
    assert all(hasattr(corpus, name) for name in ("cut_at_line", "check_test_fraction", "is_held_out"))
