"""What the tests of tables and reports show: an evaluation, examples, and text that attacks a page or a terminal."""

EVIL = "</pre></td><script>alert('x')</script><img src=http://evil.example/x.png onerror=alert(1)>\"' & \x1b[2J\x00"


def evaluation(name="after tuning", metric="NDCG@10", protocol="Rank 412 films."):
    return {
        "protocol": protocol,
        "metrics": [metric, "mse"],
        "rows": [
            {"name": "popularity", "values": {metric: 0.1, "mse": 1.25}},
            {"name": name, "values": {metric: 0.34567, "mse": 2.5}},
            {"name": "Markov-1", "values": {metric: None}},
        ],
        "differences": [
            {"name": f"{name} − popularity", "metric": metric, "mean": 0.24567, "low": 0.2, "high": 0.3},
            {"name": "mse", "metric": "mse", "mean": 1.25, "low": 1.0, "high": 1.5},
            {"name": "Markov-1 − popularity", "metric": metric, "mean": 0.0, "low": -0.1, "high": 0.1},
        ],
        "report": "precision recall",
    }


def examples(text="Moon (2009)"):
    answers = [{"text": "Alien (1979)", "score": 2.5}, {"text": text, "score": 1.25}]
    return [
        {"instruction": f"something in space {text}", "wanted": text, "answers": answers},
        {"instruction": "anything", "wanted": None, "answers": []},
    ]
