"""Changes valid values and files at random, the way that strangers, editors and broken disks do. Used by fuzz.py."""

import csv
import gzip
import io
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from random import Random
from typing import Any

# What parsers of text trip over: marks, separators, escapes, half characters, constructs of JSON, YAML, csv, Jinja and CoNLL.
TOKENS = (
    *(
        b"\x00",
        b"\r",
        b"\r\n",
        b"\n\n",
        b"\t",
        b"\x0b",
        b"\x0c",
        b"\x1a",
        b"\x1b]52;c;eA==\x07",
        b"\x85",
        b" ",
        b"\xc2\xa0",
    ),
    *(
        "\u2028".encode(),
        "\ufeff".encode(),
        b"\xff\xfe",
        b"\xfe\xff",
        b"\xff\xfe\x00\x00",
        "\u202e".encode(),
        "\U0001f600".encode(),
    ),
    *(
        b"\xed\xa0\x80",
        b"\xc3",
        b"\xf8\x88",
        b"\\ud800",
        b"\\udc00",
        b"\\u0000",
        b"\\ud83d\\ude00",
        b"\\",
        b'"',
        b'""',
        b"'",
        b"`",
    ),
    *(
        b"[",
        b"]",
        b"{",
        b"}",
        b",",
        b":",
        b"[[[[[[[[",
        b"{}",
        b"[]",
        b"null",
        b"true",
        b"NaN",
        b"-Infinity",
        b"1e999",
        b"-0",
        b"1_0",
    ),
    *(
        b"9" * 30,
        b"9" * 5000,
        b"0x1F",
        b"1e-400",
        b"[" * 1000,
        b'{"a":' * 300,
        b"#",
        b"-DOCSTART- -X- O O",
        b";",
        b"|",
        b"sep=;",
    ),
    *(
        b"&a ",
        b"*a",
        b"&a [*a]",
        b"<<: *a",
        b"!!python/object/apply:os.system [id]",
        b"!!bool x",
        b"!!int ''",
        b"!!timestamp x",
        b"? ",
    ),
    *(
        b"---",
        b"...",
        b"%YAML 9.9",
        b"2001-99-99",
        b"12:30:45",
        b"!!set {a}",
        b"!!binary =",
        b"- ",
        b"~",
        b"{{",
        b"{% for %}",
        b"B-",
        b"I-PER",
    ),
)
ODD: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        2**63,
        -(2**64),
        10**400,
        1.5,
        -0.0,
        1e308,
        float("nan"),
        float("inf"),
        "",
        " ",
        "\n",
        "\0",
    ),
    *(
        "\ud800",
        "a\udfff",
        "\U0001f600",
        "\ufeff",
        "NaN",
        "null",
        "-",
        "O",
        "B-PER",
        "[1]",
        '["a", "b"]',
        "{",
        "{a}",
        "{a!r:>9}",
        "x" * 5000,
    ),
    *(
        [],
        {},
        [[]],
        [None],
        [{}],
        {"": {}},
        {"a": {"b": [1, "2", None, True]}},
        ["a", 1],
        {"role": 3},
        [["a"], "a"],
        "<|im_start|>",
    ),
    *(
        "../../x",
        "/dev/zero",
        "-1e9",
        "1",
        "1.0",
        "user",
        "assistant",
        "tool",
        "0-1",
        "１２",
        "²",
        "9" * 5000,
        "AB",
        "٣",
        "O\u0308",
        "a\tb",
        "a,b",
        'a"b',
    ),
)


def damaged(random: Random, content: bytes, times: int = 4) -> bytes:
    """Content with up to so many places changed, or cut short."""
    for _ in range(random.randint(1, times)):
        start = random.randint(0, len(content))
        end = min(len(content), start + random.choice((0, 1, 1, 2, 8, 64)))
        kind = random.randrange(8)
        if kind == 0:
            content = content[:start]
        elif kind == 1 and content:
            place = min(start, len(content) - 1)
            content = content[:place] + bytes([content[place] ^ 1 << random.randrange(8)]) + content[place + 1 :]
        elif kind == 2:
            content = content[:start] + content[end:]
        elif kind == 3:
            content = content[:end] + content[start:end] * random.choice((1, 2, 50)) + content[end:]
        elif kind == 4:
            content = content[:start] + bytes(random.randrange(256) for _ in range(end - start)) + content[end:]
        elif kind == 5:
            other = random.randint(0, len(content))
            content = content[:start] + content[other : other + 64] + content[end:]
        else:
            content = content[:start] + random.choice(TOKENS) + content[end:]
    return content


def altered(random: Random, value: Any, times: int = 3) -> Any:
    """A copy of a JSON value, with up to so many places in it replaced, removed, renamed or wrapped."""
    for _ in range(random.randint(1, times)):
        value = _altered(random, value)
    return value


