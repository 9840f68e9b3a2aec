"""Readers of users' files: JSON, JSON lines, YAML and Parquet, one for each format.

The readers are strict: duplicate keys, extreme nesting and bytes that are not UTF-8 are errors. Every error is a
ValueError that names the file and, if known, the line.
"""

import gzip
import json
import re
import zlib
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from io import BufferedIOBase
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

BOM = b"\xef\xbb\xbf"
DEEPEST = 50  # maximum levels of a YAML file
LARGEST = 1_000_000  # maximum number of values of a YAML file with its aliases expanded


# ---------------------------------------------------------------- lines


@contextmanager
def _opened(path: Path) -> Iterator[BufferedIOBase]:
    """A file, unzipped if it is .gz. Raises ValueError for one that cannot be read or unzipped."""
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
            yield file
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is not a complete gzip file ({error}). Download or compress it again.") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror or error}).") from None


def raw_lines(path: Path) -> Iterator[bytes]:
    """The lines of a file, gzipped (.gz) or not, with their line ends and without a byte-order mark.

    Raises ValueError for a file that cannot be read or unzipped.
    """
    with _opened(path) as file:
        for number, line in enumerate(file):
            yield line if number else line.removeprefix(BOM)


def raw_blocks(path: Path, size: int) -> Iterator[bytes]:
    """The same lines in blocks of whole lines, each of about `size` bytes."""
    with _opened(path) as file:
        first = True
        while block := file.read(size):
            block += file.readline()
            yield block.removeprefix(BOM) if first else block
            first = False


def text_lines(
    path: Path, encoding: str = "utf-8", lines: Iterable[bytes] | None = None, before: int = 0
) -> Iterator[str]:
    """The lines of a text file with their line ends. Raises ValueError naming a line in another encoding.

    Args:
      lines: a part of the file, after `before` lines; None: the whole file.
    """
    for number, line in enumerate(raw_lines(path) if lines is None else lines, before + 1):
        try:
            yield line.decode(encoding)
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}:{number}: not {encoding} ({error}). Convert the file to UTF-8.") from None


# ---------------------------------------------------------------- JSON


def json_value(text: str) -> object:
    """A JSON value. Raises ValueError with the problem, without the file: the caller adds it."""
    try:
        return json.loads(text, object_pairs_hook=_distinct)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        around = text[max(0, error.pos - 20) : error.pos + 20]
        raise ValueError(f"{error.msg} at {line}character {error.colno}, near {around!r}") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(str(error)[:200]) from None


def _distinct(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)[:60]!r} occurs twice")
    return found


def json_lines(lines: Iterable[bytes]) -> Iterator[tuple[int, dict[str, object] | ValueError]]:
    """(line number from 1, its JSON object or a ValueError with the problem). Skips blank lines.

    The errors name neither file nor line: the caller adds them.
    """
    for number, raw in enumerate(lines, 1):
        if not raw.strip():
            continue
        try:
            value = json_value((raw if number > 1 else raw.removeprefix(BOM)).decode("utf-8"))
        except ValueError as error:  # UnicodeDecodeError is one
            yield number, ValueError(f"not JSON in UTF-8 ({str(error)[:200]})")
            continue
        if isinstance(value, dict):
            yield number, value
        else:
            yield number, ValueError(f"expected a JSON object, found {raw.strip()[:40]!r}")


def read_json_lines(path: Path) -> Iterator[tuple[str, dict[str, object]]]:
    """("file:line", JSON object) of each line of a file. Raises ValueError at the first line that is not an object."""
    for number, value in json_lines(raw_lines(path)):
        if isinstance(value, ValueError):
            raise ValueError(f"{path}:{number}: {value}.")
        yield f"{path}:{number}", value


# ---------------------------------------------------------------- YAML


class YamlLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML 1.2's core schema: `yes`, `no`, `on`, `off`, `12:30`, `1_000` and dates are texts."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
    yaml_constructors: dict[str | None, Callable[..., object]] = {}

    def mapping(self, node: yaml.MappingNode) -> dict[Hashable, object]:
        _expect(node, yaml.MappingNode)
        seen: set[Hashable] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a scalar", key.start_mark)
            name = self.construct_object(key) if key.tag != _MERGE else key.value
            if name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {name!r} occurs twice", key.start_mark)
            seen.add(name)
        self.flatten_mapping(node)  # <<: *defaults
        return {self.construct_object(k): self.construct_object(v, deep=True) for k, v in node.value}

    def sequence(self, node: yaml.SequenceNode) -> list[object]:
        _expect(node, yaml.SequenceNode)
        return [self.construct_object(entry, deep=True) for entry in node.value]

    def boolean(self, node: yaml.ScalarNode) -> bool:
        return _truth[self.construct_scalar(node).lower()]

    def integer(self, node: yaml.ScalarNode) -> int:
        text = self.construct_scalar(node)
        return int(text, 0) if re.match("0[ox]", text) else int(text)

    def floating(self, node: yaml.ScalarNode) -> float:
        return float(re.sub(r"\.(?=inf|nan)", "", self.construct_scalar(node).lower()))

    def nothing(self, node: yaml.ScalarNode) -> None:
        return None


def _expect(node: yaml.Node, kind: type[yaml.Node]) -> None:
    """Raises an error for a tag that does not fit its node, such as `!!map 3`."""
    if not isinstance(node, kind):
        raise yaml.constructor.ConstructorError(None, None, f"this is not a {node.tag}", node.start_mark)


