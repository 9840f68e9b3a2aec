import gzip
from dataclasses import replace

import numpy as np
import pytest

from instructrec_jax.preparation.wording.tags import TagConfig, read_tags, tag_requests
from instructrec_jax.ranking.catalogue import SPLITS, Catalogue

ITEMS, USERS, TAGS = 120, 25, 40
CONFIG = TagConfig(noun="film", min_items=1)


@pytest.fixture(scope="module")
def films():
    titles = [f"Zorblat {chr(97 + n % 26)}{chr(97 + n // 26)}x" for n in range(ITEMS)]
    return Catalogue([f"m{n}" for n in range(ITEMS)], titles, titles)


@pytest.fixture(scope="module")
def applications():
    rng = np.random.default_rng(0)
    rows = []
    for user in range(USERS):
        favourites = rng.choice(ITEMS, 15, replace=False)
        rows += [
            (f"u{user}", f"m{rng.choice(favourites)}", f"tag {rng.integers(TAGS)}") for _ in range(rng.integers(5, 120))
        ]
    return rows


@pytest.mark.parametrize("personal", [False, True])
def test_splits_share_neither_user_nor_item_nor_held_out_tag(films, applications, personal):
    histories = {f"u{n}": [f"m{k}" for k in range(40)] for n in range(USERS)} if personal else None
    requests = tag_requests(films, applications, CONFIG, histories)
    items = {split: {item for e in requests[split] for item in e.output} for split in SPLITS}
    tags = {split: {tag for e in requests[split] for tag in e.origin["variant"].split("+")} for split in SPLITS}
    assert not items["train"] & items["test"] and not items["train"] & items["validation"]
    assert not items["validation"] & items["test"]
    if personal:
        users = {split: {e.origin["user"] for e in requests[split]} for split in SPLITS}
        assert all(users.values()) and not users["train"] & (users["test"] | users["validation"])
    new = tags["test"] - tags["train"]
    assert new and tags["test"] & tags["train"]
    for example in requests["test"]:
        unknown = [tag in new for tag in example.origin["variant"].split("+")]
        expected = "held_out" if all(unknown) else "mixed" if any(unknown) else "train"
        assert example.origin["wording"] == expected
    assert {e.origin["template_wording"] for e in requests["train"]} == {"train"}


def test_relevant_items_are_those_so_tagged(films, applications):
    """By brute force: the items of the split on which its users used all tags of the request."""
    requests = tag_requests(films, applications, CONFIG)
    personal = tag_requests(films, applications, CONFIG, {})
    for split in SPLITS:
        users = {e.origin["user"] for e in personal[split]}
        items = {item for e in requests[split] for item in e.output}
        own = {(item, tag) for user, item, tag in applications if user in users and item in items}
        for example in requests[split]:
            tags = example.origin["variant"].split("+")
            relevant = {item for item in items if all((item, tag) in own for tag in tags)}
            assert set(example.output) == relevant and example.history == ()
            assert all(f'"{tag}"' in example.instruction for tag in tags)
            assert not any(films.titles[films.index[item]] in example.instruction for item in example.output)
        for example in personal[split]:
            tags = example.origin["variant"].split("+")
            mine = {(item, tag) for user, item, tag in applications if user == example.origin["user"]}
            assert all((item, tag) in mine for item in example.output for tag in tags)
    sizes = {len(e.origin["variant"].split("+")) for e in requests["train"]}
    assert sizes == {1, 2}
    single = tag_requests(films, applications, replace(CONFIG, pairs_per_item=0))
    assert {e.origin["intention"] for e in single["train"]} == {"vague"}


def test_histories_are_without_what_is_wanted(films, applications):
    histories = {f"u{n}": [f"m{k}" for k in range(n, n + 60)] + ["elsewhere"] for n in range(USERS)}
    for example in tag_requests(films, applications, CONFIG, histories)["test"]:
        known = histories[example.origin["user"]][:-1]
        assert list(example.history) == [item for item in known if item not in example.output]


def test_what_is_left_out(films, applications):
    extra = [
        ("u0", "elsewhere", "tag 1"),
        ("u0", "m3", " In Netflix queue "),
        ("u0", "m3", f"the {films.titles[3].upper()} saga"),
        ("u0", "m3", " "),
    ]
    assert tag_requests(films, applications + extra, CONFIG) == tag_requests(films, applications, CONFIG)
    shouted = [(user, item, f" {tag.upper()} ") for user, item, tag in applications]
    assert tag_requests(films, shouted, CONFIG) == tag_requests(films, applications, CONFIG)


def test_a_function_of_the_seed(films, applications):
    assert tag_requests(films, applications, CONFIG) == tag_requests(films, applications, CONFIG)
    assert tag_requests(films, applications, replace(CONFIG, seed=1)) != tag_requests(films, applications, CONFIG)


def test_wordings_per_request(films, applications):
    requests = tag_requests(films, applications, replace(CONFIG, wordings_per_request=2))
    for split, count in (("train", 2), ("validation", 1), ("test", 1)):
        by_request = {}
        for example in requests[split]:
            by_request.setdefault(example.origin["variant"], []).append(example.origin["template"])
        assert all(len(names) == len(set(names)) == count for names in by_request.values())


def test_read_tags(tmp_path):
    text = 'userId,movieId,tag,timestamp\n2,60,"dark, funny",1\n7,61,女性,2\n'
    (tmp_path / "tags.csv").write_text(text, encoding="utf-8")
    (tmp_path / "tags.csv.gz").write_bytes(gzip.compress(text.encode()))
    for name in ("tags.csv", "tags.csv.gz"):
        assert read_tags(tmp_path / name) == [("2", "60", "dark, funny"), ("7", "61", "女性")]
    (tmp_path / "bad.csv").write_text("user,movieId,tag\n1,2,x\n")
    with pytest.raises(ValueError, match="bad.csv .*'userId'"):
        read_tags(tmp_path / "bad.csv")
    (tmp_path / "short.csv").write_text("userId,movieId,tag\n1,2\n")
    with pytest.raises(ValueError, match="short.csv:2: "):
        read_tags(tmp_path / "short.csv")


def test_bad_settings(films, applications):
    for message, changes in {
        "shares": {"shares": (0.5, 0.1, 0.1)},
        "language": {"language": "de"},
        "held_out_tags": {"held_out_tags": 1.0},
        "min_items": {"min_items": 0},
        "noun": {"noun": "movie"},
        "`shares`": {"min_items": 100},
    }.items():
        with pytest.raises(ValueError, match=message):
            tag_requests(films, applications, replace(CONFIG, **changes))
