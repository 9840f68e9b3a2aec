"""The verb recommend on tiny runs of every ranking task: the answers follow the task's own scores."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coded_networks import coded_network
from flax import nnx
from helpers import SUBJECTS
from tiny_runs import tiny_run, untrained_run, write_settings
from transformers import BertConfig

from instructrec_jax.answering import evidence, recommender
from instructrec_jax.answering.ranker import Ranker
from instructrec_jax.answering.recommender import Recommender
from instructrec_jax.answering.requests import Request
from instructrec_jax.answering.terminal import width
from instructrec_jax.backbones.reading import build_backbone
from instructrec_jax.backbones.writing import save_pretrained
from instructrec_jax.data.example import Example
from instructrec_jax.evaluation.predictor import predictor
from instructrec_jax.files import read_jsonl, write_jsonl
from instructrec_jax.ranking.catalogue import Catalogue, Splits
from instructrec_jax.ranking.fusion import hybrid, mask
from instructrec_jax.recommend import main
from instructrec_jax.runs import data as run_data
from instructrec_jax.runs import model as models
from instructrec_jax.runs.run import Run, _with_known_items
from instructrec_jax.tasks import (
    GenerativeConfig,
    LanguageModelRankingConfig,
    RerankerConfig,
    RetrievalConfig,
    SequenceConfig,
)
from instructrec_jax.tasks.prediction import Predict

TITLES = ["The Love", "War", "Space", "Crime", "Music", "Old Love", "New War", "太空 🚀", "War", "Dull", "Good", "Long"]
YEARS = [1990, 1991, 1992, None, 1994, 1995, 1996, 1997, 1998, 1999, 2000, 2001]
ITEMS = len(TITLES)
IDS = [f"i{i}" for i in range(ITEMS)]
WHOLE = dict(protocols=["full"])


@pytest.fixture(scope="module")
def network(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT with a longer context than that of other tests."""
    folder = tmp_path_factory.mktemp("network")
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=8,
        intermediate_size=64,
        max_position_embeddings=192,
    )
    save_pretrained(folder, build_backbone(config, rngs=nnx.Rngs(1)), config)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("catalogue")
    texts = [f"a film about {SUBJECTS[i % 5]} " + "very " * i for i in range(ITEMS)]
    genres = [[SUBJECTS[i % 5], "film"] for i in range(ITEMS)]
    items = Catalogue(IDS, TITLES, texts, {"year": YEARS, "genres": genres})
    items.save(folder)
    parts = [[np.array(x, np.int32) for x in each] for each in ([[0, 1], [2]], [[4], []], [[3], [5]])]
    Splits(["ann", "bob"], *parts).save(folder, items)
    return folder


