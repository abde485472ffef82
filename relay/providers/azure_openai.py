"""OpenAI's models on an Azure resource: deployments instead of models, three families of paths."""

from __future__ import annotations

import re
from typing import ClassVar
from urllib.parse import parse_qsl, quote, urlencode

from relay.call import Account, Call, Endpoint
from relay.providers.base import Headers, UpstreamRequest
from relay.providers.headers import first
from relay.providers.openai import OpenAI, operation, renamed

DATED = re.compile(r"^\d{4}-\d{2}-\d{2}")
# Operations that stand under a deployment in the dated API; the others do not.
DEPLOYED = frozenset({"chat/completions", "embeddings"})


class AzureOpenAI(OpenAI):
    kind: ClassVar = "azure_openai"
    label: ClassVar = "Azure OpenAI"
    provider: ClassVar = "azure"
    default_base_url: ClassVar = ""
    credential_fields: ClassVar = ("api_key", "access_token")
    setting_fields: ClassVar = ("api_version", "deployment_map")

    def serves(self, account: Account, endpoint: Endpoint, model: str) -> bool:
        return super().serves(account, endpoint, self.model_of(account, model))

    def upstream_model(self, account: Account, model: str) -> str:
        """The model that is billed; a client may also name the deployment."""
        return super().upstream_model(account, self.model_of(account, model))

    def model_of(self, account: Account, name: str) -> str:
        """The model behind a deployment's name, any other name as it is."""
        known = deployments(account)
        return next((model for model, deployment in known.items() if deployment == name and name not in known), name)

    def deployment(self, account: Account, model: str) -> str:
        return deployments(account).get(model) or model

    def named(self, call: Call, account: Account, model: str) -> bytes:
        return renamed(call, self.deployment(account, model))

    def url(self, call: Call, account: Account) -> str:
        query = dict(parse_qsl(call.query, keep_blank_values=True))
        version = query.pop("api-version", "") or str(account.settings.get("api_version") or "")
        model = self.upstream_model(account, call.envelope.model)
        path = family(call.path, version, deployment=self.deployment(account, model))
        # The v1 family needs no version, and takes no dated one.
        kept = {"api-version": version} if version and not (path.startswith("v1/") and DATED.match(version)) else {}
        text = urlencode({**kept, **query})
        return f"{resource(account)}/openai/{path}" + (f"?{text}" if text else "")

    def root(self, account: Account) -> str:
        return f"{resource(account)}/openai/v1"

    def authentication(self, account: Account) -> list[tuple[bytes, bytes]]:
        if token := account.credential.get("access_token"):
            return [(b"authorization", b"Bearer " + token.encode())]
        return [(b"api-key", account.credential.get("api_key", "").encode())]

    def request_id(self, headers: Headers) -> str:
        return (first(headers, b"apim-request-id") or first(headers, b"x-request-id")).decode("latin1")

    def named_models(self, account: Account) -> tuple[str, ...]:
        return super().named_models(account) or tuple(deployments(account))

    def models_request(self, account: Account) -> UpstreamRequest | None:
        """None: Azure lists what it could deploy, not what this resource has deployed."""
        return None

    def check(self, account: Account) -> list[str]:
        wrong = super().check(account)
        if not account.base_url:
            wrong.append("base_url is missing: the resource's endpoint")
        given = account.settings.get("deployment_map")
        if given is not None and not is_text_map(given):
            wrong.append("deployment_map is no JSON object of model -> deployment")
        return wrong


def family(path: str, version: str, *, deployment: str) -> str:
    """The path behind `/openai/`: of the family that an Azure client asked in, else of the version's."""
    what = operation(path)
    if path.startswith("openai/v1/"):
        return f"v1/{what}"
    if not (path.startswith("openai/") or DATED.match(version)):
        return f"v1/{what}"
    return f"deployments/{quote(deployment, safe='')}/{what}" if what in DEPLOYED else what


def resource(account: Account) -> str:
    """The resource's endpoint, however much of a path was copied with it."""
    base = account.base_url.rstrip("/")
    return re.sub(r"/openai(?:/v1)?$", "", base)


def deployments(account: Account) -> dict[str, str]:
    given = account.settings.get("deployment_map")
    return given if isinstance(given, dict) and is_text_map(given) else {}


def is_text_map(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(item, str) for pair in value.items() for item in pair)
