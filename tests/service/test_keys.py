"""Keys: what the file has of them, who may do what, and how much. (`instructrec_jax.service.key_commands` too)"""

import json
import os
import threading
from pathlib import Path

import pytest

from instructrec_jax.service import key_commands
from instructrec_jax.service.keys import Budgets, Key, Keys, Strangers, add_key, read_keys, revoke_key, route_name


def test_the_file_has_no_key_and_is_its_owners(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    first, second = add_key(path, "shop"), add_key(path, "desk")
    assert path.stat().st_mode & 0o777 == 0o600
    assert first.split("-")[2] not in path.read_text() and len(first.split("-")[2]) * 4 == 256
    one, two = read_keys(path)
    assert one.salt != two.salt and one.digest != two.digest
    keys = Keys(path)
    assert [keys.find(each).name for each in (first, second)] == ["shop", "desk"]  # type: ignore[union-attr]
    mixed = "-".join([*first.split("-")[:2], second.split("-")[2]])
    assert all(keys.find(each) is None for each in (mixed, first[:-1], first + "0", "", "irj--", first.upper()))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": "a b"}, "no name of a key"),
        ({"name": "shop"}, "already"),
        ({"name": "x", "roles": ["root"]}, "no role 'root'"),
        ({"name": "x", "per_minute": 0}, "--per_minute is 0"),
    ],
)
def test_bad_keys_are_refused(given: dict[str, object], message: str, tmp_path: Path) -> None:
    add_key(tmp_path / "keys.json", "shop")
    with pytest.raises(ValueError, match=message):
        add_key(tmp_path / "keys.json", **given)  # type: ignore[arg-type]
    assert len(read_keys(tmp_path / "keys.json")) == 1


def test_many_writers_lose_no_key(tmp_path: Path) -> None:
    threads = [threading.Thread(target=add_key, args=(tmp_path / "keys.json", f"k{n}")) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {key.name for key in read_keys(tmp_path / "keys.json")} == {f"k{n}" for n in range(8)}


def test_a_change_counts_within_a_second_and_damage_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, now = tmp_path / "keys.json", [0.0]
    shop, desk = add_key(path, "shop"), add_key(path, "desk")
    keys = Keys(path, lambda: now[0])
    revoke_key(path, "shop")
    new = add_key(path, "shop")  # the name is free again
    assert keys.find(shop) is not None  # not looked at yet
    now[0] = 1.0
    assert keys.find(shop) is None and keys.find(desk) is not None and keys.find(new) is not None
    path.write_text("{")
    now[0] = 2.0
    assert keys.find(desk) is not None and "cannot be read" in caplog.text
    path.unlink()
    now[0] = 3.0
    assert keys.find(desk) is not None and len(caplog.records) == 2


def test_a_file_without_valid_keys_or_that_others_may_write_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    with pytest.raises(ValueError, match="serve keys add"):
        Keys(path)
    add_key(path, "shop")
    revoke_key(path, "shop")
    with pytest.raises(ValueError, match="no key .* is valid"):
        Keys(path)
    with pytest.raises(ValueError, match="no valid key 'shop'"):
        revoke_key(path, "shop")
    os.chmod(path, 0o620)
    with pytest.raises(ValueError, match="chmod 600"):
        read_keys(path)


def test_routes_models_and_roles() -> None:
    assert [route_name(p) for p in ("/v1/chat/completions", "/recommend", "/", "/catalogue/facts")] == [
        "chat", "recommend", "", "catalogue",
    ]  # fmt: skip
    key = Key("1", "shop", "", "", routes=("chat", "/v1/comp*"), models=("films-*",))
    opened = [
        p for p in ("/v1/chat/completions", "/v1/completions", "/recommend", "/v1/models", "/") if key.may_call(p)
    ]
    assert opened == ["/v1/chat/completions", "/v1/completions", "/v1/models", "/"]
    assert key.may_use("films-2") and not key.may_use("books")
    assert not key.may_call("/metrics", "metrics")
    metrics = Key("2", "prometheus", "", "", roles=("metrics",))
    assert metrics.may_call("/metrics", "metrics") and not metrics.may_call("/recommend")
    admin = Key("3", "me", "", "", routes=(), models=(), roles=("admin",))
    assert admin.may_call("/recommend") and admin.may_call("/metrics", "metrics") and admin.may_use("books")


def test_budgets() -> None:
    now = [86400.0 * 5]
    budgets, key = Budgets(lambda: now[0]), Key("1", "shop", "", "", per_minute=2, tokens_per_day=100)
    assert [budgets.take(key) for _ in range(3)] == [None, None, ("per_minute", 31)]
    now[0] += 30.0
    assert budgets.take(key) is None and budgets.take(key) is not None
    now[0] += 600.0
    assert [budgets.take(key) for _ in range(3)] == [None, None, ("per_minute", 31)]  # a bucket has no more than two
    now[0] += 600.0
    budgets.spend(key, 99)
    assert budgets.take(key) is None
    budgets.spend(key, 1)
    assert budgets.take(key) == ("tokens_per_day", 86400 - 1230 + 1)
    now[0] = 86400.0 * 6
    assert budgets.take(key) is None
    assert [Budgets().take(Key("2", "free", "", "")) for _ in range(999)] == [None] * 999


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(tmp_path / "keys.json")
    given = ["--routes", "embeddings,/v1/*", "--models", "films", "--per_minute", "60", "--tokens_per_day", "9"]
    key_commands.main(["add", "shop", "--keys", file, *given])
    key = capsys.readouterr().out.strip()
    found = Keys(file).find(key)
    assert found is not None and found.routes == ("embeddings", "/v1/*") and found.per_minute == 60
    with pytest.raises(ValueError, match=r"no route fits 'embedings'; the routes are: .*/v1/embeddings"):
        key_commands.main(["add", "desk", "--keys", file, "--routes", "embedings"])
    with pytest.raises(ValueError, match="whose key"):
        key_commands.main(["revoke", "--keys", file])
    key_commands.main(["revoke", "shop", "--keys", file])
    key_commands.main(["list", "--keys", file])
    said = capsys.readouterr().out
    assert "embeddings,/v1/*" in said and json.loads(Path(file).read_text())["keys"][0]["revoked"] in said
    assert key.split("-")[2] not in said


def test_tries_without_a_key_are_counted_by_address() -> None:
    now = [0.0]
    strangers = Strangers(6, lambda: now[0])
    assert [strangers.take("a") for _ in range(8)] == [None] * 6 + [11, 11]
    assert strangers.take("b") is None
    now[0] = 10.0  # one more try for "a"
    assert [strangers.take("a") for _ in range(2)] == [None, 11]
    with pytest.raises(ValueError, match="limits.failed_keys"):
        Strangers(0)


def test_addresses_are_forgotten_so_that_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Strangers, "MOST", 3)
    strangers = Strangers(1, lambda: 0.0)
    assert [strangers.take(address) for address in "abcabcd"] == [None] * 3 + [61] * 3 + [None]
    assert strangers.take("a") is None and strangers.take("c") == 61
