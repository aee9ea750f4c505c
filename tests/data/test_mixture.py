import json
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from chatgpt_hf.data import mixture
from chatgpt_hf.data.corpus import is_held_out, load_corpus
from chatgpt_hf.data.mixture import load_mixture, stream_mixture
from chatgpt_hf.data.sources import CorpusSource, parse_sources
from chatgpt_hf.errors import ConfigError, DataError


def write(path: Path, texts: list[str]) -> str:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return str(path)


@pytest.fixture
def pair(tmp_path: Path) -> list[str]:
    """Two files of 60 and 20 documents."""
    return [
        write(tmp_path / "a.jsonl", [f"a {number}" for number in range(60)]),
        write(tmp_path / "b.jsonl", [f"b {number}" for number in range(20)]),
    ]


def weighted(pair: list[str], *weights: float) -> list[CorpusSource]:
    return [CorpusSource(source, weight) for source, weight in zip(pair, weights, strict=True)]


def test_without_weights_every_document_is_there_once(pair: list[str]) -> None:
    splits = load_mixture(parse_sources(pair), test_fraction=0.2)
    assert splits["train"].column_names == splits["test"].column_names == ["text", "source"]
    texts = [*splits["train"]["text"], *splits["test"]["text"]]
    assert sorted(texts) == sorted([f"a {number}" for number in range(60)] + [f"b {number}" for number in range(20)])
    for split in splits.values():
        assert all(Path(row["source"]).stem == row["text"][0] for row in split)
    assert all(is_held_out(text, 0.2) for text in splits["test"]["text"])
    assert not any(is_held_out(text, 0.2) for text in splits["train"]["text"])


def test_weights_count_documents_and_lose_none(pair: list[str]) -> None:
    plain = load_mixture(parse_sources(pair), test_fraction=0.2)
    mixed = load_mixture(weighted(pair, 1, 9), test_fraction=0.2, seed=1)
    assert set(mixed["train"]["text"]) == set(plain["train"]["text"])
    assert mixed["test"][:] == plain["test"][:]
    counts = Counter(text[0] for text in mixed["train"]["text"])
    assert 0.85 < counts["b"] / counts.total() < 0.95
    again, other = (load_mixture(weighted(pair, 1, 9), test_fraction=0.2, seed=seed) for seed in (1, 2))
    assert again["train"][:] == mixed["train"][:] != other["train"][:]


def test_a_split_of_the_source_itself_is_kept(pair: list[str]) -> None:
    splits = load_mixture(parse_sources([pair[0], "builtin:python-docs"]), test_fraction=0.2)
    own = load_corpus("builtin:python-docs")["test"]["text"]
    assert splits["test"].filter(lambda row: row["source"] == "builtin:python-docs")["text"] == own[:]


def test_eval_corpus_takes_the_place_of_the_held_out_part(pair: list[str]) -> None:
    splits = load_mixture(parse_sources(pair[0]), eval_corpus=pair[1])
    assert len(splits["train"]) == 60
    assert splits["test"]["text"] == [f"b {number}" for number in range(20)]
    item = json.dumps({"source": pair[1], "template": "<{text}>"})
    assert load_mixture(parse_sources(pair[0]), eval_corpus=item)["test"]["text"][0] == "<b 0>"


def test_empty_held_out_part(tmp_path: Path, pair: list[str]) -> None:
    same = write(tmp_path / "same.jsonl", ["one", "one"])
    with pytest.raises(DataError, match=r"same\.jsonl has no held-out part: .*eval_corpus"):
        load_mixture(parse_sources([same, pair[0]]), test_fraction=0.01)
    for fraction in (1e-9, 1 - 1e-9):
        with pytest.raises(DataError, match=r"same\.jsonl has no held-out part: .*eval_corpus"):
            stream_mixture(parse_sources([same]), test_fraction=fraction)
    blank = write(tmp_path / "blank.jsonl", [" ", ""])
    with pytest.raises(DataError, match=r"blank\.jsonl is empty"):
        load_mixture(parse_sources(pair), eval_corpus=blank)
    with pytest.raises(DataError, match=r"The held-out part is empty: .*blank\.jsonl"):
        stream_mixture(parse_sources(pair), eval_corpus=blank)
    for function in (load_mixture, stream_mixture):
        with pytest.raises(ConfigError, match="test_fraction is 0"):
            function(parse_sources(pair), test_fraction=0)


