"""A newcomer's first hour, in a new environment: `python scripts/first_hour.py [--keep FOLDER]`.

Builds the wheel, installs it without extras, writes small CSV files, and does what people do first: inspect, train,
label, evaluate, resume, start from a run, recommend, and mistype. Each step must end as it says; times are printed.
Needs pip's package index and two cores: steps that do not need each other run two at a time.
"""

import argparse
import csv
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
GOOD, BAD = "great wonderful superb lovely bright".split(), "dull awful boring terrible flat".split()

FROM_PYTHON = """
import instructrec_jax as ir
run = ir.Run.open("runs/reviews")
print(run.predict(["a lovely film", "a dull film"]), run.predict("a lovely film"))
print(run.encode("a lovely film").shape, run.evaluate("reviews.csv").metrics["accuracy"])
shop = ir.Recommender("runs/shop")
print([answer.recommendations[0].title for answer in shop.recommend("a thing", k=1)])
records = [ir.Example(instruction="a lovely film", output="good"), ir.Example(instruction="a dull film", output="bad")]
print(ir.train_run({"run_dir": "runs/python", "backbone.path": "films", "steps": 2, "task.type": "classification",
                    "data.train": ["reviews.csv"]}).evaluate(records))
misspelled, untrained = (lambda: ir.train_run({"stesp": 3})), (lambda: ir.LanguageModel("runs/reviews"))
for wrong, named in ((misspelled, "steps"), (untrained, "dialogue")):
    try:
        wrong()
        raise SystemExit(f"no error that names {named}")
    except ValueError as error:
        assert named in str(error), error
"""

# Runs commands as `instructrec` does, one after the other: [[words, exit status, what it says], ...]. The first of each
# kind has a process of its own; of the others several share one, since each start takes seconds.
COMMANDS = """
import contextlib, io, json, sys, time
began = time.monotonic()
from instructrec_jax.__main__ import main
for words, code, says in json.loads(sys.argv[1]):
    sys.argv, ended = ["instructrec", *words], 0
    said = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            main()
        except SystemExit as stopped:
            ended = stopped.code or 0
    print(f"{time.monotonic() - began:6.1f} s  {' '.join(['instructrec', *words])}", flush=True)
    text, began = said.buffer.getvalue().decode(), time.monotonic()
    if ended != code or says not in text:
        sys.exit(f"expected exit status {code} and {says!r}, found {ended} and:\\n{text}")
"""


class StepFailed(Exception):
    """A step did not end as it should."""


Command = tuple[str, str, int]


def ends(words: str, says: str = "", code: int = 0) -> Command:
    """A command, what it must say on stdout or stderr, and its exit status."""
    return words, says, code


REVIEWS = [
    [ends("", "predict")],
    [ends("prepare inspect reviews.csv --out reviews.yaml --backbone films", "next:")],
    [ends("train reviews.yaml --steps 4 --run_dir runs/reviews", "Next")],
    [ends("train reviews.yaml --steps 6 --run_dir runs/reviews", "resuming")],
    [
        ends("predict runs/reviews --input new.csv --out labels.csv", "40 rows answered"),
        ends("predict runs/reviews --text lovely", "probabilities"),
        ends("evaluate runs/reviews --data.test reviews.csv", "Measured on"),
        ends("export runs/reviews --out exported", "transformers"),
        ends("train reviews.yaml --steps 2 --run_dir runs/more --init_from runs/reviews", "Next"),
        ends("train reviews.yaml --lr 1", "optimizer.learning_rate", 2),
        ends("train reviews.yaml --task.type clasification", "classification", 2),
        ends("predict runs/reviews --input ratings.csv --out x.csv", "ratings.csv", 2),
        ends("generate runs/reviews --prompt Hello", "question_answering", 2),
    ],
]
SHOP = [
    [ends("prepare table --source ratings.csv --items items.csv --out shop --k_core 2", "train.yaml")],
    [ends("train shop/train.yaml --backbone.path films --steps 2 --run_dir runs/shop", "Next")],
    [
        ends("recommend runs/shop --user u1 --k 3", "evidence"),
        ends("recommend runs/shop --histroy x", "'history'", 2),
        ends("predict films --vectors --input new.csv --out vectors.npy", "40 vectors"),
        ends("prepare inspect stars.csv --out stars.yaml --backbone films", "regression"),
        ends("train stars.yaml --steps 2", "Next"),
    ],
]


