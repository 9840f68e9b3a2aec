import gzip

import pytest

from instructrec_jax.preparation.readers import BadLines, read_movielens
from instructrec_jax.preparation.readers.movielens import GENRES_100K

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
