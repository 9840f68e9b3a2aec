import os
from pathlib import Path

import numpy as np
import pytest

from instructrec_jax.metrics.ranking import concatenate, ndcg, paired_bootstrap, target_ranks
from instructrec_jax.prepare import main
from instructrec_jax.recommendation.baselines import CoOccurrence, Popularity, score_in_blocks
from instructrec_jax.recommendation.catalogue import (
    SPLITS,
    Catalogue,
    Interactions,
    Splits,
    load_card,
    load_examples,
)


@pytest.fixture
def source(tmp_path):
    """Six users who each rate most of ten films, one of them too little for a 3-core."""
    folder = tmp_path / "ml-tiny"
    folder.mkdir()
    rng = np.random.default_rng(0)
    movies = ["movieId,title,genres"] + [f'{100 + i},"Film {chr(65 + i)}, The ({1990 + i})",Drama' for i in range(10)]
    ratings = ["userId,movieId,rating,timestamp"]
    for user in range(6):
        for when, item in enumerate(rng.permutation(10)[: 1 if user == 5 else 8]):
            ratings.append(f"9000{user},{100 + item},{1 + (when + user) % 5},{1000 + when}")
    (folder / "movies.csv").write_text("\n".join(movies) + "\n")
    (folder / "ratings.csv").write_text("\n".join(ratings) + "\n")
    return folder


def run(source, out, *more):
    return main(["movielens", "--source", str(source), "--out", str(out), "--k_core", "3", *more])


def test_movielens_end_to_end(source, tmp_path, capsys):
    card = run(source, tmp_path / "out", "--titles_in_prompt", "3")
    printed = capsys.readouterr().out
    films = Catalogue.load(tmp_path / "out")
    interactions = Interactions.load(tmp_path / "out", films)
    splits = Splits.load(tmp_path / "out", films)
    assert card == load_card(tmp_path / "out")
    assert card["source"] == "ml-tiny" and card["users"] == 5 and card["settings"]["k_core"] == 3
    assert card["interactions"] == len(interactions) == 41 - card["outside_k_core"]
    assert str(source) not in (tmp_path / "out" / "card.json").read_text()
    for text in ("users", "items", "interactions", "density", "train", "ml-tiny", str(tmp_path / "out")):
        assert text in printed

    # the splits share out the interactions, in time
    for number, user in enumerate(splits.user_ids):
        own = interactions.user == interactions.user_ids.index(user)
        whole = np.concatenate([getattr(splits, name)[number] for name in SPLITS])
        np.testing.assert_array_equal(whole, interactions.item[own][np.argsort(interactions.timestamp[own])])
        assert len(splits.test[number]) == len(splits.validation[number]) == 1

    # leakage, on the files themselves
    train = load_examples(tmp_path / "out", "train")
    for test in load_examples(tmp_path / "out", "test"):
        title = films.titles[films.index[test.output]]
        for example in [test, *(e for e in train if e.origin["user"] == test.origin["user"])]:
            assert title not in example.instruction and test.output not in example.history
            assert example is test or example.output != test.output
    for split in SPLITS:
        assert not any("9000" in e.instruction for e in load_examples(tmp_path / "out", split))


def test_same_settings_same_content(source, tmp_path):
    first = run(source, tmp_path / "a")["sha256"]
    assert run(source, tmp_path / "b")["sha256"] == first
    assert run(source, tmp_path / "c", "--seed", "1")["sha256"] != first


def test_settings_act(source, tmp_path):
    card = run(source, tmp_path / "a", "--min_rating", "2", "--examples_per_user", "2")
    assert card["below_min_rating"] > 0
    assert card["examples"]["train"] == 2 * card["examples"]["test"]
    everything = run(source, tmp_path / "b", "--examples_per_user", "null")
    assert everything["examples"]["train"] == everything["interactions"] - 3 * everything["users"]


def test_existing_output(source, tmp_path):
    out = tmp_path / "out"
    run(source, out)
    with pytest.raises(ValueError, match="exists already"):
        run(source, out)
    run(source, out, "--overwrite", "true", "--seed", "1")
    assert load_card(out)["settings"]["seed"] == 1
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="will not be overwritten"):
        run(source, mine, "--overwrite", "true")
    assert (mine / "thesis.txt").exists()


