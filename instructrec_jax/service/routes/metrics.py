"""`/metrics`, in the format of Prometheus."""

from fastapi import APIRouter, Depends, Request, Response


def reads_metrics(request: Request) -> None:
    """Who may read the metrics; keys with roles are checked here."""


router = APIRouter(tags=["status"], dependencies=[Depends(reads_metrics)])


@router.get("/metrics")
def metrics(request: Request) -> Response:
    """Requests, tokens, queues, drift and memory; names and numbers, no text of a user."""
    content, kind = request.app.state.monitoring.metrics.shown(request.headers.get("accept", ""))
    return Response(content, headers={"Content-Type": kind})