@pytest.fixture(scope="module")
def runs(
    catalogue: Path, network: Path, language_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    folder, where = tmp_path_factory.mktemp("runs"), {"catalogue": str(catalogue)}
    small = {"hidden_size": 16, "history_limit": 4, "dropout": 0.0}
    tasks = {
        "retrieval": RetrievalConfig(**where),
        "sequence": SequenceConfig(**where, **small),
        "reranker": RerankerConfig(**where, protocols=["uni9"]),
        "language_model_ranking": LanguageModelRankingConfig(**where, protocols=["uni5"], template="plain"),
        "generative": GenerativeConfig(**where, beams=max(20, ITEMS)),
    }
    networks = {"language_model_ranking": language_models["llama"]}
    networks["generative"] = coded_network(tmp_path_factory.mktemp("coded"), language_models["t5"], IDS)
    return {kind: untrained_run(folder / kind, task, networks.get(kind, network)) for kind, task in tasks.items()}


@pytest.fixture(scope="module")
def model(runs: dict[str, Path]) -> Recommender:
    return Recommender(runs["retrieval"])


def scores_of(run: Path, examples: list[Example]) -> np.ndarray:
    """float [examples, items]: the task's scores, computed as in an evaluation."""
    opened = Run.open(run)
    config, task, mesh = opened.config, opened.task, opened.mesh
    assembly = models.restored_model(config, task, run, mesh)
    predict = predictor(task, assembly.graphdef, mesh, run_data.buckets(config))(assembly.params)
    every = np.broadcast_to(np.arange(ITEMS, dtype=np.int32), (len(examples), ITEMS))
    return np.asarray(task.score_candidates(predict, task.encode(examples), every))  # type: ignore[attr-defined]


# ---------------------------------------------------------------- every task


@pytest.mark.parametrize("kind", ["retrieval", "sequence", "reranker", "language_model_ranking", "generative"])
def test_recommendations_are_the_tasks_own_ranking(kind: str, runs: dict[str, Path], monkeypatch: Any) -> None:
    monkeypatch.setattr(evidence, "KEPT", 99)
    model = Recommender(runs[kind])
    request = Request(history=["Old Love; Space"], instruction="a good film about war")
    (answer,) = model.recommend([request], k=4)
    assert answer.error is None
    if kind in ("sequence", "generative"):  # which read the history itself
        assert answer.prompt == "a good film about war"
    else:
        assert answer.prompt.startswith("Already chosen: Old Love (1995); Space (1992). Wanted: a good film about war.")
    example = Example(instruction=answer.prompt, output="i9", history=("i5", "i2"))

    # --- the ranking ---
    scores = scores_of(runs[kind], [example])[0]
    allowed = [item for item in np.argsort(-scores, kind="stable") if item not in (5, 2)]
    assert [r.item for r in answer.recommendations] == [f"i{item}" for item in allowed[:4]]
    np.testing.assert_allclose([r.score for r in answer.recommendations], scores[allowed[:4]], atol=1e-5)
    assert [r.rank for r in answer.recommendations] == [1, 2, 3, 4]

    # --- the evidence: the same request written out without a word, without an item ---
    without_word = replace(example, instruction=answer.prompt.replace("good ", ""))
    told = answer.prompt.replace("Old Love (1995); ", "")
    without_item = replace(example, instruction=told, history=("i2",))
    left_out = scores_of(runs[kind], [without_word, without_item])
    for recommendation in answer.recommendations:
        item = int(recommendation.item[1:])
        found = {e.part.text: e.contribution for e in recommendation.evidence}
        assert set(found) == {"Old Love (1995)", "Space (1992)", "a", "good", "film", "about", "war"}
        assert found["good"] == pytest.approx(scores[item] - left_out[0, item], abs=2e-5)
        assert found["Old Love (1995)"] == pytest.approx(scores[item] - left_out[1, item], abs=2e-5)
        assert list(found.values()) == sorted(found.values(), reverse=True)


def test_two_stages(runs: dict[str, Path]) -> None:
    model = Recommender(runs["retrieval"], rerank=runs["reranker"], retrieve=5, weight=1.0)
    (answer,) = model.recommend([Request(instruction="a good film", history=["Long"])], k=3)
    example = Example(instruction=answer.prompt, output="i0", history=("i11",))
    first, second = (scores_of(runs[kind], [example])[0] for kind in ("retrieval", "reranker"))
    first[11] = -np.inf
    kept = np.argsort(-first, kind="stable")[:5]
    best = kept[np.argsort(-second[kept], kind="stable")][:3]
    assert [r.item for r in answer.recommendations] == [f"i{item}" for item in best]
    np.testing.assert_allclose([r.score for r in answer.recommendations], second[best], atol=1e-5)
    (few,) = model.recommend([Request(instruction="a good film", where=["year<1992"])], k=3)
    assert {r.item for r in few.recommendations} == {"i0", "i1"} and "2 items" in few.notes[0]
    (more,) = model.recommend([Request(instruction="a good film")], k=6)
    assert "--retrieve" in str(more.error)


@pytest.mark.parametrize("other", ["coKNN", "sequence"])
def test_a_hybrid_is_what_evaluate_mixes(other: str, runs: dict[str, Path]) -> None:
    model = Recommender(runs["retrieval"], hybrid=str(runs.get(other, other)), weight=0.3)
    (answer,) = model.recommend([Request(instruction="a good film", history=["Long; Space"])], k=4)
    assert answer.error is None
    example = Example(instruction=answer.prompt, output="i0", history=("i11", "i2"))
    first = mask(scores_of(runs["retrieval"], [example]), [[11, 2]])
    if other == "coKNN":
        task = model.first.task
        second = task.baseline_scores("coKNN", task.encode([example]))(slice(0, 1))
    else:
        second = scores_of(runs["sequence"], [example])
    scores = hybrid(first, second, 0.3)[0]
    best = np.argsort(-scores, kind="stable")[:4]
    assert [r.item for r in answer.recommendations] == [f"i{item}" for item in best]
    np.testing.assert_allclose([r.score for r in answer.recommendations], scores[best], atol=1e-5)
    assert all(np.isfinite(e.contribution) for r in answer.recommendations for e in r.evidence)
    (all_of_them,) = model.recommend([Request(history=["Long"])], k=20, include_seen=True)
    assert len(all_of_them.recommendations) == ITEMS and "i11" in {r.item for r in all_of_them.recommendations}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("coKNN", "evaluate .* --hybrid coKNN"),  # never tuned
        ("coKNN=much", "coKNN=much"),
        ("coKNN=1.5", "coKNN .*1.5"),
        ("cooKNN=0.5", "cooKNN"),
    ],
)
def test_hybrids_that_cannot_be(text: str, message: str, runs: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match=message):
        main([str(runs["retrieval"]), "--instruction", "a film", "--hybrid", text])


