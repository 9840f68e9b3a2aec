"""Metrics: what a request adds, what is read at a scrape, and that nothing a user said is among it."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from instructrec_jax.service.exchange import Exchange
from instructrec_jax.service.metrics import STATS, Metrics, Named


def values(metrics: Metrics) -> dict[str, float]:
    """name{label=value,...} -> value, of what a scrape reads."""
    text = metrics.shown()[0].decode()
    return {
        f"{sample.name}{{{','.join(f'{name}={value}' for name, value in sorted(sample.labels.items()))}}}": sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def exchange(**changes: object) -> Exchange:
    made = Exchange("id", "POST", route="/v1/embeddings", model="tiny", status=200, seconds=0.3, first=0.2)
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def test_what_requests_add() -> None:
    metrics = Metrics(lambda: [])
    for changes in ({}, {"key": "shop"}, {"status": 503, "first": None}):
        made = exchange(**changes)
        made.counts.update(texts=2, prompt_tokens=7, completion_tokens=3)
        metrics.observe(made)
    found, by = values(metrics), "model=tiny,route=/v1/embeddings"
    assert found[f"instructrec_requests_total{{{by},status=200}}"] == 2
    assert found[f"instructrec_requests_total{{{by},status=503}}"] == 1
    assert found[f"instructrec_request_seconds_sum{{{by}}}"] == pytest.approx(0.9)
    assert found[f"instructrec_request_seconds_bucket{{le=0.25,{by}}}"] == 0
    assert found[f"instructrec_first_byte_seconds_bucket{{le=0.25,{by}}}"] == 2
    assert found[f"instructrec_tokens_total{{kind=prompt,{by}}}"] == 21
    assert found[f"instructrec_items_total{{kind=texts,{by}}}"] == 6
    assert found["instructrec_key_requests_total{key=shop,status=200}"] == 1
    assert found["instructrec_key_tokens_total{key=shop}"] == 10
    assert 0 < found["instructrec_machine_memory_share{}"] < 1


def test_what_parts_count_is_read_at_each_scrape() -> None:
    queue = {"waiting": 3.0, "queue": 256, "batches": 2, "batch_rows": 10, "batch_room": 16}
    parts: list[Named] = [("tiny", "embed", queue), ("chat", "engine", {"cache_hits": 5})]
    metrics = Metrics(lambda: parts)
    first = values(metrics)
    queue["waiting"] = 0
    assert first["instructrec_queue_waiting{model=tiny,part=embed}"] == 3
    assert first["instructrec_batch_rows_total{model=tiny,part=embed}"] == 10
    assert first["instructrec_cache_hits_total{model=chat,part=engine}"] == 5
    assert values(metrics)["instructrec_queue_waiting{model=tiny,part=embed}"] == 0


def test_a_part_that_counts_what_has_no_metric_is_an_error() -> None:
    metrics = Metrics(lambda: [("tiny", "embed", {"wating": 1})])
    with pytest.raises(ValueError, match="embed.*wating.*STATS"):
        metrics.shown()


def test_two_services_have_metrics_of_their_own() -> None:
    one, other = Metrics(lambda: []), Metrics(lambda: [])
    one.observe(exchange())
    assert "tiny" in str(values(one)) and "tiny" not in str(values(other))


def test_every_name_of_stats_is_a_metric() -> None:
    found = values(Metrics(lambda: [("tiny", "part", dict.fromkeys(STATS, 1.0))]))
    assert sum(name.endswith("{model=tiny,part=part}") for name in found) == len(STATS)
