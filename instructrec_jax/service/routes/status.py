"""Whether the service lives, whether it is ready, and which models it has."""

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from instructrec_jax.service.models import ROUTES
from instructrec_jax.service.routes.parts import Noted, Running

router = APIRouter(tags=["status"])


@router.get("/health")
async def health() -> dict[str, str]:
    """200 while the process answers."""
    return {"status": "alive"}


@router.get("/ready")
async def ready(service: Running) -> JSONResponse:
    """200 once every shape is compiled; 503 before, and while the service shuts down."""
    state = "ready" if service.ready else "failed" if service.failed else "warming up"
    said = {"status": state} | ({"reason": service.failed} if service.failed else {})
    return JSONResponse(said, 200 if service.ready else 503)


@router.get("/v1/models")
async def models(service: Running, noted: Noted) -> dict[str, object]:
    """The models that the caller may use, in the form of OpenAI's API, with the routes that each answers."""
    listed = [
        {
            "id": each.name,
            "object": "model",
            "created": int(service.started),
            "owned_by": "instructrec_jax",
            "task": each.run.kind,
            "routes": sorted(ROUTES[ability] for ability in each.abilities),
        }
        for each in service.models.values()
        if noted.caller is None or noted.caller.may_use(each.name)
    ]
    return {"object": "list", "data": listed}


@router.get("/openapi.json")
async def schema(request: Request) -> JSONResponse:
    """This description of the routes. A route like the others, because FastAPI's own would need no key."""
    return JSONResponse(request.app.openapi())