# ---------------------------------------------------------------- requests


def items(answer: Any) -> list[str]:
    assert answer.error is None, answer.error
    return [r.item for r in answer.recommendations]


def test_users_bring_what_they_chose_in_all_splits(model: Recommender) -> None:
    (ann, bob, both) = model.recommend(
        [Request(user="ann"), Request(user="bob"), Request(user="bob", history=["太空 🚀"])], k=20, evidence=False
    )
    assert ann.history == ["The Love (1990)", "War (1991)", "Music (1994)", "Crime"]
    assert not {"i0", "i1", "i3", "i4"} & set(items(ann)) and len(items(ann)) == ITEMS - 4
    assert bob.history == ["Space (1992)", "Old Love (1995)"]
    assert bob.prompt == "I have recently chosen Space (1992); Old Love (1995). What should I choose next?"
    assert both.history[-1] == "太空 🚀 (1997)"
    (seen,) = model.recommend([Request(user="ann")], k=20, include_seen=True, evidence=False)
    assert len(items(seen)) == ITEMS


def test_one_text_is_one_request(model: Recommender) -> None:
    (expected,) = model.recommend([Request(instruction="a good film", history=["Long"])], k=2, evidence=False)
    assert model.recommend(Request(instruction="a good film", history="Long"), k=2, evidence=False) == [expected]
    (wish,) = model.recommend([Request(instruction="a good film")], k=2, evidence=False)
    assert model.recommend("a good film", k=2, evidence=False) == [wish]
    first, second = model.recommend(["a good film", "a good film"], k=2, evidence=False)  # a batch of another shape
    assert first == second and [r.item for r in first.recommendations] == [r.item for r in wish.recommendations]
    scores = [[each.score for each in answer.recommendations] for answer in (first, wish)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)
    record = {"instruction": "a good film"}
    assert model.recommend(record, k=2, evidence=False) == [wish]  # not its keys
    assert model.recommend([record], k=2, evidence=False) == [wish]


def test_what_is_no_request_is_named(model: Recommender) -> None:
    for wrong in (None, 3, [3], [None], b"a film"):
        with pytest.raises(ValueError, match=r"requests(\[0\])? is "):
            model.recommend(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'wish'.*instruction"):
        model.recommend({"wish": "a film"})
    with pytest.raises(ValueError, match="history.*3"):
        Request(history=[3])  # type: ignore[list-item]
    for k in ("3", None, 1.5):
        with pytest.raises(ValueError, match="k is "):
            model.recommend("a film", k=k)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="run is null"):
        Recommender(None)  # type: ignore[arg-type]


def test_conditions_and_exclusions(model: Recommender) -> None:
    requests = [
        Request(instruction="a film", where=["year>1991", "genre=WAR"]),
        Request(instruction="a film", where=["year>1991", "genre=war"], exclude=["War (1998)"]),
    ]
    both, one = model.recommend(requests, k=5, evidence=False)
    assert set(items(both)) == {"i6", "i11"} and "2 items" in both.notes[0]
    assert set(items(one)) == {"i6", "i11"}
    (none,) = model.recommend([Request(instruction="a film", where=["year>2001"])])
    assert "where" in str(none.error)


