import gzip
import json

import pytest

from instructrec_jax.preparation.readers import BadLines, read_amazon

REVIEWS_2018 = [
    {"overall": 5.0, "reviewerID": "A1", "asin": "B1", "unixReviewTime": 200, "reviewText": "fine", "verified": True},
    {"overall": 2.0, "reviewerID": "A2", "asin": "B2", "unixReviewTime": 150},
    {"overall": 4.0, "reviewerID": "A1", "asin": "B2", "unixReviewTime": 100},
]
META_2018 = [
    {
        "asin": "B1",
        "title": "Wheel &amp; Pedals",
        "brand": "Acme\n",
        "category": ["Games", "PC", "</span>"],
        "price": "$9.50",
    },
    {"asin": "B2", "title": "<b>Pad</b>\n2", "brand": "", "category": [], "price": ".a-box{color:red}", "rank": []},
]
REVIEWS_2023 = [
    {
        "rating": r["overall"],
        "user_id": r["reviewerID"],
        "parent_asin": r["asin"],
        "asin": "X",
        "timestamp": r["unixReviewTime"],
    }
    for r in REVIEWS_2018
]
META_2023 = [
    {
        "parent_asin": "B1",
        "title": "Wheel & Pedals",
        "store": "Acme",
        "categories": ["Games", "PC"],
        "price": 9.5,
        "images": [{}],
    },
    {"parent_asin": "B2", "title": "Pad 2", "store": None, "categories": [], "price": "from 3.00"},
]
META_2014 = [
    {"asin": "B1", "title": "Wheel & Pedals", "brand": "Acme", "categories": [["Games", "PC"], ["Toys"]], "price": 9.5},
    {"asin": "B2", "title": "Pad 2", "salesRank": {"Games": 3}, "categories": [[]]},
]


def lines(records, dump=json.dumps):
    return "".join(dump(record) + "\n" for record in records)


def write(folder, reviews, meta, names=("Games_5.json", "meta_Games.json.gz")):
    (folder / names[0]).write_text(reviews, encoding="utf-8")
    with gzip.open(folder / names[1], "wt", encoding="utf-8") as file:
        file.write(meta)
    return folder


@pytest.mark.parametrize(
    ("reviews", "meta", "names"),
    [
        (lines(REVIEWS_2018), lines(META_2018), ("Games_5.json", "meta_Games.json.gz")),
        (lines(REVIEWS_2023), lines(META_2023), ("Games.jsonl", "meta_Games.jsonl.gz")),
        (lines(REVIEWS_2018), lines(META_2014, repr), ("reviews_Games_5.json", "meta_Games.json.gz")),
        (
            "user_id,parent_asin,rating,timestamp\nA1,B1,5.0,200\nA2,B2,2.0,150\nA1,B2,4.0,100\n",
            lines(META_2023),
            ("Games.csv", "meta_Games.jsonl.gz"),
        ),
    ],
)
def test_every_year_reads_alike(tmp_path, reviews, meta, names):
    write(tmp_path, reviews, meta, names)
    for source in (tmp_path, tmp_path / names[0]):
        items, interactions = read_amazon(source)
        assert items.ids == ["B1", "B2"] and items.titles == ["Wheel & Pedals", "Pad 2"]
        assert items.texts == ["Wheel & Pedals. Categories: Games, PC. Brand: Acme.", "Pad 2."]
        assert items.facts == {"categories": [["Games", "PC"], []], "brand": ["Acme", None], "price": [9.5, None]}
        assert interactions.user_ids == ["A1", "A2"]
        assert interactions.user.tolist() == [0, 1, 0] and interactions.item.tolist() == [0, 1, 1]
        assert interactions.rating.tolist() == [5, 2, 4] and interactions.timestamp.tolist() == [200, 150, 100]


def test_the_metadata_of_the_same_category_count(tmp_path):
    write(tmp_path, lines(REVIEWS_2018), lines(META_2018), ("Games_and_Toys_5.json", "meta_Games_and_Toys.json.gz"))
    write(tmp_path, lines(REVIEWS_2018), lines(META_2018[:1]), ("Games_5.json", "meta_Games.json.gz"))
    assert len(read_amazon(tmp_path / "Games_and_Toys_5.json")[0]) == 2
    with pytest.raises(ValueError, match="Games_5.json, Games_and_Toys_5.json"):
        read_amazon(tmp_path)


