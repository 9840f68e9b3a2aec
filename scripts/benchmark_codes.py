"""What the search along items' codes costs beside a beam search that may write anything.

    python scripts/benchmark_codes.py runs/movielens_generative --cases 64 --rounds 5

Both read the same prompts with the same network, keep `task.beams` beams, and write one token for each level of codes;
the first also excludes the items that were seen. They take turns. The ratio is that of the median times.
"""

import argparse
import statistics
import time

import numpy as np

from instructrec_jax.inference.generation_config import GenerationConfig
from instructrec_jax.runs.run import Run
from instructrec_jax.tasks.ranking.generative import GenerativeTask


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="run directory of a task.type generative")
    parser.add_argument("--cases", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    run = Run.open(arguments.run)
    task, predict = run.task, run.predictor
    if not isinstance(task, GenerativeTask):
        parser.error(f"{arguments.run} was trained for the task {run.kind}, which writes no codes.")
    cases = run.data.cases(task, "test")
    encoded = [cases[number] for number in range(min(arguments.cases, len(cases)))]
    prompts, seen = [text.tokens for text in task.asked(encoded)], [e.target.seen for e in encoded]
    levels, beams = len(task.ids.sizes), task.config.beams
    free = GenerationConfig(max_new_tokens=levels, beams=beams, batch_size=16)

    def along_codes() -> np.ndarray:
        return predict.find(prompts, task.trie, beams, seen)[0]

    def unconstrained() -> None:
        predict.write(prompts, free, None)

    times: dict[str, list[float]] = {"along codes": [], "unconstrained": []}
    found = along_codes()  # both are compiled
    unconstrained()
    assert all(len(set(row[row >= 0])) == (row >= 0).sum() for row in found)
    for _ in range(arguments.rounds):
        for name, search in zip(times, (along_codes, unconstrained), strict=True):
            start = time.perf_counter()
            search()
            times[name].append(time.perf_counter() - start)
    middle = {name: statistics.median(each) for name, each in times.items()}
    print(f"{len(prompts)} prompts, {beams} beams, {levels} levels, {len(task.catalogue):,} items")
    for name, each in times.items():
        print(f"{name:14} median {middle[name]:.3f} s  (from {min(each):.3f} to {max(each):.3f} s)")
    print(f"ratio {middle['along codes'] / middle['unconstrained']:.2f}")


if __name__ == "__main__":
    main()
