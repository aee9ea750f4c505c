from pathlib import Path

import pytest

from chatgpt_hf.data.files import format_of, has_content, is_one_document, read_text, text_chunks
from chatgpt_hf.data.json_rows import read_json
from chatgpt_hf.errors import DataError


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.txt", ".txt"),
        ("A.MD.GZ", ".md"),
        ("a.csv.zst", ".csv"),
        ("a.parquet.gz", None),
        ("a.py", None),
        ("txt", None),
    ],
)
def test_format_of(name: str, expected: str | None) -> None:
    assert format_of(Path(name)) == expected
    assert is_one_document(Path(name)) is (expected in (".txt", ".md"))


def test_parts_of_a_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    text = "".join(f"line {number} 文\n" for number in range(200_000))
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert read_text(path) == text
    for start, stop in ((0, 10), (5, len(text) - 3), (1 << 20, (1 << 20) + 1), (len(text) - 2, None)):
        assert "".join(text_chunks(path, start, stop)) == text[start:stop]


@pytest.mark.parametrize("lines", [0, 1, 3, 300_000])
def test_the_line_that_is_not_utf8(tmp_path: Path, lines: int) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("文文文\n".encode() * lines + b"\xff")
    with pytest.raises(DataError, match=rf"at byte {10 * lines} of its text, in line {lines + 1}\."):
        has_content(path)


def test_a_file_without_a_fault(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n\n{"a": 2}\n')
    assert list(read_json(path)) == [("line 1", {"a": 1}), ("line 3", {"a": 2})]
    assert has_content(path)
