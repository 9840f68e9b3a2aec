import numpy as np
import pytest

from instructrec_jax.recommendation.catalogue import SPLITS, Catalogue, Splits
from instructrec_jax.recommendation.instructions import TEMPLATES, history_examples

ITEMS = 30


@pytest.fixture
def films():
    names = [f"Film {chr(65 + number % 26)}{number // 26}" for number in range(ITEMS)]
    ids = [f"item-{number}" for number in range(ITEMS)]
    return Catalogue(ids, names, names, {"year": [1970 + number for number in range(ITEMS)]})


@pytest.fixture
def splits():
    rng = np.random.default_rng(0)
    sequences = [rng.permutation(ITEMS)[: rng.integers(3, 25)].astype(np.int32) for _ in range(8)]
    users = [f"user-{number:05d}" for number in range(8)]
    return Splits(users, [s[:-2] for s in sequences], [s[-2:-1] for s in sequences], [s[-1:] for s in sequences])


def examples(films, splits, split, **changes):
    settings = {
        "wording": "film",
        "titles_in_prompt": 4,
        "history_limit": 6,
        "examples_per_user": None,
        "seed": 0,
    } | changes
    return list(history_examples(films, splits, split, **settings))


def test_train_has_every_position_once(films, splits):
    found = examples(films, splits, "train")
    position = 0
    for user, sequence in zip(splits.user_ids, splits.train, strict=True):
        ids = [films.ids[number] for number in sequence]
        for target in range(1, len(ids)):
            example = found[position]
            assert example.output == ids[target]
            assert list(example.history) == ids[max(0, target - 6) : target]
            assert example.origin["user"] == user and example.origin["position"] == str(target)
            position += 1
    assert position == len(found) and len({example.id for example in found}) == len(found)


def test_held_out_examples_keep_the_whole_history(films, splits):
    for split, earlier in (("validation", ["train"]), ("test", ["train", "validation"])):
        found = examples(films, splits, split)
        assert len(found) == len(splits.user_ids)
        for user, example in enumerate(found):
            history = np.concatenate([getattr(splits, name)[user] for name in earlier])
            assert list(example.history) == [films.ids[number] for number in history]
            assert example.output == films.ids[getattr(splits, split)[user][0]]


def test_prompts_name_the_last_titles_oldest_first(films, splits):
    for split in SPLITS:
        for example in examples(films, splits, split):
            titles = [films.name(films.index[item]) for item in example.history[-4:]]
            template = TEMPLATES["film"][example.origin["template"]]
            assert example.instruction == template.replace("{titles}", "; ".join(titles))


def test_nothing_leaks(films, splits):
    """No target in its own prompt, no held-out item in what the same user trains on, no id in any prompt."""
    train = examples(films, splits, "train")
    for user, user_id in enumerate(splits.user_ids):
        held_out = {films.ids[splits.validation[user][0]], films.ids[splits.test[user][0]]}
        own = [example for example in train if example.origin["user"] == user_id]
        for example in own:
            assert not held_out & {example.output, *example.history}
            assert not any(films.titles[films.index[item]] in example.instruction for item in held_out)
    for split in SPLITS:
        for example in examples(films, splits, split):
            assert films.titles[films.index[example.output]] not in example.instruction
            assert example.output not in example.history
            assert "user-" not in example.instruction and "item-" not in example.instruction


def test_capped_draw(films, splits):
    every = {(e.origin["user"], e.output) for e in examples(films, splits, "train")}
    some = examples(films, splits, "train", examples_per_user=3)
    for user, sequence in zip(splits.user_ids, splits.train, strict=True):
        own = [e for e in some if e.origin["user"] == user]
        assert len(own) == min(3, max(0, len(sequence) - 1))
        assert [int(e.origin["position"]) for e in own] == sorted({int(e.origin["position"]) for e in own})
    assert {(e.origin["user"], e.output) for e in some} < every
    assert len(examples(films, splits, "test", examples_per_user=3)) == len(splits.user_ids)


def test_a_function_of_the_seed(films, splits):
    assert examples(films, splits, "train") == examples(films, splits, "train")
    assert examples(films, splits, "train") != examples(films, splits, "train", seed=1)


@pytest.mark.parametrize("wording", TEMPLATES)
def test_every_template_is_used(films, splits, wording):
    used = {example.origin["template"] for example in examples(films, splits, "train", wording=wording)}
    assert used == set(TEMPLATES[wording])
    assert all(template.count("{titles}") == 1 for template in TEMPLATES[wording].values())


def test_bad_settings(films, splits):
    with pytest.raises(ValueError, match="unknown wording 'movie'"):
        examples(films, splits, "train", wording="movie")
    with pytest.raises(ValueError, match="at least 1"):
        examples(films, splits, "train", titles_in_prompt=0)
