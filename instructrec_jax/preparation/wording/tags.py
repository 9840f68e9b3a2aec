"""User tags as requests: a tag, or two together, names a wish; the items so tagged are what is wanted.

Users, tags and items are split before any example is made. Tags never enter the text of an item.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from instructrec_jax.data.example import Example
from instructrec_jax.preparation.readers.lines import BadLines, csv_rows, pick
from instructrec_jax.preparation.wording.intentions import names_title
from instructrec_jax.preparation.wording.wordings import LANGUAGES, Wordings, load_wordings
from instructrec_jax.ranking.catalogue import SPLITS, Catalogue


@dataclass(kw_only=True)
class TagConfig:
    """How tag applications become requests."""

    language: str = "en"
    """en or zh, of the words around a tag; tags stay as they are"""
    noun: str = "film"
    """what items are called, see GrammarConfig.noun"""
    templates: str | None = None
    """YAML file, or folder of them, with templates of your own of the form tags"""
    shares: tuple[float, float, float] = (0.6, 0.1, 0.3)
    """of the tag applications, for train, validation and test; a user's applications stay together"""
    held_out_tags: float = 0.3
    """share of the tags that training never sees"""
    wordings_per_request: int = 3
    """training examples of one request, each in another template; validation and test have one"""
    min_items: int = 1
    """a request needs this many relevant items"""
    pairs_per_item: int = 3
    """combinations of two tags that are drawn of each item with several (and of each user, with histories); 0: none"""
    ignore: tuple[str, ...] = ("in netflix queue",)
    """tags that say nothing of an item, in lower case"""
    seed: int = 0
    """draws the held-out tags and the templates"""


def read_tags(path: str | Path) -> list[tuple[str, str, str]]:
    """(user, item, tag) of each row of a MovieLens tags.csv (or .csv.gz), in its order."""
    path = Path(path)
    rows = pick(csv_rows(path), path, ("userId", "movieId", "tag"), BadLines(remedy="Repair the file."))
    return [(user, item, tag) for _, (user, item, tag) in rows]


def tag_requests(
    catalogue: Catalogue,
    applications: Iterable[tuple[str, str, str]],
    config: TagConfig,
    histories: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, list[Example]]:
    """Requests of the three splits made of (user id, item id, tag); `output` is the tuple of relevant item ids.

    Split beforehand, so that train and test share neither user nor item nor, in test's held-out part, tag:
      users: the most active first, each to the split that lacks most of its share of the applications;
      items: to the last split (test after validation after train) a user of which has tagged them, where they count;
      tags: a random share is held out from train and validation. Test has all: `origin.wording` is held_out for a
        request of which no tag occurs in train, train for one all of whose tags do, else mixed.
    Templates: training's for train and validation, all for test, where `origin.template_wording` tells them apart.

    Tags are compared in lower case. Left out are applications to items outside the catalogue, tags to ignore, and tags
    that name the item's title.

    Args:
      histories: user id -> ids of the user's items, oldest first. With it a request is one user's: the relevant items
        are those this user tagged so, and `history` is the user's other items. Without it a request is of all users of
        a split, and has no history.

    Raises:
      ValueError: a split that is left without requests, bad settings.
    """
    _check(config)
    rng = np.random.default_rng(config.seed)
    rows = [(user, item, tag.strip().lower()) for user, item, tag in applications]
    rows = [
        (user, item, tag)
        for user, item, tag in dict.fromkeys(rows)
        if item in catalogue.index
        and tag not in ("", *config.ignore)
        and not names_title(tag, catalogue.titles[catalogue.index[item]])
    ]
    split_of_user = _share_out(rows, config.shares)
    split_of_item: dict[str, int] = {}
    for user, item, _ in rows:
        split_of_item[item] = max(split_of_item.get(item, 0), split_of_user[user])
    tags = sorted({tag for _, _, tag in rows})
    held_out = {tags[place] for place in rng.permutation(len(tags))[: round(config.held_out_tags * len(tags))]}

    words = load_wordings(config.templates)
    requests: dict[str, list[Example]] = {}
    seen: set[str] = set()
    for number, split in enumerate(SPLITS):
        own = [
            (user if histories is not None else "", item, tag)
            for user, item, tag in rows
            if split_of_user[user] == number == split_of_item[item] and (split == "test" or tag not in held_out)
        ]
        seen |= {tag for _, _, tag in own} if split == "train" else set()
        requests[split] = list(_examples(catalogue, own, split, config, words, histories or {}, seen, rng))
        if not requests[split]:
            raise ValueError(
                f"no tag request is left for {split}: {len(rows)} applications of {len(split_of_user)} users are too "
                "few to split; change `shares` or lower `held_out_tags` or `min_items`."
            )
    return requests