def test_missing_columns_are_named(pair: list[str]) -> None:
    for item in ({"source": pair[0], "text_column": "body"}, {"source": pair[0], "template": "{body}"}):
        for function in (load_mixture, stream_mixture):
            with pytest.raises(DataError, match=r"no column 'body': .* text$"):
                function(parse_sources([item]))


def test_a_broken_file_of_a_mixture(tmp_path: Path, pair: list[str]) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    write(folder / "a.jsonl", [f"c {number}" for number in range(30)])
    (folder / "b.jsonl").write_text('{"text": "last"}\n{"text": ')
    sources = parse_sources([str(folder), pair[0]])
    with pytest.raises(DataError, match=r"b\.jsonl is broken JSON in line 2"):
        load_mixture(sources, test_fraction=0.2)
    splits = load_mixture(sources, test_fraction=0.2, skip_broken_files=True)
    assert len(splits["train"]) + len(splits["test"]) == 90
    with pytest.raises(DataError, match=r"b\.jsonl is broken JSON in line 2"):
        list(islice(stream_mixture(sources, test_fraction=0.2, eval_documents=2).train, 200))
    stream = stream_mixture(sources, test_fraction=0.2, eval_documents=2, skip_broken_files=True).train
    assert {row["text"] for row in islice(stream, 200)} - {"last"} == set(splits["train"]["text"])


@pytest.mark.parametrize("weights", [None, (1, 3)])
def test_a_stream_has_the_documents_of_the_mixture_pass_after_pass(pair: list[str], weights: tuple | None) -> None:
    sources = weighted(pair, *weights) if weights else parse_sources(pair)
    finite = load_mixture(parse_sources(pair), test_fraction=0.2)
    streamed = stream_mixture(sources, test_fraction=0.2, eval_documents=8)
    assert set(streamed.test["text"]) <= set(finite["test"]["text"])
    assert len(streamed.test) <= 8
    rows = list(islice(streamed.train, 400))
    assert len(rows) == 400
    assert {row["text"] for row in rows} == set(finite["train"]["text"])
    own = [row["text"] for row in rows if row["source"] == pair[1]]
    in_order = [text for text in finite["train"]["text"] if text[0] == "b"]
    assert own[: 2 * len(in_order)] == 2 * in_order
    if weights:
        assert 0.65 < len(own) / 400 < 0.85
    else:
        once = rows[: len(finite["train"])]
        assert sorted(row["text"] for row in once) == sorted(finite["train"]["text"])


def test_a_single_text_file_is_cut_at_a_line(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("".join(f"line {number}\n" for number in range(100)))
    streamed = stream_mixture(parse_sources(str(file)))
    finite = load_mixture(parse_sources(str(file)))
    assert streamed.test["text"] == finite["test"]["text"][:]
    first, second = (row["text"] for row in islice(streamed.train, 2))
    assert first == second == finite["train"]["text"][0]
    whole = stream_mixture(parse_sources(str(file)), eval_corpus=str(file))
    assert next(iter(whole.train))["text"] == file.read_text() == whole.test["text"][0]


def test_a_very_long_text_file_is_streamed_in_several_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.txt"
    file.write_text("".join(f"line {number}\n" for number in range(400_000)))
    monkeypatch.setattr(mixture, "_LONGEST_DOCUMENT", 1 << 20)
    streamed = stream_mixture(parse_sources(str(file)))
    train, test = (split["text"][0] for split in load_mixture(parse_sources(str(file))).values())
    parts = [row["text"] for row in islice(streamed.train, 8)]
    count = next(index for index in range(1, 8) if parts[index] == parts[0])
    assert count > 3
    assert "".join(parts[:count]) == train
    assert all(part.endswith("\n") and len(part) < 1 << 21 for part in parts)
    assert "".join(streamed.test["text"]) == test


def test_stream_of_the_builtin_corpus() -> None:
    streamed = stream_mixture(parse_sources("builtin:python-docs"), eval_documents=10)
    assert streamed.test["text"] == load_corpus("builtin:python-docs")["test"]["text"][:10]
    assert next(iter(streamed.train))["source"] == "builtin:python-docs"
