"""Train the embedded film recommender (once), then answer requests and say what moved each answer. Offline.

python examples/recommend_films.py
"""

from pathlib import Path

import instructrec_jax as ir

RUN = Path("runs/films")
REQUESTS = [
    ir.Request(instruction="something funny about a family"),
    ir.Request(history=["Alien", "The Thing"], where=["year>1990"]),
    ir.Request(instruction="a quiet drama about old age", exclude=["Up"]),
]


def main() -> None:
    if not (RUN / "report.html").is_file():
        ir.train_run("configs/films.yaml")
    films = ir.Recommender(RUN)
    for request, answer in zip(REQUESTS, films.recommend(REQUESTS, k=3), strict=True):
        print(f"\n{request.instruction or 'after ' + ', '.join(request.history)}")
        for film in answer.recommendations:
            reasons = ", ".join(f"{e.part.text} ({e.contribution:+.3f})" for e in film.evidence[:2])
            print(f"  {film.rank}. {film.title}  {film.score:.2f}  because of {reasons or 'nothing in particular'}")


if __name__ == "__main__":
    main()
