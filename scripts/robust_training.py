"""Training for robustness: each way of training against plain training, on clean and on noisy texts, over seeds.

    python scripts/robust_training.py my.yaml --out runs/robust --seeds 0 1 2 3 4 \
        --noise '{ocr: {rate: 0.4}, lookalikes: {rate: 0.4}}' \
        --way typos '{augment: {typos: 0.3, delete: 0.1}}' \
        --way r_drop '{robust_training.method: r_drop}'

Each way is a list of settings, with `augment` for that of every source of data.train. All ways of a seed have the same
network, seed, batch size and number of steps. `--noise` has perturbations of docs/robustness.md, by name, with their
options: choose some that no way trains with. Words of an example's own target stay, those of other labels do not. A
noisy text is a function of --noise and the text, so all runs read the same ones. Further `--a.b value` are settings of
all runs. Finished runs are not trained again, and scores are kept beside them.

The score is `--metric` on data.test (`--split validation` to choose settings), of its first `--most` examples in random
order. "unseen noise" is the mean over the perturbations. Intervals of the paired differences are Student's t over
the seeds; of one seed there are none.
"""

import argparse
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from ways import Settings, add_ways, cell, mapping, overrides, ways_of

from instructrec_jax.augmentation.augmenter import AugmentConfig
from instructrec_jax.data.example import Example
from instructrec_jax.data.mixture import permutation
from instructrec_jax.files import read_json, write_json
from instructrec_jax.robustness.perturbations import Perturbation, World
from instructrec_jax.runs.config import Config, load, to_dict
from instructrec_jax.runs.data import RunData
from instructrec_jax.runs.run import Run
from instructrec_jax.train import train

Scores = dict[str, float]  # "clean", "unseen noise" and each perturbation -> the metric
PLAIN, CLEAN, NOISY = "plain", "clean", "unseen noise"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a YAML file of settings")
    add_ways(parser)
    parser.add_argument("--noise", default="{ocr: {rate: 0.4}, lookalikes: {rate: 0.4}}")
    parser.add_argument("--language", choices=["en", "zh"], default="en")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--metric", default="accuracy")
    parser.add_argument("--split", choices=["test", "validation"], default="test", help="what is measured on")
    parser.add_argument("--most", type=int, help="examples that are measured on; without it: all")
    arguments, rest = parser.parse_known_args()
    base, common = load(arguments.config), overrides(rest)
    noise = perturbations(arguments.noise)
    ways: dict[str, Settings] = {PLAIN: {}} | ways_of(arguments.way)
    texts = noisy(measured_on(base, arguments.split, arguments.most), noise, arguments.language)
    rows: list[dict[str, Scores]] = []
    for seed in arguments.seeds:
        found: dict[str, Scores] = {}
        for name, own in ways.items():
            config = config_of(base, common | own, arguments.out / f"seed-{seed}" / name, seed)
            found[name] = scores_of(config, texts, arguments.metric)
            print(f"seed {seed}, {name}: " + ", ".join(f"{k} {v:.4f}" for k, v in found[name].items()), flush=True)
        rows.append(found)
    print(table(rows))


def perturbations(text: str) -> list[Perturbation]:
    """The perturbations of --noise."""
    given = mapping(text, "--noise")
    try:
        return [Perturbation(name, options or {}) for name, options in given.items()]  # type: ignore[arg-type]
    except ValueError as error:
        raise SystemExit(f"--noise: {error}") from None


def measured_on(config: Config, split: str, most: int | None) -> list[Example]:
    """The first `most` examples of the split, in random order."""
    examples = list(RunData(config).examples("validation" if split == "validation" else "test"))
    return [examples[number] for number in permutation(len(examples), 0).tolist()[:most]]


def noisy(examples: Sequence[Example], noise: Sequence[Perturbation], language: str) -> dict[str, list[Example]]:
    """The examples as they are, and with each perturbation; an example that stays as it is counts as it is."""
    world = World(language)
    found = {CLEAN: list(examples)}
    for each in noise:
        found[str(each)] = [each(example, world, str(each)) or example for example in examples]
    return found


def config_of(base: Config, settings: Mapping[str, object], folder: Path, seed: int) -> Config:
    """The settings of a run; data.test is measured by `scores_of` instead."""
    own = dict(settings)
    augment = own.pop("augment", None)
    more = {"seed": seed, "run_dir": str(folder), "evaluation.compare": False}
    config = load({**to_dict(base), **own, **more})
    if augment is None:
        return config
    changed = AugmentConfig(**augment)  # type: ignore[arg-type]
    return replace(config, data=replace(config.data, train=[replace(e, augment=changed) for e in config.data.train]))


def scores_of(config: Config, texts: Mapping[str, Sequence[Example]], metric: str) -> Scores:
    """The scores of the trained run; trained and measured only where that was not done."""
    said = json.dumps({name: [e.to_record() for e in own] for name, own in texts.items()}, default=str)
    key = hashlib.sha256(f"{metric} {said}".encode()).hexdigest()[:16]
    kept, done = Path(config.run_dir) / f"noise-{key}.json", Path(config.run_dir) / "trained"
    if kept.is_file():
        return read_json(kept, Scores)
    if not done.is_file():
        train(config)
        done.touch()
    run = Run.open(config.run_dir)
    found = {name: float(run.evaluate(own).metrics[metric] or 0) for name, own in texts.items()}
    found |= {NOISY: float(np.mean([value for name, value in found.items() if name != CLEAN]))}
    write_json(kept, found)
    return found


def table(rows: Sequence[Mapping[str, Scores]]) -> str:
    """Means, and the paired differences from plain training with their 95% intervals over seeds, in points."""
    names = list(rows[0][PLAIN])
    lines = ["| way | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for way in rows[0]:
        cells = [cell([row[way][name] for row in rows], [row[PLAIN][name] for row in rows]) for name in names]
        lines.append(f"| {way} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
