"""Settings, all of them read from the environment; no logic beyond that."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import dj_database_url
from django.core.exceptions import ImproperlyConfigured

from relay_site.admin import UNFOLD as UNFOLD

BASE_DIR = Path(__file__).resolve().parent.parent
SHORTEST, MOST = 0.001, 1e9  # of what is set here as a number


def env(name: str, default: str = "") -> str:
    return os.environ.get(name, "").strip() or default


def env_number(name: str, default: float, *, least: float = 0) -> float:
    """A number, seconds where nothing else is said; raises `ImproperlyConfigured` for what would only fail later."""
    text = env(name)
    try:
        number = float(text or default)
    except ValueError:
        number = math.nan
    if not least <= number <= MOST:
        raise ImproperlyConfigured(f"{name}={text}: must be a number from {least:g} to {MOST:,.0f}.")
    return number


def env_whole(name: str, default: int, *, least: int = 0) -> int:
    number = env_number(name, default, least=least)
    if number != int(number):
        raise ImproperlyConfigured(f"{name}={env(name)}: must be a whole number.")
    return int(number)


def env_choice(name: str, choices: tuple[str, ...]) -> str:
    """One of these words; the first is the default."""
    word = env(name, choices[0])
    if word not in choices:
        raise ImproperlyConfigured(f"{name}={word}: must be {' or '.join(choices)}.")
    return word


def env_bool(name: str, *, default: bool = False) -> bool:
    return (env(name) or str(default)).lower() in {"1", "true", "yes", "on"}


# --- Baton -----------------------------------------------------------------------------------------

RELAY_DATA_DIR = Path(env("RELAY_DATA_DIR") or BASE_DIR / "var").resolve()
RELAY_DATA_DIR.mkdir(mode=0o700, parents=True, exist_ok=True)  # who called whom, sessions, credentials
DEFAULT_BIND = "127.0.0.1:8000"
RELAY_BIND = env("RELAY_BIND", DEFAULT_BIND)
RELAY_MAX_BODY_BYTES = int(env_number("RELAY_MAX_BODY_MB", 32, least=SHORTEST) * 2**20)
RELAY_CONNECT_TIMEOUT = env_number("RELAY_CONNECT_TIMEOUT", 10, least=SHORTEST)
RELAY_FIRST_BYTE_TIMEOUT = env_number("RELAY_FIRST_BYTE_TIMEOUT", 600, least=SHORTEST)
RELAY_IDLE_TIMEOUT = env_number("RELAY_IDLE_TIMEOUT", 300, least=SHORTEST)
RELAY_TOTAL_TIMEOUT = env_number("RELAY_TOTAL_TIMEOUT", 3600, least=SHORTEST)
RELAY_COMMIT_AFTER = env_number("RELAY_COMMIT_AFTER", 45)
RELAY_KEEP_ALIVE_AFTER = env_number("RELAY_KEEP_ALIVE_AFTER", 15)
RELAY_MAX_ATTEMPTS = env_whole("RELAY_MAX_ATTEMPTS", 4, least=1)
RELAY_MAX_DRAINING = env_whole("RELAY_MAX_DRAINING", 200)
RELAY_DRAIN_SECONDS = env_number("RELAY_DRAIN_SECONDS", 600)
RELAY_SHUTDOWN_SECONDS = env_number("RELAY_SHUTDOWN_SECONDS", 60)
RELAY_SNAPSHOT_POLL = env_number("RELAY_SNAPSHOT_POLL", 0.5, least=SHORTEST)
RELAY_LEDGER_INTERVAL = env_number("RELAY_LEDGER_INTERVAL", 0.25, least=SHORTEST)
# What the database has stays in the journal for `ship_journal --since`, as long and as much as this.
RELAY_JOURNAL_KEEP_SECONDS = env_number("RELAY_JOURNAL_KEEP_HOURS", 72) * 3600
RELAY_JOURNAL_KEEP_BYTES = env_whole("RELAY_JOURNAL_KEEP_MB", 10240) * 2**20
RELAY_JOURNAL_FREE_BYTES = env_whole("RELAY_JOURNAL_FREE_MB", 1024) * 2**20
# Records older than so many whole months are dropped, their roll-ups kept; 0 = never.
RELAY_RETENTION_MONTHS = env_whole("RELAY_RETENTION_MONTHS", 0)
RELAY_LIMITS_FAIL = env_choice("RELAY_LIMITS_FAIL", ("closed", "open"))
# Whose x-forwarded-for and -proto are believed: relay_site/asgi.py puts them into the scope, for everybody.
RELAY_TRUSTED_PROXIES = [item.strip() for item in env("RELAY_TRUSTED_PROXIES").split(",") if item.strip()]
REPORT_TIME_ZONE = env("REPORT_TIME_ZONE", "UTC")
REDIS_URL = env("REDIS_URL")
# How commands, Celery and the admin reach what lives in the relay's memory.
RELAY_INTERNAL_URL = env("RELAY_INTERNAL_URL") or f"http://{RELAY_BIND}"

# --- Secrets ---------------------------------------------------------------------------------------

DEFAULT_SECRET = "baton-insecure-default-secret-for-loopback-only"  # noqa: S105 - refused on any other bind


def secret_keys() -> list[str]:
    """The secrets, newest first: RELAY_SECRET_KEYS, else the file that `manage.py up` made, else the default."""
    given = env("RELAY_SECRET_KEYS")
    path = RELAY_DATA_DIR / "secret_keys"
    if not given and path.exists():
        given = path.read_text().strip().replace("\n", ",")
    return [key.strip() for key in given.split(",") if key.strip()] or [DEFAULT_SECRET]


RELAY_SECRET_KEYS = secret_keys()
SECRET_KEY = RELAY_SECRET_KEYS[0]
SECRET_KEY_FALLBACKS = RELAY_SECRET_KEYS[1:]

# --- Django ----------------------------------------------------------------------------------------

DEBUG = env_bool("DEBUG")
BIND_HOST = urlsplit(f"//{RELAY_BIND}").hostname or ""
LOOPBACK = BIND_HOST in {"127.0.0.1", "localhost", "::1", ""}


def hosts_of(bind_host: str) -> list[str]:
    """Names under which the admin answers where none are given: this machine's own, and the address listened on."""
    host = f"[{bind_host}]" if ":" in bind_host else bind_host
    return [*dict.fromkeys(["localhost", "127.0.0.1", "[::1]", host or "localhost"])]