def _altered(random: Random, value: Any) -> Any:
    if isinstance(value, (dict, list)) and value and random.randrange(8):
        keyed = isinstance(value, dict)
        copy, place = value.copy(), random.choice(list(value) if keyed else range(len(value)))
        kind = random.randrange(10 if keyed else 8)
        if kind == 0:
            del copy[place]
        elif keyed and kind <= 3:
            _alter_a_name(random, copy, place, kind)
        elif kind == 1:
            copy.insert(place, random.choice(ODD))
        elif kind == 2:
            copy += copy[place : place + 1] * random.choice((1, 3))
        else:
            copy[place] = _altered(random, value[place])
        return copy
    if isinstance(value, str) and value and random.randrange(2):
        place = random.randrange(len(value) + 1)
        return value[:place] + random.choice(TOKENS).decode("utf-8", "ignore") + value[place + random.randrange(3) :]
    if isinstance(value, int) and not isinstance(value, bool) and random.randrange(2):
        return random.choice((-value, value + 1, 1000 * value, f"{value:x}", value % 2**60 / 3, 2**40))
    return random.choice((*ODD, [value], {"value": value}))


def _alter_a_name(random: Random, copy: dict[str, Any], name: str, kind: int) -> None:
    if kind == 1:
        other = random.choice((name.upper(), name + "s", "", name + "\0", "label", "text", "\ud800"))
        copy[other] = copy.pop(name)
    elif kind == 2:
        copy[random.choice(("answer", "weight", "train", "tools", "name", "id", "type", "x"))] = random.choice(ODD)
    else:
        copy[name] = copy[random.choice(list(copy))]


def json_file(random: Random, value: Any) -> bytes:
    """One JSON document, altered and perhaps damaged."""
    text = json.dumps(altered(random, value), ensure_ascii=bool(random.randrange(2)), indent=random.choice((None, 1)))
    return _text(random, text)


def json_lines(random: Random, rows: Sequence[Any]) -> bytes:
    """JSON Lines, one array, or something between."""
    if random.randrange(3) == 0:
        return json_file(random, list(rows))
    lines = [json.dumps(altered(random, row) if random.randrange(2) else row) for row in rows]
    return _text(random, random.choice(("\n", "\n", "\r\n", "\n\n", ",\n")).join(lines) + random.choice(("", "\n")))


def table(random: Random, rows: Sequence[dict[str, Any]], separator: str | None = None) -> bytes:
    """A csv or tsv file, with or without a header."""
    stream = io.StringIO()
    writer = csv.writer(
        stream,
        delimiter=separator or random.choice(",,;\t"),
        quoting=random.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONE)),
        quotechar=random.choice('""\''),
        escapechar="\\",
        lineterminator=random.choice(("\n", "\n", "\r\n", "\r")),
    )
    rows = [altered(random, row) if random.randrange(3) == 0 else row for row in rows]
    rows = [row if isinstance(row, dict) else {"a": row} for row in rows]
    if random.randrange(4):
        writer.writerow(list(rows[0]) if any(rows[0]) else ["x"])
    for row in rows:
        cells = [item if isinstance(item, str) else json.dumps(item) for item in row.values()]
        # A writer without quotation marks refuses an empty line.
        writer.writerow(cells if any(cells) else ["x"])
    return _text(random, stream.getvalue())


def _text(random: Random, text: str) -> bytes:
    """The bytes of a text, mostly in UTF-8 and undamaged."""
    encoding = random.choice(("utf-8",) * 12 + ("utf-8-sig", "utf-16", "utf-16-le", "utf-32", "gb18030", "cp1252"))
    content = text.encode(encoding, "surrogatepass" if encoding.startswith("utf") else "replace")
    return damaged(random, content) if random.randrange(3) == 0 else content


def yaml_file(random: Random, value: Any) -> bytes:
    """A YAML file of an altered value, mostly damaged with what only YAML has."""
    import yaml

    text = yaml.safe_dump(
        altered(random, value), allow_unicode=True, default_flow_style=random.choice((False, None, True))
    )
    content = text.encode("utf-8", "surrogatepass")
    return damaged(random, content) if random.randrange(3) else content


