"""Collectives and memory traffic of a compiled program, from the text of its HLO.

Counts include loops: an instruction in a loop counts once per iteration.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

BYTES = {"pred": 1, "s8": 1, "u8": 1, "f8e4m3fn": 1, "f8e5m2": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2}
BYTES |= {"s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "s4": 1, "u4": 1}
KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
SILENT = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all"}

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
_SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?")


@dataclass
class Instruction:
    name: str
    shape: str
    kind: str
    rest: str  # operands and attributes
    root: bool

    @property
    def operands(self) -> list[str]:
        depth = 1
        for end, letter in enumerate(self.rest):
            depth += {"(": 1, ")": -1}.get(letter, 0)
            if not depth:
                return re.findall(r"%([\w.\-]+)", self.rest[:end])
        return []

    def attribute(self, name: str) -> str | None:
        found = re.search(rf"\b{name}=%?([\w.\-]+)", self.rest)
        return found[1] if found else None


@dataclass
class Program:
    """A program: computation name -> instructions.

    Attributes:
      entry: name of the entry computation.
      unbounded: assumed trip count of a loop whose bound is computed at run time.
    """

    computations: dict[str, list[Instruction]] = field(default_factory=dict)
    entry: str = ""
    unbounded: int = 1


def parse(text: str, unbounded: int = 1) -> Program:
    """Parses the text of `compiled.as_text()`. Raises ValueError if it contains no program."""
    program, current = Program(unbounded=unbounded), ""
    for line in text.splitlines():
        if found := _COMPUTATION.match(line):
            current = found[1]
            program.computations[current] = []
            if line.startswith("ENTRY"):
                program.entry = current
        elif current and (found := _INSTRUCTION.match(line)):
            root = line.lstrip().startswith("ROOT")
            program.computations[current].append(Instruction(found[1], found[2], found[3], found[4], root))
    if not program.entry:
        raise ValueError("the text is not a compiled program: it has no ENTRY computation.")
    return program


def shape_bytes(shape: str, *, in_main_memory: bool = False) -> list[int]:
    """Bytes of each array in a shape's text (several in a tuple).

    Args:
      in_main_memory: only arrays in HBM, not those in on-chip memory, whose layouts contain S(1) or the like.
    """
    sizes = []
    for kind, dims, layout in _SHAPE.findall(shape):
        if kind in BYTES and not (in_main_memory and "S(" in layout):
            count = 1
            for size in dims.split(",") if dims else []:
                count *= int(size)
            sizes.append(count * BYTES[kind])
    return sizes


def trips(instruction: Instruction, program: Program) -> int:
    """Trip count of a while loop: the compiler's, else the bound in the loop's condition."""
    if found := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', instruction.rest):
        return int(found[1])
    condition = program.computations.get(instruction.attribute("condition") or "", [])
    bounds = [int(m[1]) for i in condition if i.kind == "constant" and (m := re.match(r"(\d+)\)", i.rest))]
    return max(bounds, default=program.unbounded)


def executed(program: Program) -> Iterator[tuple[Instruction, str, int]]:
    """(instruction, name of its computation, number of executions), without instructions inside fusions."""

    def walk(name: str, times: int) -> Iterator[tuple[Instruction, str, int]]:
        for instruction in program.computations.get(name, []):
            yield instruction, name, times
            if instruction.kind == "while":
                yield from walk(instruction.attribute("body") or "", times * trips(instruction, program))
            elif instruction.kind == "conditional":
                branches = re.search(r"branch_computations=\{([^}]*)\}", instruction.rest)
                names = re.findall(r"%([\w.\-]+)", branches[1]) if branches else []
                names += [n for n in map(instruction.attribute, ("true_computation", "false_computation")) if n]
                if names:  # one of them runs
                    yield from walk(max(names, key=lambda n: len(program.computations.get(n, []))), times)
            elif instruction.kind in ("call", "async-start"):
                yield from walk(instruction.attribute("to_apply") or instruction.attribute("calls") or "", times)
            elif instruction.kind == "fusion" and _holds_collective(program, instruction):
                yield from walk(instruction.attribute("calls") or "", times)

    yield from walk(program.entry, 1)


def _holds_collective(program: Program, fusion: Instruction) -> bool:
    """Whether a fusion contains collectives, as on TPUs, where matrix products hide them."""
    inside = program.computations.get(fusion.attribute("calls") or "", [])
    return any(i.kind.removesuffix("-start") in KINDS for i in inside)


def estimated_cycles(program: Program) -> int:
    """The TPU compiler's estimate of cycles, including loops; 0 without estimates.

    Custom kernels (splash attention) and waiting for other devices are not included.
    """
    found = ((re.search(r'"estimated_cycles":"(\d+)"', i.rest), times) for i, _, times in executed(program))
    return sum(int(cycles[1]) * times for cycles, times in found if cycles)


@dataclass
class Traffic:
    """One execution of a program: kind of collective -> count, bytes of the whole arrays, bytes sent by a device."""

    counts: Counter[str] = field(default_factory=Counter)
    sizes: Counter[str] = field(default_factory=Counter)
    sent: Counter[str] = field(default_factory=Counter)
    between_slices: Counter[str] = field(default_factory=Counter)  # part of `sent`


def collectives(program: Program, per_slice: int | None = None) -> Traffic:
    """The program's collectives, including loops.

    In a group of n devices, a device sends (n − 1) / n of the whole array for an all-gather, reduce-scatter or
    all-to-all, twice that for an all-reduce, and the whole array for a permutation.

    Args:
      per_slice: number of devices per slice, numbered slice by slice; None: a single slice.
    """
    found = Traffic()
    for instruction, _, times in executed(program):
        if instruction.kind == "send" and "megascale" in instruction.rest:  # TPUs reach other slices through the hosts
            size = times * max(shape_bytes(instruction.shape))
            found.counts["between slices"] += times
            for bytes_of in (found.sizes, found.sent, found.between_slices):
                bytes_of["between slices"] += size
    for instruction, times in _distinct(program):
        kind = instruction.kind.removesuffix("-start")
        sizes, group = shape_bytes(instruction.shape), first_group(instruction.rest)
        n = len(group)
        if not sizes or n == 1:
            continue
        whole = max(sizes) if instruction.kind.endswith("-start") else sum(sizes)
        if kind == "reduce-scatter" and not instruction.kind.endswith("-start"):
            whole *= n
        share = (n - 1) / n * (2 if kind == "all-reduce" else 1) if kind != "collective-permute" else 1
        found.counts[kind] += times
        found.sizes[kind] += times * whole
        found.sent[kind] += int(times * whole * share)
        if per_slice is not None and len({device // per_slice for device in group}) > 1:
            found.between_slices[kind] += int(times * whole * share)
    return found


def _distinct(program: Program) -> Iterator[tuple[Instruction, int]]:
    """(collective, number of executions), each collective once.

    On TPUs one collective may appear in several fusions with the same channel: its start, steps and end. It runs as
    often as the fusion that starts it, which has the fewest executions.
    """
    fused = {i.attribute("calls") for body in program.computations.values() for i in body if i.kind == "fusion"}
    pieces: dict[str, tuple[Instruction, int]] = {}
    for instruction, where, times in executed(program):
        if instruction.kind.removesuffix("-start") not in KINDS:
            continue
        channel = re.search(r"channel_id=(\d+)", instruction.rest)
        key = f"channel {channel[1]}" if channel and where in fused else f"{where} {instruction.name}"
        if key not in pieces or times < pieces[key][1]:
            pieces[key] = instruction, times
    yield from pieces.values()


def first_group(attributes: str) -> list[int]:
    """The devices of the first communicating group; for a permutation, its first pair."""
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes):
        sizes = [int(size) for size in found[3].split(",")]
        numbers = np.arange(int(np.prod(sizes))).reshape(sizes)
        if found[4]:
            numbers = numbers.transpose([int(axis) for axis in found[4].split(",")])
        return numbers.reshape(int(found[1]), int(found[2]))[0].tolist()
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", attributes):
        axes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", found[1])}
        numbers = np.arange(int(np.prod(list(axes.values())))).reshape(list(axes.values()))
        among = re.findall(r"'(\w+)'", found[2])
        return numbers[tuple(slice(None) if name in among else 0 for name in axes)].ravel().tolist()
    if found := re.search(r"(?:replica_groups|source_target_pairs)=\{\{([\d,]*)\}", attributes):
        return [int(number) for number in found[1].split(",")]
    return [0, 1]


def memory_traffic(program: Program) -> int:
    """Bytes that instructions read and write, including loops: the HBM traffic without any caching.

    If a fusion reads only a slice of an array (one layer of the stacked parameters), the slice counts.
    """
    total = 0
    shapes = {name: {i.name: i.shape for i in body} for name, body in program.computations.items()}
    fused = {i.attribute("calls") for body in program.computations.values() for i in body if i.kind == "fusion"}
    for instruction, where, times in executed(program):
        if where in fused or instruction.kind in SILENT or instruction.kind.endswith("-done"):
            continue
        operands = [_hbm(shapes[where].get(name, "")) for name in instruction.operands]
        result = _hbm(instruction.shape)
        if instruction.kind == "dynamic-slice":
            operands = [result]
        elif instruction.kind == "dynamic-update-slice":
            operands, result = [operands[1] if len(operands) > 1 else 0], operands[1] if len(operands) > 1 else 0
        elif instruction.kind == "fusion":
            operands, result = _fused(program, instruction, operands, result)
        total += times * (result + sum(operands))
    return total


def _fused(program: Program, fusion: Instruction, operands: list[int], result: int) -> tuple[list[int], int]:
    """(bytes that a fusion reads of each operand, bytes that it writes); only the slices used of stacked layers."""
    name = fusion.attribute("calls") or ""
    body = {i.name: i for i in program.computations.get(name, [])}
    for number, whole in enumerate(operands):
        looked_at = _looked_at(program, name, number) if whole else None
        operands[number] = whole if looked_at is None else min(whole, looked_at)

    def written(instruction: Instruction) -> int:
        if instruction.kind == "bitcast" and instruction.operands[0] in body:
            return min(written(body[instruction.operands[0]]), _hbm(instruction.shape))
        if instruction.kind == "dynamic-update-slice" and instruction.operands[1] in body:
            return min(sum(shape_bytes(body[instruction.operands[1]].shape)), _hbm(instruction.shape))
        return _hbm(instruction.shape)

    root = next((i for i in body.values() if i.root), None)
    if root is not None:
        outputs = [body[part] for part in root.operands if part in body] if root.kind == "tuple" else [root]
        result = min(result, sum(map(written, outputs)))
    return operands, result


def _looked_at(program: Program, computation: str, number: int) -> int | None:
    """Bytes that a fused computation reads of a parameter of which it uses slices only; None: not only slices."""
    body = program.computations.get(computation, [])
    parameter = next((i for i in body if i.kind == "parameter" and i.rest.startswith(f"{number})")), None)

    def seen(name: str) -> int | None:
        total = 0
        for user in (i for i in body if name in i.operands):
            part: int | None = None
            if user.kind == "bitcast":
                part = seen(user.name)
            elif user.kind == "dynamic-slice" and user.operands[0] == name:
                part = sum(shape_bytes(user.shape))
            elif user.kind == "dynamic-update-slice" and user.operands[0] == name:
                part = 0  # an update does not read the values it replaces
            elif user.kind == "fusion":
                part = _looked_at(program, user.attribute("calls") or "", user.operands.index(name))
            if part is None:
                return None
            total += part
        return total

    return None if parameter is None else seen(parameter.name)


def _hbm(shape: str) -> int:
    return sum(shape_bytes(shape, in_main_memory=True))