def write(path: Path, header: list[str], rows: Sequence[Sequence[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


def write_files(folder: Path) -> None:
    draw = random.Random(0)

    def text(words: list[str], number: int) -> str:
        return f"The film was {draw.choice(words)}, I saw it {number} times 😀"

    reviews = [(text(GOOD if n % 2 else BAD, n), "good" if n % 2 else "bad") for n in range(80)]
    write(folder / "reviews.csv", ["text", "label"], reviews)
    write(folder / "new.csv", ["number", "text"], [(n, text(GOOD, n)) for n in range(40)])
    write(folder / "stars.csv", ["review", "stars"], [(t, 1 + 3.5 * (label == "good")) for t, label in reviews])
    write(folder / "items.csv", ["item_id", "title"], [(f"i{n}", f"A thing of kind {n}") for n in range(20)])
    ratings = [(f"u{u}", f"i{i}", 5, 100 * u + i) for u in range(12) for i in draw.sample(range(20), 8)]
    write(folder / "ratings.csv", ["user_id", "item_id", "rating", "timestamp"], ratings)


@dataclass
class Walk:
    """The folder of the walk and the environment of its processes; nothing starts after something has failed."""

    folder: Path
    environment: Mapping[str, str]
    has_failed: bool = field(default=False, init=False)

    @property
    def python(self) -> Path:
        return self.folder / "environment" / "bin" / "python"

    def take(self, steps: Sequence[Sequence[Command]]) -> None:
        """Runs the commands of each step in a process. Raises StepFailed."""
        for step in steps:
            if not self.has_failed:
                listed = [[words.split(), code, says] for words, says, code in step]
                print(self.run([str(self.python), "-c", COMMANDS, json.dumps(listed)]), end="", flush=True)

    def run(self, command: Sequence[str], title: str = "") -> str:
        """What a process said on stdout; prints the time if there is a title. Raises StepFailed."""
        began = time.monotonic()
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, env=self.environment)
        if title:
            print(f"{time.monotonic() - began:6.1f} s  {title}", flush=True)
        if done.returncode or "Traceback" in done.stdout + done.stderr:
            self.has_failed = True
            raise StepFailed(f"{title}{done.stdout}{done.stderr}")
        return done.stdout


def install(steps: Walk) -> None:
    """Builds the wheel and installs it in a new environment. Raises StepFailed."""
    source = steps.folder / "source"  # a copy, because building leaves files behind
    shutil.copytree(ROOT / "instructrec_jax", source / "instructrec_jax", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    here = [sys.executable, "-m"]
    steps.run([*here, "pip", "wheel", "--no-deps", "--wheel-dir", ".", "./source"], "building the wheel")
    steps.run([*here, "venv", "environment"], "a new environment")
    [wheel] = steps.folder.glob("*.whl")
    installing = [str(steps.python), "-m", "pip", "install", "--no-compile", str(wheel)]
    steps.run(installing, "installing the wheel and what it needs")


def walk(folder: Path) -> None:
    began = time.monotonic()
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    # What was compiled once is kept between processes, which halves the time of the later ones.
    clean |= {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "HF_HUB_OFFLINE": "1",
    }
    steps = Walk(folder, clean)
    install(steps)
    write_files(folder)
    with ThreadPoolExecutor(2) as pool:
        for chain in [pool.submit(steps.take, chain) for chain in (REVIEWS, SHOP)]:
            chain.result()
    steps.run([str(steps.python), "-c", FROM_PYTHON], "the same from Python")
    print(f"{time.monotonic() - began:6.1f} s  in all")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, help="a new folder to work in, which stays; default: a temporary one")
    options = parser.parse_args()
    try:
        if options.keep is not None:
            options.keep.mkdir(parents=True)
            walk(options.keep.resolve())
            return
        with tempfile.TemporaryDirectory() as folder:
            walk(Path(folder))
    except StepFailed as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