ALLOWED_HOSTS = [host for host in env("ALLOWED_HOSTS").split(",") if host] or [
    *hosts_of(BIND_HOST),
    *(["testserver"] if LOOPBACK else []),
]
CSRF_TRUSTED_ORIGINS = [origin for origin in env("CSRF_TRUSTED_ORIGINS").split(",") if origin]
ROOT_URLCONF = "relay_site.urls"
ASGI_APPLICATION = "relay_site.asgi.application"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

INSTALLED_APPS = [
    "daphne",
    "unfold.apps.BasicAppConfig",
    "unfold.contrib.filters",
    "unfold.contrib.forms",
    "unfold.contrib.import_export",
    "relay_site.apps.BatonAdminConfig",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "whitenoise.runserver_nostatic",
    "django.contrib.staticfiles",
    "django.contrib.humanize",
    "django.forms",
    "import_export",
    "auditlog",
    "axes",
    "django_celery_beat",
    "channels",
    "ninja",
    "accounts",
    "apikeys",
    "relay",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "relay_site.static_files.StaticFilesMiddleware",
    "csp.middleware.CSPMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "auditlog.middleware.AuditlogMiddleware",
    "axes.middleware.AxesMiddleware",
]

TEMPLATES: list[dict[str, Any]] = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]

# Widgets of our own have their templates beside the pages'.
FORM_RENDERER = "django.forms.renderers.TemplatesSetting"

# --- Database --------------------------------------------------------------------------------------

DATABASE_URL = env("DATABASE_URL") or f"sqlite:///{RELAY_DATA_DIR / 'baton.sqlite3'}"
DATABASES: dict[str, Any] = {"default": dj_database_url.parse(DATABASE_URL)}
if DATABASES["default"]["ENGINE"].endswith("sqlite3"):
    DATABASES["default"]["OPTIONS"] = {
        "transaction_mode": "IMMEDIATE",
        "timeout": 20,
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA busy_timeout=20000;",
    }
    # A file, so that server processes started by tests see the same database.
    DATABASES["default"]["TEST"] = {"NAME": str(RELAY_DATA_DIR / "test.sqlite3")}
else:
    # A database that was restarted leaves dead connections in the pool: they are looked at before they are given out.
    DATABASES["default"]["CONN_HEALTH_CHECKS"] = True
    # The pool tries one connection at a time, after each failure twice as long later: told to give up early, it begins
    # anew with the next who asks. By its default of 300 s it would sleep as long again as the database had been away.
    DATABASES["default"]["OPTIONS"] = {
        "pool": {"min_size": 0, "max_size": env_whole("DATABASE_POOL_SIZE", 10, least=1), "reconnect_timeout": 3}
    }

# --- Sign-in ---------------------------------------------------------------------------------------

AUTHENTICATION_BACKENDS = ["axes.backends.AxesStandaloneBackend", "django.contrib.auth.backends.ModelBackend"]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 12}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
# Per user name and address together: a shared address must not lock every admin out.
AXES_LOCKOUT_PARAMETERS = [["username", "ip_address"]]
AXES_FAILURE_LIMIT = 10
AXES_COOLOFF_TIME = 1
AXES_VERBOSE = False
LOGIN_URL = "admin:login"
LOGIN_REDIRECT_URL = "admin:index"
SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = env_bool("SECURE_COOKIES", default=not LOOPBACK)
SECURE_CONTENT_TYPE_NOSNIFF = True
X_FRAME_OPTIONS = "DENY"

# unfold's Alpine evaluates expressions and sets inline styles; docs/deployment.md names the exception.
CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": ["'self'"],
        "script-src": ["'self'", "'unsafe-eval'"],
        "style-src": ["'self'", "'unsafe-inline'"],
        "img-src": ["'self'", "data:"],
        "connect-src": ["'self'"],
        "frame-ancestors": ["'none'"],
        "form-action": ["'self'"],
        "base-uri": ["'self'"],
        "object-src": ["'none'"],
    }
}