def test_reviews_without_metadata(tmp_path):
    (tmp_path / "Games_5.json").write_text(lines(REVIEWS_2018))
    with pytest.raises(ValueError, match="metadata.*Games_5.json"):
        read_amazon(tmp_path)


def more(base, *changes):
    return [*base, {**base[-1], **dict(changes)}]


@pytest.mark.parametrize(
    ("reviews", "meta", "message"),
    [
        (lines(REVIEWS_2018), lines(META_2018) + '{"asin": "B3"}\n', "json.gz:3: .*'B3'"),
        (lines(REVIEWS_2018), lines(more(META_2018)), "json.gz:3: .*'B2'"),
        (
            lines(REVIEWS_2018),
            lines(more(META_2018, ("asin", "B3"), ("title", "var aPageStart = (new Date()).getTime();"))),
            "json.gz:3: .*'B3'",
        ),
        (lines(REVIEWS_2018), lines(more(META_2018, ("asin", "B3"), ("title", ["x"]))), "json.gz:3: .*not text"),
        (lines(REVIEWS_2018), lines(more(META_2018, ("asin", "B3"), ("title", "\ud800"))), "json.gz:3: .*surrogate"),
        (lines(REVIEWS_2018), lines(META_2018) + "__import__('os').abort()\n", "json.gz:3: not JSON"),
        (lines(REVIEWS_2018), lines(META_2018) + "[" * 100_000 + "\n", "json.gz:3: not JSON"),
        (lines(REVIEWS_2018), lines(META_2018) + "[1]\n", "json.gz:3: .*JSON"),
        (lines(more(REVIEWS_2018, ("asin", "B9"))), lines(META_2018), "Games_5.json:4: .*'B9'"),
        (lines(more(REVIEWS_2018, ("asin", None))), lines(META_2018), "Games_5.json:4: .*''"),
        (lines(more(REVIEWS_2018, ("asin", ["B1"]))), lines(META_2018), "Games_5.json:4: .*''"),
        (lines(more(REVIEWS_2018, ("reviewerID", None))), lines(META_2018), "Games_5.json:4: .*user"),
        (lines(more(REVIEWS_2018, ("reviewerID", "\ud800"))), lines(META_2018), "Games_5.json:4: user .*surrogate"),
        (lines(more(REVIEWS_2018, ("overall", None))), lines(META_2018), "Games_5.json:4: .*rating None"),
        (lines(more(REVIEWS_2018, ("overall", {}))), lines(META_2018), "Games_5.json:4: .*rating {}"),
        (lines(more(REVIEWS_2018, ("overall", 10**400))), lines(META_2018), "Games_5.json:4: .*rating 1000"),
        (lines(more(REVIEWS_2018, ("unixReviewTime", float("nan")))), lines(META_2018), "Games_5.json:4: .*not finite"),
        (lines(REVIEWS_2018) + '{"overall": 5, "rev', lines(META_2018), "Games_5.json:4: not JSON"),
    ],
)
def test_broken_lines(tmp_path, reviews, meta, message):
    write(tmp_path, reviews, meta)
    with pytest.raises(ValueError, match=message):
        read_amazon(tmp_path)
    bad = BadLines(skip=True)
    items, interactions = read_amazon(tmp_path, bad)
    assert len(bad.skipped) == 1 and items.ids == ["B1", "B2"] and len(interactions) == 3


def test_other_records_are_no_reviews(tmp_path):
    write(tmp_path, '{"user": "A1", "item": "B1"}\n', lines(META_2018))
    with pytest.raises(ValueError, match="Games_5.json:1: .*user_id, .* user, item"):
        read_amazon(tmp_path)


def test_nothing_usable_says_why(tmp_path):
    write(tmp_path, lines(REVIEWS_2018), '{"asin": "B1", "title": ""}\n')
    with pytest.raises(ValueError, match="'B1'.*title"):
        read_amazon(tmp_path, BadLines(skip=True))
