import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from instructrec_jax.metrics.bootstrap import paired_bootstrap
from instructrec_jax.preparation import prepare_data
from instructrec_jax.prepare import main
from instructrec_jax.ranking.baselines import CoOccurrence, Popularity
from instructrec_jax.ranking.catalogue import (
    SPLITS,
    Catalogue,
    Interactions,
    Splits,
    load_card,
    load_examples,
)
from instructrec_jax.ranking.evaluation import Cases, evaluate
from instructrec_jax.runs.config import load
from instructrec_jax.train import train


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


def test_train_yaml_trains(source, tmp_path, monkeypatch, capsys):
    """`prepare` writes settings that train on its folder, and prints the command."""
    monkeypatch.chdir(tmp_path)
    run(source, "data/my shop")
    assert capsys.readouterr().out.splitlines()[-1].endswith("train --config_path 'data/my shop/train.yaml'")
    config = load("data/my shop/train.yaml")
    assert config.backbone.path == "sentence-transformers/all-MiniLM-L6-v2" and config.run_dir == "runs/my shop"
    small = replace(config, steps=2, backbone=replace(config.backbone, path="films"))
    assert (train(small) / "report.html").exists()


@pytest.mark.slow
def test_train_yaml_trains_on_examples_made_from_the_interactions(source, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run(source, "data/shop", "--instructions", "interactions")
    assert "interactions.parquet" in capsys.readouterr().out and not Path("data/shop/instructions").exists()
    config = load("data/shop/train.yaml")
    small = replace(config, steps=2, backbone=replace(config.backbone, path="films"))
    assert (train(small) / "report.html").exists()


def test_many_examples_are_not_written(source, tmp_path, monkeypatch):
    kept = run(source, tmp_path / "few")
    monkeypatch.setattr(prepare_data, "MOST_EXAMPLES", sum(kept["examples"].values()) - 1)
    made = run(source, tmp_path / "many")
    assert made["examples"] == kept["examples"] and made["settings"] == kept["settings"]
    assert made["instructions"] == "interactions" and "instructions" not in kept
    assert "instructions" not in run(source, tmp_path / "forced", "--instructions", "files")
    with pytest.raises(ValueError, match="instructions must be"):
        run(source, tmp_path / "wrong", "--instructions", "some")


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
    with pytest.raises(ValueError, match="--overwrite"):
        run(source, out)
    run(source, out, "--overwrite", "true", "--seed", "1")
    assert load_card(out)["settings"]["seed"] == 1
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="card.json"):
        run(source, mine, "--overwrite", "true")
    assert (mine / "thesis.txt").exists()


def test_a_failure_leaves_nothing_behind(source, tmp_path):
    with pytest.raises(ValueError, match="noun 'song'"):
        run(source, tmp_path / "out", "--noun", "song")
    assert os.listdir(tmp_path) == ["ml-tiny"]


def test_bad_lines(source, tmp_path, capsys):
    with open(source / "ratings.csv", "a") as file:
        file.write("90000,555,3,1\n")
    with pytest.raises(ValueError, match="ratings.csv:43: .*'555'"):
        run(source, tmp_path / "out")
    card = run(source, tmp_path / "out", "--on_bad_line", "skip")
    assert card["bad_lines"] == 1
    assert (tmp_path / "out" / "bad_lines.txt").read_text().startswith("ratings.csv:43")
    assert "1 bad lines" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["movilens"], 'movilens.*Did you mean "movielens"'),
        (["movielens", "--k_coer", "3"], "no setting 'k_coer'. Did you mean 'k_core'"),
        (["movielens", "--source", "x"], "`out`"),
        (["movielens", "--source", "x", "--out", "y"], "MovieLens folder"),
        (["movielens", "--source", "x", "--out", "y", "--k_core", "five"], "k_core"),
        (["movielens", "--source", "x", "--out", "y", "--on_bad_line", "ignore"], "on_bad_line"),
        (["movielens", "--source", "x", "--out", "y", "--split", "loo"], "split 'loo'"),
        (["sequences", "--source", "x", "--out", "y", "--test", "2", "--split", "ratio"], "shares"),
        (["table", "--source", "x", "--out", "y", "--user_colum", "who"], "Did you mean 'user_column'"),
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
    assert card["repeats"] == 6 and card["interactions"] == 24 and card["settings"]["noun"] == "item"
    assert "no timestamps" in capsys.readouterr().out
    first = load_examples(tmp_path / "out", "test")[0]
    assert first.output == "B3" and first.history == ("B0", "B1", "B2")
    assert "Thing 0; Thing 1; Thing 2" in first.instruction and "B3" not in first.instruction