def test_what_is_cut_is_told_once(runs: dict[str, Path]) -> None:
    """The sequence task reads the last four items."""
    history = ["Space; Crime; Music; Old Love; New War; Dull"]
    (answer,) = Recommender(runs["sequence"]).recommend([Request(history=history)], k=2)
    assert answer.notes == ["history items beyond task.history_limit: 2."]
    assert answer.prompt == "Which item comes next for this person?"


def test_a_chinese_wish_gets_chinese_words_and_unread_words_are_told(model: Recommender) -> None:
    (answer,) = model.recommend([Request(history=["Space"], instruction="我想看恐怖片")], k=1)
    assert answer.prompt.startswith("选过的：“Space (1992)”。想要的：我想看恐怖片。")
    assert answer.notes == ["the model's tokenizer has no tokens for 我, 想, 看, 恐, 怖, 片."]


def test_braces_in_titles_and_wishes_are_only_braces(model: Recommender) -> None:
    (answer,) = model.recommend([Request(history=["Space"], instruction="{history} {intention} {x}")], k=1)
    assert "Wanted: {history} {intention} {x}." in answer.prompt


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request(), "empty"),
        (Request(instruction="  "), "empty"),
        (Request(history=[" ; "]), "empty"),
        (Request(user="ana"), "'ana'.*ann"),
        (Request(history=["War"]), r"history: \"War\".*War \(1991\) \[id:i1\]; War \(1998\) \[id:i8\]"),
        (Request(history=["Zzzz"]), 'history: "Zzzz"'),
        (Request(history=["Space"], exclude=["Zzzz"]), 'exclude: "Zzzz"'),
        (Request(history=["Space"], where=["yaer>1"]), "'yaer'"),
        (Request(history=["Space"], k=0), "^k "),
        (Request(instruction="a\x00b"), "NUL"),
        (Request(instruction="a \ud83d b"), "surrogate"),
        (Request(instruction="very " * 200), "data.max_length.*192"),
    ],
)
def test_a_bad_request_is_its_own_error(model: Recommender, request_: Request, message: str) -> None:
    bad, good = model.recommend([request_, Request(instruction="a film")], k=2, evidence=False)
    with pytest.raises(ValueError, match=message):
        raise ValueError(bad.error)
    assert len(items(good)) == 2


def test_unknown_titles_can_be_skipped(model: Recommender) -> None:
    one, none = model.recommend(
        [Request(history=["Zzzz; Space"]), Request(history=["Zzzz"])], k=1, skip_unknown=True, evidence=False
    )
    assert one.history == ["Space (1992)"] and 'history: "Zzzz"' in one.notes[0]
    assert "history" in str(none.error)


def test_many_requests_get_what_each_gets_alone(model: Recommender, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recommender, "REQUESTS", 2)
    requests = [Request(instruction=f"a {word} film", history=["Space"] * (n % 2)) for n, word in enumerate(SUBJECTS)]
    requests.insert(2, Request(user="nobody"))
    together = model.recommend(requests, k=3)
    assert [answer.error is None for answer in together] == [True, True, False, True, True, True]
    for request, answer in zip(requests, together, strict=True):
        (alone,) = model.recommend([request], k=3)
        assert [r.item for r in alone.recommendations] == [r.item for r in answer.recommendations]
        for one, other in zip(alone.recommendations, answer.recommendations, strict=True):
            assert one.score == pytest.approx(other.score, abs=1e-5)
            assert {e.part for e in one.evidence} == {e.part for e in other.evidence}


# ---------------------------------------------------------------- items and vectors


