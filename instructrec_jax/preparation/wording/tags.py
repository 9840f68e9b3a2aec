"""User tags as requests: a request is one tag or two; the items with these tags are the positive items.

Users, tags and items are split before examples are made. Tags are never part of the text of an item.
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
    """Settings for requests from user tags."""

    language: str = "en"
    """language of the request, en or zh; tags are not translated"""
    noun: str = "film"
    """noun for items, see GrammarConfig.noun"""
    templates: str | None = None
    """YAML file, or folder of them, with additional templates of the form tags"""
    shares: tuple[float, float, float] = (0.6, 0.1, 0.3)
    """shares of the tag applications for train, validation and test; each user is in one split"""
    held_out_tags: float = 0.3
    """share of the tags without training examples"""
    wordings_per_request: int = 3
    """training examples per request, each with another template; validation and test have one"""
    min_items: int = 1
    """minimum number of positive items per request"""
    pairs_per_item: int = 3
    """pairs of tags drawn per item with several tags (with histories, per user and item); 0: none"""
    ignore: tuple[str, ...] = ("in netflix queue",)
    """tags to ignore because they do not describe an item, in lower case"""
    seed: int = 0
    """for the held-out tags and the templates"""


def read_tags(path: str | Path) -> list[tuple[str, str, str]]:
    """(user, item, tag) of each row of a MovieLens tags.csv (or .csv.gz), in order."""
    path = Path(path)
    rows = pick(csv_rows(path), path, ("userId", "movieId", "tag"), BadLines(remedy="Repair the file."))
    return [(user, item, tag) for _, (user, item, tag) in rows]


def tag_requests(
    catalogue: Catalogue,
    applications: Iterable[tuple[str, str, str]],
    config: TagConfig,
    histories: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, list[Example]]:
    """Requests of the three splits from (user id, item id, tag); `output` is the tuple of positive item ids.

    Train and test share no users, no items and, in test's held-out part, no tags:
      users: the most active first, each to the split that lacks most of its share of the applications;
      items: to the last split (of train, validation, test) of the users who tagged them; they count only there;
      tags: a random share is held out from train and validation. Test has all tags: `origin.wording` is held_out if no
        tag of the request occurs in train, train if all do, else mixed.
    Templates: those of training for train and validation, all for test, with `origin.template_wording`.

    Tags are compared in lower case. Applications to unknown items, ignored tags, and tags with the item's title are
    dropped.

    Args:
      histories: user id -> ids of the user's items, oldest first. If given, a request belongs to one user: its positive
        items are those tagged by this user, and `history` is the user's other items. None: a request combines all
        users of a split, and has no history.

    Raises:
      ValueError: a split without requests, or invalid settings.
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
                f"{split} has no requests: {len(rows)} tag applications by {len(split_of_user)} users are too few to "
                "split; change `shares`, or lower `held_out_tags` or `min_items`."
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
    positives: dict[tuple[str, tuple[str, ...]], set[str]] = defaultdict(set)
    tags_of: dict[tuple[str, str], set[str]] = defaultdict(set)
    for user, item, tag in rows:
        positives[user, (tag,)].add(item)
        tags_of[user, item].add(tag)
    drawn = set()
    for (user, _), given in tags_of.items():
        pairs = list(combinations(sorted(given), 2))
        drawn |= {(user, pairs[place]) for place in rng.permutation(len(pairs))[: config.pairs_per_item]}
    for user, pair in drawn:
        positives[user, pair] = positives[user, pair[:1]] & positives[user, pair[1:]]
    count = 0
    for (user, tags), items in sorted(positives.items()):
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
        raise ValueError(f"shares must be three positive numbers with sum 1, got {config.shares}.")
    if not 0 <= config.held_out_tags < 1:
        raise ValueError(f"held_out_tags must be a share below 1, got {config.held_out_tags}.")
    if min(config.wordings_per_request, config.min_items) < 1:
        raise ValueError("wordings_per_request and min_items must be at least 1.")
