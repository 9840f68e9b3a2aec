"""JSON lines and YAML 1.2, read strictly."""

import gzip
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from instructrec_jax.answering.desk import read_actions
from instructrec_jax.parsing import YamlDumper, json_lines, parse_yaml, raw_lines, read_json_lines, read_yaml
from instructrec_jax.preparation.wording.wordings import load_wordings

DEEP = ["[" * 100_000, "- " * 60_000, "{a: " * 5_000, "a: &a [*a]", "? {a: b}\n: c", "{[a]: b}", "{? {x: y} : z}"]
ALIASES = ["a0: &a0 [x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12))]
CHAIN = ["a0: &a0 [x]", *(f"a{n}: &a{n} [*a{n - 1}]" for n in range(1, 3000))]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[yes, no, on, off, y, N]", ["yes", "no", "on", "off", "y", "N"]),
        ("[true, False, TRUE]", [True, False, True]),
        ("[12:30, 1_000, 2024-05-01, 0o8, =]", ["12:30", "1_000", "2024-05-01", "0o8", "="]),
        ("[1e-4, .5, 0x1f, 010, 0o17, +3, -1.5E3]", [1e-4, 0.5, 31, 10, 15, 3, -1500.0]),
        ("[~, null, '', 'yes']", [None, None, "", "yes"]),
        ("[.inf, -.INF]", [math.inf, -math.inf]),
        ("a: &x {b: 1, c: 2}\nd: {<<: *x, b: 3}", {"a": {"b": 1, "c": 2}, "d": {"b": 3, "c": 2}}),
        ("", None),
        ("0: no\n1: yes", {0: "no", 1: "yes"}),
    ],
)
def test_yaml_is_that_of_1_2(text: str, value: Any) -> None:
    assert parse_yaml(text, "x") == value
    assert parse_yaml(yaml.dump(value, Dumper=YamlDumper), "x") == value


@pytest.mark.parametrize(
    "text",
    [
        *DEEP,
        "\n".join(ALIASES),
        "\n".join(CHAIN),
        *("a: 1\na: 2", "1: 2\n1: 3", "null: 3\n~: 4", "a: *b", "<<: 3", "'", "--- 1\n--- 2", "\x00", "a:\n\t- b"),
        *("!!python/object:os.system x", "!!bool maybe", "!!int x", "!!float x", "!!timestamp 2024-13-01", "!!map [1]"),
        *("a: !!seq 3", "!!str {a: b}", "!!set {a, b}", "!!binary x", "9" * 5000),
    ],
)
def test_yaml_that_is_refused_names_its_file(text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    for read in (read_yaml, lambda path: read_actions(path, ["pay"]), load_wordings):
        with pytest.raises(ValueError, match=r"a\.yaml"):
            read(path)


def test_yaml_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.yaml"):
        read_yaml(tmp_path / "none.yaml")
    (tmp_path / "a.yaml").write_bytes("a: é".encode("latin-1"))
    with pytest.raises(ValueError, match=r"a\.yaml.*UTF-8"):
        read_yaml(tmp_path / "a.yaml")
    (tmp_path / "a.yaml").write_bytes(b"\xef\xbb\xbfa: 1")
    assert read_yaml(tmp_path / "a.yaml") == {"a": 1}


def test_json_lines(tmp_path: Path) -> None:
    lines = [
        b'\xef\xbb\xbf{"a": 1}\r\n',
        b"\n",
        b"[1]\n",
        b'{"a": 1, "a": 2}\n',
        b"[" * 9999,
        b'{"a": "\xff"}',
        b'{"b": 2}',
    ]
    found = dict(json_lines(lines))
    assert found[1] == {"a": 1} and found[7] == {"b": 2} and sorted(found) == [1, 3, 4, 5, 6, 7]
    assert all(isinstance(found[number], ValueError) for number in (3, 4, 5, 6))
    assert "'a'" in str(found[4])
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"a": 1}\n{"b": \n'))
    with pytest.raises(ValueError, match=r"a\.jsonl\.gz:2: "):
        list(read_json_lines(path))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"a\.jsonl\.gz.*gzip"):
        list(raw_lines(path))
