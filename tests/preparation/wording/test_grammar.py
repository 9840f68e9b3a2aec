import re

import numpy as np
import pytest
from own_wordings import OWN

from instructrec_jax.preparation.wording.grammar import RANKING_FORMS, TEXT_FORMS, GrammarConfig, generate_examples
from instructrec_jax.preparation.wording.intentions import names_title
from instructrec_jax.preparation.wording.wordings import INTENTIONS, LANGUAGES, PREFERENCES, load_wordings
from instructrec_jax.ranking.catalogue import SPLITS, Catalogue, Splits

ITEMS, USERS = 300, 60
GENRES = ("Horror", "War", "Western", "Musical", "Sci-Fi", "Crime")
SAID = {"Horror": "horror", "War": "war", "Western": "western", "Musical": "musical", "Crime": "crime"}
SAID["Sci-Fi"] = "science-fiction"
DECADES = {"seventies": 1970, "eighties": 1980, "nineties": 1990}
CHINESE = re.compile("[\u4e00-\u9fff]")


@pytest.fixture(scope="module")
def films():
    """Titles of two invented words, so that one in a prompt is there on purpose."""
    rng = np.random.default_rng(7)
    syllables = ["bo", "dra", "fen", "gul", "hox", "jin", "kra", "lum", "pez", "quo", "riv", "sut", "vym", "wex", "zil"]
    names = {
        "".join(rng.choice(syllables, 3)).title() + " " + "".join(rng.choice(syllables, 3)).title() for _ in range(600)
    }
    titles = sorted(names)[:ITEMS]
    years = [int(year) for year in rng.integers(1970, 2000, ITEMS)]
    genres = [[str(g) for g in rng.choice(GENRES, rng.integers(1, 4), replace=False)] for _ in range(ITEMS)]
    directors = [f"Ann {'ABCDEFGH'[n]}." for n in rng.integers(0, 8, ITEMS)]
    ids = [f"item-{number:06d}" for number in range(ITEMS)]
    facts = {"year": years, "genres": genres, "director": directors, "imdb": [f"tt{n:07d}" for n in range(ITEMS)]}
    return Catalogue(ids, titles, titles, facts)


@pytest.fixture(scope="module")
def splits():
    rng = np.random.default_rng(0)
    sequences = [rng.permutation(ITEMS)[: rng.integers(3, 40)].astype(np.int32) for _ in range(USERS)]
    users = [f"user-{number:05d}" for number in range(USERS)]
    return Splits(users, [s[:-2] for s in sequences], [s[-2:-1] for s in sequences], [s[-1:] for s in sequences])


def examples(catalogue, splits, split, **settings):
    config = GrammarConfig(**({"noun": "film", "titles_in_prompt": 4, "history_limit": 12} | settings))
    return list(generate_examples(catalogue, splits, split, config))


EVERYTHING = {
    "preferences": list(PREFERENCES),
    "intentions": list(INTENTIONS),
    "languages": list(LANGUAGES),
    "contexts": 0.3,
}


@pytest.fixture(scope="module")
def everything(films, splits):
    """split -> examples of all cells and forms."""
    settings = EVERYTHING | {"forms": [*RANKING_FORMS, *TEXT_FORMS], "examples_per_user": None}
    return {split: examples(films, splits, split, **settings) for split in SPLITS}


# ------------------------------------------------------------------ templates


@pytest.mark.parametrize("folder", [False, True])
def test_templates_of_a_users_own(films, splits, tmp_path, folder):
    path = tmp_path / "own.yaml"
    path.write_text(OWN, encoding="utf-8")
    found = examples(films, splits, "train", noun="song", templates=str(tmp_path if folder else path))
    mine = [e for e in found if e.origin["template"] == "my-own"]
    assert 0 < len(mine) < len(found)
    assert all(e.instruction.startswith("Encore after ") and e.instruction.endswith(": which song?") for e in mine)


def test_bad_settings(films, splits, tmp_path):
    for message, settings in {
        "noun 'movie'": {"noun": "movie"},
        'forms: .pairwize..*"pairwise"': {"forms": ["pairwize"]},
        "preferences": {"preferences": []},
        "preference none": {"preferences": ["none"], "forms": ["reranking"]},
        "positions": {"positions": "first"},
        "titles_in_prompt": {"titles_in_prompt": 0},
        "contexts": {"contexts": 2.0},
        "wordings": {"wordings": "test"},
        "templates": {"templates": str(tmp_path)},
        "299 negatives": {"forms": ["reranking"], "negatives": 299},
    }.items():
        with pytest.raises(ValueError, match=message):
            examples(films, splits, "train", **settings)
    with pytest.raises(ValueError, match="'dev'"):
        generate_examples(films, splits, "dev", GrammarConfig())


