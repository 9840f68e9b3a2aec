"""A sequence whose entries are made when they are read."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar, overload

T = TypeVar("T")


class Mapped(Sequence[T], Generic[T]):
    """make(a, b, ...) for the entries a, b, ... of sequences or arrays of one length; only these are in memory.

        names = Mapped(lambda e: e.example.id, encoded)

    Raises ValueError where the lengths differ.
    """

    def __init__(self, make: Callable[..., T], *parts: Any) -> None:
        self._make, self._parts = make, parts
        lengths = [len(part) for part in parts]
        if len(set(lengths)) != 1:
            raise ValueError(f"the entries of sequences of the lengths {lengths} cannot be paired.")

    def __len__(self) -> int:
        return len(self._parts[0])

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        found = [part[index] for part in self._parts]
        return list(map(self._make, *found)) if isinstance(index, slice) else self._make(*found)

    def __iter__(self) -> Iterator[T]:
        return map(self._make, *self._parts)
