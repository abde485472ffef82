"""Whose fault Google's errors are: `{"error": {code, message, status, details}}`, alone or in an array of one."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from relay.errors import (
    AccountRejected,
    ModelUnavailable,
    UpstreamError,
    UpstreamFailed,
    UpstreamOverloaded,
    UpstreamRejected,
    UpstreamTimeout,
)
from relay.providers.base import Headers
from relay.providers.headers import retry_after_seconds

# google.rpc.ErrorInfo reasons (googleapis, error_reason.proto) that are about our key, project or billing.
OURS = frozenset(
    "API_KEY_INVALID API_KEY_EXPIRED API_KEY_SERVICE_BLOCKED API_KEY_HTTP_REFERRER_BLOCKED API_KEY_IP_ADDRESS_BLOCKED "
    "API_KEY_ANDROID_APP_BLOCKED API_KEY_IOS_APP_BLOCKED ACCESS_TOKEN_EXPIRED ACCESS_TOKEN_SCOPE_INSUFFICIENT "
    "ACCESS_TOKEN_TYPE_UNSUPPORTED ACCOUNT_STATE_INVALID CREDENTIALS_MISSING CONSUMER_INVALID CONSUMER_SUSPENDED "
    "SERVICE_DISABLED BILLING_DISABLED USER_PROJECT_DENIED RESOURCE_PROJECT_INVALID LOCATION_POLICY_VIOLATED".split()
)
BAD_KEY = re.compile(r"\bAPI key\b.*\b(?:not valid|not found|expired|invalid|leaked|suspended)", re.IGNORECASE)
NO_MONEY = re.compile(
    r"prepa(?:id|yment) credits|spend(?:ing)? (?:cap|limit)|billing (?:account )?.*\b(?:disabled|closed|not enabled)|"
    r"enable billing",
    re.IGNORECASE,
)
WRONG_PLACE = re.compile(r"location is not supported for the API use", re.IGNORECASE)
ABOUT_MODEL = re.compile(r"\bmodels?/|\bpublisher model\b|\bmodel\b", re.IGNORECASE)
# Things of the caller's own that a 403 may be about.
ABOUT_CONTENT = re.compile(r"\bcached ?content|\bfiles?\b|\bcorpus\b|\bgs://", re.IGNORECASE)
# Our own project at Google is not the client's business.
PROJECT = re.compile(r"\bprojects/[a-z0-9][a-z0-9:.-]*|\bproject_number:\d+")
DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)s")
# A quota by the day comes back at midnight, Pacific time; the delay beside it means nothing.
BY_DAY = re.compile(r"PerDay|Daily|per_day", re.IGNORECASE)
LONG = 1800.0  # seconds, the longest that anything rests


class Said:
    """What an error body says."""

    def __init__(self, body: bytes) -> None:
        error = error_of(body)
        self.message = text(error.get("message")) if error else body[:1000].decode("utf-8", "replace")
        self.status = text(error.get("status"))
        listed = error.get("details")
        self.details = [item for item in listed if isinstance(item, dict)] if isinstance(listed, list) else []

    def detail(self, name: str) -> dict[str, Any]:
        return next((item for item in self.details if text(item.get("@type")).endswith(f".{name}")), {})

    @property
    def reason(self) -> str:
        return text(self.detail("ErrorInfo").get("reason"))

    def wait(self) -> float | None:
        """Seconds until the quota has room again; None where it does not say."""
        violations = self.detail("QuotaFailure").get("violations")
        quotas = [text(item.get("quotaId")) for item in violations or () if isinstance(item, dict)]
        if any(BY_DAY.search(name) for name in quotas):
            return LONG
        match = DURATION.fullmatch(text(self.detail("RetryInfo").get("retryDelay")))
        return float(match[1]) if match else None


def classify(status: int, headers: Headers, body: bytes, *, now: float) -> UpstreamError:
    """The error of an answer that is no success."""
    said = Said(body)
    fault = fault_of_account(status, said)
    if fault:
        message = "The upstream account can't be used."
        return AccountRejected(message, reason=fault, rest="credential", status=status, headers=headers, body=body)
    if lacks_model(status, said):
        message = "The upstream account lacks the model."
        return ModelUnavailable(message, reason="model", rest="model", status=status, headers=headers, body=body)
    if status in {401, 403} and not (status == 403 and ABOUT_CONTENT.search(said.message)):
        message = "The upstream account can't be used."
        return AccountRejected(
            message, reason="credential", rest="credential", status=status, headers=headers, body=body
        )
    if status in {429, 503, 529}:
        wait = retry_after_seconds(headers, now=now)
        return UpstreamOverloaded(
            "The upstream is busy.",
            reason=str(status),
            rest=str(status),
            retry_after=said.wait() if wait is None else wait,
            status=status,
            headers=headers,
            body=body,
        )
    return by_status(status, headers, body)


def by_status(status: int, headers: Headers, body: bytes) -> UpstreamError:
    """What is left says all by its status."""
    if status == 408:
        message = "The upstream took too long."
        return UpstreamTimeout(message, reason="408", rest="timeout", status=status, headers=headers, body=body)
    # 499: the vendor itself cancelled the call, the client did not.
    if status >= 499 or status < 400:
        message = "The upstream failed."
        return UpstreamFailed(message, reason=str(status), rest="5xx", status=status, headers=headers, body=body)
    message = "The upstream rejected the request."
    return UpstreamRejected(message, reason=f"upstream_{status}", status=status, headers=headers, body=body)


def fault_of_account(status: int, said: Said) -> str:
    """Why our account can't be used at all, "" = it can: Google says so with 400 and 429 too."""
    if status == 402 or (status in {400, 403, 429} and NO_MONEY.search(said.message)):
        return "quota"
    if status in {400, 401, 403} and (said.reason in OURS or BAD_KEY.search(said.message)):
        return "credential"
    return "location" if status == 400 and WRONG_PLACE.search(said.message) else ""


def lacks_model(status: int, said: Said) -> bool:
    """Whether it is about a model that this account does not have, or not in its place."""
    if status == 400:
        return said.status == "FAILED_PRECONDITION" and bool(re.search(r"publisher model", said.message, re.IGNORECASE))
    content = ABOUT_CONTENT.search(said.message)
    return status in {403, 404} and not content and bool(ABOUT_MODEL.search(said.message))


def hidden(message: str) -> str:
    """The message without the name of our project."""
    return PROJECT.sub("projects/(hidden)", message)


def error_of(body: bytes) -> dict[str, Any]:
    """The error object of a body, {} where there is none."""
    try:
        said = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    said = said[0] if isinstance(said, list) and said else said
    error = said.get("error") if isinstance(said, dict) else None
    return error if isinstance(error, dict) else {}


def text(value: object) -> str:
    return value if isinstance(value, str) else ""
