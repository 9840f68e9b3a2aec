"""What a caller from Python gives as one value, a list of them or a table, as a list."""

from collections.abc import Iterable, Mapping, Set

from instructrec_jax.data.example import show


def listed(values: object, name: str, kinds: tuple[type, ...], wanted: str, *, single: bool = True) -> list[object]:
    """The values as a list; one value is a list of one, a pandas table the list of its records.

    Args:
      name: of the argument, for errors.
      kinds: types of a value. Tables need Mapping among them.
      wanted: the kinds in words.
      single: whether one value may stand for a list of one.

    Raises ValueError for anything else, naming the first entry of another type; bytes and sets are refused, too.
    """
    should = f"should be {wanted}"
    if isinstance(values, kinds):
        if single:
            return [values]
        raise ValueError(f"{name} is one {type(values).__name__}, but {should}.")
    if hasattr(values, "columns") and hasattr(values, "to_dict"):
        if Mapping not in kinds:
            raise ValueError(f"{name} is a table, but {should}: give one of its columns, such as table['text'].")
        values = values.to_dict("records")
    if isinstance(values, str | bytes | Mapping | Set) or not isinstance(values, Iterable):
        raise ValueError(f"{name} is {show(values)}, but {should}.")
    entries = list(values)
    for number, entry in enumerate(entries):
        if not isinstance(entry, kinds):
            raise ValueError(f"{name}[{number}] is {show(entry)}, but {name} {should}.")
    return entries


def check_type(value: object, name: str, kinds: tuple[type, ...], wanted: str) -> None:
    """Raises ValueError for a value of another type."""
    if not isinstance(value, kinds) or isinstance(value, bool):
        raise ValueError(f"{name} is {show(value)}, but should be {wanted}.")
