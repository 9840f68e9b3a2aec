import gzip

import pytest

from instructrec_jax.preparation.readers import BadLines, read_movielens, read_recbole
from instructrec_jax.preparation.readers.items import item_text, split_title
from instructrec_jax.preparation.readers.movielens import GENRES_100K


@pytest.mark.parametrize(
    ("raw", "title", "year"),
    [
        ("Matrix, The (1999)", "The Matrix", 1999),
        ("Toy Story (1995)", "Toy Story", 1995),
        ("Moonlight", "Moonlight", None),
        ("2001: A Space Odyssey (1968)", "2001: A Space Odyssey", 1968),
        ("1984 (1984)", "1984", 1984),
        ("(500) Days of Summer (2009)", "(500) Days of Summer", 2009),
        ("Good, the Bad and the Ugly, The (1966)", "The Good, the Bad and the Ugly", 1966),
        (
            "City of Lost Children, The (Cité des enfants perdus, La) (1995)",
            "The City of Lost Children (La Cité des enfants perdus)",
            1995,
        ),
        (
            "Léon: The Professional (a.k.a. Professional, The) (1994)",
            "Léon: The Professional (a.k.a. The Professional)",
            1994,
        ),
        ("Avventura, L' (1960)", "L'Avventura", 1960),
        ("Land Before Time III (1995) (V)", "Land Before Time III", 1995),
        ("Death Note (2006–2007)", "Death Note", 2006),
        ("Babylon 5 (1994- ) ", "Babylon 5", 1994),
        ("Sports, Action", "Sports, Action", None),
    ],
)
def test_split_title(raw, title, year):
    assert split_title(raw) == (title, year)


def test_item_text():
    assert item_text("The Matrix", 1999, {"Genres": ["Action", "Sci-Fi"]}) == (
        "The Matrix (1999). Genres: Action, Sci-Fi."
    )
    assert item_text("Who?", None, {"Genres": [], "Brand": None}) == "Who?"
    assert item_text("Pad", None, {"Brand": "Acme", "Price": 9.5}) == "Pad. Brand: Acme. Price: 9.5."


MOVIES = 'movieId,title,genres\n1,Amélie (2001),Comedy|Romance\n7,"Matrix, The (1999)",(no genres listed)\n'
RATINGS = "userId,movieId,rating,timestamp\n10,7,4.5,1000\n10,1,3.0,900\n3,1,5.0,1200\n"


def csv_folder(folder, movies=MOVIES, ratings=RATINGS):
    (folder / "movies.csv").write_text(movies, encoding="utf-8")
    with gzip.open(folder / "ratings.csv.gz", "wt") as file:
        file.write(ratings)
    return folder


def dat_folder(folder):
    (folder / "movies.dat").write_bytes("1::Amélie (2001)::Comedy|Romance\n7::Matrix, The (1999)::\n".encode("latin-1"))
    (folder / "ratings.dat").write_text("10::7::4.5::1000\n10::1::3::900\n3::1::5::1200\n")
    return folder


def folder_100k(folder):
    def row(number, title, genres):
        flags = "|".join("1" if genre in genres else "0" for genre in GENRES_100K)
        return f"{number}|{title}|01-Jan-1995||http://example|{flags}\n"

    text = row(1, "Amélie (2001)", ["Comedy", "Romance"]) + row(7, "Matrix, The (1999)", ["unknown"])
    (folder / "u.item").write_bytes(text.encode("latin-1"))
    (folder / "u.data").write_text("10\t7\t4.5\t1000\n10\t1\t3\t900\n3\t1\t5\t1200\n")
    return folder


@pytest.mark.parametrize("layout", [csv_folder, dat_folder, folder_100k])
def test_every_movielens_layout_reads_alike(tmp_path, layout):
    films, interactions = read_movielens(layout(tmp_path))
    assert films.ids == ["1", "7"]
    assert films.titles == ["Amélie", "The Matrix"]
    assert films.texts == ["Amélie (2001). Genres: Comedy, Romance.", "The Matrix (1999)."]
    assert films.facts == {"year": [2001, 1999], "genres": [["Comedy", "Romance"], []]}
    assert interactions.user_ids == ["10", "3"]
    assert interactions.user.tolist() == [0, 0, 1] and interactions.item.tolist() == [1, 0, 0]
    assert interactions.rating.tolist() == [4.5, 3, 5] and interactions.timestamp.tolist() == [
        1000,
        900,
        1200,
    ]


