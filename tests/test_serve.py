"""The command `serve`: its help, its settings, and its keys. (`instructrec_jax.serve`)"""

from pathlib import Path

import pytest

from instructrec_jax import serve
from instructrec_jax.runs.config import ConfigError
from instructrec_jax.service import server
from instructrec_jax.service.settings import ServeConfig


def test_help_has_the_routes_keys_and_settings(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        serve.main(["--help"])
    said = capsys.readouterr().out
    assert ended.value.code in (0, None) and "/v1/embeddings" in said and "keys add" in said and "drain_seconds" in said


def test_it_serves_the_settings_or_goes_to_the_keys(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    served: list[ServeConfig] = []
    monkeypatch.setattr(server, "serve", served.append)
    serve.main(["runs/films", "--port", "0"])
    assert [each.path for each in served[0].models] == ["runs/films"] and served[0].port == 0
    with pytest.raises(ConfigError, match="drain_seconds"):
        serve.main(["runs/films", "--drain_second", "5"])
    file = str(tmp_path / "keys.json")
    serve.main(["keys", "add", "shop", "--keys", file])
    serve.main(["keys", "list", "--keys", file])
    assert capsys.readouterr().out.count("shop") == 1 and len(served) == 1


def test_settings_that_cannot_work_are_refused_before_a_model_is_opened() -> None:
    for bad, message in (
        (ServeConfig(host="0.0.0.0"), "needs keys"),
        (ServeConfig(keys="none.json"), "there is no file"),
        (ServeConfig(tls_key="key.pem"), "belong together"),
    ):
        with pytest.raises(ValueError, match=message):
            server.serve(bad)
