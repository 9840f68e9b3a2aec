import csv
import gzip
import json
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from instructrec_jax.preparation.readers import BadLines, read_table

ITEMS = {
    "sku": ["10", "11", "12"],
    "label": ["Lamp, The", "Chair (1999)", 'Say "hi"'],
    "made_by": ["Acme", "", "Bolt"],
    "price": ["9.5", "", "3"],
    "genres": ["Light|Home", "Home", ""],
    "code": ["007", "12", "13"],
}
ACTIONS = {"who": ["u1", "u2", "u1"], "what": ["11", "10", "12"], "at": ["30", "20", "10"], "stars": ["5", "1", "3.5"]}
COLUMNS = {"user_column": "who", "item_column": "what", "time_column": "at", "rating_column": "stars"} | {
    "id_column": "sku",
    "title_column": "label",
    "text_columns": ["made_by", "price"],
}
NUMBERS = {"price", "at", "stars"}


def typed(columns):
    """What Parquet and JSON lines would hold: numbers as numbers, lists as lists, None where there is nothing."""

    def one(name, value):
        if name == "genres":
            return value.split("|") if value else None
        return None if value == "" else float(value) if name in NUMBERS else value

    return {name: [one(name, value) for value in column] for name, column in columns.items()}


def write(path, columns):
    rows = list(zip(*columns.values(), strict=True))
    ending = path.name.removesuffix(".gz").rpartition(".")[2]
    if ending == "parquet":
        pq.write_table(pa.table(typed(columns)), path)
        return
    with (gzip.open if path.suffix == ".gz" else open)(path, "wt", encoding="utf-8", newline="") as file:
        if ending == "csv":
            csv.writer(file).writerows([list(columns), *rows])
        elif ending == "tsv":
            file.write("".join("\t".join(row) + "\n" for row in [list(columns), *rows]))
        else:
            values = typed(columns)
            for n in range(len(rows)):
                file.write(json.dumps({k: v[n] for k, v in values.items() if v[n] is not None}) + "\n")


@pytest.mark.parametrize("ending", ["csv", "csv.gz", "tsv", "parquet", "jsonl", "jsonl.gz"])
def test_every_format_reads_alike(tmp_path, ending):
    write(tmp_path / f"interactions.{ending}", ACTIONS)
    write(tmp_path / f"items.{ending}", ITEMS)
    items, interactions = read_table(tmp_path, **COLUMNS)
    assert items.ids == ["10", "11", "12"] and items.titles == ["The Lamp", "Chair", 'Say "hi"']
    assert items.texts == [
        "The Lamp. Made by: Acme. Price: 9.5.",
        "Chair (1999).",
        'Say "hi". Made by: Bolt. Price: 3.0.',
    ]
    assert items.facts == {
        "year": [None, 1999, None],
        "made_by": ["Acme", None, "Bolt"],
        "price": [9.5, None, 3.0],
        "genres": [["Light", "Home"], ["Home"], []],
        "code": ["007", "12", "13"],
    }
    assert interactions.user_ids == ["u1", "u2"]
    assert interactions.user.tolist() == [0, 1, 0] and interactions.item.tolist() == [1, 0, 2]
    assert interactions.timestamp.tolist() == [30, 20, 10] and interactions.rating.tolist() == [5, 1, 3.5]
    again = read_table(tmp_path / f"interactions.{ending}", items=tmp_path / f"items.{ending}", **COLUMNS)
    assert again[0] == items


def test_usual_names_need_no_mapping(tmp_path):
    (tmp_path / "log.csv").write_text("userId,parent_asin,ts\n1,7,5\n1,8,3\n")
    (tmp_path / "things.csv").write_text(
        "ItemID,Product_Title,Category,year\n7,Pen,\"['Office', 'Ink']\",1990\n8,Pot,,\n"
    )
    items, interactions = read_table(tmp_path / "log.csv", items=tmp_path / "things.csv")
    assert items.texts == ["Pen (1990). Category: Office, Ink.", "Pot."]
    assert items.facts == {"Category": [["Office", "Ink"], []], "year": [1990, None]}
    assert interactions.timestamp.tolist() == [5, 3] and interactions.rating is None