def write_every_source(folder):
    """The same six users and items (each user took four in a row of six) in every format: reader → arguments."""
    histories = {f"u{u}": [(u + step) % 6 for step in range(4)] for u in range(6)}
    events = [(user, item, 100 * int(user[1]) + n) for user, items in histories.items() for n, item in enumerate(items)]
    titles = "".join(f"{n}\tThing {n}\n" for n in range(6))
    files = {
        "sasrec/log.txt": "".join(f"{user} {item}\n" for user, item, _ in events),
        "sasrec/items.txt": titles,
        "p5/sequential_data.txt": "".join(f"{user} {' '.join(map(str, i))}\n" for user, i in histories.items()),
        "p5/items.txt": titles,
        "sequences/sequences.tsv": "".join(f"{user}\t{' '.join(map(str, i))}\n" for user, i in histories.items()),
        "sequences/items.tsv": "item\ttitle\n" + titles,
        "amazon/Things.jsonl": "".join(
            json.dumps({"user_id": user, "parent_asin": str(item), "rating": 5, "timestamp": when}) + "\n"
            for user, item, when in events
        ),
        "amazon/meta_Things.jsonl": "".join(
            json.dumps({"parent_asin": str(n), "title": f"Thing {n}"}) + "\n" for n in range(6)
        ),
        "goodbooks/books.csv": "book_id,goodreads_book_id,title,authors,original_publication_year,language_code,"
        "average_rating\n" + "".join(f"{n},{n},Thing {n},,,,\n" for n in range(6)),
        "goodbooks/ratings.csv": "user_id,book_id,rating\n" + "".join(f"{u},{i},5\n" for u, i, _ in events),
        "table/log.csv": "who,item,ts\n" + "".join(f"{u},{i},{when}\n" for u, i, when in events),
        "table/things.csv": "id,title\n" + "".join(f"{n},Thing {n}\n" for n in range(6)),
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    arguments = {name.split("/")[0]: ["--source", str(folder / name.split("/")[0])] for name in files}
    table = folder / "table"
    return arguments | {
        "table": ["--source", str(table / "log.csv"), "--items", str(table / "things.csv"), "--user_column", "who"]
    }


def test_every_source_prepares_alike(tmp_path):
    prepared = {}
    for reader, arguments in write_every_source(tmp_path).items():
        out = tmp_path / "out" / reader
        card = main([reader, *arguments, "--out", str(out), "--k_core", "4"])
        assert (card["users"], card["items"], card["interactions"]) == (6, 6, 24)
        assert str(tmp_path) not in (out / "card.json").read_text()
        prepared[reader] = [(out / "splits" / f"{name}.jsonl").read_text() for name in SPLITS]
        assert load_examples(out, "test")[0].output == "3"
    assert len(prepared) == 6
    assert all(splits == prepared["sasrec"] for splits in prepared.values())


def test_ratio_split_has_several_cases_per_user(source, tmp_path, capsys):
    card = run(source, tmp_path / "out", "--split", "ratio", "--validation", "0.25", "--test", "0.4")
    films = Catalogue.load(tmp_path / "out")
    splits = Splits.load(tmp_path / "out", films)
    cases = load_examples(tmp_path / "out", "test")
    assert {len(items) for items in splits.test} <= {2, 3} and len(cases) == card["test_interactions"]
    for number, user in enumerate(splits.user_ids):
        whole = [films.ids[n] for name in SPLITS for n in getattr(splits, name)[number]]
        mine = [case for case in cases if case.origin["user"] == user]
        held = len(splits.test[number])
        assert [case.output for case in mine] == whole[-held:]
        assert [list(case.history) for case in mine] == [whole[: len(whole) - held + n] for n in range(held)]
        for case in load_examples(tmp_path / "out", "train"):
            assert case.origin["user"] != user or {case.output, *case.history} <= set(
                whole[: len(splits.train[number])]
            )
    assert "test (ratio)" in capsys.readouterr().out


def test_global_time_never_trains_on_what_came_later(tmp_path, capsys):
    arguments = write_every_source(tmp_path)["table"]  # user u comes at 100 u: the last users are new in test
    card = main(
        [
            "table",
            *arguments,
            "--out",
            str(tmp_path / "out"),
            "--k_core",
            "0",
            "--split",
            "global_time",
            "--test",
            "0.3",
        ]
    )
    assert (card["train_interactions"], card["validation_interactions"], card["test_interactions"]) == (15, 2, 7)
    assert (card["validation_from"], card["test_from"]) == (303, 401)
    assert card["new_users"] == 2 and card["new_items"] == 0
    cases = load_examples(tmp_path / "out", "test")
    assert [case.origin["user"] for case in cases] == ["u4"] * 3 + ["u5"] * 3  # u5's first choice is no case
    printed = capsys.readouterr().out
    assert "2 users have no items in train" in printed
    assert "validation starts at time 303, test at 401" in printed


@pytest.mark.parametrize("columns", ["maker,colour", "[maker, colour]"])
def test_columns_are_listed_with_commas(tmp_path, columns):
    arguments = write_every_source(tmp_path)["table"]
    rows = "".join(f"{n},Thing {n},M{n},red\n" for n in range(6))
    (tmp_path / "table" / "things.csv").write_text("id,title,maker,colour\n" + rows)
    main(["table", *arguments, "--out", str(tmp_path / "out"), "--k_core", "4", "--text_columns", columns])
    assert Catalogue.load(tmp_path / "out").texts[0] == "Thing 0. Maker: M0. Colour: red."


def test_sequence_limit_keeps_the_latest(tmp_path, capsys):
    arguments = write_every_source(tmp_path)["sequences"]
    card = main(["sequences", *arguments, "--out", str(tmp_path / "out"), "--k_core", "4", "--sequence_limit", "3"])
    assert card["beyond_sequence_limit"] == 6 and card["interactions"] == 18 and card["items"] == 6
    splits = Splits.load(tmp_path / "out", Catalogue.load(tmp_path / "out"))
    assert [splits.train[0].tolist(), splits.validation[0].tolist(), splits.test[0].tolist()] == [[1], [2], [3]]
    assert "6 before a user's last 3" in capsys.readouterr().out


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
    asked = Cases([films.numbers([case.output]) for case in cases], histories, len(films))
    quality = {}
    for baseline in (Popularity(), CoOccurrence()):
        baseline.fit(splits.train, len(films))
        found = evaluate(asked, [], lambda block, b=baseline: b.score(histories[block]), cutoffs=[10])
        quality[baseline.name] = found.cases["NDCG@10"]
    assert 0.01 < quality["popularity"].mean() < 0.04
    assert paired_bootstrap(quality["coKNN"], quality["popularity"])[1] > 0


def test_candidates_are_frozen_where_asked_for(source, tmp_path):
    card = run(source, tmp_path / "out", "--candidates", "[uni2, hard1]")
    assert card["settings"]["candidates"] == ["uni2", "hard1"]
    folder = tmp_path / "out" / "candidates"
    assert {path.name: len(path.read_text().splitlines()) for path in folder.iterdir()} == {
        f"{protocol}.{split}.jsonl": 5 for protocol in ("uni2", "hard1") for split in ("validation", "test")
    }
    with pytest.raises(ValueError, match="'full'"):
        run(source, tmp_path / "other", "--candidates", "[full]")
    assert not (tmp_path / "other").exists()


@pytest.mark.filterwarnings("ignore:.*requests")
def test_a_teacher_says_the_wishes_of_training_examples(source, tmp_path, language_models):
    """What a random network says is noise, but it stands where a request stood, and nowhere else."""
    grammar = ("--preferences", "[none]", "--intentions", "[vague]", "--forms", "[matching]")
    plain, taught = tmp_path / "plain", tmp_path / "taught"
    run(source, plain, *grammar)
    card = run(source, taught, *grammar, "--teacher", str(language_models["llama"]))
    before, after = ([e for e in load_examples(out, "train")] for out in (plain, taught))
    assert len(before) == len(after) and card["reworded_by_teacher"] > 0
    reworded = [pair for pair in zip(before, after, strict=True) if pair[0].instruction != pair[1].instruction]
    assert len(reworded) == card["reworded_by_teacher"]
    for old, new in reworded:
        request = old.origin["intention_text"]
        assert new.instruction == old.instruction.replace(request, new.origin["intention_text"], 1)
        assert new.output == old.output and new.origin["teacher"] == language_models["llama"].name
    assert load_examples(plain, "test") == load_examples(taught, "test")
    assert card["settings"]["teacher"] == language_models["llama"].name
