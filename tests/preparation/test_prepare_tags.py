"""`prepare tags`: the folder it writes, and what is kept from a ranker that learns from it."""

from pathlib import Path

import numpy as np
import pytest

from instructrec_jax.prepare import main
from instructrec_jax.ranking.catalogue import Catalogue, Interactions, Splits, load_card, load_examples


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """Forty films that 30 users saw; the first twelve of them tag."""
    folder = tmp_path / "ml"
    folder.mkdir()
    films = Catalogue([f"m{i}" for i in range(40)], [f"Title {i}" for i in range(40)], [f"Text {i}" for i in range(40)])
    rng = np.random.default_rng(0)
    sequences = [rng.permutation(40)[:12].astype(np.int32) for _ in range(30)]
    users = [f"u{n}" for n in range(30)]
    films.save(folder)
    Interactions(users, np.repeat(np.arange(30), 12).astype(np.int32), np.concatenate(sequences)).save(folder, films)
    cut = [[s[:-2] for s in sequences], [s[-2:-1] for s in sequences], [s[-1:] for s in sequences]]
    Splits(users, *cut).save(folder, films)
    words = ["slow", "witty", "bleak", "tender", "loud", "clever"]
    rows = [f"u{n},m{item},{words[(n + item) % 6]},1" for n in range(12) for item in sequences[n][:6]]
    (tmp_path / "tags.csv").write_text("userId,movieId,tag,timestamp\n" + "\n".join(rows) + "\n")
    return folder


def run(prepared: Path, *more: str) -> dict:
    paths = ["--source", str(prepared.parent / "tags.csv"), "--catalogue", str(prepared)]
    return main(["tags", *paths, "--out", str(prepared.parent / "out"), *more])


def test_the_folder_and_its_card(prepared: Path, capsys: pytest.CaptureFixture) -> None:
    card = run(prepared)
    out = prepared.parent / "out"
    films = Catalogue.load(out)
    assert films.ids == Catalogue.load(prepared).ids and card["sha256"] == load_card(out)["sha256"]
    assert card["users_with_tags"] == 12 and card["tag_applications"] == 72
    splits = Splits.load(out, films)  # nobody who tagged is in a sequence; the others are, whole
    assert splits.user_ids == [f"u{n}" for n in range(12, 30)]
    assert all(len(items) == 12 for items in splits.train) and not any(map(len, splits.test))
    train, test = load_examples(out, "train"), load_examples(out, "test")
    wanted = [{item for e in part for item in e.output} for part in (train, test)]
    assert wanted[0] and wanted[1] and not wanted[0] & wanted[1]
    assert not any(e.history for e in test)
    assert f"{len(train)} train" in capsys.readouterr().out


def test_personal_requests_come_with_the_users_other_items(prepared: Path) -> None:
    run(prepared, "--personal", "true")
    films = Catalogue.load(prepared)
    splits = Splits.load(prepared, films)
    parts = zip(splits.train, splits.validation, splits.test, strict=True)
    whole = {user: [films.ids[i] for i in np.concatenate(p)] for user, p in zip(splits.user_ids, parts, strict=True)}
    for example in load_examples(prepared.parent / "out", "test"):
        mine = whole[example.origin["user"]]
        assert example.history == tuple(item for item in mine if item not in example.output)


def test_it_does_not_write_over_other_things(prepared: Path) -> None:
    (prepared.parent / "out").mkdir()
    with pytest.raises(ValueError, match="--overwrite"):
        run(prepared)
    with pytest.raises(ValueError, match="card.json"):
        run(prepared, "--overwrite", "true")
