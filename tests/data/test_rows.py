"""Files of every kind, whole and broken, against the standard library."""

import csv
import gzip
import io
import json
import pickle
import random
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from instructrec_jax.data.example import BadExample
from instructrec_jax.data.rows import open_rows
from instructrec_jax.data.source_config import SourceConfig
from instructrec_jax.data.sources import open_sources
from instructrec_jax.data.text_rows import TextRows
from instructrec_jax.data.unpacked import PlainFile

RECORDS = [
    {"instruction": "推荐一部电影 🎬", "output": "a"},
    {"instruction": 'He said "no", twice', "output": "b\nc"},
    {"instruction": "tab\there\u2028and\u0085there", "output": " d "},
]


def as_csv(records, separator=",", line_end="\r\n", quoting=csv.QUOTE_MINIMAL):
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(records[0]), delimiter=separator, lineterminator=line_end, quoting=quoting)
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue().encode()


def as_parquet(records):
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(records), stream)
    return stream.getvalue()


CONTENTS = {
    ".jsonl": "\n".join(json.dumps(r, ensure_ascii=False) for r in RECORDS).encode(),
    ".json": json.dumps(RECORDS).encode(),
    ".csv": as_csv(RECORDS),
    ".tsv": 'instruction\toutput\n推荐一部电影 🎬\ta\n"Go, he said\t"no" ""twice""\r\n"\u2028\u0085\t d \n'.encode(),
    ".parquet": as_parquet(RECORDS),
}
IN_TSV = [
    RECORDS[0],
    {"instruction": '"Go, he said', "output": '"no" ""twice""'},
    {"instruction": '"\u2028\u0085', "output": " d "},
]
EXPECTED = dict.fromkeys(CONTENTS, RECORDS) | {".tsv": IN_TSV}


def rows(path):
    opened = open_rows(str(path))
    return [opened.row(i) for i in range(len(opened))]


def outcome(path):
    """Each row, or (place, reason) of what is wrong with it."""
    opened, found = open_rows(str(path)), []
    for i in range(len(opened)):
        try:
            found.append(opened.row(i))
        except BadExample as error:
            found.append((opened.where(i).split(", ")[-1], error.reason))
    return found


def zstd(data):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def write(path, data):
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


@pytest.mark.parametrize("suffix", CONTENTS)
@pytest.mark.parametrize(
    "ending, packed", [("", bytes), (".gz", gzip.compress), (".zst", zstd), ("", zstd), (".gz", bytes)]
)
def test_every_kind_gives_the_same_records(tmp_path, suffix, ending, packed):
    """Compression is recognized by the content, whatever the name says."""
    data, records = CONTENTS[suffix], EXPECTED[suffix]
    path = tmp_path / f"a folder 数据 🎬 [1]{suffix}{ending}"
    path.write_bytes(packed(data))
    opened = open_rows(str(path))
    assert [opened.row(i) for i in range(len(opened))] == records
    assert opened.row(2) == records[2] and opened.row(0) == records[0]
    copy = pickle.loads(pickle.dumps(opened))
    assert copy.row(1) == records[1]
    assert str(path) in opened.where(1)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv"])
def test_a_byte_order_mark_is_no_text(tmp_path, suffix):
    assert rows(write(tmp_path / f"a{suffix}", b"\xef\xbb\xbf" + CONTENTS[suffix])) == EXPECTED[suffix]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv"])
@pytest.mark.parametrize("coding", ["utf-16", "utf-32"])
@pytest.mark.parametrize("packed", [bytes, gzip.compress])
def test_utf_16_with_a_byte_order_mark(tmp_path, suffix, coding, packed):
    text = CONTENTS[suffix].decode()
    assert rows(write(tmp_path / f"a{suffix}", packed(text.encode(coding)))) == EXPECTED[suffix]
    big = "\ufeff".encode("utf-16-be") + text.encode("utf-16-be")
    assert rows(write(tmp_path / f"b{suffix}", packed(big))) == EXPECTED[suffix]


