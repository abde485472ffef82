"""From the credential in a request to the API key it stands for, and what that key may use."""

from __future__ import annotations

import hashlib
import secrets
import string
from collections.abc import Iterable
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from apikeys.keyring import KEY_TABLES, KeyRing, load_keys
from apikeys.lookup import look_up
from relay.call import Key
from relay.errors import NotAuthenticated, NotPermitted
from relay.state.snapshot import Snapshot

__all__ = ["KEYS", "KeyRing", "authenticate", "digest_of", "new_secret", "permit", "secret_of"]

Headers = tuple[tuple[bytes, bytes], ...]

KEYS: Snapshot[KeyRing] = Snapshot(KEY_TABLES, lambda: load_keys(KEYS.current), empty=KeyRing())

HEADERS = (b"x-api-key", b"authorization", b"x-goog-api-key", b"api-key")
ALPHABET = string.ascii_letters + string.digits
MISSING = (
    "No API key was sent. Send your Baton key as x-api-key, Authorization: Bearer, x-goog-api-key, api-key or ?key=."
)
# The same words for unknown, deleted and disabled keys: nobody learns which keys exist.
UNKNOWN = "This API key is not valid."


def secret_of(headers: Headers, query_key: str) -> str:
    """Return the first credential that is not empty, in the order of `HEADERS`, then the query's; raises
    NotAuthenticated without any."""
    found: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in HEADERS and name not in found and (credential := bare(name, value)):
            found[name] = credential
    for name in HEADERS:
        if name in found:
            return found[name].decode("utf-8", "surrogateescape")
    if query_key.strip():
        return query_key.strip()
    raise NotAuthenticated(MISSING, reason="no_key")


def bare(name: bytes, value: bytes) -> bytes:
    """The credential in a header's value; Authorization may say `Bearer`, in any case, or nothing."""
    value = value.strip()
    if name != b"authorization":
        return value
    scheme, _, rest = value.partition(b" ")
    if scheme.lower() == b"bearer":
        return rest.strip()
    return b"" if rest else value  # another scheme, such as Basic, is no API key


def digest_of(secret: str, suffix: bytes = b"") -> bytes:
    """SHA-256 of a key, 32 bytes; another relay may have hashed its keys with a suffix."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape") + suffix).digest()


async def authenticate(headers: Headers, query_key: str, *, client_ip: str, now: float) -> Key:
    """Return the key that a request came with. `now` in Unix seconds. Raises NotAuthenticated, NotPermitted (address).

    No database on this path but for a key that the snapshot does not hold: see `apikeys.lookup`.
    """
    secret = secret_of(headers, query_key)
    ring = KEYS.current
    key = ring.by_digest.get(digest_of(secret)) or ring.find_foreign(secret) or await look_up(secret, KEYS, now=now)
    if key is None or not key.active:
        raise NotAuthenticated(UNKNOWN, reason="unknown_key" if key is None else "disabled_key")
    if key.expires_at is not None and key.expires_at <= now:
        expired = datetime.fromtimestamp(key.expires_at, UTC)
        raise NotAuthenticated(f"This API key expired on {expired:%Y-%m-%d %H:%M} UTC.", reason="expired_key")
    if key.ip_allow and not allowed(client_ip, key.ip_allow):
        raise NotPermitted("This API key may not be used from your network address.", reason="ip_not_allowed")
    return key


def allowed(client_ip: str, networks: Iterable[str]) -> bool:
    """Whether an address lies in one of the networks (CIDR)."""
    try:
        address = ip_address(client_ip)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return any((mapped or address) in parsed for parsed in map(network, networks) if parsed is not None)


@lru_cache(maxsize=4096)
def network(text: str) -> IPv4Network | IPv6Network | None:
    try:
        return ip_network(text.strip(), strict=False)
    except ValueError:
        return None  # admits nobody


def permit(key: Key, *, family: str, model: str) -> None:
    """Raise NotPermitted where the key may not use a family or a model ("" = no model is asked for)."""
    if key.families and family not in key.families:
        raise NotPermitted(f"This API key may not use {family} models.", reason="family_not_permitted")
    if model and key.models and not any(fnmatchcase(model, pattern) for pattern in key.models):
        raise NotPermitted(f"This API key may not use the model {model[:100]!r}.", reason="model_not_permitted")


def new_secret() -> tuple[str, str, bytes]:
    """Return a new key: its public id, the whole key "rk_<public id>_<256 random bits>", and its digest to store."""
    public_id = "".join(secrets.choice(ALPHABET) for _ in range(12))
    secret = "".join(secrets.choice(ALPHABET) for _ in range(43))  # 43 * log2(62) = 256.03 bits
    whole = f"rk_{public_id}_{secret}"
    return public_id, whole, digest_of(whole)