def test_a_failure_leaves_nothing_behind(source, tmp_path):
    with pytest.raises(ValueError, match="unknown wording 'song'"):
        run(source, tmp_path / "out", "--wording", "song")  # found out while the files are being written
    assert os.listdir(tmp_path) == ["ml-tiny"]


def test_bad_lines(source, tmp_path, capsys):
    with open(source / "ratings.csv", "a") as file:
        file.write("90000,555,3,1\n")
    with pytest.raises(ValueError, match="ratings.csv:43: item '555'"):
        run(source, tmp_path / "out")
    card = run(source, tmp_path / "out", "--on_bad_line", "skip")
    assert card["bad_lines"] == 1
    assert (tmp_path / "out" / "bad_lines.txt").read_text().startswith("ratings.csv:43")
    assert "1 bad lines" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["movilens"], 'first word is one of movielens, recbole. Did you mean "movielens"?'),
        (["movielens", "--k_coer", "3"], "no setting 'k_coer'. Did you mean 'k_core'"),
        (["movielens", "--source", "x"], "`out`"),
        (["movielens", "--source", "x", "--out", "y"], "no MovieLens folder"),
        (["movielens", "--source", "x", "--out", "y", "--k_core", "five"], "k_core"),
        (["movielens", "--source", "x", "--out", "y", "--on_bad_line", "ignore"], "error or skip"),
        (
            ["movielens", "--source", "x", "--out", "y", "--title_column", "name"],
            "no setting 'title_column'",
        ),
    ],
)
def test_bad_arguments(args, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        main(args)


def test_recbole_end_to_end(tmp_path, capsys):
    folder = tmp_path / "shop"
    folder.mkdir()
    rows = [f"u{user}\tB{(user + step) % 6}" for user in range(6) for step in (0, 1, 2, 3, 1)]
    (folder / "shop.inter").write_text("user_id:token\titem_id:token\n" + "\n".join(rows) + "\n")
    names = [f"B{number}\tThing {number}" for number in range(6)]
    (folder / "shop.item").write_text("item_id:token\ttitle:token\n" + "\n".join(names) + "\n")
    card = main(["recbole", "--source", str(folder), "--out", str(tmp_path / "out"), "--k_core", "4"])
    assert card["repeats"] == 6 and card["interactions"] == 24 and card["settings"]["wording"] == "item"
    assert "no timestamps" in capsys.readouterr().out
    first = load_examples(tmp_path / "out", "test")[0]
    assert first.output == "B3" and first.history == ("B0", "B1", "B2")
    assert "Thing 0; Thing 1; Thing 2" in first.instruction and "B3" not in first.instruction


def test_real_movielens(tmp_path):
    folder = Path(os.environ.get("INSTRUCTREC_DATA", "")) / "ml-latest-small"
    if "INSTRUCTREC_DATA" not in os.environ or not folder.is_dir():
        pytest.skip("INSTRUCTREC_DATA/ml-latest-small is not there")
    card = main(["movielens", "--source", str(folder), "--out", str(tmp_path / "out")])
    assert (card["users"], card["items"], card["interactions"]) == (610, 3650, 90274)
    films = Catalogue.load(tmp_path / "out")
    splits = Splits.load(tmp_path / "out", films)
    cases = load_examples(tmp_path / "out", "test")
    histories = [films.numbers(case.history) for case in cases]
    targets = films.numbers(case.output for case in cases)
    quality = {}
    for baseline in (Popularity(), CoOccurrence()):
        blocks = score_in_blocks(baseline.fit(splits.train, len(films)), histories)
        ranks = concatenate([target_ranks(scores, targets[part], histories[part]) for part, scores in blocks])
        quality[baseline.name] = ndcg(ranks, 10)
    assert 0.01 < quality["popularity"].mean() < 0.04
    assert paired_bootstrap(quality["coKNN"], quality["popularity"])[1] > 0