def test_item_vectors_are_kept_until_the_run_changes(runs: dict[str, Path], catalogue: Path, network: Path) -> None:
    run = untrained_run(runs["retrieval"].parent / "kept", RetrievalConfig(catalogue=str(catalogue)), network)
    request = Request(instruction="a film about space")
    (before,) = Recommender(run).recommend([request], k=3)
    (kept,) = (run / "item_vectors").glob("*.npy")
    first = Ranker.open(run)
    first.task.item_texts  # noqa: B018 - what is remembered are these very texts

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("computed again")

    again = _with_known_items(Predict(refuse), first.task, run / "item_vectors", first.run.weights_identity())
    assert len(again(first.task.item_texts)) == ITEMS
    (after,) = Recommender(run).recommend([request], k=3)
    assert items(before) == items(after) and list((run / "item_vectors").glob("*.npy")) == [kept]
    (run / "checkpoints" / "1" / "touched").touch()
    Recommender(run).recommend([request], k=3)
    assert len(list((run / "item_vectors").glob("*.npy"))) == 2


@pytest.mark.parametrize("kind", ["retrieval", "sequence", "reranker", "language_model_ranking"])
def test_new_items_join_by_their_text(kind: str, runs: dict[str, Path], tmp_path: Path) -> None:
    """Old items keep their scores; in a text-only run, a new item with an old item's text gets the same score."""
    file = tmp_path / "new.jsonl"
    text = "a film about war very "
    write_jsonl(
        file, [{"title": "War (1991)", "text": text, "id": "twin"}, {"title": "Bright (2020)", "genres": ["x"]}]
    )
    model, old = Recommender(runs[kind], items=file), Recommender(runs[kind])
    request = Request(instruction="a good film", history=["Space"])
    (answer,), (before,) = (m.recommend([request], k=20, evidence=False) for m in (model, old))
    scores = {r.item: r.score for r in answer.recommendations}
    assert len(scores) == ITEMS + 2 - 1 and "new-2" in scores
    for r in before.recommendations:
        assert scores[r.item] == pytest.approx(r.score, abs=1e-5)
    if kind != "sequence":  # there the old item also has its own vector
        assert scores["twin"] == pytest.approx(scores["i1"], abs=1e-5)
    (chosen,) = model.recommend(
        [Request(history=["Bright"], where=["genre=x"], instruction="new")], include_seen=True, k=1
    )
    assert items(chosen) == ["new-2"]
    assert model.catalogue.texts[-1] == "Bright (2020). Genres: x."


def test_filters_cut_the_search(runs: dict[str, Path]) -> None:
    model = Recommender(runs["generative"], overrides=["--task.beams=2", "--task.cutoffs=[1]"])
    asked = [Request(instruction="a film", where=["genre=war"])]
    assert [int(r.item[1:]) % 5 for r in model.recommend(asked, k=2, evidence=False)[0].recommendations] == [1, 1]
    (refused,) = model.recommend(asked, k=3, evidence=False)
    assert "3 items are asked for, but task.beams is 2" in str(refused.error)


# ---------------------------------------------------------------- the command line