def parquet(random: Random, rows: Sequence[dict[str, Any]]) -> bytes:
    """A parquet file of altered rows, in types that other programs write, and perhaps damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [altered(random, row) if random.randrange(3) == 0 else row for row in rows]
    rows = [row if isinstance(row, dict) else {"a": row} for row in rows]
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = [_column(random, [row.get(name) for row in rows]) for name in names]
    if random.randrange(4) == 0:
        odd = _storable(random.choice(_ARRAYS)(len(rows)))
        names, columns = [*names, "extra"], [*columns, odd]
        if random.randrange(2):
            columns[0], columns[-1] = odd, columns[0]
    if random.randrange(20) == 0 and names:
        names[-1] = names[0]
    names = [name.encode("utf-8", "replace").decode() for name in names]
    made = pa.table(columns, names=names)
    if random.randrange(10) == 0:
        note = random.choice(
            (b"{", b'{"info": {"features": {"label": {"_type": "ClassLabel", "names": []}}}}', b"\xff")
        )
        made = made.replace_schema_metadata({random.choice((b"huggingface", b"pandas")): note})
    stream = io.BytesIO()
    options = {
        "compression": random.choice(("none", "snappy", "zstd", "gzip")),
        "use_dictionary": bool(random.randrange(2)),
    }
    pq.write_table(made, stream, row_group_size=random.choice((1, 2, 1000)), **options)
    content = stream.getvalue()
    if random.randrange(3):
        return content
    # Half of the damage goes to the footer, where the numbers of rows and the places are.
    footer = len(content) // 2
    return content[:footer] + damaged(random, content[footer:]) if random.randrange(2) else damaged(random, content)


def _column(random: Random, values: list[Any]) -> Any:
    import pyarrow as pa

    for type_ in (
        random.choice((None, None, pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string()))),
        None,
    ):
        try:
            return _storable(pa.array(values, type_))
        except (pa.ArrowException, OverflowError, UnicodeError, TypeError, ValueError):
            pass
    return pa.array([json.dumps(value) for value in values])


def _storable(array: Any) -> Any:
    """The array if parquet has its type, or else its texts."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        pq.write_table(pa.table([array], ["a"]), io.BytesIO())
    except (pa.ArrowException, UnicodeError):
        return pa.array([str(index) for index in range(len(array))])
    return array


def _arrays() -> tuple[Callable[[int], Any], ...]:
    import pyarrow as pa

    now = datetime(2024, 2, 29, 12, tzinfo=UTC)

    def of(value: Any, type_: Any) -> Callable[[int], Any]:
        return lambda count: pa.array([value] * count, type_)

    def not_utf8(count: int) -> Any:
        offsets = pa.py_buffer(b"".join((2 * index).to_bytes(4, "little") for index in range(count + 1)))
        return pa.StringArray.from_buffers(count, offsets, pa.py_buffer(b"\xff\xfe" * count))

    return (
        *(of(2**62, pa.timestamp("s")), of(-(2**62), pa.timestamp("ns")), of(now, pa.timestamp("us", "Mars/Olympus"))),
        *(
            of(now, pa.timestamp("us", "+14:00")),
            of(2**31 - 1, pa.date32()),
            of(2**60, pa.date64()),
            of(5, pa.time32("s")),
        ),
        *(of(timedelta(9), pa.duration("ns")), of(Decimal("1e30"), pa.decimal256(76, 0)), of(2**62, pa.duration("s"))),
        *(
            of(b"\xff", pa.binary()),
            of(b"\0" * 4, pa.binary(4)),
            of((1, 2, 3), pa.month_day_nano_interval()),
            of(None, pa.null()),
        ),
        *(
            of([("a", 1), ("a", 2)], pa.map_(pa.string(), pa.int8())),
            of([[[1]]], pa.list_(pa.list_(pa.list_(pa.int8())))),
        ),
        *(
            of({"a": now}, pa.struct({"a": pa.timestamp("us", "UTC")})),
            of([1, 2], pa.list_(pa.float16(), 2)),
            not_utf8,
        ),
        *(of([(b"\xff", {"b": 1})], pa.map_(pa.binary(), pa.struct({"b": pa.uint64()}))), of(2**64 - 1, pa.uint64())),
        lambda count: pa.ExtensionArray.from_storage(pa.json_(), pa.array(['{"a": 1e999, "b": NaN'] * count)),
        lambda count: pa.ExtensionArray.from_storage(pa.json_(), pa.array(["[" * 3000 + "]" * 3000] * count)),
        lambda count: pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"0" * 16] * count, pa.binary(16))),
    )


class _Arrays(Sequence[Callable[[int], Any]]):
    """`_arrays()`, made when they are first used: importing this file must not import Arrow."""

    def __getitem__(self, index: Any) -> Any:
        return _arrays()[index]

    def __len__(self) -> int:
        return len(_arrays())


_ARRAYS = _Arrays()


def packed(random: Random, name: str, content: bytes) -> tuple[str, bytes]:
    """Mostly the file itself; sometimes the same compressed, and perhaps damaged."""
    kind = random.randrange(12)
    if kind > 1 or name.endswith(".parquet"):
        return name, content
    if kind:
        name, content = f"{name}.gz", gzip.compress(content, 1)
    else:
        import pyarrow as pa

        name, content = f"{name}.zst", pa.compress(content, codec="zstd", asbytes=True)
    return name, damaged(random, content) if random.randrange(2) else content