def test_times_as_dates(tmp_path):
    write(tmp_path / "items.csv", ITEMS)
    (tmp_path / "interactions.csv").write_text(
        "user,item,date\nu,10,2020-01-02\nu,11,2020-01-01T12:00:00Z\nu,12,2020-01-01 12:00:00+02:00\n"
    )
    expected = [
        datetime(2020, 1, 2, tzinfo=UTC),
        datetime(2020, 1, 1, 12, tzinfo=UTC),
        datetime(2020, 1, 1, 10, tzinfo=UTC),
    ]
    _, interactions = read_table(tmp_path, id_column="sku", title_column="label")
    assert interactions.timestamp.tolist() == [moment.timestamp() for moment in expected]
    (tmp_path / "interactions.csv").unlink()
    table = {"user": ["u", "u"], "item": [10, None], "date": [datetime(2020, 1, 2), datetime(2020, 1, 1)]}
    pq.write_table(pa.table(table | {"item": pa.array([10.0, 11.0])}), tmp_path / "interactions.parquet")
    items, interactions = read_table(tmp_path, id_column="sku", title_column="label")
    assert [items.ids[n] for n in interactions.item] == ["10", "11"]  # 10.0 is 10
    assert interactions.timestamp.tolist() == [1577923200.0, 1577836800.0]


def test_nested_facts_become_text(tmp_path):
    (tmp_path / "interactions.csv").write_text("user,item\nu,1\n")
    (tmp_path / "items.jsonl").write_text(
        '{"id": 1, "title": "A", "more": {"x": [1]}, "mixed": 3}\n'
        '{"id": 2, "title": "B", "mixed": "three", "late": true}\n'
    )
    items, _ = read_table(tmp_path)
    assert items.ids == ["1", "2"]
    assert items.facts == {"more": ['{"x": [1]}', None], "mixed": ["3", "three"], "late": [None, "True"]}
    items.save(tmp_path)
    assert type(items).load(tmp_path) == items


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("interactions.csv", "u1,99,1,1\n", "interactions.csv:5: .*'99'"),
        ("interactions.csv", "u1,10,1\n", "interactions.csv:5: .*fields"),
        ("interactions.csv", ",10,1,1\n", "interactions.csv:5: .*user"),
        ("interactions.csv", "u1,10,,1\n", "interactions.csv:5: .*(rating|timestamp)"),
        ("interactions.csv", "u1,10,03/04/2020,1\n", "interactions.csv:5: .*'03/04/2020'"),
        ("interactions.csv", "u1,10,2020-13-40,1\n", "interactions.csv:5: .*'2020-13-40'"),
        ("interactions.csv", "u1,10,inf,1\n", "interactions.csv:5: .*not finite"),
        ("items.csv", "13,,,,,\n", "items.csv:5: .*'13'"),
        ("items.csv", "12,Pen,,,,\n", "items.csv:5: .*'12'"),
        ("items.csv", ",Pen,,,,\n", "items.csv:5: .*item"),
    ],
)
def test_broken_lines(tmp_path, name, more, message):
    write(tmp_path / "interactions.csv", ACTIONS)
    write(tmp_path / "items.csv", ITEMS)
    with open(tmp_path / name, "a") as file:
        file.write(more)
    with pytest.raises(ValueError, match=message):
        read_table(tmp_path, **COLUMNS)
    bad = BadLines(skip=True)
    items, interactions = read_table(tmp_path, bad, **COLUMNS)
    assert len(bad.skipped) == 1 and len(items) == 3 and len(interactions) == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"user_column": "whom"}, "'whom'.*who, what, at, stars"),
        ({"user_column": None}, "--user_column"),
        ({"item_column": None}, "--item_column"),
        ({"id_column": None}, "--id_column"),
        ({"title_column": None}, "--title_column"),
        ({"text_columns": ["colour"]}, "'colour'"),
        ({"items": "nowhere.csv"}, "nowhere.csv"),
    ],
)
def test_wrong_columns(tmp_path, settings, message):
    write(tmp_path / "interactions.csv", ACTIONS)
    write(tmp_path / "items.csv", ITEMS)
    with pytest.raises(ValueError, match=message):
        read_table(tmp_path, **{**COLUMNS, **settings})


def test_wrong_files(tmp_path):
    with pytest.raises(ValueError, match="interactions"):
        read_table(tmp_path)
    write(tmp_path / "interactions.csv", ACTIONS)
    with pytest.raises(ValueError, match="--items"):
        read_table(tmp_path)
    (tmp_path / "items.xlsx").write_bytes(b"PK")
    with pytest.raises(ValueError, match="items.xlsx.*.csv, .tsv, .parquet, .jsonl"):
        read_table(tmp_path, items=tmp_path / "items.xlsx")
    (tmp_path / "items.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(ValueError, match="items.parquet.*Parquet"):
        read_table(tmp_path)
    (tmp_path / "items.parquet").unlink()
    for name in ("items.csv", "items.jsonl"):
        (tmp_path / name).write_text("")
        with pytest.raises(ValueError, match="--id_column"):
            read_table(tmp_path, items=tmp_path / name)
    (tmp_path / "items.csv").write_text("id,title,title\n1,a,b\n")
    with pytest.raises(ValueError, match="'title'"):
        read_table(tmp_path, items=tmp_path / "items.csv")