# ------------------------------------------------------------------ positions and histories


def test_the_last_position_of_each_user_and_a_question_that_only_asks_what_comes_next(films, splits):
    settings = {"preferences": ["none"], "positions": "last", "examples_per_user": 1, "history_limit": 50}
    found = list(examples(films, splits, "train", **settings))
    assert [e.output for e in found] == [films.ids[items[-1]] for items in splits.train if len(items) > 1]
    for example in found:
        sequence = splits.train[splits.user_ids.index(example.origin["user"])]
        assert example.history == tuple(films.ids[item] for item in sequence[-51:-1])
        assert (example.origin["preference"], example.origin["intention"]) == ("none", "none")
        assert not any(names_title(example.instruction, title) for title in films.titles)
    assert {e.origin["wording"] for e in found} == {"train"}
    held_out = examples(films, splits, "test", wordings="held_out", **settings)
    assert not {e.instruction for e in found} & {e.instruction for e in held_out}


def test_train_has_every_position_once(films, splits):
    found = iter(examples(films, splits, "train", examples_per_user=None))
    for user, sequence in zip(splits.user_ids, splits.train, strict=True):
        ids = [films.ids[number] for number in sequence]
        for target in range(1, len(ids)):
            example = next(found)
            assert example.output == example.origin["target"] == ids[target]
            assert list(example.history) == ids[max(0, target - 12) : target]
            assert example.origin["user"] == user and example.origin["position"] == str(target)
            assert example.origin["source"] == f"{user}[{max(0, target - 4)}:{target + 1}]"
    assert next(found, None) is None


def test_held_out_examples_keep_the_whole_history(films, splits):
    for split, earlier in (("validation", ["train"]), ("test", ["train", "validation"])):
        found = examples(films, splits, split)
        assert len(found) == USERS and len({example.id for example in found}) == USERS
        for user, example in enumerate(found):
            history = np.concatenate([getattr(splits, name)[user] for name in earlier])
            assert list(example.history) == [films.ids[number] for number in history]
            assert example.output == films.ids[getattr(splits, split)[user][0]]


def test_prompts_name_the_last_titles_oldest_first(films, splits):
    templates = {t.name: t.texts["en"] for t in load_wordings().templates}
    words = dict(noun="film", nouns="films", a_noun="a film", do="watch", did="watched", doing="watching")
    for split in SPLITS:
        for example in examples(films, splits, split):
            titles = [films.name(films.index[item]) for item in example.history[-4:]]
            expected = templates[example.origin["template"]].format(**words, history="; ".join(titles))
            assert example.instruction == expected


def test_capped_draw(films, splits):
    every = {(e.origin["user"], e.output) for e in examples(films, splits, "train")}
    some = examples(films, splits, "train", examples_per_user=3)
    for user, sequence in zip(splits.user_ids, splits.train, strict=True):
        positions = [int(e.origin["position"]) for e in some if e.origin["user"] == user]
        assert len(positions) == min(3, max(0, len(sequence) - 1)) and positions == sorted(set(positions))
    assert {(e.origin["user"], e.output) for e in some} < every
    assert len(examples(films, splits, "test", examples_per_user=3)) == USERS


def test_a_function_of_the_seed(films, splits, everything):
    settings = EVERYTHING | {"forms": [*RANKING_FORMS, *TEXT_FORMS]}
    assert examples(films, splits, "test", **settings) == everything["test"]
    assert examples(films, splits, "test", seed=1, **settings) != everything["test"]


# ------------------------------------------------------------------ leakage


def own_words(example, films):
    """The instruction without the candidates that it lists."""
    text = example.instruction
    for item in example.candidates or [example.origin["target"]]:
        text = text.replace(films.name(films.index[item]), "")
    return text.lower()


def test_no_prompt_names_its_target_or_an_id(films, everything):
    for split in SPLITS:
        for example in everything[split]:
            target = example.origin["target"]
            shown = (
                own_words(example, films)
                if example.origin["form"] in (*RANKING_FORMS[1:], "request", "relatedness")
                else ""
            )
            assert films.titles[films.index[target]].lower() not in (shown or example.instruction.lower())
            assert not re.search(r"user-|item-|tt\d{7}|\d{5}", example.instruction)
            assert target not in example.history
            if example.origin["form"] == "request":
                assert films.titles[films.index[target]].lower() not in example.output.lower()