# --- Mail: only to admins, about what needs a person; none without ADMIN_EMAILS -----------------------

ADMINS = [(address, address) for address in env("ADMIN_EMAILS").split(",") if address]
EMAIL_HOST = env("EMAIL_HOST", "localhost")
EMAIL_PORT = env_whole("EMAIL_PORT", 25, least=1)
EMAIL_HOST_USER = env("EMAIL_HOST_USER")
EMAIL_HOST_PASSWORD = env("EMAIL_HOST_PASSWORD")
EMAIL_USE_TLS = env_bool("EMAIL_USE_TLS")
EMAIL_TIMEOUT = 20
SERVER_EMAIL = DEFAULT_FROM_EMAIL = env("EMAIL_FROM", "baton@localhost")
EMAIL_SUBJECT_PREFIX = "[Baton] "

IMPORT_EXPORT_IMPORT_PERMISSION_CODE = "change"
IMPORT_EXPORT_EXPORT_PERMISSION_CODE = "view"
IMPORT_EXPORT_ESCAPE_FORMULAE_ON_EXPORT = True

# Who changed what; secrets, and what Baton itself writes all the time, are left out.
AUDITLOG_INCLUDE_TRACKING_MODELS: tuple[Any, ...] = (
    {"model": "accounts.Account", "exclude_fields": ["credential", "proxy", "updated_at"], "m2m_fields": ["groups"]},
    "accounts.AccountGroup",
    {"model": "apikeys.ApiKey", "exclude_fields": ["digest", "previous_digest", "last_used_at"]},
    "apikeys.Team",
    "apikeys.Limit",
    "apikeys.Binding",
    "relay.Price",
    "relay.BillingPeriod",
)

# --- Time, static files, cache, logs ---------------------------------------------------------------

LANGUAGE_CODE = "en-us"
USE_I18N = False
FORMAT_MODULE_PATH = ["relay_site.formats"]
USE_TZ = True
TIME_ZONE = REPORT_TIME_ZONE
STATIC_URL = "static/"
STATIC_ROOT = RELAY_DATA_DIR / "static"  # where collectstatic puts them for another server; ours needs none of it
STATIC_ROOT.mkdir(exist_ok=True)
STATICFILES_DIRS = [BASE_DIR / "templates" / "static"]
WHITENOISE_USE_FINDERS = True
WHITENOISE_ALLOW_ALL_ORIGINS = False

CACHES = {
    "default": (
        {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": REDIS_URL}
        if REDIS_URL
        else {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}
    )
}
CHANNEL_LAYERS = {
    "default": (
        {
            "BACKEND": "channels_redis.core.RedisChannelLayer",
            # redis-py's own default, 5 s, would end every wait for a message as an error.
            "CONFIG": {"hosts": [{"address": REDIS_URL, "socket_timeout": None}]},
        }
        if REDIS_URL
        else {"BACKEND": "channels.layers.InMemoryChannelLayer"}
    )
}
LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["stderr"], "level": env("LOG_LEVEL", "INFO")},
    "loggers": {
        # Without Django's own handlers: one mails every 500 and every wrong Host, with what was posted.
        "django": {"handlers": [], "propagate": True},
        "axes": {"level": "WARNING"},
        # Writes whole URLs.
        "httpx": {"level": "WARNING"},
        # Would write a line, with the query, for every call.
        "uvicorn.access": {"handlers": [], "propagate": False},
        "django.channels.server": {"handlers": [], "propagate": False},
        "daphne.http_protocol": {"level": "WARNING"},
    },
}

# --- Celery ----------------------------------------------------------------------------------------

CELERY_BROKER_URL = REDIS_URL or "filesystem://localhost"
CELERY_BROKER_TRANSPORT_OPTIONS: dict[str, Any] = (
    {}
    if REDIS_URL
    else {
        "data_folder_in": str(RELAY_DATA_DIR / "celery" / "queue"),
        "data_folder_out": str(RELAY_DATA_DIR / "celery" / "queue"),
        "control_folder": str(RELAY_DATA_DIR / "celery" / "control"),
        "store_processed": False,
    }
)
CELERY_TASK_IGNORE_RESULT = True
CELERY_TIMEZONE = REPORT_TIME_ZONE
CELERY_TASK_SERIALIZER = "json"
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_BEAT_SCHEDULER = "django_celery_beat.schedulers:DatabaseScheduler"
# Sweeps that may be late, early or twice; one that could not start before the next is due is dropped.
CELERY_BEAT_SCHEDULE: dict[str, Any] = {
    "roll up": {"task": "relay.roll_up", "schedule": 60.0, "options": {"expire_seconds": 55}},
    "reprice": {"task": "relay.reprice", "schedule": 300.0, "options": {"expire_seconds": 290}},
    "keep partitions": {"task": "relay.keep_partitions", "schedule": 3600.0, "options": {"expire_seconds": 3500}},
}
