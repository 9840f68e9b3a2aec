"""A newcomer's first hour, in a new environment: `python scripts/first_hour.py [--keep FOLDER]`.

Builds the wheel, installs it without extras, writes small CSV files, and does what people do first: inspect, train,
label, evaluate, resume, start from a run, recommend, and mistype. Each step must end as it says; times are printed.
"""

import argparse
import csv
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
GOOD, BAD = "great wonderful superb lovely bright".split(), "dull awful boring terrible flat".split()
PYTHON = """
import instructrec_jax as ir
run = ir.Run.open("runs/reviews")
found = run.predict(["a lovely film", "a dull film"])
print(found)
print(run.encode("a lovely film").shape)
print(run.evaluate("reviews.csv").metrics["accuracy"])
again = ir.tune({"run_dir": "runs/python", "backbone.path": "films", "steps": 2, "task.type": "classification",
                 "data.train": ["reviews.csv"]})
print(again.kind)
"""


@dataclass(frozen=True)
class Step:
    """A command of the walk.

    Attributes:
      code: the expected exit status.
      says: what stdout and stderr together must contain.
    """

    words: Sequence[str]
    code: int = 0
    says: str = ""


def verb(name: str, *words: str, code: int = 0, says: str = "") -> Step:
    return Step(["-m", f"instructrec_jax.{name}" if name else "instructrec_jax", *words], code, says)


def steps() -> list[Step]:
    return [
        verb("", says="predict"),
        verb("prepare", "inspect", "reviews.csv", "--out", "reviews.yaml", "--backbone", "films", says="next:"),
        verb("train", "reviews.yaml", "--steps", "6", "--run_dir", "runs/reviews", says="Next"),
        verb("train", "reviews.yaml", "--steps", "8", "--run_dir", "runs/reviews", says="resuming"),
        verb("predict", "runs/reviews", "--input", "new.csv", "--out", "labels.csv", says="40 rows answered"),
        verb("predict", "runs/reviews", "--text", "a lovely film", says="probabilities"),
        verb("predict", "films", "--vectors", "--input", "new.csv", "--out", "vectors.npy", says="40 vectors"),
        verb("evaluate", "runs/reviews", "--data.test", "reviews.csv", says="Measured on"),
        verb("train", "reviews.yaml", "--steps", "2", "--run_dir", "runs/more", "--init_from", "runs/reviews"),
        verb("prepare", "inspect", "stars.csv", "--out", "stars.yaml", "--backbone", "films", says="regression"),
        verb("train", "stars.yaml", "--steps", "2"),
        verb("prepare", "table", "--source", "ratings.csv", "--items", "items.csv", "--out", "shop", "--k_core", "2"),
        verb("train", "shop/train.yaml", "--backbone.path", "films", "--steps", "2", "--run_dir", "runs/shop"),
        verb("recommend", "runs/shop", "--user", "u1", "--k", "3"),
        verb("export", "runs/reviews", "--out", "exported", says="transformers"),
        Step(["-c", PYTHON], says="LabelAnswer"),
        verb("train", "reviews.yaml", "--lr", "1", code=2, says="optimizer.learning_rate"),
        verb("train", "reviews.yaml", "--task.type", "clasification", code=2, says="classification"),
        verb("recommend", "runs/shop", "--histroy", "x", code=2, says="--history"),
        verb("predict", "runs/reviews", "--input", "ratings.csv", "--out", "x.csv", code=2, says="ratings.csv"),
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


def walk(folder: Path) -> None:
    environment = folder / "environment"
    python = environment / "bin" / "python"
    began = time.monotonic()
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(build, check=True)
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    [wheel] = folder.glob("*.whl")
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", str(wheel)], check=True)
    print(f"{time.monotonic() - began:6.1f} s  wheel built and installed", flush=True)
    write_files(folder)
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    for step in steps():
        began = time.monotonic()
        done = subprocess.run([str(python), *step.words], cwd=folder, capture_output=True, text=True, env=clean)
        said = done.stdout + done.stderr
        shown = " ".join(step.words)
        print(f"{time.monotonic() - began:6.1f} s  {shown.splitlines()[0][:100] or 'python'}", flush=True)
        if done.returncode != step.code or step.says not in said or "Traceback" in said:
            print(f"FAILED expected exit status {step.code} and {step.says!r}, found {done.returncode} and:\n{said}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, help="a new folder to work in, which stays; default: a temporary one")
    options = parser.parse_args()
    if options.keep is not None:
        options.keep.mkdir(parents=True)
        walk(options.keep.resolve())
        return
    with tempfile.TemporaryDirectory() as folder:
        walk(Path(folder))


if __name__ == "__main__":
    main()
