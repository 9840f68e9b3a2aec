"""Which layers of a network are stacked together: those of one repeating pattern."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Block:
    """The `count` layers first, first + step, …, stored as one module with a leading "layers" axis."""

    name: str
    first: int
    step: int
    count: int

    @property
    def layers(self) -> range:
        return range(self.first, self.first + self.step * self.count, self.step)


def plan_blocks(kinds: Sequence[Hashable], start: int = 0, stop: int | None = None) -> tuple[tuple[Block, ...], ...]:
    """Groups the layers start .. stop - 1 so that as few layer bodies as possible are compiled.

    A group is a pattern of blocks that repeats `count` times and is scanned; layers before and after the repeating
    pattern form unrolled groups (count 1). Example: kinds "g0 l l g l l g l" (with a special first layer) become
    [g0] · [l l g]×2 · [l].
    """
    kinds = kinds[start:stop]
    n = len(kinds)
    best = (n, n, 1, 1)  # bodies compiled, prefix, period, repeats
    for prefix in range(n):
        for period in range(1, (n - prefix) // 2 + 1):
            repeats = 1
            pattern = kinds[prefix : prefix + period]
            while kinds[prefix + repeats * period :][:period] == pattern:
                repeats += 1
            bodies = n - period * (repeats - 1)
            if repeats > 1 and bodies < best[0]:
                best = (bodies, prefix, period, repeats)
    _, prefix, period, repeats = best

    def group(first: int, size: int, count: int) -> tuple[Block, ...]:
        return tuple(Block(f"block{i}", i, size, count) for i in range(start + first, start + first + size))

    if repeats == 1:
        return (group(0, n, 1),) if n else ()
    end = prefix + period * repeats
    groups = (group(0, prefix, 1), group(prefix, period, repeats), group(end, n - end, 1))
    return tuple(g for g in groups if g)
