"""Prompts and completions can come from any columns, but must not be blank."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from chatgpt_hf.errors import ConfigError, DataError
from chatgpt_hf.tasks.generation.rows import load_pairs

POEM = "題目：{title}\n作者：{author}\n"


def jsonl(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def refused(source: str, **options: Any) -> str:
    with pytest.raises(DataError) as error:
        load_pairs(source, **options)
    return str(error.value)


def test_translations_as_they_lie(shared_data: Path) -> None:
    source = str(shared_data / "translation/tatoeba_eng_cmn_a.tsv")
    splits = load_pairs(
        source, prompt_template="{column0}\n", completion_template="{column1}", test_fraction=0.1, skip_invalid=True
    )
    assert splits.train[0] == {"prompt": "Hi.\n", "completion": "嗨。"}
    assert len(splits.train) + len(splits.test) == 8796
    # A sentence with several translations is on one side.
    assert not set(splits.train["prompt"]) & set(splits.test["prompt"])
    pairs = [*splits.train, *splits.test]
    # Quotation marks are part of the text in this file.
    assert {"prompt": '"Is he right?" "I don\'t think so."\n', "completion": '"他是對的嗎?" "我不這麼認為。"'} in pairs
    named = load_pairs(source, prompt_template="{en}\n", completion_template="{zh}", column_names=["en", "zh", "from"])
    assert named.train[0] == {"prompt": "Hi.\n", "completion": "嗨。"}
    assert len(named.train) == 8796
    assert "3 columns, but 2 names" in refused(source, column_names=["prompt", "completion"])


def test_poems_as_they_lie(shared_data: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = str(shared_data / "corpus/zh_poems/quan_tang_shi_0.json")
    with caplog.at_level(logging.WARNING):
        splits = load_pairs(source, prompt_template=POEM, completion_template="{paragraphs}", skip_invalid=True)
    assert splits.train[0] == {
        "prompt": "題目：帝京篇十首 一\n作者：太宗皇帝\n",
        "completion": "秦川雄帝宅，函谷壯皇居。\n綺殿千尋起，離宮百雉餘。\n連甍遙接漢，飛觀迥凌虛。\n雲日隱層闕，風煙出綺疎。",
    }
    rows = json.loads(Path(source).read_text(encoding="utf-8"))
    blank = sum(not "".join(row["paragraphs"]).strip() for row in rows)
    assert len(splits.train) == len(rows) - blank
    both = load_pairs(
        str(shared_data / "corpus/zh_poems/tang300.json"),
        prompt_template=POEM,
        completion_template="{paragraphs}",
        test_fraction=0.1,
    )
    assert len(both.train) + len(both.test) == 366


def test_copies_stay_on_one_side(tmp_path: Path) -> None:
    source = jsonl(
        tmp_path / "pairs.jsonl",
        *({"prompt": f"{title} {n}", "completion": f"text {n}"} for n in range(40) for title in ("one", "two")),
    )
    by_prompt = load_pairs(source, test_fraction=0.3)
    assert set(by_prompt.train["completion"]) & set(by_prompt.test["completion"])
    by_completion = load_pairs(source, test_fraction=0.3, split_by="completion")
    assert not set(by_completion.train["completion"]) & set(by_completion.test["completion"])
    assert len(by_completion.train) + len(by_completion.test) == 80
    with pytest.raises(ConfigError, match=r"split_by is 'title': give one of prompt, completion"):
        load_pairs(source, split_by="title")


def test_summaries_as_they_lie(shared_data: Path) -> None:
    splits = load_pairs(
        str(shared_data / "summarization/cnn_dailymail_t0prompts.jsonl"),
        eval_source=str(shared_data / "summarization/xsum_t0prompts.jsonl"),
    )
    assert (len(splits.train), len(splits.test)) == (97, 100)
    assert splits.train.column_names == ["prompt", "completion"]


@pytest.mark.parametrize("source", ["builtin:python-functions", "builtin:relations"])
def test_builtin_sources_hold_out_their_own_part(source: str) -> None:
    splits = load_pairs(source, test_fraction=0.5)
    assert len(splits.train) > 8 * len(splits.test) > 0


def test_files_with_a_header(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('English,French\n"Yes, sir.",Oui.\nNo.,Non.\n', encoding="utf-8")
    splits = load_pairs(str(path), prompt_template="{English} =", completion_template=" {French}")
    assert splits.train.to_list() == [
        {"prompt": "Yes, sir. =", "completion": " Oui."},
        {"prompt": "No. =", "completion": " Non."},
    ]
    named = load_pairs(
        str(path),
        prompt_template="{English}",
        completion_template="{French}",
        column_names=["English", "French"],
    )
    assert len(named.train) == 2


@pytest.mark.parametrize("blank", [None, "", " \n"])
@pytest.mark.parametrize("column", ["title", "body"])
def test_rows_with_nothing_in_a_column(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, column: str, blank: str | None
) -> None:
    good = {"title": "a", "body": "b"}
    source = jsonl(tmp_path / "a.jsonl", good, {**good, column: blank})
    options = {"prompt_template": "On {title}:", "completion_template": "{body}"}
    message = refused(source, **options)
    assert f"Row 2 of {source}" in message
    assert f"its {column} is empty" in message
    with caplog.at_level(logging.WARNING):
        assert len(load_pairs(source, skip_invalid=True, **options).train) == 1
    assert f"1 rows of {source} are left out" in caplog.text


@pytest.mark.parametrize(("name", "bad"), [("label", False), ("train", False), ("masked", True), ("weight", 0)])
def test_rows_that_are_not_to_be_learned(tmp_path: Path, name: str, bad: object) -> None:
    row = {"prompt": "Q", "completion": "wrong"}
    source = jsonl(tmp_path / "a.jsonl", {**row, name: bad}, {**row, "completion": "right", name: type(bad)(not bad)})
    splits = load_pairs(source)
    assert splits.train["completion"][:] == ["right"]
    assert list(splits.summaries[0].notes) == [f"rows with {name} {json.dumps(bad)} were left out"]
    assert splits.summaries[0].unused == {}
    # A column of the templates is data.
    assert len(load_pairs(source, prompt_template=f"{{{name}}}").train) == 2
    classes = jsonl(tmp_path / "b.jsonl", {**row, "label": 0}, {**row, "label": 1})
    assert len(load_pairs(classes).train) == 2


def test_columns_that_are_not_there_and_templates_that_are_none(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "a.jsonl", {"title": "a", "body": "b"})
    assert "no column 'prompt'; the templates of prompt and completion may name title, body" in refused(source)
    plain = tmp_path / "plain.csv"
    plain.write_text("article,gist\na b c,d\n")
    assert "may name column0, column1 or the names in its first line, if that is a header." in refused(str(plain))
    with pytest.raises(ConfigError):
        load_pairs(source, prompt_template="On")
    nested = jsonl(tmp_path / "b.jsonl", {"prompt": {"a": 1}, "completion": "b"})
    assert "row 1 of" in refused(nested)
