"""Azure OpenAI's endpoints: the deployment in the path, or the paths that its client shares with OpenAI's.

The path goes on from `openai/` as the client wrote it, so that an Azure account is asked in the same family of paths.
"""

from __future__ import annotations

from django.http import HttpRequest
from django.http.response import HttpResponseBase
from ninja import Router

from relay.api.common import relay
from relay.api.models import add_models
from relay.api.openai import CHAT, EMBEDDINGS, add_completions, add_responses, add_stored_responses

DEPLOYMENT = "/azure/openai/deployments/{deployment}"

router = Router(tags=["Azure OpenAI"])


@router.post(f"{DEPLOYMENT}/chat/completions", operation_id="azure_deployment_chat_completions")
async def chat_completions(request: HttpRequest, deployment: str) -> HttpResponseBase:
    """Create a chat completion by a deployment."""
    path = f"openai/deployments/{deployment}/chat/completions"
    return await relay(request, CHAT, path=path, path_model=deployment)


@router.post(f"{DEPLOYMENT}/embeddings", operation_id="azure_deployment_embeddings")
async def embeddings(request: HttpRequest, deployment: str) -> HttpResponseBase:
    """Turn text into vectors by a deployment."""
    return await relay(request, EMBEDDINGS, path=f"openai/deployments/{deployment}/embeddings", path_model=deployment)


for path in ("openai/v1/", "openai/"):
    prefix, name = f"/azure/{path.rstrip('/')}", f"azure_{path.rstrip('/').replace('/', '_')}"
    add_responses(router, prefix, name=name, path=path)
    add_stored_responses(router, prefix, name=name, path=path)
    add_models(router, prefix, CHAT.dialect)
add_completions(router, "/azure/openai/v1", name="azure_openai_v1", path="openai/v1/")
