"""Splits instruction data into train, validation and test so that no instance is in two of them.

    python scripts/prepare_instructions.py FILE ... --out data/instructions

FILEs are JSON or JSONL, plain or .gz, with rows in the format of Alpaca (instruction, input, output), Self-Instruct
(instruction, instances), prompt and completion (made from the template named in the row, else in the file name), or
ShareGPT (conversations, and chosen). Public examples: the demonstration sets in `data/` of hiyouga/LLaMA-Factory on
GitHub, `seed_tasks.jsonl` of tatsu-lab/stanford_alpaca, and in yizhongw/self-instruct the file
`human_eval/user_oriented_instructions.jsonl` and the T0 sample below `data/finetuning/t0_train_50k`.

Several templates may use one text, so two rows belong to one instance if they share 30% of the 8-word shingles of the
shorter row, ignoring the shingles of a template (those in at least 30% of its rows). All rows of an instance go to one
file. A hash of the rows selects the file, so the choice stays the same when unrelated files are added.
"""

import argparse
import gzip
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from instructrec_jax.data.example import Example, Message
from instructrec_jax.files import write_jsonl

WORDS = 8
SAME = 0.3
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="folder of the three files")
    parser.add_argument("--validation", type=float, default=0.03, help="share of the instances")
    parser.add_argument("--test", type=float, default=0.05, help="share of the instances")
    arguments = parser.parse_args()
    examples = [example for file in arguments.files for example in read(file)]
    instances = group([text(e) for e in examples], [e.origin.get("template", "") for e in examples])
    splits: dict[str, list[Example]] = {"train": [], "validation": [], "test": []}
    for members in instances:
        share = fraction(min(text(examples[i]) for i in members))
        held_out = arguments.validation + arguments.test
        name = "train" if share > held_out else "test" if share < arguments.test else "validation"
        splits[name] += [examples[i] for i in members]
    for name, chosen in splits.items():
        rows = write_jsonl(arguments.out / f"{name}.jsonl", (example.to_record() for example in chosen))
        print(f"{name}: {rows:,} examples of {len({e.task for e in chosen})} tasks")
    print(f"{len(examples):,} examples, {len(instances):,} instances")


def read(file: Path) -> Iterator[Example]:
    opened = gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else file.open(encoding="utf-8")
    name = file.name.split(".")[0]
    with opened as lines:
        content = lines.read()
    rows = (
        json.loads(content)
        if content.lstrip().startswith("[")
        else [json.loads(line) for line in content.split("\n") if line]
    )
    for number, row in enumerate(rows):
        try:
            yield from read_row(row, name, f"{name}-{number}")
        except KeyError as error:
            raise SystemExit(f"{file}, row {number}: field {error} is missing; the row has {sorted(row)}.") from error


def read_row(row: dict[str, Any], name: str, id: str) -> Iterator[Example]:
    if "prompt" in row:
        template = row.get("template", name)
        task, origin = "_".join(template.split("_")[:2]), {"template": template}
        pairs = [(row["prompt"].strip(), None, row["completion"].strip())]
    elif "instances" in row:
        task, origin = name, {}
        pairs = [(row["instruction"], one["input"] or None, one["output"]) for one in row["instances"]]
    elif "conversations" in row:
        turns = [*row["conversations"], *([row["chosen"]] if "chosen" in row else [])]
        messages = tuple(Message(ROLES[turn["from"]], turn["value"]) for turn in turns)
        yield Example(instruction="", messages=messages, task=name, id=id)
        return
    else:
        task, origin, pairs = name, {}, [(row["instruction"], row.get("input") or None, row["output"])]
    for number, (instruction, given, output) in enumerate(pairs):
        if instruction.strip() and output.strip():
            made = f"{id}-{number}" if len(pairs) > 1 else id
            yield Example(instruction=instruction, input=given, output=output, task=task, id=made, origin=origin)


def text(example: Example) -> str:
    parts = [
        example.instruction,
        example.input or "",
        str(example.output or ""),
        *(m.content for m in example.messages),
    ]
    return "\n".join(part for part in parts if part)


def fraction(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def shingles(text: str) -> set[int]:
    """A sample of the hashes of all 8-word shingles; of the whole text if it is shorter."""
    words = re.findall(r"\w+", text.lower()) or [text]
    runs = {" ".join(words[i : i + WORDS]) for i in range(max(1, len(words) - WORDS + 1))}
    hashes = {int.from_bytes(hashlib.blake2b(run.encode(), digest_size=8).digest(), "big") for run in runs}
    return {h for h in hashes if h % 4 == 0} or {min(hashes)}


def group(texts: list[str], templates: list[str]) -> list[list[int]]:
    """Connected components of texts with enough common shingles, without those of their templates ("": no template)."""
    all_shingles = [shingles(text) for text in texts]
    rows_of = Counter(templates)
    uses = Counter((t, h) for t, each in zip(templates, all_shingles, strict=True) for h in each if t)
    wording = {h for (t, h), count in uses.items() if count >= max(10, SAME * rows_of[t])}
    parent = list(range(len(texts)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    rows_with: dict[int, list[int]] = {}
    for number, each in enumerate(all_shingles):
        all_shingles[number] = each = each - wording
        shared = Counter(other for h in each for other in rows_with.get(h, ()))
        for other, count in shared.items():
            if count >= SAME * min(len(each), len(all_shingles[other])):
                parent[root(number)] = root(other)
        for h in each:
            rows_with.setdefault(h, []).append(number)
    members: dict[int, list[int]] = {}
    for number in range(len(texts)):
        members.setdefault(root(number), []).append(number)
    return list(members.values())


if __name__ == "__main__":
    main()
