"""`recommend --image`: the nearest pictures by brute force, mixed with a request, and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from helpers import data_uri, task_config
from tiny_pictures import png
from tiny_runs import untrained_run

from instructrec_jax.answering.ranker import BaselineRanker, Ranker, keep_fusion
from instructrec_jax.answering.recommender import Recommender
from instructrec_jax.answering.requests import Request, read_requests
from instructrec_jax.data.media.picture import picture
from instructrec_jax.distributed.compilations import Compilations
from instructrec_jax.files import write_jsonl
from instructrec_jax.ranking.fusion import Fusion
from instructrec_jax.ranking.item_pictures import PictureNetwork
from instructrec_jax.recommend import main
from instructrec_jax.service.app import make_app
from instructrec_jax.service.models import open_service
from instructrec_jax.service.settings import LimitsConfig, ModelConfig, ServeConfig

ITEMS = 12
PICTURED = [number for number in range(ITEMS) if number % 3 != 2]  # see `task_config`


@pytest.fixture(scope="module")
def runs(
    checkpoint: Path,
    image_networks: dict[str, Path],
    pair_networks: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    pictures = str(image_networks["vit"])
    made = {
        "sequence": (task_config("sequence", folder / "a", pictures=pictures), checkpoint, 32),
        "retrieval": (task_config("retrieval", folder / "b", items="both"), pair_networks["clip pair"], 64),
        "blind": (task_config("sequence", folder / "c"), checkpoint, 32),
    }
    return {name: untrained_run(folder / name, *how) for name, how in made.items()}


@pytest.fixture(scope="module")
def model(runs: dict[str, Path]) -> Recommender:
    return Recommender(runs["sequence"])


def cosines(network: Path, file: bytes) -> np.ndarray:
    """float64 [items], one pair of pictures at a time; −inf for an item without a picture."""
    read = PictureNetwork(str(network))
    (asked,) = read([picture(file)], ["x"]).astype(np.float64)
    found = np.full(ITEMS, -np.inf)
    for number in PICTURED:
        (own,) = read([picture(png(number))], ["x"]).astype(np.float64)
        found[number] = sum(asked * own)
    return found


@pytest.mark.parametrize("kind", ["sequence", "retrieval"])
def test_a_picture_alone_finds_the_nearest_pictures(
    kind: str, runs: dict[str, Path], image_networks: dict[str, Path], pair_networks: dict[str, Path]
) -> None:
    network = {"sequence": image_networks["vit"], "retrieval": pair_networks["clip pair"]}[kind]
    (answer,) = Recommender(runs[kind]).recommend([Request(image=picture(png(4)))], k=5)
    assert answer.error is None and answer.prompt == ""
    expected = cosines(network, png(4))
    best = np.argsort(-expected, kind="stable")[:5]
    assert [r.item for r in answer.recommendations] == [f"item-{number}" for number in best] and best[0] == 4
    np.testing.assert_allclose([r.score for r in answer.recommendations], expected[best], atol=1e-5)
    assert answer.notes == ["4 items have no picture, so they are left out."]


def test_beside_a_request_both_count_alike(model: Recommender, image_networks: dict[str, Path]) -> None:
    request = dict(instruction="a good film", history=["title 3"])
    (plain,) = model.recommend([Request(**request)], k=ITEMS)  # type: ignore[arg-type]
    mixed, again = model.recommend([Request(**request, image=picture(png(4))), Request(**request)], k=ITEMS)  # type: ignore[arg-type]
    assert [r.item for r in again.recommendations] == [r.item for r in plain.recommendations]  # its neighbor is alone
    own = np.full(ITEMS, np.nan)
    for r in plain.recommendations:
        own[int(r.item[5:])] = r.score
    left = ~np.isnan(own)  # without the history
    alike = cosines(image_networks["vit"], png(4))
    known = np.isfinite(alike)
    alike[~known] = alike[known & left].mean()
    z = [(x - x[left].mean()) / x[left].std() for x in (own, alike)]
    expected = np.where(left, (z[0] + z[1]) / 2, -np.inf)
    best = np.argsort(-expected, kind="stable")[: ITEMS - 1]
    assert [r.item for r in mixed.recommendations] == [f"item-{number}" for number in best]
    np.testing.assert_allclose([r.score for r in mixed.recommendations], expected[best], atol=1e-4)
    assert mixed.recommendations[0].evidence


@pytest.mark.parametrize("kind", [pytest.param("sequence", marks=pytest.mark.slow), "retrieval"])
def test_the_service_recommends_the_same_and_compiles_nothing(kind: str, runs: dict[str, Path]) -> None:
    asked: list[dict[str, Any]] = [
        {"instruction": "a good film"},
        {"instruction": "a good film", "history": ["title 3"], "image": png(4)},
        {"image": png(4)},
    ]
    service = open_service(ServeConfig(models=[ModelConfig(str(runs[kind]))], limits=LimitsConfig(candidates=5)))
    service.warm_up()
    assert service.ready, service.failed
    client = TestClient(make_app(service))  # without its lifespan: it is warm
    with Compilations() as compilations:
        found = [
            client.post(
                "/recommend", json=each | {"k": 5} | ({"image": data_uri(each["image"])} if "image" in each else {})
            )
            for each in asked
        ]
    assert compilations.count == 0
    model = Recommender(runs[kind])
    for each, answer in zip(asked, found, strict=True):
        wanted = each | ({"image": picture(each["image"])} if "image" in each else {})
        (want,) = model.recommend([Request(**wanted)], k=5)
        assert [one["item"] for one in answer.json()["recommendations"]] == [r.item for r in want.recommendations]
        scores = [one["score"] for one in answer.json()["recommendations"]]
        np.testing.assert_allclose(scores, [r.score for r in want.recommendations], atol=1e-5)
    service.close()


def test_a_picture_is_mixed_with_the_run_alone(runs: dict[str, Path], tmp_path: Path) -> None:
    """Also where training chose a hybrid, which answers other requests."""
    shutil.copytree(runs["sequence"], tmp_path / "run")
    first = Ranker.open(tmp_path / "run")
    keep_fusion(first, BaselineRanker(first.task, "BM25"), Fusion("BM25", 0.7), 9, chosen=True)
    asked = [Request(instruction="a good film", image=picture(png(4))), Request(instruction="a good film")]
    chosen, alone = (Recommender(tmp_path / "run", hybrid=how).recommend(asked, k=4) for how in (None, "none"))
    assert chosen[0].recommendations == alone[0].recommendations
    assert chosen[1].recommendations != alone[1].recommendations


def test_conditions_hold_for_pictures_too(model: Recommender) -> None:
    asked = Request(image=picture(png(4)), exclude=["title 4"])
    (answer,) = model.recommend([asked], k=ITEMS)
    assert {r.item for r in answer.recommendations} == {f"item-{n}" for n in PICTURED if n != 4}


def test_the_option_and_the_file_of_requests(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.png").write_bytes(png(7))
    main([str(runs["sequence"]), "--image", str(tmp_path / "a.png"), "--k", "1", "--format", "json"])
    assert json.loads(capsys.readouterr().out)["recommendations"][0]["item"] == "item-7"
    main([str(runs["sequence"]), "--image", str(tmp_path / "a.png"), "--k", "1"])
    shown = capsys.readouterr().out
    assert "title 7" in shown and "prompt" not in shown
    rows = [{"image": "a.png"}, {"image": data_uri(png(9))}, {"image": "../a.png"}, {"image": "https://e.org/a.png"}]
    write_jsonl(tmp_path / "requests.jsonl", rows)
    asked = read_requests(tmp_path / "requests.jsonl")
    first, second, outside, url = Recommender(runs["sequence"]).recommend(asked, k=1)
    assert [first.recommendations[0].item, second.recommendations[0].item] == ["item-7", "item-9"]
    assert "lies outside" in str(outside.error) and "never fetched" in str(url.error)


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("blind", ["--image", "FILE"], "reads no pictures of its items.*task.pictures"),
        ("sequence", ["--image", "gone.png"], "gone.png cannot be read"),
        ("sequence", ["--image", "https://example.org/a.png"], "never fetched"),
        ("sequence", ["--image", "BROKEN"], "the image of the request.*cannot be read as a picture"),
        ("retrieval", ["--image", "BROKEN"], "the image of the request.*cannot be read as a picture"),
        ("sequence", ["--image", "FILE", "--hybrid", "random=0.5"], "cannot be combined with --rerank or --hybrid"),
    ],
)
def test_what_is_refused(name: str, arguments: list[str], said: str, runs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(7))
    (tmp_path / "b.png").write_bytes(png(7)[:70])
    files = {"FILE": str(tmp_path / "a.png"), "BROKEN": str(tmp_path / "b.png")}
    with pytest.raises(ValueError, match=said):
        main([str(runs[name]), *(files.get(each, each) for each in arguments)])


def test_new_items_bring_their_pictures(runs: dict[str, Path], tmp_path: Path) -> None:
    """By their files' folder; in `retrieval` and `sequence` they are found like the others."""
    (tmp_path / "new.png").write_bytes(png(77))
    rows: list[dict[str, Any]] = [{"title": "New one", "image": "new.png"}, {"title": "New, without"}]
    write_jsonl(tmp_path / "new.jsonl", rows)
    for kind in ("sequence", "retrieval"):
        (answer,) = Recommender(runs[kind], items=tmp_path / "new.jsonl").recommend(
            [Request(image=picture(png(77)))], 3
        )
        assert answer.recommendations[0].title == "New one"
        assert "5 items have no picture" in answer.notes[0]
    write_jsonl(tmp_path / "new.jsonl", [{"title": "New one", "image": "gone.png"}])
    with pytest.raises(ValueError, match=r"new.jsonl, line 1.*no such picture.*gone.png"):
        Recommender(runs["sequence"], items=tmp_path / "new.jsonl")
