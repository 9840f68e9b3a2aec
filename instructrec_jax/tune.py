"""Search for settings by short trials: `python -m instructrec_jax.tune X.yaml --trials N`.

    tune my.yaml --trials 20                       the learning rate, and what the task declares
    tune my.yaml --trials 20 --space space.yaml    settings and ranges of your own
    tune my.yaml --trials 40 --out tuned           the same search, prolonged or resumed

Each trial is a training with other settings, scored on data.validation by evaluation.metric; trials that are worse than
most at the same step are stopped. The first one has the settings as given. data.test is not read. A file of a
space has a line for each setting:

    optimizer.learning_rate: {low: 1e-4, high: 1e-2, log: true}
    task.dropout: [0.1, 0.3, 0.5]

OUT/best.yaml has the best settings. Needs the extra tune.
"""

import sys
from pathlib import Path

from instructrec_jax.answering.arguments import SETTINGS, parse_with_settings, verb_parser
from instructrec_jax.runs.config import Config, main_guard, parse
from instructrec_jax.tuning.search import search
from instructrec_jax.tuning.search_table import written
from instructrec_jax.tuning.space import default_space, read_space


def main(args: list[str]) -> None:
    parser = verb_parser("tune", __doc__, SETTINGS)
    add = parser.add_argument
    add("--trials", type=int, required=True, metavar="N", help="settings to try, also those of earlier calls")
    add("--space", type=Path, metavar="FILE", help="YAML of settings and their ranges; default: the task's")
    add("--out", type=Path, default=Path("tuned"), metavar="FOLDER", help="of the search (default: tuned)")
    add("--search_seed", type=int, default=0, metavar="N", help="random seed of the proposals (default: 0)")
    options, rest = parse_with_settings(parser, args)
    config = parse(Config, rest)
    space = default_space(config) if options.space is None else read_space(options.space)
    found = search(config, space, options.out, trials=options.trials, seed=options.search_seed)
    print(written(found, config, options.out), file=sys.stdout)


if __name__ == "__main__":
    main_guard(main)
