"""Writes a SYNTHETIC stream of headlines about fictitious companies, to try `watch`.

    python scripts/synthetic_headlines.py --out headlines.jsonl --events events.json
    python scripts/synthetic_headlines.py --out flat.jsonl --flat           no events

Every sentence comes from the templates below; none is real news, and no figure measured on it applies to real markets.
Each record is marked ("synthetic": true) and has the label of its template. Good and bad news are equally frequent,
except in planted events: days on which nearly all news of one company is bad (or good). The file of events lists their
companies and times.
"""

import argparse
import random
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from instructrec_jax.files import write_json, write_jsonl

COMPANIES = ["Aldmoor Energy", "Brightwell Foods", "Corvane Shipping", "Dunmarsh Paper", "Eastholm Bank", "虚构科技 🚀"]
START = datetime(2030, 1, 1, tzinfo=UTC)
TEMPLATES = {
    "positive": [
        "{company} raised its profit forecast for {year} after strong demand .",
        "Net sales of {company} rose to EUR {amount} mn from EUR {less} mn a year earlier .",
        "{company} won an order worth EUR {amount} mn , its largest so far .",
        "Operating profit of {company} increased by {percent} % in the quarter .",
        "Shares in {company} climbed {percent} % as earnings beat expectations .",
    ],
    "neutral": [
        "{company} will publish its report for {year} in March .",
        "{company} is headquartered in the capital and has {amount} employees .",
        "The annual general meeting of {company} will be held at the end of April .",
        "{company} appointed a new head of communications .",
        "The value of the contract with {company} was not disclosed .",
    ],
    "negative": [
        "{company} issued a profit warning and cut its forecast for {year} .",
        "Net sales of {company} fell to EUR {less} mn from EUR {amount} mn a year earlier .",
        "{company} will lay off {amount} employees after a steep drop in orders .",
        "Operating loss of {company} widened as costs grew by {percent} % .",
        "Shares in {company} plunged {percent} % after the loss was announced .",
    ],
}
USUAL = {"positive": 0.2, "neutral": 0.6, "negative": 0.2}


@dataclass(frozen=True)
class Event:
    """Days on which most headlines of a company have one label."""

    company: str
    label: str
    first_day: float
    last_day: float


EVENTS = [Event(COMPANIES[1], "negative", 20, 26), Event(COMPANIES[4], "positive", 40, 46)]


def headlines(days: float, per_day: float, events: list[Event], seed: int) -> list[dict[str, Any]]:
    """Records in time order: on average `per_day` per company and day."""
    draw = random.Random(seed)
    made: list[dict[str, Any]] = []
    for company in COMPANIES:
        day = draw.expovariate(per_day)
        while day < days:
            event = next((e for e in events if e.company == company and e.first_day <= day < e.last_day), None)
            odds = USUAL if event is None else {event.label: 0.95, "neutral": 0.05}
            label = draw.choices(list(odds), list(odds.values()))[0]
            less = draw.randint(10, 400)
            text = draw.choice(TEMPLATES[label]).format(
                company=company,
                year=START.year,
                less=less,
                amount=less + draw.randint(20, 300),
                percent=draw.randint(4, 30),
            )
            time = (START + timedelta(days=day)).isoformat(timespec="seconds")
            made.append({"time": time, "entity": company, "text": text, "label": label, "synthetic": True})
            day += draw.expovariate(per_day)
    return sorted(made, key=lambda record: record["time"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSONL file for the headlines")
    parser.add_argument("--events", type=Path, help="JSON file for the planted events")
    parser.add_argument("--flat", action="store_true", help="plant no events")
    parser.add_argument("--days", type=float, default=60)
    parser.add_argument("--per_day", type=float, default=6, help="average number of headlines per company and day")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    events = [] if arguments.flat else EVENTS
    count = write_jsonl(arguments.out, headlines(arguments.days, arguments.per_day, events, arguments.seed))
    if arguments.events is not None:
        told = [
            {
                "company": event.company,
                "label": event.label,
                "from": (START + timedelta(days=event.first_day)).isoformat(),
                "to": (START + timedelta(days=event.last_day)).isoformat(),
            }
            for event in events
        ]
        write_json(arguments.events, told)
    print(f"{count:,} SYNTHETIC headlines of fictitious companies, {len(events)} planted events.")


if __name__ == "__main__":
    main()