def test_no_held_out_item_in_what_its_user_trains_on(films, splits, everything):
    for user, user_id in enumerate(splits.user_ids):
        held_out = {films.ids[splits.validation[user][0]], films.ids[splits.test[user][0]]}
        titles = [films.titles[films.index[item]].lower() for item in held_out]
        for example in everything["train"]:
            if example.origin["user"] == user_id:
                assert not held_out & {example.output, example.origin["target"], *example.history, *example.candidates}
                assert not any(title in f"{example.instruction} {example.output}".lower() for title in titles)


def test_negatives_are_not_the_users_own(films, splits, everything):
    for split in SPLITS:
        for example in everything[split]:
            form, target = example.origin["form"], example.origin["target"]
            user = splits.user_ids.index(example.origin["user"])
            own = {films.ids[n] for part in SPLITS for n in getattr(splits, part)[user]}
            assert len(example.candidates) == {"pointwise": 1, "pairwise": 2, "reranking": 10}.get(form, 0)
            assert len(set(example.candidates)) == len(example.candidates)
            assert not own & (set(example.candidates) - {target})
            places = [example.instruction.index(films.name(films.index[item])) for item in example.candidates]
            assert places == sorted(places)
            if form == "pointwise":
                said = {"en": ["no", "yes"], "zh": ["否", "是"]}[example.origin["language"]]
                assert example.output == said[target in example.candidates]
            elif example.candidates:
                assert example.output in example.candidates


def test_the_right_candidate_stands_anywhere(films, splits):
    for form, size, bound in (("reranking", 10, 27.9), ("pairwise", 2, 10.8)):  # chi-square, 99.9 %
        found = examples(films, splits, "train", forms=[form], examples_per_user=None)
        places = np.bincount([e.candidates.index(e.output) for e in found], minlength=size)
        expected = len(found) / size
        assert len(found) > 900 and np.sum((places - expected) ** 2 / expected) < bound
    answers = [e.output for e in examples(films, splits, "train", forms=["pointwise"], examples_per_user=None)]
    assert abs(answers.count("yes") / len(answers) - 0.5) < 0.06


def test_training_and_validation_never_see_held_out_wordings(films, splits, everything):
    assert {e.origin["wording"] for e in everything["train"] + everything["validation"]} == {"train"}
    assert {e.origin["wording"] for e in everything["test"]} == {"train", "held_out"}
    for wording in ("train", "held_out"):
        assert {e.origin["wording"] for e in examples(films, splits, "test", wordings=wording)} == {wording}


# ------------------------------------------------------------------ what is said


def stated(text):
    """(genres, decade, year, director) that an English phrase states."""
    genres = {genre for genre, word in SAID.items() if re.search(rf"\b{word}\b", text)}
    named = [number for word, number in DECADES.items() if word in text]
    decade = named or [int(year) for year in re.findall(r"the (\d{4})s", text)]
    year = [int(year) for year in re.findall(r"from (\d{4})\b", text)]
    return genres, decade, year, re.findall(r"by (Ann [A-H]\.)", text)