def test_dat_in_utf8_reads_too(tmp_path):
    dat_folder(tmp_path)
    (tmp_path / "movies.dat").write_text("1::Amélie (2001)::Comedy\n7::Heat (1995)::Crime\n", encoding="utf-8")
    assert read_movielens(tmp_path)[0].titles[0] == "Amélie"


def test_unknown_layout_lists_what_was_looked_for(tmp_path):
    with pytest.raises(ValueError, match="movies.csv.*ratings.csv.*movies.dat.*ratings.dat.*u.item.*u.data"):
        read_movielens(tmp_path)


@pytest.mark.parametrize(
    ("movies", "ratings", "message"),
    [
        (MOVIES + "8,Heat\n", RATINGS, "movies.csv:4: .*fields"),
        (MOVIES + "7,Heat (1995),Crime\n", RATINGS, "movies.csv:4: .*'7'"),
        (MOVIES + "8,(1995),Crime\n", RATINGS, "movies.csv:4: .*'8'"),
        (MOVIES + '8,"Heat\nHeat",Crime\n', RATINGS, "movies.csv:5: .*'8'"),
        (MOVIES + '8,"Heat,Crime\n', RATINGS, "movies.csv:4: not CSV"),
        ("movieId,name,genres\n", RATINGS, "'title'"),
        (MOVIES, RATINGS + "3,99,5,1\n", "ratings.csv.gz:5: .*'99'"),
        (MOVIES, RATINGS + "3,7,good,1\n", "ratings.csv.gz:5: .*(rating|timestamp)"),
        (MOVIES, RATINGS + "3,7,nan,1\n", "ratings.csv.gz:5: .*not finite"),
        (MOVIES, RATINGS + ",7,4,1\n", "ratings.csv.gz:5: .*user"),
        (MOVIES, RATINGS + "a\0b,7,4,1\n", "ratings.csv.gz:5: .*NUL"),
        (MOVIES, RATINGS + "3,7,,1\n", "ratings.csv.gz:5: .*(rating|timestamp)"),
        (MOVIES, RATINGS.replace("rating,timestamp", "rating,rating"), "'timestamp'"),
        (MOVIES, RATINGS.replace("userId,movieId,rating", "userId,movieId,movieId"), "'rating'"),
        (MOVIES, RATINGS + "3,7,4\n", "ratings.csv.gz:5: .*fields"),
        (MOVIES, RATINGS.splitlines()[0] + "\n", "ratings"),
        ("movieId,title,genres\n", RATINGS, "movies"),
    ],
)
def test_broken_lines_name_file_and_line(tmp_path, movies, ratings, message):
    with pytest.raises(ValueError, match=message):
        read_movielens(csv_folder(tmp_path, movies, ratings))


def test_bytes_that_are_not_utf8_name_their_line(tmp_path):
    csv_folder(tmp_path)
    (tmp_path / "movies.csv").write_bytes(MOVIES.encode("latin-1"))
    with pytest.raises(ValueError, match="movies.csv:2: "):
        read_movielens(tmp_path)


def test_half_a_gzip_is_named(tmp_path):
    csv_folder(tmp_path)
    whole = (tmp_path / "ratings.csv.gz").read_bytes()
    for damaged in (whole[:-12], b"not gzip at all", whole[:20] + bytes(20)):
        (tmp_path / "ratings.csv.gz").write_bytes(damaged)
        with pytest.raises(ValueError, match="ratings.csv.gz.*gzip"):
            read_movielens(tmp_path)


def test_skipping_counts_and_lists(tmp_path):
    bad = BadLines(skip=True)
    films, interactions = read_movielens(
        csv_folder(tmp_path, MOVIES + "8,Heat\n", RATINGS + "3,99,5,1\n\n3,7,2,1300\n"), bad
    )
    assert len(films) == 2 and len(interactions) == 4
    assert [line.split(": ")[0] for line in bad.skipped] == ["movies.csv:4", "ratings.csv.gz:5"]


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