_TAG = "tag:yaml.org,2002:"
_MERGE = _TAG + "merge"
_truth = {"true": True, "false": False}
# Types of plain scalars by YAML 1.2.2, section 10.3.2: (tag, pattern, first characters).
_PLAIN = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.")),
    ("merge", "<<", ["<"]),
)
for _name, _pattern, _first in _PLAIN:
    YamlLoader.add_implicit_resolver(_TAG + _name, re.compile(f"^(?:{_pattern})$"), _first)
for _name, _make in (
    ("map", YamlLoader.mapping),
    ("seq", YamlLoader.sequence),
    ("str", YamlLoader.construct_scalar),
    ("bool", YamlLoader.boolean),
    ("int", YamlLoader.integer),
    ("float", YamlLoader.floating),
    ("null", YamlLoader.nothing),
):
    YamlLoader.add_constructor(_TAG + _name, _make)
YamlLoader.add_constructor(None, yaml.constructor.SafeConstructor.construct_undefined)  # any other tag: an error


class YamlDumper(yaml.SafeDumper):
    """Quotes every text that YAML 1.1 or 1.2 would read as another type."""


YamlDumper.add_multi_representer(dict, yaml.SafeDumper.represent_dict)  # also subclasses such as OrderedDict
for _name, _pattern, _first in _PLAIN:
    YamlDumper.add_implicit_resolver(_TAG + _name, re.compile(f"^(?:{_pattern})$"), _first)


def read_yaml(path: Path) -> object:
    """The content of a YAML file as dictionaries, lists, texts, numbers, booleans and None.

    Raises ValueError naming the file: unreadable, invalid YAML, a duplicate key, a key that is not a scalar, too deep.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}): save it as UTF-8.") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror or error}).") from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, where: str) -> object:
    """The content of a YAML text, as `read_yaml`. `where`: name of the text in errors, a file or an option."""
    try:
        depth = 0
        for event in yaml.parse(text, YamlLoader):  # checked before loading, which recurses in C and could crash
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:
                raise ValueError(f"{where}, line {event.start_mark.line + 1}: nested more than {DEEPEST} levels deep.")
        value = yaml.load(text, YamlLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        is_form = isinstance(error, yaml.scanner.ScannerError | yaml.parser.ParserError)
        advice = " Check the indentation and the quotes." if is_form else ""
        raise ValueError(f"{where}{line}: invalid YAML: {error.problem or error.context}.{advice}") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{where}: invalid YAML: {' '.join(str(error).split())}.") from None
    except (RecursionError, KeyError) as error:
        raise ValueError(f"{where}: invalid YAML ({type(error).__name__}: {error}).") from None
    except ValueError as error:
        raise error if str(error).startswith(where) else ValueError(f"{where}: invalid YAML: {error}.") from None
    _measure(value, where, {}, set(), 0)
    return value


def _measure(value: object, where: str, sizes: dict[int, int], inside: set[int], depth: int) -> int:
    """The number of values inside a value. Raises ValueError if aliases make it too large, too deep or infinite."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) in inside or depth > DEEPEST:
        raise ValueError(f"{where}: aliases nest it more than {DEEPEST} levels deep.")
    if id(value) not in sizes:
        entries = value.values() if isinstance(value, dict) else value
        sizes[id(value)] = 1 + sum(_measure(entry, where, sizes, inside | {id(value)}, depth + 1) for entry in entries)
    if sizes[id(value)] > LARGEST:
        raise ValueError(f"{where}: it holds more than {LARGEST:,} values with its aliases expanded.")
    return sizes[id(value)]


# ---------------------------------------------------------------- Parquet


def open_parquet(path: Path | str, content: Path | None = None, *, buffer_size: int = 0) -> pq.ParquetFile:
    """A Parquet file. Raises ValueError naming a file that is not Parquet.

    Args:
      content: where its bytes are, if they were unpacked from `path`.
      buffer_size: bytes that are read at once of a column; 0: all of a row group's.
    """
    try:
        found = pq.ParquetFile(content or path, buffer_size=buffer_size)
        names = found.schema_arrow.names
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"file {path}: unreadable Parquet ({error}); write it again.") from None
    if len(names) != len(set(names)):
        raise ValueError(f"file {path}: two columns share a name ({', '.join(names)}); rename one.")
    return found


def read_parquet(path: Path, columns: list[str] | None = None) -> pa.Table:
    """Columns of a Parquet file (None: all). Raises ValueError naming a file that is damaged or incomplete."""
    found = open_parquet(path)
    try:
        table = found.read(columns=columns)
        table.validate(full=True)  # otherwise, invalid UTF-8 is found only when a text is used
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"file {path}: unreadable Parquet ({error}); write it again.") from None
    return table


def parquet_lists(path: Path) -> dict[str, list[object]]:
    """Column -> values of a Parquet file, as Python objects. Raises ValueError like `read_parquet`."""
    table = read_parquet(path)
    lists: dict[str, list[object]] = {}
    for name in table.column_names:
        try:
            lists[name] = table.column(name).to_pylist()
        except (ValueError, OverflowError, TypeError, pa.ArrowException) as error:
            raise ValueError(f"file {path}, column {name!r}: unreadable values ({error}).") from None
    return lists