def test_table_and_json(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--instruction", "a good film", "--history", "Space", "--where", "title!=x", "--k", "3"]
    with pytest.raises(ValueError, match="'title'"):
        main([str(runs["retrieval"]), *asked])
    del asked[4:6]
    main([str(runs["retrieval"]), *asked])
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("prompt: Already chosen: Space (1992). Wanted: a good film.")
    assert shown[2].split()[:3] == ["title", "score", "evidence"] and "+" in shown[2] and len(shown) == 6
    main([str(runs["retrieval"]), *asked, "--format", "json"])
    record = json.loads(capsys.readouterr().out)
    assert list(record) == ["id", "prompt", "history", "recommendations", "notes"]
    ends = set()
    for line, entry in zip(shown[3:], record["recommendations"], strict=True):
        score = f"{entry['score']:.4f}"
        assert line.startswith(f"{entry['rank']}  {entry['title']} ") and score in line
        ends.add(width(line.partition(score)[0] + score))
        assert set(entry["evidence"][0]) == {"kind", "text", "contribution"}
    assert len(ends) == 1


def test_files_in_and_out(runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        '{"id": "a", "history": ["Space", "Crime"], "k": 2}',
        '{"id": 7, "user": "ann"',
        '{"instruction": "太空 🚀"}',
    ]
    (tmp_path / "in.jsonl").write_text("\n".join([*rows, '{"id": "x", "histori": "Space"}']), encoding="utf-8")
    common = [str(runs["retrieval"]), "--input", str(tmp_path / "in.jsonl"), "--no_evidence", "--k", "3"]
    with pytest.raises(SystemExit) as exit_:
        main([*common, "--out", str(tmp_path / "out.jsonl")])
    assert exit_.value.code == 1
    assert "2 requests answered, 2 failed" in capsys.readouterr().err
    a, broken, numbered, unknown = read_jsonl(tmp_path / "out.jsonl")
    assert a["id"] == "a" and len(a["recommendations"]) == 2
    assert broken["id"] is None and "in.jsonl, line 2" in broken["error"]
    assert numbered["id"] == 3 and len(numbered["recommendations"]) == 3
    assert unknown["id"] == "x" and 'Did you mean "history"' in unknown["error"]
    with pytest.raises(ValueError, match="--out"):
        main([*common, "--out", str(tmp_path / "out.jsonl")])

    table = 'id,user,history,where,k\n1,ann,,,2\n2,,"Space; Old Love","genre=war; year>1991",\n'
    (tmp_path / "in.csv").write_text(table, encoding="utf-8")
    main([str(runs["retrieval"]), "--input", str(tmp_path / "in.csv"), "--out", str(tmp_path / "out.csv")])
    with open(tmp_path / "out.csv", encoding="utf-8", newline="") as file:
        written = list(csv.DictReader(file))
    assert [(row["id"], row["rank"]) for row in written] == [("1", "1"), ("1", "2"), ("2", "1"), ("2", "2")]
    assert {row["item"] for row in written[2:]} == {"i6", "i11"} and written[0]["evidence"]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("id,title\n1,Space\n", "'title'"),
        ("id,usr\n1,ann\n", '"user"'),
        ("id,k\n1,2\n", "id, k.*user, history, instruction"),
    ],
)
def test_a_table_without_requests_is_refused(table: str, message: str, runs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text(table, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        main([str(runs["retrieval"]), "--input", str(tmp_path / "in.csv")])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input", "x.jsonl", "--user", "ann"], "--user .*--input"),
        (["--out", "x.jsonl", "--user", "ann"], "--out.*--input"),
        (["--input", "in.jsonl", "--out", "x.txt"], "--out x.txt.*.jsonl.*.csv"),
        (["--input", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--histroy", "x"], "'histroy'.*'history'"),
        ([], "empty"),
    ],
)
def test_options_that_do_not_go_together(arguments: list[str], message: str, runs: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match=message):
        main([str(runs["retrieval"]), *arguments])


def test_other_folders_are_refused(network: Path, tmp_path: Path, runs: dict[str, Path], catalogue: Path) -> None:
    with pytest.raises(ValueError, match="run directory"):
        main([str(tmp_path), "--instruction", "x"])
    run = tmp_path / "classifier"
    run.mkdir()
    write_settings(tiny_run("classification", network, tmp_path), run / "config.yaml")
    with pytest.raises(ValueError, match="task classification"):
        main([str(run), "--instruction", "x"])
    other = tmp_path / "other"
    other.mkdir()
    Catalogue.load(catalogue).take(range(ITEMS - 1)).save(other)
    second = untrained_run(tmp_path / "second", RerankerConfig(catalogue=str(other), protocols=["uni9"]), network)
    with pytest.raises(ValueError, match="second"):
        Recommender(runs["retrieval"], rerank=second)


def test_a_person_is_asked_on_a_terminal(runs: dict[str, Path], monkeypatch: Any, capsys: Any) -> None:
    class Terminal:
        def __init__(self, lines: list[str]):
            self.lines = lines

        def isatty(self) -> bool:
            return True

        def readline(self) -> str:
            return self.lines.pop(0)

    monkeypatch.setattr("sys.stdin", Terminal(["9\n", "what?\n", "2\n"]))
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    main([str(runs["retrieval"]), "--history", "War", "--k", "1", "--format", "json", "--no_evidence"])
    out, err = capsys.readouterr()
    assert json.loads(out)["history"] == ["War (1998)"]
    assert '"War" could be:\n  1  War (1991) [id:i1]\n  2  War (1998) [id:i8]\n  0  none of these' in err
