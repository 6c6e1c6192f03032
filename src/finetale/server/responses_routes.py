"""The route of OpenAI's responses API. Knows no engine; `responses` converts the bodies."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from finetale.errors import RequestError
from finetale.server.answer import EventStream
from finetale.server.responses import Reply, ResponsesRequest, renamed

if TYPE_CHECKING:
    from finetale.server.app import Service

PATH = "/v1/responses"


def route(service: Service) -> Route:
    """Return the route."""

    async def create(request: Request) -> Response:
        asked = await service.read(ResponsesRequest, request)
        try:
            response = await service.converse(request, asked.chat())
        except RequestError as error:
            raise renamed(error) from None
        reply = Reply(asked)
        if isinstance(response, EventStream):
            return EventStream(reply.events(response.events), response.end)
        assert not isinstance(response, StreamingResponse)
        return JSONResponse(reply.whole(json.loads(bytes(response.body))))

    return Route(PATH, create, methods=["POST"])
