"""Pictures drawn of prompts: `/v1/images/generations`."""

import base64
import time
from typing import Literal

from fastapi import APIRouter, Request

from instructrec_jax.service.drawings import Drawing, Drawn, Prompt
from instructrec_jax.service.errors import ServiceError
from instructrec_jax.service.routes.parts import Asked, Hidden, Noted, Running, in_time

router = APIRouter(tags=["drawings"])


class DrawingRequest(Asked):
    """As in OpenAI's API, with the settings of `generate --task image`; those that are left out are the run's."""

    prompt: str
    model: str | None = None
    n: int = 1
    size: str | None = None
    response_format: Literal["b64_json"] = "b64_json"
    seed: int | None = None
    temperature: float | None = None
    guidance_scale: float | None = None
    user: str | None = None


@router.post("/v1/images/generations")
async def drawings(
    asked: DrawingRequest, request: Request, service: Running, noted: Noted, hidden: Hidden
) -> dict[str, object]:
    """Pictures of the prompt as PNG files, the same as `generate --task image` draws with the same seed."""
    most = service.config.limits.drawings
    if not 1 <= asked.n <= most:
        raise ServiceError(
            422, f"n is {asked.n:,}, but must be from 1 to {most} (limits.drawings).", param="n", code="invalid"
        )
    model = service.model(asked.model, "draw", noted)
    drawing = model.answerers["draw"]
    assert isinstance(drawing, Drawing)
    size = f"{drawing.side}x{drawing.side}"
    if asked.size not in (None, "auto", size):
        raise ServiceError(
            422,
            f"size is {asked.size!r}, but {model.name!r} draws pictures of {size} only.",
            param="size",
            code="unsupported",
        )
    (prompt,) = await hidden.mask([asked.prompt])
    wanted = Prompt(prompt, asked.n, asked.seed, asked.temperature, asked.guidance_scale)
    found: Drawn = await in_time(service, request, model.ask("draw", wanted))
    noted.counts.update(pictures=len(found.pictures), prompt_tokens=found.prompt_tokens)
    service.drift(model).answered(prompt)
    usage = {"input_tokens": found.prompt_tokens, "output_tokens": found.codes}
    return {
        "created": int(time.time()),
        "model": model.name,
        "size": size,
        "data": [{"b64_json": base64.b64encode(each).decode()} for each in found.pictures],
        "usage": usage | {"total_tokens": sum(usage.values())},
    }
