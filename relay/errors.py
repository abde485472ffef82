"""What can go wrong with a call, named by what the caller does next.

RelayError
+-- NotAuthenticated        401  no key, unknown, disabled or expired
+-- NotPermitted            403  the key may not use this family or model
+-- ModelNotFound           404  no account of this key can ever serve this model in this dialect
+-- NotServed               404  a vendor path that Baton does not relay
+-- MethodNotServed         405  a path that it relays, by another method
+-- AnswerNotFound          404  a stored answer that this key did not make
+-- InvalidRequest          400  the body can't be relayed; names the field
+-- BodyTooLarge            413
+-- LimitExceeded           429  a rate or concurrency limit; says which
+-- BudgetExceeded          402  (OpenAI: 429 insufficient_quota)
+-- NoAccountAvailable      503  every account that could serve it rests or is full
+-- NotRecordable           503  the journal can't be written: better no call than an unbooked one
+-- Interrupted             503  Baton is shutting down
+-- UpstreamError                what the upstream, or the way to it, answered
    +-- UpstreamRejected    4xx  the caller's fault: passes through, body untouched
    +-- UpstreamOverloaded  429, 503, 529: as it came, when no other account could take it
    +-- AccountRejected     502  our credential, balance or quota; the caller can't fix it
    +-- UpstreamFailed      502  other 5xx, or an answer that can't be read
    +-- UpstreamUnreachable 502  connect, reset, TLS, proxy
    +-- UpstreamTimeout     504  one of the four timers

`kind` is the dialect-neutral name that each dialect's `render_error` maps to its vendor's native type.
`try_next_account` says whether failover may go on before the first content.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from relay.call import RateLimit


class RelayError(Exception):
    """An answer that is not the model's. `message` goes to the client: no secret, no account name in it."""

    status = 500
    kind = "api_error"
    try_next_account = False
    # None leaves the header out; True or False sends it: clients of all vendors obey it (reference/clients.md).
    should_retry: bool | None = None
    model = ""  # what was asked for, where the call never came into being
    # Every account and why it was not taken, for the record and the admin only.
    candidates: tuple[tuple[str, str], ...] = ()
    # The limit that refused the call, where the vendors have headers for such.
    rates: tuple[RateLimit, ...] = ()

    def __init__(self, message: str, *, retry_after: float | None = None, reason: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.retry_after = retry_after
        self.reason = reason or self.kind  # what the record says


class NotAuthenticated(RelayError):
    status, kind, should_retry = 401, "authentication_error", False


class NotPermitted(RelayError):
    status, kind, should_retry = 403, "permission_error", False


class ModelNotFound(RelayError):
    status, kind = 404, "model_not_found"


class NotServed(RelayError):
    status, kind = 404, "not_found_error"


class MethodNotServed(RelayError):
    status, kind = 405, "method_not_allowed"


class AnswerNotFound(RelayError):
    status, kind = 404, "not_found_error"
    field: str = ""  # the body field that named the answer, "" where the path did

    def __init__(self, answer_id: str) -> None:
        super().__init__(f"Response with id '{answer_id[:100]}' not found.", reason="response_not_found")


class InvalidRequest(RelayError):
    status, kind = 400, "invalid_request_error"
    field: str = ""  # the body field it is about, where the vendor's error names one apart from the message


class BodyTooLarge(RelayError):
    status, kind = 413, "request_too_large"


class LimitExceeded(RelayError):
    status, kind = 429, "rate_limit_error"


class BudgetExceeded(RelayError):
    status, kind, should_retry = 402, "billing_error", False


class NoAccountAvailable(RelayError):
    status, kind = 503, "no_account_available"


class NotRecordable(RelayError):
    status, kind = 503, "not_recordable"


class Interrupted(RelayError):
    status, kind = 503, "shutting_down"


class UpstreamError(RelayError):
    """Carries the upstream's own answer where there was one; `body` is passed on only by the subclasses that say so."""

    status, kind = 502, "upstream_error"
    try_next_account = True

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        headers: tuple[tuple[bytes, bytes], ...] = (),
        body: bytes = b"",
        retry_after: float | None = None,
        reason: str = "",
        rest: str = "",
    ) -> None:
        super().__init__(message, retry_after=retry_after, reason=reason)
        self.upstream_status = status
        self.headers = headers
        self.body = body
        self.rest = rest  # a name of accounts.health.RESTS, "" = nothing rests


class UpstreamRejected(UpstreamError):
    kind = "upstream_rejected"
    try_next_account = False


class ModelUnavailable(UpstreamError):
    """The account lacks the model: 403 or 404 about the model. The next account may have it."""

    kind = "upstream_rejected"


class UpstreamOverloaded(UpstreamError):
    kind = "overloaded_error"


class AccountRejected(UpstreamError):
    kind, should_retry = "account_rejected", False


class UpstreamFailed(UpstreamError):
    kind = "upstream_failed"


class UpstreamUnreachable(UpstreamError):
    kind = "upstream_unreachable"


class UpstreamTimeout(UpstreamError):
    status, kind = 504, "upstream_timeout"


def let_frames_go(error: BaseException | None) -> None:
    """Drop the frames that a handled error came through. They hold the call and the error itself: a ring that only the
    cyclic collector would find, and under load it seldom looks at what has lived for a while."""
    while error is not None:
        behind = error.__cause__ or error.__context__
        error.__traceback__ = error.__cause__ = error.__context__ = None
        error = behind
