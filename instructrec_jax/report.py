"""Write a run's report again, or its model card: `python -m instructrec_jax.report RUN`.

    report RUN                      report.html, from the files in the run directory
    report RUN --card               model_card.md, in the form of HuggingFace's cards
    report RUN --card --watts 300   with an estimate of the energy

The card has the data with counts and stated licenses, metrics, groups (evaluate --by), time and limits. What no
file of the run states is "not stated" or "not measured". `export` puts the card into the README.md of its folder.
"""

from instructrec_jax.answering.arguments import parse_options, report_parser
from instructrec_jax.runs.config import main_guard, read_first

if __name__ == "__main__":  # before the imports below, which take a second or two
    read_first(lambda args: parse_options(report_parser(__doc__), args))

from instructrec_jax.answering.model_card import write_model_card
from instructrec_jax.evaluation.report import write_report
from instructrec_jax.runs.bucket import send
from instructrec_jax.runs.run import require_run


def main(args: list[str]) -> None:
    options = parse_options(report_parser(__doc__), args)
    if options.watts is not None and not options.card:
        raise ValueError("--watts is for the model card: add --card.")
    require_run(options.run)
    written = write_model_card(options.run, options.watts) if options.card else write_report(options.run)
    send(options.run)
    print(f"written: {written}")


if __name__ == "__main__":
    main_guard(main)
