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

from instructrec_jax.answering.arguments import parse_with_settings, tune_parser
from instructrec_jax.runs.config import Config, main_guard, parse, read_first

if __name__ == "__main__":  # before the imports below, which take a second or two
    read_first(lambda args: parse_with_settings(tune_parser(__doc__), args))

from instructrec_jax.tuning.search import search
from instructrec_jax.tuning.search_table import written
from instructrec_jax.tuning.space import default_space, read_space


def main(args: list[str]) -> None:
    options, rest = parse_with_settings(tune_parser(__doc__), args)
    config = parse(Config, rest)
    space = default_space(config) if options.space is None else read_space(options.space)
    found = search(config, space, options.out, trials=options.trials, seed=options.search_seed)
    print(written(found, config, options.out))


if __name__ == "__main__":
    main_guard(main)