def _examples(
    catalogue: Catalogue,
    rows: Sequence[tuple[str, str, str]],
    split: str,
    config: TagConfig,
    words: Wordings,
    histories: Mapping[str, Sequence[str]],
    seen: set[str],
    rng: np.random.Generator,
) -> Iterator[Example]:
    noun = words.noun(config.noun)[config.language]
    templates = [t for t in words.templates if t.form == "tags" and (split == "test" or t.wording == "train")]
    wanted: dict[tuple[str, tuple[str, ...]], set[str]] = defaultdict(set)
    tags_of: dict[tuple[str, str], set[str]] = defaultdict(set)
    for user, item, tag in rows:
        wanted[user, (tag,)].add(item)
        tags_of[user, item].add(tag)
    drawn = set()
    for (user, _), given in tags_of.items():
        pairs = list(combinations(sorted(given), 2))
        drawn |= {(user, pairs[place]) for place in rng.permutation(len(pairs))[: config.pairs_per_item]}
    for user, pair in drawn:
        wanted[user, pair] = wanted[user, pair[:1]] & wanted[user, pair[1:]]
    count = 0
    for (user, tags), items in sorted(wanted.items()):
        if len(items) < config.min_items:
            continue
        marks, link = (('"', '"'), " and ") if config.language == "en" else (("“", "”"), "和")
        said = link.join(marks[0] + tag + marks[1] for tag in tags)
        size = config.wordings_per_request if split == "train" else 1
        known = sum(tag in seen for tag in tags)
        for place in rng.permutation(len(templates))[:size]:
            template = templates[place]
            yield Example(
                instruction=template.texts[config.language].format_map({**noun, "tags": said}),
                output=tuple(sorted(items, key=catalogue.index.__getitem__)),
                history=tuple(i for i in histories.get(user, ()) if i in catalogue.index and i not in items),
                task="recommendation",
                id=f"tags-{split}-{count}",
                origin={
                    "template": template.name,
                    "variant": "+".join(tags),
                    "wording": "train" if known == len(tags) else "mixed" if known else "held_out",
                    "template_wording": template.wording,
                    "form": "tags",
                    "preference": "none",
                    "intention": "vague" if len(tags) == 1 else "specific",
                    "language": config.language,
                    "split": split,
                    "user": user,
                    "source": f"tags of {len(items)} items",
                },
            )
            count += 1


def _share_out(rows: Sequence[tuple[str, str, str]], shares: Sequence[float]) -> dict[str, int]:
    """User -> number of the split: the most active first, each to the split that lacks most of its share."""
    activity = Counter(user for user, _, _ in rows)
    lacking = np.array(shares, float) * len(rows)
    split_of_user = {}
    for user in sorted(activity, key=lambda user: (-activity[user], user)):
        split_of_user[user] = int(lacking.argmax())
        lacking[split_of_user[user]] -= activity[user]
    return split_of_user


def _check(config: TagConfig) -> None:
    if config.language not in LANGUAGES:
        raise ValueError(f"language must be {' or '.join(LANGUAGES)}, got {config.language!r}.")
    if len(config.shares) != len(SPLITS) or min(config.shares) <= 0 or abs(sum(config.shares) - 1) > 1e-6:
        raise ValueError(f"shares are three positive numbers that sum to 1, got {config.shares}.")
    if not 0 <= config.held_out_tags < 1:
        raise ValueError(f"held_out_tags is a share below 1, got {config.held_out_tags}.")
    if min(config.wordings_per_request, config.min_items) < 1:
        raise ValueError("wordings_per_request and min_items must be at least 1.")
