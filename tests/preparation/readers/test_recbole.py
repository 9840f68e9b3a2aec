"""RecBole's atomic files."""

import pytest

from instructrec_jax.preparation.readers import BadLines, read_recbole

INTER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\nu1\tB1\t5.0\t9.7e8\nu1\tB2\t3.0\t9.8e8\n"


ITEM = (
    "item_id:token\tprice:float\tcategories:token_seq\ttitle:token\tbrand:token\ttags:token_seq\n"
    "B1\t9.5\t'Games', 'Racing Wheels'\tWheel Pro\tAcme\tfast loud\n"
    "B2\t\t\tPad, The (2004)\t\t\n"
)


def recbole_folder(folder, inter=INTER, item=ITEM):
    (folder / "shop.inter").write_text(inter, encoding="utf-8")
    (folder / "shop.item").write_text(item, encoding="utf-8")
    (folder / "shop.user").write_text("user_id:token\nu1\n")
    return folder


def test_recbole(tmp_path):
    items, interactions = read_recbole(recbole_folder(tmp_path))
    assert items.ids == ["B1", "B2"] and items.titles == ["Wheel Pro", "The Pad"]
    assert items.texts == ["Wheel Pro. Categories: Games, Racing Wheels. Brand: Acme.", "The Pad (2004)."]
    assert items.facts == {
        "price": [9.5, None],
        "categories": [["Games", "Racing Wheels"], []],
        "brand": ["Acme", None],
        "tags": ["fast loud", None],
        "year": [None, 2004],
    }
    assert interactions.user_ids == ["u1"] and interactions.item.tolist() == [0, 1]
    assert interactions.timestamp.tolist() == [9.7e8, 9.8e8] and interactions.rating.tolist() == [5, 3]


def test_recbole_movielens_columns(tmp_path):
    header = "studio_name:token\titem_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
    item = header + "Regency\tB1\tHeat\t1995\tCrime Drama\n"
    inter = "item_id:token\tuser_id:token\nB1\tu1\n"
    items, interactions = read_recbole(recbole_folder(tmp_path, inter, item))
    assert items.texts == ["Heat (1995). Genres: Crime, Drama."]
    assert items.facts == {"studio_name": ["Regency"], "genres": [["Crime", "Drama"]], "year": [1995]}
    assert interactions.rating is None and interactions.timestamp is None


def test_recbole_chosen_columns(tmp_path):
    items, _ = read_recbole(recbole_folder(tmp_path), title_column="brand", bad=BadLines(skip=True), text_columns=[])
    assert items.texts == ["Acme."] and items.facts["item_title"] == ["Wheel Pro"]


@pytest.mark.parametrize(
    ("inter", "item", "message"),
    [
        (INTER.replace("user_id:token", "user_id"), ITEM, "shop.inter:1: .*header"),
        (INTER.replace("user_id:", "session_id:"), ITEM, "--user_column"),
        (INTER + "u2\tB1\n", ITEM, "shop.inter:4: .*fields"),
        (INTER + "u2\tB9\t1\t1\n", ITEM, "shop.inter:4: .*'B9'"),
        (INTER, ITEM.replace("title:token", "label:token"), "--title_column"),
        (INTER, ITEM + "B3\tcheap\t\tLamp\t\t\n", "shop.item:4: .*price.*'cheap'"),
    ],
)
def test_recbole_errors(tmp_path, inter, item, message):
    with pytest.raises(ValueError, match=message):
        read_recbole(recbole_folder(tmp_path, inter, item))


def test_recbole_needs_one_file_each(tmp_path):
    with pytest.raises(ValueError, match=r"\*\.inter"):
        read_recbole(tmp_path)
    recbole_folder(tmp_path)
    (tmp_path / "shop.valid.inter").write_text(INTER)
    with pytest.raises(ValueError, match="shop.inter, shop.valid.inter"):
        read_recbole(tmp_path)


LASTFM = "user_id:token\tartist_id:token\tweight:float\nu1\tB1\t5\nu1\tB2\t3\n"


OWN_ITEM = "artist_id:token\tname:token\turl:token\nB1\tOne\thttp://a\nB2\tTwo\thttp://b\n"


def test_recbole_under_own_field_names(tmp_path):
    items, interactions = read_recbole(recbole_folder(tmp_path, LASTFM, OWN_ITEM))  # the one field that both have
    assert items.ids == ["B1", "B2"] and items.facts == {"url": ["http://a", "http://b"]}
    assert interactions.timestamp is None and interactions.rating is None
    inter = LASTFM.replace("user_id", "listener").replace("weight", "played_at")
    settings = {"user_column": "listener", "item_column": "artist_id", "time_column": "played_at"}
    _, interactions = read_recbole(recbole_folder(tmp_path, inter, OWN_ITEM), **settings)
    assert interactions.timestamp.tolist() == [5, 3] and interactions.user_ids == ["u1"]
    for name in ("user_column", "item_column", "time_column", "rating_column"):
        with pytest.raises(ValueError, match="'nowhere'"):
            read_recbole(tmp_path, **{**settings, name: "nowhere"})


@pytest.mark.parametrize(("first", "second"), [("1.3e9", "1300000100"), ("2011-03-13", "2011-03-13 08:00:00")])
def test_a_date_is_the_time(tmp_path, first, second):
    inter = f"user_id:token\titem_id:token\tstars:float\tdate:token\nu1\tB2\t3\t{second}\nu1\tB1\t5\t{first}\n"
    _, interactions = read_recbole(recbole_folder(tmp_path, inter))
    later, earlier = interactions.timestamp
    assert later > earlier > 1.29e9 and interactions.rating.tolist() == [3, 5]


@pytest.mark.parametrize("name", ["played_at", "review_date", "x"])
def test_a_column_that_may_be_the_time_is_asked_about(tmp_path, name):
    recbole_folder(
        tmp_path,
        LASTFM.replace("weight", name).replace("\t5\n", "\t1300000100\n").replace("\t3\n", "\t1.3e9\n"),
        OWN_ITEM,
    )
    with pytest.raises(ValueError, match=rf"{name}.*--time_column {name}.*--time_column none"):
        read_recbole(tmp_path)
    assert read_recbole(tmp_path, time_column="none")[1].timestamp is None
    assert read_recbole(tmp_path, time_column=name)[1].timestamp.tolist() == [1300000100, 1300000000]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1300000000", "1300000000000"),
        ("20110313", "1300000000"),
        ("2011-03-13", "1300000000"),
        ("2011-03-13", "20110313"),
    ],
)
def test_times_of_two_kinds_are_refused(tmp_path, one, other):
    inter = f"user_id:token\titem_id:token\ttimestamp:float\nu1\tB2\t{one}\nu1\tB1\t{other}\n"
    with pytest.raises(ValueError, match="shop.inter"):
        read_recbole(recbole_folder(tmp_path, inter))


@pytest.mark.parametrize("place", ["Wheel Pro", "Acme", "fast loud", "'Games'"])
def test_nul_bytes_in_an_item_are_refused_or_counted(tmp_path, place):
    recbole_folder(tmp_path, INTER.replace("B1", "B2"), ITEM.replace(place, place[:2] + "\0" + place[2:]))
    with pytest.raises(ValueError, match="shop.item:2: .*NUL"):
        read_recbole(tmp_path)
    bad = BadLines(skip=True)
    assert read_recbole(tmp_path, bad)[0].ids == ["B2"] and len(bad.skipped) == 1