def test_half_a_pair_in_utf_16_is_a_bad_line(tmp_path):
    data = b"\xff\xfe" + '{"a": "x"}\n{"a": "\ud800"}\n'.encode("utf-16-le", "surrogatepass")
    assert outcome(write(tmp_path / "a.jsonl", data)) == [{"a": "x"}, ("line 2", "not UTF-8")]


def test_broken_elements_of_a_json_array(tmp_path):
    text = (
        b'[\n{"a": "[,\\\\"},\n{"a": tru},\n,[1],null, {"a": "\xff"}, {"a": 1} {"a": 2}, {"a": [1}, 3],{"a": "\\""},\n]'
    )
    bad = "malformed line"
    assert outcome(write(tmp_path / "a.json", text)) == [
        {"a": "[,\\"},
        ("record 2", bad),
        ("record 3", bad),
        ("record 4", "wrong type"),
        ("record 5", "wrong type"),
        ("record 6", "not UTF-8"),
        ("record 7", bad),
        ("record 8", bad),
        {"a": '"'},
        ("record 10", bad),
    ]
    opened = open_rows(str(tmp_path / "a.json"))
    for index, message in ((1, "line 3.*repair"), (2, "line 3.*comma"), (9, "line 4.*comma")):
        with pytest.raises(BadExample, match=message):
            opened.row(index)


def test_text_rows_travel_to_another_process_by_their_file(tmp_path):
    write(tmp_path / "a.jsonl", "".join(f'{{"a": {n}, "text": "{"x" * 1000}"}}\n' for n in range(20)))
    rows = TextRows(PlainFile(tmp_path / "a.jsonl", text=True), ".jsonl")
    rows.row(3)
    sent = pickle.dumps(rows)
    assert len(sent) < 2000, "its content stays where it is"
    assert pickle.loads(sent).row(19)["a"] == 19 and pickle.loads(sent).where(19) == rows.where(19)


def test_columns_of_several_files(tmp_path):
    write(tmp_path / "a.jsonl", '{"a": 1}')
    write(tmp_path / "b.parquet", as_parquet(RECORDS))
    assert open_rows(str(tmp_path)).columns is None
    write(tmp_path / "c.parquet", as_parquet([{"x": 1, "output": "b"}]))
    assert open_rows(str(tmp_path / "?.parquet"), {"x"}).columns == ["instruction", "output", "x"]


@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\n\n \n"])
def test_line_ends(tmp_path, end):
    assert rows(write(tmp_path / "a.jsonl", '{"a": 1}\r\n{"a": 2}' + end)) == [{"a": 1}, {"a": 2}]
    assert rows(write(tmp_path / "a.csv", "a,b\r\n1,2\n3,4" + end.strip(" "))) == [
        {"a": "1", "b": "2"},
        {"a": "3", "b": "4"},
    ]


def test_folders_and_patterns_in_order(tmp_path):
    (tmp_path / "deep").mkdir()
    for name, number in [("b.jsonl", 2), ("a.jsonl", 1), ("deep/c.jsonl", 3), (".hidden.jsonl", 9)]:
        write(tmp_path / name, json.dumps({"n": number}))
    write(tmp_path / "README.md", "hello")
    assert rows(tmp_path) == [{"n": 1}, {"n": 2}]
    assert rows(tmp_path / "?.jsonl") == [{"n": 1}, {"n": 2}]
    assert rows(tmp_path / "**" / "*.jsonl") == [{"n": 1}, {"n": 2}, {"n": 3}]
    assert open_rows(str(tmp_path)).where(1).endswith("b.jsonl, line 1")


