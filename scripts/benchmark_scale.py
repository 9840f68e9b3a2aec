"""Cost against size of recommendation data: `python scripts/benchmark_scale.py COMMAND --out FOLDER`.

    prepare     time and peak memory of `prepare` at several sizes, and of reading the examples that it leaves
    evaluate    users/s and scores/s of the full ranking over the catalogue of the largest size, with peak memory

The data are made by scripts/generate_interactions.py in FOLDER, and kept there. Each measurement is a process of its
own; its time and its peak of resident memory are what the kernel says about it when it ends (wait4). Sizes are numbers
of interactions; users and items grow with them, up to 162,000 and 59,000 at 25 million.
"""

import argparse
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from instructrec_jax.preparation.interaction_rows import InteractionRows
from instructrec_jax.ranking.baselines import CoOccurrence, Popularity, counts_of
from instructrec_jax.ranking.catalogue import Catalogue, Splits
from instructrec_jax.ranking.evaluation import Cases, evaluate

SIZES = (100_000, 1_000_000, 10_000_000, 25_000_000)
LARGEST, USERS, ITEMS = 25_000_000, 162_000, 59_000
WIDTH = 128  # of the random vectors that stand for a model's


def measured(command: Sequence[str]) -> tuple[float, float]:
    """Seconds and peak gigabytes (resident, of its largest process) of a command, which must end well."""
    began = time.perf_counter()
    child = os.posix_spawn(command[0], list(command), os.environ)
    _, status, usage = os.wait4(child, 0)
    if status:
        raise SystemExit(f"benchmark_scale: {' '.join(command)} failed.")
    return time.perf_counter() - began, usage.ru_maxrss * 1024 / 1e9


def generated(out: Path, size: int) -> Path:
    """The folder with `size` generated interactions."""
    folder = out / f"raw_{size}"
    if not (folder / "ratings.csv").exists():
        items = max(1_000, round(ITEMS * min(1, size / LARGEST) ** 0.5))
        users = max(1, round(USERS * size / LARGEST))
        script = Path(__file__).with_name("generate_interactions.py")
        numbers = {"--interactions": size, "--users": users, "--items": items}
        took, peak = measured([sys.executable, str(script), "--out", str(folder), *map(str, _flat(numbers))])
        print(f"generated {size:,} in {took:,.0f} s, {peak:.2f} GB", flush=True)
    return folder


def prepared(out: Path, size: int, *settings: str) -> tuple[Path, float, float]:
    """The prepared folder, and the seconds and gigabytes that it took."""
    raw, folder = generated(out, size), out / f"prepared_{size}"
    shutil.rmtree(folder, ignore_errors=True)
    command = ["-m", "instructrec_jax.prepare", "movielens", "--source", str(raw), "--out", str(folder), *settings]
    return folder, *measured([sys.executable, *command])


def _header(*names: str) -> str:
    return f"| {' | '.join(names)} |\n{'|---' * len(names)}|"


def _flat(options: dict[str, int]) -> list[object]:
    return [part for pair in options.items() for part in pair]


# ---------------------------------------------------------------- prepare


def prepare(out: Path, sizes: Sequence[int], settings: Sequence[str]) -> None:
    lines = []
    for size in sizes:
        folder, took, peak = prepared(out, size, *settings)
        again, most = measured([sys.executable, __file__, "read", "--out", str(folder)])
        written = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        lines.append(f"| {size:,} | {took:,.1f} | {peak:.2f} | {written / 1e6:,.0f} | {again:,.1f} | {most:.2f} |")
    print(_header("interactions", "prepare s", "peak GB", "written MB", "100,000 examples s", "peak GB"))
    print("\n".join(lines))
    print("s and GB: of the whole process, imports included (wait4). 100,000 examples: opening the interactions of a")
    print("prepared folder and making the first 100,000 training examples from them (kind: interactions).")


def read(folder: Path) -> None:
    """Makes examples from a prepared folder."""
    rows = InteractionRows(str(folder), "train")
    for number in range(min(100_000, len(rows))):
        rows.row(number)


# ---------------------------------------------------------------- evaluate


def in_another_process(function: Callable[..., None], *arguments: object) -> None:
    process = multiprocessing.get_context("spawn").Process(target=function, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"benchmark_scale: {function.__name__}{arguments} failed.")


def rank(folder: Path, method: str, most: int) -> None:
    """Ranks the whole catalogue for the test cases of a prepared folder; prints speed and memory."""
    catalogue = Catalogue.load(folder)
    splits = Splits.load(folder, catalogue)
    users = [user for user, items in enumerate(splits.test) if len(items)]
    users = sorted(np.random.default_rng(0).permutation(users)[:most].tolist())
    histories = [np.concatenate([splits.train[user], splits.validation[user]]) for user in users]
    cases = Cases(
        [splits.test[user] for user in users], histories, len(catalogue), counts_of(splits.train, len(catalogue))
    )
    began = time.perf_counter()
    if method == "model":
        rng = np.random.default_rng(0)
        queries, items = (rng.normal(size=(n, WIDTH)).astype(np.float32) for n in (len(users), len(catalogue)))
        score: Callable[[slice], np.ndarray] = lambda block: queries[block] @ items.T  # noqa: E731
    else:
        baseline = (Popularity() if method == "popularity" else CoOccurrence()).fit(splits.train, len(catalogue))
        score = lambda block: baseline.score(histories[block])  # noqa: E731
    fitted = time.perf_counter() - began
    began = time.perf_counter()
    found = evaluate(cases, [], score, cutoffs=[10])
    took = time.perf_counter() - began
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    memory = int(peak.split()[1]) * 1024 / 1e9
    numbers = [f"{len(users):,}", f"{fitted:,.1f}", f"{took:,.1f}", f"{len(users) / took:,.0f}"]
    numbers += [f"{len(users) * len(catalogue) / took / 1e6:,.0f}", f"{memory:.2f}", f"{found.metrics['NDCG@10']:.4f}"]
    print("|", " | ".join([method, *numbers]), "|", flush=True)


def evaluation(out: Path, size: int, most: int) -> None:
    folder = out / f"prepared_{size}"
    if not folder.exists():
        prepared(out, size)
    columns = ("method", "users", "fit s", "rank s", "users/s", "million scores/s", "peak GB", "NDCG@10")
    print(_header(*columns), flush=True)
    for method in ("model", "popularity", "coKNN"):
        in_another_process(rank, folder, method, most)
    print(f"model: products of random float32 vectors of {WIDTH} numbers. rank: scores of all items in blocks of")
    print("users, seen items masked, ranks with ties, the 20 best. GB: peak of the process (VmHWM), all data included.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("prepare", "evaluate", "read"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--users", type=int, default=USERS, help="evaluate: test users at most")
    arguments, settings = parser.parse_known_args()
    if arguments.command == "read":
        read(arguments.out)
    elif arguments.command == "prepare":
        prepare(arguments.out, arguments.sizes, settings)
    else:
        evaluation(arguments.out, arguments.sizes[-1], arguments.users)


if __name__ == "__main__":
    main()
