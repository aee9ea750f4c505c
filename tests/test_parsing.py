import json
import os
from pathlib import Path

import pytest

from chatgpt_hf.errors import CheckpointError
from chatgpt_hf.files import read_json, read_yaml
from chatgpt_hf.parsing import DEEPEST, parse_json, parse_yaml, read_file


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


def aliases(levels: int, value: str) -> str:
    """YAML whose last line stands for 9 ** levels values."""
    lines = [f"a0: &a0 {value}"]
    return "\n".join(
        [*lines, *(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]" for level in range(1, levels))]
    )


def test_json_as_the_standard_library_reads_it() -> None:
    assert parse_json('{"a": [1, 2.5, null, "\\ud83d\\ude00"]}') == {"a": [1, 2.5, None, "😀"]}
    assert parse_json("\ufeff[1]".encode()) == [1]
    assert parse_json(nested(DEEPEST)) is not None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "Expecting property name"),
        (nested(DEEPEST + 1), "more than 200 deep"),
        (nested(100_000), "more than 200 deep"),
        ('{"a":' * 5000, "more than 200 deep"),
        ('{"a": "\\ud800"}', r"half of a surrogate pair, \\ud800"),
        ('["\\udc00a"]', r"half of a surrogate pair, \\udc00"),
        ("9" * 5000, "digits"),
        (b"\xff", "utf-8"),
    ],
)
def test_json_that_nothing_after_it_could_handle(text: str | bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_json(text)


def test_yaml_with_a_few_aliases() -> None:
    assert parse_yaml("a: &x {b: 1}\nc: *x\nd: {<<: *x, e: 2}") == {
        "a": {"b": 1},
        "c": {"b": 1},
        "d": {"b": 1, "e": 2},
    }
    assert parse_yaml("") is None
    assert parse_yaml("learning_rate: 1e-3\nempty:") == {"learning_rate": "1e-3", "empty": None}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (aliases(12, "x"), "aliases repeat values more than"),
        ("a0: &a0 {x: 1}\n" + "\n".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, 12)), "aliases"),
        ("&a [*a]", "nests more than 200 deep"),
        (nested(100_000), "nests more than 200 deep"),
        ("a: !!python/object/apply:os.system [id]", "could not determine a constructor"),
        ("a: !!bool x", "x"),
        ("a: !!timestamp x", "."),
        ("a: !!int ''", "."),
        ("a: 2001-99-99", "month"),
        ("{[]: 1}", "unhashable"),
        ("a: [", "expected"),
        ("a: \x00", "special characters"),
        ("x" * (2 << 20), "at most"),
    ],
)  # fmt: skip
def test_yaml_that_is_broken_or_would_fill_the_memory(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_yaml(text)


def test_a_file_that_is_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for file, said in ((tmp_path / "pipe", "a pipe"), (Path("/dev/zero"), "a device"), (tmp_path, "a folder")):
        with pytest.raises(OSError, match=f"it is {said}, not a file"):
            read_file(file)
        with pytest.raises(CheckpointError, match=f"it is {said}, not a file"):
            read_json(file)
    with pytest.raises(FileNotFoundError):
        read_file(tmp_path / "nowhere")
    assert read_json(tmp_path / "nowhere") == read_yaml(tmp_path / "nowhere") == {}
    # A few blocks on the disk, a gigabyte to read.
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(OSError, match="at most 536,870,912 are read"):
        read_file(tmp_path / "sparse")


@pytest.mark.parametrize("content", ["[]", "3", "{", json.dumps("a"), nested(3000)])
def test_a_mapping_that_is_none(tmp_path: Path, content: str) -> None:
    file = tmp_path / "a"
    file.write_text(content)
    for read in (read_json, read_yaml):
        with pytest.raises(CheckpointError, match=f"{file} .*Save or copy it again"):
            read(file)