@pytest.mark.parametrize(
    "name, data, message",
    [
        ("a.jsonl", b"", "empty"),
        ("a.jsonl", b"\n \n\n", "records"),
        ("a.jsonl", b"\xef\xbb\xbf", "records"),
        ("a.jsonl.gz", gzip.compress(b"", mtime=0), "empty"),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}' * 99, mtime=0)[:-9], "unzipped"),
        ("a.jsonl", gzip.compress(b'{"a": 1}' * 99, mtime=0)[:-9], "unzipped"),  # whatever its name
        ("a.jsonl.zst", zstd(b'{"a": 1}\n' * 99)[:-3], "unzipped"),
        ("a.jsonl.zst", zstd(b'{"a": 1}\n' * 99) + b"more", "unzipped"),
        ("a.jsonl", b"PK\x03\x04.....", "zip archive.*unpack"),
        ("a.csv", b"\xfd7zXZ\x00...", "xz: unpack"),
        ("a.csv", "text,label\n".encode("utf-16-be"), "UTF-16"),  # without a byte-order mark
        ("a.csv", "text,label\n".encode("utf-16")[:-1], "UTF-16.*UTF-8"),
        ("a.csv", b"text,label\ra film,good\r", r"\\r"),
        ("a.csv", b"a,b\n", "records"),
        ("a.csv", b"\na,b\n1,2\n", "line 1"),
        ("a.csv", b"a,a\n1,2\n", "line 1.*'a'"),
        ("a.csv", b'"a,b\n1,2\n', "line 1"),
        ("a.csv", b"a,\xff\n1,2\n", "line 1.*0xff"),
        ("a.json", b"[]", "records"),
        ("a.json", b'{"a": 1}', "line 1.*array"),
        ("a.json", b'\n{"a": 1}\n{"a": 2}', "line 2.*jsonl"),
        ("a.json", b"[" * 100_000, "not closed.*incomplete"),
        ("a.json", b'[\n{"a": "b}]\n', "line 3.*text is not closed"),
        ("a.json", b'[{"a": 1}]\n [', r"line 2.*'\['.* follows the array"),
        ("a.parquet", b"PAR1 not really", "Parquet"),
        ("a.parquet", as_parquet(RECORDS)[:-20], "Parquet"),
        ("a.txt", b"hello", ".txt"),
        ("a", b"hello", "jsonl"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, data, message):
    with pytest.raises(ValueError, match=message) as caught:
        open_rows(str(write(tmp_path / name, data)))
    assert name in str(caught.value)


def test_an_empty_parquet_file(tmp_path):
    pq.write_table(pa.table({"a": pa.array([], pa.string())}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="records"):
        open_rows(str(tmp_path / "a.parquet"))


def test_places_without_data(tmp_path):
    with pytest.raises(ValueError, match="jsonl"):
        open_rows(str(tmp_path / "数据 🎬.jsonl"))
    with pytest.raises(ValueError, match="jsonl"):
        open_rows(str(tmp_path / "*.jsonl"))
    with pytest.raises(ValueError, match="nothing"):
        open_rows(str(tmp_path))
    (tmp_path / "notes.md").touch()
    with pytest.raises(ValueError, match="notes.md"):
        open_rows(str(tmp_path))
    (tmp_path / "state.json").touch()
    (tmp_path / "dataset_info.json").touch()
    with pytest.raises(ValueError, match="kind: datasets"):
        open_rows(str(tmp_path))
    with pytest.raises(ValueError, match="path"):
        open_rows("a\x00b")


def test_paths_that_are_meant_otherwise(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.csv").touch()
    hints = {"ftp://example.org/a.csv": "https://", "stanfordnlp/imdb": "kind: datasets", "data/a.csv": r"\)\.$"}
    for path, hint in {**hints, "a.csv,b.csv": r"\[a.csv, b.csv\]", "a.csv b.csv": r"\[a.csv, b.csv\]"}.items():
        with pytest.raises(ValueError, match=hint):
            open_rows(path)


def test_broken_lines_of_jsonl(tmp_path):
    good = b'{"a": 1}'
    lines = [
        good,
        b"",
        b"{",
        b"[1]",
        b"null",
        b'{"a": "\xff"}',
        b"[" * 100_000,
        b'{"a": ' + b"9" * 5000 + b"}",
    ]
    lines += [b'{"a": "x\x00"}', b"\xef\xbb\xbf" + good, good + good, b"  " + good + b" "]
    found = outcome(write(tmp_path / "a.jsonl", b"\n".join(lines)))
    malformed = "malformed line"
    assert found == [
        {"a": 1},
        ("line 2", malformed),
        ("line 3", malformed),
        ("line 4", "wrong type"),
        ("line 5", "wrong type"),
        ("line 6", "not UTF-8"),
        ("line 7", malformed),
        ("line 8", malformed),
        ("line 9", malformed),
        ("line 10", malformed),
        ("line 11", malformed),
        {"a": 1},
    ]


def test_broken_lines_of_csv(tmp_path):
    text = (
        b"a,b\n"
        b"1,2\n"
        b"1\n"  # line 3: too few
        b"1,2,3\n"  # line 4: too many
        b'"two\nlines",2\n'  # lines 5 and 6
        b"\n"  # line 7: blank
        b'1,"never closed\n'  # line 8
        b"5,6\n"
        b'"x"y,2\n'  # line 10: text behind a closed quote
        b"\xff,2\n"  # line 11
        b'"\xe7\x94\xb5\n\xff",2\n'  # lines 12 and 13
        b"old\rmac,2\n"  # line 14
        b"7,8\n"
    )
    bad = "malformed line"
    assert outcome(write(tmp_path / "a.csv", text)) == [
        {"a": "1", "b": "2"},
        ("line 3", bad),
        ("line 4", bad),
        {"a": "two\nlines", "b": "2"},
        ("line 7", bad),
        ("line 8", bad),
        {"a": "5", "b": "6"},
        ("line 10", bad),
        ("line 11", "not UTF-8"),
        ("line 12", "not UTF-8"),
        ("line 14", bad),
        {"a": "7", "b": "8"},
    ]
    opened = open_rows(str(tmp_path / "a.csv"))
    with pytest.raises(BadExample, match="0xff.* 1 of line 13"):
        opened.row(9)
    with pytest.raises(BadExample, match="1 cells"):
        opened.row(1)


def test_a_tsv_has_no_quoting(tmp_path):
    text = 'text\tlabel\n"Go, said the dog\tpos\nthe cat sat\tneg\nhello to a mat"\tneg\ntwo\tand\ttwo\n\nlast\tpos\n'
    found = outcome(write(tmp_path / "a.tsv", text))
    assert [row["text"] for row in found if isinstance(row, dict)] == [
        '"Go, said the dog', "the cat sat", 'hello to a mat"', "last",
    ]  # fmt: skip
    assert found[3:5] == [("line 5", "malformed line"), ("line 6", "malformed line")]


def test_records_of_several_lines_are_counted(tmp_path, caplog):
    write(tmp_path / "a.csv", b'text,label\none,a\n"Go, said,pos\nthe cat,neg\nhello",neg\n"two\nlines",b\n')
    assert len(rows(tmp_path / "a.csv")) == 3
    (said,) = [record.getMessage() for record in caplog.records]
    assert re.search("a.csv.* 2 of 3 .*line 3.* 3", said)
    caplog.clear()
    assert len(rows(write(tmp_path / "b.csv", b'text,label\n"one, two",a\nb,c\n\n'))) == 2 and not caplog.records


def test_a_key_that_occurs_twice_is_an_error(tmp_path):
    assert outcome(write(tmp_path / "a.jsonl", '{"a": 1, "b": {"c": 1, "c": 2}}\n')) == [("line 1", "malformed line")]
    assert outcome(write(tmp_path / "a.json", '[{"c": 1, "c": 2}]')) == [("record 1", "malformed line")]


def test_long_lines(tmp_path):
    text = "长" * 3_500_000  # 10 MB
    limit = csv.field_size_limit()
    assert rows(write(tmp_path / "a.jsonl", json.dumps({"a": text}, ensure_ascii=False) + '\n{"a": 1}'))[1] == {"a": 1}
    assert rows(write(tmp_path / "a.csv", as_csv([{"a": text, "b": "x"}]))) == [{"a": text, "b": "x"}]
    assert csv.field_size_limit() == limit


def test_a_csv_with_the_index_column_of_pandas(tmp_path):
    assert rows(write(tmp_path / "a.csv", ",a\n0,x\n")) == [{"": "0", "a": "x"}]


def test_random_csv_against_the_standard_reader(tmp_path):
    draw = random.Random(0)

    def cell():
        return "".join(draw.choice('a",\n\r电 ') for _ in range(draw.randrange(6)))

    for _ in range(50):
        records = [{"a": cell(), "b": cell(), "c": "."} for _ in range(draw.randrange(1, 8))]
        # Where lines end in \n, the writer of Python 3.11 leaves a lone \r unquoted: quote everything.
        style = draw.choice([("\r\n", csv.QUOTE_MINIMAL), ("\n", csv.QUOTE_ALL)])
        path = write(tmp_path / "a.csv", as_csv(records, ",", *style))
        with open(path, newline="", encoding="utf-8") as stream:
            expected = list(csv.DictReader(stream))
        assert rows(path) == expected == records


def test_a_file_that_changes_under_us(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"a": 1}\n{"a": 2}\n')
    opened = open_rows(str(path))
    write(path, '{"a": 1}\n')
    with pytest.raises(ValueError, match="changed"):
        opened.row(1)


def test_nested_and_null_columns_of_parquet(tmp_path):
    records = [{"a": None, "m": [{"role": "user", "content": None}], "x": 1}, {"a": "b", "m": None, "x": 2}]
    path = write(tmp_path / "a.parquet", as_parquet(records))
    assert rows(path) == records
    some = open_rows(str(path), {"a", "zzz"})
    assert some.row(1) == {"a": "b"} and list(some.columns) == ["a", "m", "x"]


def test_parallel_texts(tmp_path):
    write(tmp_path / "a.en", "Hi.\r\nOne\u2028line.\n\n")
    (tmp_path / "a.zh.gz").write_bytes(gzip.compress("\ufeff嗨。\n一行🎬。\n".encode()))
    source = SourceConfig(path=str(tmp_path / "a.en"), targets=str(tmp_path / "a.zh.gz"))
    source.fields.instruction = "Translate: {instruction}"
    opened = open_sources([source])
    assert [(e.instruction, e.output) for e in (opened[0], opened[1])] == [
        ("Translate: Hi.", "嗨。"),
        ("Translate: One\u2028line.", "一行🎬。"),
    ]

    write(tmp_path / "b.zh", "嗨。\n")
    source = SourceConfig(path=str(tmp_path / "a.en"), targets=str(tmp_path / "b.zh"))
    with pytest.raises(ValueError, match=r"a\.en and .*b\.zh.* 2 and 1"):
        open_sources([source])
    write(tmp_path / "b.zh", " \n嗨。\n")
    with pytest.raises(ValueError, match=r"a\.en, line 1 \(.*b\.zh, line 1\), field 'output': empty text"):
        open_sources([source])
    skipping = open_sources([source], on_bad_example="skip")
    assert len(skipping) == 1 and [row.reason for row in skipping.skipped] == ["empty text"]
    with pytest.raises(ValueError, match="targets"):
        open_sources([SourceConfig(path=str(tmp_path / "a.en"), targets=str(tmp_path))])
    with pytest.raises(ValueError, match="targets"):
        open_sources([SourceConfig(path="glue", kind="datasets", targets="b.zh")])
