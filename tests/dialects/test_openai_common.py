"""What both OpenAI dialects share: errors and lists of models, as the official SDK takes them."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from relay.call import Endpoint, RateLimit
from relay.dialects.base import ModelEntry
from relay.dialects.openai_chat import OpenAIChat
from relay.errors import (
    AccountRejected,
    BodyTooLarge,
    BudgetExceeded,
    InvalidRequest,
    LimitExceeded,
    ModelNotFound,
    ModelUnavailable,
    NoAccountAvailable,
    NotAuthenticated,
    NotPermitted,
    NotServed,
    RelayError,
    UpstreamOverloaded,
    UpstreamRejected,
    UpstreamTimeout,
)
from tests.openai_sdk import answering
from tests.providers.case import fixture

DIALECT = OpenAIChat()
CHAT = Endpoint("chat_completions", "openai_chat")
HI: list[Any] = [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(
    ("seconds", "told"), [(0.2, b"1s"), (59.0, b"59s"), (360.0, b"6m0s"), (36_061.0, b"10h1m1s"), (-3.0, b"0s")]
)
def test_limits_are_told_in_the_vendors_headers(seconds: float, told: bytes) -> None:
    rates = (RateLimit("requests", 60, 41, 1000.0 + seconds), RateLimit("tokens", 500, 0, 1000.0 + seconds))
    assert DIALECT.rate_headers(rates, now=1000.0) == [
        (b"x-ratelimit-limit-requests", b"60"),
        (b"x-ratelimit-remaining-requests", b"41"),
        (b"x-ratelimit-reset-requests", told),
        (b"x-ratelimit-limit-tokens", b"500"),
        (b"x-ratelimit-remaining-tokens", b"0"),
        (b"x-ratelimit-reset-tokens", told),
    ]


@pytest.mark.parametrize(
    "error, raised, status, code",
    [
        (NotAuthenticated("No."), openai.AuthenticationError, 401, "invalid_api_key"),
        (NotPermitted("No."), openai.PermissionDeniedError, 403, "permission_denied"),
        (ModelNotFound("No."), openai.NotFoundError, 404, "model_not_found"),
        (NotServed("No."), openai.NotFoundError, 404, None),
        (InvalidRequest("No."), openai.BadRequestError, 400, None),
        (BodyTooLarge("No."), openai.APIStatusError, 413, "request_too_large"),
        (LimitExceeded("No.", retry_after=3), openai.RateLimitError, 429, "rate_limit_exceeded"),
        (BudgetExceeded("No.", retry_after=9999), openai.RateLimitError, 429, "insufficient_quota"),
        (NoAccountAvailable("No."), openai.InternalServerError, 503, "no_account_available"),
        (AccountRejected("No.", status=401, body=b'{"error":{}}'), openai.InternalServerError, 502, "account_rejected"),
        (UpstreamTimeout("No."), openai.InternalServerError, 504, "upstream_timeout"),
        (UpstreamOverloaded("No.", status=529), openai.InternalServerError, 529, "overloaded_error"),
        (UpstreamOverloaded("No.", status=429), openai.RateLimitError, 429, "rate_limit_exceeded"),
    ],
)
def test_the_sdk_raises_its_usual_class(
    error: RelayError, raised: type[openai.APIStatusError], status: int, code: str | None
) -> None:
    answer = DIALECT.render_error(error, "id")
    headers = {name.decode(): value.decode() for name, value in answer.headers}

    with pytest.raises(raised) as caught:
        answering(answer.body, status=answer.status, headers=headers).chat.completions.create(model="m", messages=HI)

    assert (caught.value.status_code, caught.value.code, caught.value.body) == (
        status,
        code,
        {"message": "No.", "type": caught.value.type, "param": None, "code": code},
    )


def test_a_spent_budget_stops_every_client_at_the_first_answer() -> None:
    answer = DIALECT.render_error(BudgetExceeded("Spent.", retry_after=7200.1), "id")

    assert (answer.status, dict(answer.headers)[b"retry-after"], dict(answer.headers)[b"x-should-retry"]) == (
        429,
        b"7201",
        b"false",
    )


@pytest.mark.parametrize("seconds, header", [(2.1, None), (60, None), (61, b"false")])
def test_a_long_wait_is_not_to_be_slept_through(seconds: float, header: bytes | None) -> None:
    headers = dict(DIALECT.render_error(LimitExceeded("Wait.", retry_after=seconds), "id").headers)

    assert headers.get(b"x-should-retry") == header


def test_what_the_caller_did_wrong_passes_untouched() -> None:
    body = fixture("openai/error_400_context.json")
    answer = DIALECT.render_error(UpstreamRejected("x", status=400, body=body), "id")

    assert (answer.status, answer.body) == (400, body)


@pytest.mark.parametrize(
    "error",
    [
        UpstreamOverloaded("x", status=429, body=fixture("openai/error_429_rate.json"), retry_after=1),
        ModelUnavailable("x", status=403, body=fixture("openai/error_403_model.json")),
    ],
)
def test_the_organisation_behind_an_account_is_not_told(error: RelayError) -> None:
    answer = DIALECT.render_error(error, "id")

    assert answer.status in {403, 429}
    assert b"AbCdEf123456" not in answer.body
    assert json.loads(answer.body)["error"]["code"] in {"rate_limit_exceeded", "model_not_found"}


@pytest.mark.parametrize(
    "name, status",
    [
        ("rate_limit_exceeded", 429),
        ("insufficient_quota", 429),
        ("server_error", 500),
        ("context_length_exceeded", 400),
        ("502", 502),
        ("invalid_image_url", 400),
        ("model_not_found", 404),
        ("whatever", 500),
        ("999", 500),
    ],
)
def test_an_error_inside_a_stream_has_the_status_it_would_have_had(name: str, status: int) -> None:
    assert DIALECT.in_band_status(name) == status


def test_the_sdk_reads_the_list_of_models() -> None:
    entry = ModelEntry("gpt-5.6-luna", created_at=1795388612.0, raw=b'{"id":"x","owned_by":"org-secret"}')
    client = answering(DIALECT.render_models([entry], query={}).body)

    assert [(model.id, model.owned_by, model.created) for model in client.models.list()] == [
        ("gpt-5.6-luna", "baton", 1795388612)
    ]
    assert answering(DIALECT.render_model(entry).body).models.retrieve("x").id == "gpt-5.6-luna"
