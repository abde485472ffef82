"""Google's errors as its APIs word them, by status or by what they mean."""

from __future__ import annotations

from typing import Any

from relay.simulator.script import Script, ScriptError

RPC = "type.googleapis.com/google.rpc."
STATUSES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "ABORTED",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
MESSAGES = {
    400: "Request contains an invalid argument.",
    401: "Request had invalid authentication credentials. Expected OAuth 2 access token.",
    403: "The caller does not have permission",
    404: "Requested entity was not found.",
    429: "Resource exhausted. Please try again later.",
    500: "An internal error has occurred.",
    503: "The model is overloaded. Please try again later.",
    504: "Deadline expired before operation could complete.",
}
# Errors by what they mean: status, Google's name of it, message, reason.
NAMED = {
    "key": (400, "INVALID_ARGUMENT", "API key not valid. Please pass a valid API key.", "API_KEY_INVALID"),
    "location": (400, "FAILED_PRECONDITION", "User location is not supported for the API use.", ""),
    "toolong": (400, "INVALID_ARGUMENT", "The input token count (1200000) exceeds the maximum (1048576).", ""),
    "disabled": (403, "PERMISSION_DENIED", "Gemini API has not been used in project 5150 before.", "SERVICE_DISABLED"),
    "nomodel": (404, "NOT_FOUND", "models/{model} is not found for API version v1beta, or is not supported.", ""),
    "quota_minute": (429, "RESOURCE_EXHAUSTED", "You exceeded your current quota.", ""),
    "quota_day": (429, "RESOURCE_EXHAUSTED", "You exceeded your current quota.", ""),
    "prepaid": (429, "RESOURCE_EXHAUSTED", "Your prepayment credits are depleted.", ""),
    "overloaded": (503, "UNAVAILABLE", "The model is overloaded. Please try again later.", ""),
}
QUOTAS = {"quota_minute": "PerMinute", "quota_day": "PerDay"}


def read_error(name: str) -> tuple[int, str, str, str]:
    """Status, its name, message and reason; raises ScriptError for a name that nobody knows."""
    if name in NAMED:
        return NAMED[name]
    if not name.isdigit():
        raise ScriptError(f"unknown error {name!r}; a status, or one of {', '.join(NAMED)}")
    status = int(name)
    fallback = "INVALID_ARGUMENT" if status < 500 else "UNAVAILABLE"
    return status, STATUSES.get(status, fallback), MESSAGES.get(status, f"simulated error {status}"), ""


def error_body(name: str, script: Script, *, model: str = "", message: str = "") -> tuple[int, dict[str, Any]]:
    """Status and `error` object."""
    status, kind, text, reason = read_error(name)
    error: dict[str, Any] = {
        "code": status,
        "message": script.text("message", message or text.format(model=model)),
        "status": script.text("kind", kind),
    }
    details: list[dict[str, Any]] = []
    if reason:
        details.append({"@type": f"{RPC}ErrorInfo", "reason": reason, "domain": "googleapis.com"})
    if name in QUOTAS:
        quota = f"GenerateRequests{QUOTAS[name]}PerProjectPerModel-FreeTier"
        details.append({"@type": f"{RPC}QuotaFailure", "violations": [{"quotaId": quota}]})
    if script.has("resets"):
        details.append({"@type": f"{RPC}RetryInfo", "retryDelay": f"{script.text('resets')}s"})
    return status, {**error, "details": details} if details else error
