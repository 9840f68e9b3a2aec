import pytest

from instructrec_jax.preparation.readers import BadLines, read_goodbooks

HEADER = "book_id,goodreads_book_id,isbn,authors,original_publication_year,title,language_code,average_rating\n"
BOOKS = (
    HEADER + '1,2767,43,Suzanne Collins,2008.0,"The Hunger Games (The Hunger Games, #1)",eng,4.34\n'
    '2,3,,"Homer, Robert Fagles",-720.0,Odyssey,,3.7\n3,9,,,,Q&amp;A,eng,\n'
)
RATINGS = "user_id,book_id,rating\n8,2,5\n8,1,3\n4,1,4\n"


def write(folder, books=BOOKS, ratings=RATINGS):
    (folder / "books.csv").write_text(books, encoding="utf-8")
    (folder / "ratings.csv").write_text(ratings)
    return folder


def test_goodbooks(tmp_path):
    write(tmp_path)
    (tmp_path / "tags.csv").write_text("tag_id,tag_name\n1,to-read\n2,young-adult\n3,dystopia\n4,star-wars\n5,2016\n")
    (tmp_path / "book_tags.csv").write_text(
        "goodreads_book_id,tag_id,count\n2767,1,900\n2767,2,50\n2767,3,70\n3,5,1\n3,4,2\n"
    )
    books, interactions = read_goodbooks(tmp_path)
    assert books.ids == ["1", "2", "3"]
    assert books.titles == ["The Hunger Games (The Hunger Games, #1)", "Odyssey", "Q&A"]
    assert books.texts == [
        "The Hunger Games (The Hunger Games, #1) (2008). Authors: Suzanne Collins.",
        "Odyssey (-720). Authors: Homer, Robert Fagles.",
        "Q&A.",
    ]
    assert books.facts == {
        "year": [2008, -720, None],
        "authors": [["Suzanne Collins"], ["Homer", "Robert Fagles"], []],
        "language": ["eng", None, "eng"],
        "average_rating": [4.34, 3.7, None],
        "tags": [["dystopia", "young adult"], ["star wars"], []],
    }
    assert interactions.user_ids == ["8", "4"] and interactions.item.tolist() == [1, 0, 0]
    assert interactions.rating.tolist() == [5, 3, 4] and interactions.timestamp is None


def test_the_release_on_kaggle_numbers_books_otherwise(tmp_path):
    """There `id` is what ratings refer to and `book_id` is Goodreads' number."""
    write(tmp_path, BOOKS.replace("book_id,goodreads_book_id", "id,book_id"), "book_id,user_id,rating\n1,4,4\n2,8,5\n")
    (tmp_path / "tags.csv").write_text("tag_id,tag_name\n3,dystopia\n")
    (tmp_path / "book_tags.csv").write_text("goodreads_book_id,tag_id,count\n2767,3,70\n")
    books, interactions = read_goodbooks(tmp_path)
    assert books.ids == ["1", "2", "3"] and books.facts["tags"][0] == ["dystopia"]
    assert interactions.user_ids == ["4", "8"] and interactions.item.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("books", "ratings", "message"),
    [
        (BOOKS + "3,9,,,,Again,eng,\n", RATINGS, "books.csv:5: .*'3'"),
        (BOOKS + "4,9,,,,,eng,\n", RATINGS, "books.csv:5: .*'4'"),
        (BOOKS + "4,9,,Emma\n", RATINGS, "books.csv:5: .*fields"),
        (BOOKS, RATINGS + "4,77,5\n", "ratings.csv:5: .*'77'"),
        (BOOKS, RATINGS + "4,2,\n", "ratings.csv:5: .*(rating|timestamp)"),
        (BOOKS, RATINGS + ",2,5\n", "ratings.csv:5: .*user"),
    ],
)
def test_broken_lines(tmp_path, books, ratings, message):
    write(tmp_path, books, ratings)
    with pytest.raises(ValueError, match=message):
        read_goodbooks(tmp_path)
    bad = BadLines(skip=True)
    found, interactions = read_goodbooks(tmp_path, bad)
    assert len(bad.skipped) == 1 and len(found) == 3 and len(interactions) == 3


def test_missing_files_and_columns(tmp_path):
    (tmp_path / "books.csv").write_text(BOOKS)
    with pytest.raises(ValueError, match=r"ratings.csv"):
        read_goodbooks(tmp_path)
    write(tmp_path, BOOKS.replace("title", "name"))
    with pytest.raises(ValueError, match="'title'"):
        read_goodbooks(tmp_path)
    write(tmp_path)
    (tmp_path / "tags.csv").write_text("tag_id,tag_name\n3,dystopia\n")
    (tmp_path / "book_tags.csv").write_text("goodreads_book_id,tag_id,count\n2767,8,70\n")
    with pytest.raises(ValueError, match="book_tags.csv:2: tag '8' is not in tags.csv"):
        read_goodbooks(tmp_path)
