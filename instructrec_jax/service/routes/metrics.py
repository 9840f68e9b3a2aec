"""`/metrics`, in the format of Prometheus; with keys, for those with the role metrics."""

from fastapi import APIRouter, Request, Response

router = APIRouter(tags=["monitoring"])


@router.get("/metrics")
def metrics(request: Request) -> Response:
    """Requests, tokens, queues, drift and memory; names and numbers, no text of a user."""
    content, kind = request.app.state.monitoring.metrics.shown(request.headers.get("accept", ""))
    return Response(content, headers={"Content-Type": kind})
