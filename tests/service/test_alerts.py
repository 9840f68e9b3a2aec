"""Alerts: one notice when a value leaves its range, one when it is well inside again."""

from instructrec_jax.service.alerts import Alerts, Notice


def states(values: list[float], threshold: float = 10.0) -> list[str | None]:
    alerts = Alerts()
    found = []
    for value in values:
        notice = alerts.update("latency", "desk", value=value, threshold=threshold, text="...")
        found.append(None if notice is None else str(notice["state"]))
    return found


def test_one_notice_per_incident_and_one_per_recovery() -> None:
    assert states([9, 10, 10.1, 50, 9, 8.1, 7.9, 0, 11]) == [
        None,
        None,
        "firing",
        None,
        None,
        None,
        "resolved",
        None,
        "firing",
    ]


def test_some_end_by_the_mean_of_the_latest_values() -> None:
    alerts = Alerts()
    values = [11, 0, 9, 9, 6, 6, 11]
    found = [alerts.update("drift", "", value=each, threshold=10.0, text="...", mean_of=3) for each in values]
    assert [each and each["state"] for each in found] == ["firing", None, None, "resolved", None, None, "firing"]


def test_a_threshold_of_zero_is_left_by_anything_and_met_by_zero() -> None:
    assert states([0, 0.001, 0], threshold=0.0) == [None, "firing", "resolved"]


def test_notices_name_the_incident_and_go_to_all() -> None:
    sent: list[list[Notice]] = [[], []]
    alerts = Alerts([sent[0].append, sent[1].append])
    for value in (2.0, 0.1, 2.0):
        alerts.update("queue", "desk", value=value, threshold=1.0, text=f"at {value}", details=[{"what": "x"}])
    alerts.update("memory", "", value=0.5, threshold=1.0, text="")
    assert sent[0] == sent[1]
    first, over, second = sent[0]
    assert first["incident"] == over["incident"] != second["incident"]
    assert first["since"] == over["since"] and len({each["id"] for each in sent[0]}) == 3
    assert first["text"] == "firing: queue of desk: at 2.0" and over["text"] == "resolved: queue of desk: at 0.1"
    assert first["details"] == [{"what": "x"}] and (first["value"], first["threshold"]) == (2.0, 1.0)
    assert alerts.firing() == {("queue", "desk"): True, ("memory", ""): False}


def test_models_and_alerts_are_apart() -> None:
    alerts = Alerts()
    assert alerts.update("queue", "desk", value=2, threshold=1, text="") is not None
    assert alerts.update("queue", "chat", value=2, threshold=1, text="") is not None
    assert alerts.update("latency", "desk", value=2, threshold=1, text="") is not None
