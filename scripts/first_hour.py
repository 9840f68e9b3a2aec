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
print(ir.tune({"run_dir": "runs/python", "backbone.path": "films", "steps": 2, "task.type": "classification",
               "data.train": ["reviews.csv"]}).evaluate(records))
for wrong in (lambda: ir.tune({"stesp": 3}), lambda: ir.LanguageModel("runs/reviews")):
    try:
        wrong()
    except ValueError as error:
        print(error)
"""

# Several commands in one process, since each start takes seconds: [[words, exit status, what it says], ...].
COMMANDS = """
import contextlib, io, json, sys
from instructrec_jax.__main__ import main
for words, code, says in json.loads(sys.argv[1]):
    sys.argv, said, ended = ["instructrec", *words], io.StringIO(), 0
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            main()
        except SystemExit as stopped:
            ended = stopped.code or 0
    print(said.getvalue())
    if ended != code or says not in said.getvalue():
        sys.exit(f"{' '.join(words)}: expected exit status {code} and {says!r}, found {ended}")
"""
SMALL = [
    (["predict", "runs/reviews", "--text", "a lovely film"], 0, "probabilities"),
    (["train", "reviews.yaml", "--lr", "1"], 2, "optimizer.learning_rate"),
    (["train", "reviews.yaml", "--task.type", "clasification"], 2, "classification"),
    (["recommend", "runs/shop", "--histroy", "x"], 2, "'history'"),
    (["predict", "runs/reviews", "--input", "ratings.csv", "--out", "x.csv"], 2, "ratings.csv"),
    (["generate", "runs/reviews", "--prompt", "Name a river."], 2, "question_answering"),
]


class StepFailed(Exception):
    """A step did not end as it should."""


@dataclass(frozen=True)
class Step:
    """A command of the walk.

    Attributes:
      words: the arguments of python.
      code: the expected exit status.
      says: what stdout and stderr together must contain.
      title: what is printed.
    """

    words: Sequence[str]
    says: str = ""
    code: int = 0
    title: str = ""


def verb(name: str, *words: str, says: str = "") -> Step:
    module = f"instructrec_jax.{name}" if name else "instructrec_jax"
    return Step(["-m", module, *words], says, title=" ".join([name or "instructrec_jax", *words]))


REVIEWS = [
    verb("", says="predict"),
    verb("prepare", "inspect", "reviews.csv", "--out", "reviews.yaml", "--backbone", "films", says="next:"),
    verb("train", "reviews.yaml", "--steps", "4", "--run_dir", "runs/reviews", says="Next"),
    verb("train", "reviews.yaml", "--steps", "6", "--run_dir", "runs/reviews", says="resuming"),
    verb("predict", "runs/reviews", "--input", "new.csv", "--out", "labels.csv", says="40 rows answered"),
    verb("evaluate", "runs/reviews", "--data.test", "reviews.csv", says="Measured on"),
    verb("train", "reviews.yaml", "--steps", "2", "--run_dir", "runs/more", "--init_from", "runs/reviews", says="Next"),
    verb("export", "runs/reviews", "--out", "exported", says="transformers"),
]
SHOP = [
    verb("prepare", "table", "--source", "ratings.csv", "--items", "items.csv", "--out", "shop", "--k_core", "2"),
    verb("train", "shop/train.yaml", "--backbone.path", "films", "--steps", "2", "--run_dir", "runs/shop", says="Next"),
    verb("recommend", "runs/shop", "--user", "u1", "--k", "3", says="evidence"),
    verb("prepare", "inspect", "stars.csv", "--out", "stars.yaml", "--backbone", "films", says="regression"),
    verb("train", "stars.yaml", "--steps", "2", says="Next"),
    verb("predict", "films", "--vectors", "--input", "new.csv", "--out", "vectors.npy", says="40 vectors"),
]
LAST = [  # after both
    Step(["-c", FROM_PYTHON], says="learning", title="the same from Python"),
    Step(["-c", COMMANDS, json.dumps(SMALL)], title="one text, and four mistakes"),
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
    """The folder of the walk and its environment's Python; no step starts after one has failed."""

    folder: Path
    python: Path
    environment: Mapping[str, str]
    has_failed: bool = field(default=False, init=False)

    def take(self, steps: Sequence[Step]) -> None:
        """Runs steps one after the other. Raises StepFailed."""
        for step in steps:
            if self.has_failed:
                return
            began = time.monotonic()
            done = subprocess.run(
                [str(self.python), *step.words], cwd=self.folder, capture_output=True, text=True, env=self.environment
            )
            said = done.stdout + done.stderr
            print(f"{time.monotonic() - began:6.1f} s  {step.title}", flush=True)
            if done.returncode != step.code or step.says not in said or "Traceback" in said:
                self.has_failed = True
                raise StepFailed(
                    f"{step.title}: expected exit status {step.code} and {step.says!r}, found {done.returncode} "
                    f"and:\n{said}"
                )


def install(folder: Path, environment: Mapping[str, str]) -> Path:
    """Builds the wheel and installs it in a new environment; returns its Python. Raises StepFailed."""
    source = folder / "source"  # a copy, because building leaves files behind
    shutil.copytree(ROOT / "instructrec_jax", source / "instructrec_jax", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    here = Walk(folder, Path(sys.executable), environment)
    here.take([Step(["-m", "pip", "wheel", "--no-deps", "--wheel-dir", ".", "./source"], title="building the wheel")])
    here.take([Step(["-m", "venv", "environment"], title="a new environment")])
    python = folder / "environment" / "bin" / "python"
    [wheel] = folder.glob("*.whl")
    installing = ["-m", "pip", "install", "--no-compile", str(wheel)]
    Walk(folder, python, environment).take([Step(installing, title="installing the wheel and what it needs")])
    return python


def walk(folder: Path) -> None:
    began = time.monotonic()
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    python = install(folder, clean)
    write_files(folder)
    clean |= {"JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"), "HF_HUB_OFFLINE": "1"}
    steps = Walk(folder, python, clean)
    with ThreadPoolExecutor(2) as pool:
        for chain in [pool.submit(steps.take, chain) for chain in (REVIEWS, SHOP)]:
            chain.result()
    steps.take(LAST)
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
