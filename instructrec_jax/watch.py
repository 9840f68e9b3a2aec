"""Watch a stream of news with a tuned classifier: `python -m instructrec_jax.watch RUN [RUN2 ...]`.

    watch RUN --input headlines.jsonl --out alerts.jsonl        records with text, entity, time
    tail -f feed.jsonl | watch RUN --window 3d --band -0.5 0.5  line by line, alerts on the terminal
    watch RUN --draws 8 ...                                     uncertainty by Monte Carlo dropout
    watch RUN RUN2 RUN3 ...                                     uncertainty by an ensemble

Each record gets a label. Each entity has a rolling score: the mean value of its records' labels in the window. An alert
is raised once whenever the score leaves the band.
"""

import json
import sys
from zoneinfo import ZoneInfo

from instructrec_jax.answering.arguments import new_file, parse_options, watch_parser
from instructrec_jax.runs.config import main_guard, read_first

if __name__ == "__main__":  # before the imports below, which take a second or two
    read_first(lambda args: parse_options(watch_parser(__doc__), args))

from instructrec_jax.answering.classifier import Classifier
from instructrec_jax.answering.records import Skipped, blocks, duration
from instructrec_jax.answering.rolling import Band
from instructrec_jax.answering.watch import Feed, read_values, watch
from instructrec_jax.files import append_jsonl, write_text


def main(args: list[str]) -> None:
    options = parse_options(watch_parser(__doc__), args)
    low, high = options.band
    band = Band(low, high, options.hysteresis, options.least)
    window, late = duration(options.window), duration(options.late)
    values = None if options.values is None else read_values(options.values)
    if options.batch < 1:
        raise ValueError(f"--batch must be at least 1, but is {options.batch}.")
    new_file(options.out)
    new_file(options.scores, "--scores")
    try:
        zone = ZoneInfo(options.timezone)
    except (ValueError, OSError, KeyError) as error:
        raise ValueError(f"--timezone: unknown {options.timezone!r}; write UTC or Europe/Berlin, say.") from error
    classifier = Classifier(options.runs, draws=options.draws, seed=options.seed, instruction=options.instruction)
    fields = {name: getattr(options, f"{name}_field") for name in ("text", "entity", "time")}
    skipped = Skipped(options.on_bad_record == "skip")
    feed = Feed(classifier, fields, zone, late, skipped)
    live = options.input == "-"
    found = watch(
        classifier,
        feed(options.input),
        window,
        band,
        values=values,
        weight=options.weight,
        batch=options.batch,
        live=live,
    )
    for out in (options.out, options.scores):
        if out is not None:
            write_text(out, "")  # create the file even without alerts
    records, alerts = 0, 0
    for scored in blocks(found, 1 if live else options.batch):
        raised = [alert for _, alert in scored if alert is not None]
        records, alerts = records + len(scored), alerts + len(raised)
        if options.scores is not None:
            append_jsonl(options.scores, [record for record, _ in scored])
        if options.out is not None and raised:
            append_jsonl(options.out, raised)
        for alert in raised if options.out is None else ():
            print(json.dumps(alert, ensure_ascii=False), flush=True)
    notes = [f"{records:,} records, {alerts:,} alerts."]
    if feed.unzoned:
        notes.append(f"{feed.unzoned:,} times had no time zone and were read as {options.timezone}.")
    if classifier.cut:
        notes.append(f"{classifier.cut:,} texts were longer than the run's data.max_length and were truncated.")
    print("\n".join(note for note in [*notes, skipped.summary()] if note), file=sys.stderr)


if __name__ == "__main__":
    main_guard(main)