def holds(text, item, films):
    genres, decade, year, director = stated(text)
    return (
        genres <= set(films.facts["genres"][item])
        and all(d == films.facts["year"][item] // 10 * 10 for d in decade)
        and all(y == films.facts["year"][item] for y in year)
        and all(d == films.facts["director"][item] for d in director)
    )


def test_requests_are_true_and_as_specific_as_they_say(films, everything):
    seen = set()
    for example in everything["train"]:
        text = example.origin.get("intention_text", "")
        if text and example.origin["language"] == "en":
            target = films.index[example.origin["target"]]
            facts = sum(map(len, stated(text)))
            assert facts and holds(text, target, films)
            if example.origin["form"] == "request":
                assert example.output == text
            else:
                assert text in example.instruction
                assert facts == 1 if example.origin["intention"] == "vague" else 2 <= facts <= 4
                seen.add(example.origin["intention"])
    assert seen == {"vague", "specific"}


def test_without_a_history_wrong_candidates_do_not_fit_the_request(films, splits):
    settings = {"preferences": ["none"], "intentions": ["vague", "specific"], "forms": ["reranking", "pointwise"]}
    for example in examples(films, splits, "train", **settings):
        for item in set(example.candidates) - {example.origin["target"]}:
            assert not holds(example.origin["intention_text"], films.index[item], films)


def test_an_explicit_taste_is_of_the_past_alone(films, splits):
    """What comes after does not change what is said of a taste."""
    settings = {"preferences": ["explicit"], "examples_per_user": None}
    texts = [e.instruction for e in examples(films, splits, "train", **settings)]
    rng = np.random.default_rng(3)
    later = [rng.choice(np.setdiff1d(np.arange(ITEMS), train), 1).astype(np.int32) for train in splits.train]
    changed = Splits(splits.user_ids, splits.train, splits.validation, later)
    assert [e.instruction for e in examples(films, changed, "train", **settings)] == texts


def test_the_first_item_is_asked_for_in_words_alone(films, splits):
    found = examples(films, splits, "train", **EVERYTHING, examples_per_user=None)
    firsts = [e for e in found if e.origin["position"] == "0"]
    assert len(firsts) == sum(len(items) > 0 for items in splits.train)
    assert all(e.origin["preference"] == "none" and e.history == () for e in firsts)


def test_contexts_stand_first_and_suit(films, splits, everything):
    contexts = load_wordings().contexts.values()
    used = [e for e in everything["train"] if "context" in e.origin]
    assert 0.1 < len(used) / len(everything["train"]) < 0.4
    for example in used:
        (context,) = [c for c in contexts if example.origin["context"] in c.texts.values()]
        assert example.instruction.startswith(example.origin["context"])
        genres = films.facts["genres"][films.index[example.origin["target"]]]
        assert context.suits is None or set(context.suits) & set(genres)


@pytest.mark.filterwarnings("ignore:.*have no instruction")
def test_words_of_titles_stand_in_for_facts(splits):
    rng = np.random.default_rng(2)
    common = ["Racer", "Quest", "Castle", "Dragon", "Soccer", "Legend"]
    titles = [
        f"{' '.join(rng.choice(common, 3, replace=False))} Unique{chr(97 + n % 26)}{chr(97 + n // 26)} - Switch {n}"
        for n in range(ITEMS)
    ]
    titles[:20] = [f"Alone{chr(97 + n)}" for n in range(20)]  # nothing may be said of these
    games = Catalogue([f"g{n}" for n in range(ITEMS)], titles, titles)
    settings = EVERYTHING | {"noun": "game", "languages": ["en"], "contexts": 0.0, "intentions": ["vague", "specific"]}
    found = examples(games, splits, "train", **settings, examples_per_user=None)
    kinds = set()
    for example in found:
        number = games.index[example.origin["target"]]
        if number < 20:
            assert example.origin["intention"] == "none" and "drawn" in example.origin
            continue
        words = re.findall('"(.+?)"', example.origin["intention_text"])
        assert words and set(words) <= set(titles[number].split())
        assert len(words) <= 3 and not any(word.startswith("Unique") for word in words)
        assert not names_title(example.instruction, titles[number].split(" - ")[0])
        kinds.add((example.origin["intention"], len(words)))
    assert kinds == {("vague", 1), ("specific", 2)} | ({("specific", 3)} & kinds)


def test_what_cannot_be_said_is_counted(splits):
    titles = [f"Alone{number:04d}".translate(str.maketrans("0123456789", "abcdefghij")) for number in range(ITEMS)]
    bare = Catalogue([f"g{n}" for n in range(ITEMS)], titles, titles)
    with pytest.warns(UserWarning, match=rf"{USERS} item\(s\) of the test split"):
        assert examples(bare, splits, "test", forms=["request"]) == []


def test_a_held_out_item_without_history_is_counted(films):
    none, one = np.empty(0, np.int32), np.array([3, 4], np.int32)
    cold = Splits(["u"], [none], [none], [one])
    with pytest.warns(UserWarning, match=r"1 item\(s\) of the test split"):
        assert [e.output for e in examples(films, cold, "test")] == [films.ids[4]]
    found = examples(films, cold, "test", preferences=["none", "implicit"], intentions=["vague"])
    assert [e.output for e in found] == [films.ids[3], films.ids[4]]


def test_a_repeated_choice_is_not_named(films):
    train = np.array([5, 9, 5], np.int32)
    none = np.empty(0, np.int32)
    found = examples(films, Splits(["u"], [train], [none], [none]), "train")
    assert films.titles[5] not in found[1].instruction and films.titles[9] in found[1].instruction
