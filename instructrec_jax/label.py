"""Label the texts from which a run learns most: `python -m instructrec_jax.label RUN --pool FILE`.

    label RUN --pool new.jsonl --out session --who ada     rounds of choosing, asking and training
    label RUN --pool new.jsonl --out session --who bob --second   the same texts again, and how far both agree
    label FOLDER --pool known.jsonl --data.test test.jsonl --simulate --strategy breaking_ties badge
                                                           learning curves on texts whose labels are known

Questions are asked on the terminal, or with --page in the browser. Each answer is on disk before the next question; the
same command goes on with a session that was ended or killed. After a round, training starts from the last parameters
(init_from), with the run's own data and all new labels. --simulate trains a logistic head on frozen vectors instead,
for --seeds seeds, and compares with random.
"""

from argparse import Namespace
from contextlib import ExitStack, closing

from instructrec_jax.answering.arguments import label_parser, parse_with_settings
from instructrec_jax.runs.config import main_guard, read_first

if __name__ == "__main__":  # before the imports below, which take a second or two
    read_first(lambda args: parse_with_settings(label_parser(__doc__), args))

from instructrec_jax.labeling.asking import Terminal
from instructrec_jax.labeling.curves import simulated, write_curves
from instructrec_jax.labeling.label_page import LabelPage
from instructrec_jax.labeling.questions import Asker, Questions
from instructrec_jax.labeling.rounds import Pool, ask_round, check_task, left_to_ask, next_settings, read_pool
from instructrec_jax.labeling.session import About, Session
from instructrec_jax.runs.directory import is_finished
from instructrec_jax.runs.run import Run, require_finished
from instructrec_jax.train import train


def main(args: list[str]) -> None:
    options, rest = parse_with_settings(label_parser(__doc__), args)
    if options.simulate:
        write_curves(simulated(options, rest), options)
        return
    if options.out is None or len(options.strategy) > 1:
        raise ValueError("a session needs --out FOLDER, and one --strategy; several are compared with --simulate.")
    if not options.who.strip():
        raise ValueError("--who is empty: name the person who labels.")
    require_finished(options.path, None)
    first = Run.open(options.path, rest)
    check_task(first)
    pool = read_pool(first, options.pool)
    labels = list(first.config.task.label_names or ())
    about = About(pool=options.pool, fingerprint=pool.fingerprint, labels=labels)
    with closing(Session.open(options.out, about)) as session, ExitStack() as stack:
        page = None if options.page is None else stack.enter_context(closing(LabelPage(options.page)))
        asker: Asker = page or Terminal()
        if not options.second:
            rounds(options, session, first, pool, asker)
            return
        again = sorted(session.done() - session.answered(options.who) | session.disagrees(options.who))
        if not again:
            asker.say(f"{options.who} has labeled every text that others labeled, as they did.")
        asker.ask(Questions(session, again, pool.texts, options.who, None, since=len(session.lines)))
        session.report(options.who, asker.say)


def rounds(options: Namespace, session: Session, first: Run, pool: Pool, asker: Asker) -> None:
    """Asks and trains, round by round; what an earlier call has done is not done again."""
    run, asked = first, (options.strategy[0], options.batch)
    for number in range(1, options.rounds + 1):
        target = options.out / f"round-{number}"
        if not is_finished(target):
            if len(session.rounds) < number and not left_to_ask(session, pool):
                asker.say("every text of the pool was asked")
                break
            if not ask_round(session, run, pool, number, asked, options.who, asker):
                asker.say(f"{len(session.taken()):,} labels in {options.out}. The same command goes on.")
                return
            session.report(options.who, asker.say)
            if not session.taken():
                asker.say("no label was given: the next round asks without training")
                continue
            train(next_settings(first.config, run.path, target, pool, session.taken()))
        run = Run.open(target)
    asker.say(f"{len(session.taken()):,} labels in {options.out}; the last run: {run.path}. More rounds: --rounds.")


if __name__ == "__main__":
    main_guard(main)
