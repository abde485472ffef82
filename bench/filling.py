"""Millions of records by one statement: the first one's Unix milliseconds, the step, the numbers from and to."""

from __future__ import annotations

FILL = """
    INSERT INTO relay_usagerecord (
        id, created_at, key_id, key_name, team_id, team_name, account_id, account_name, provider, dialect, endpoint,
        requested_model, upstream_model, response_model, stream, status, http_status, error, usage_source, input_tokens,
        output_tokens, extra_tokens, cost_nanos, held_nanos, unpriced, price_version, lines, duration_ms, attempts,
        candidates, flags, provider_usage, origin, upstream_request_id, response_id, session, end_user, user_agent,
        tags, service_tier
    )
    SELECT (lpad(to_hex(ms), 12, '0') || '7' || substr(h, 1, 3) || '8' || substr(h, 4, 15))::uuid,
        to_timestamp(ms / 1000.0), n %% 200, 'key ' || n %% 200, n %% 20, 'team ' || n %% 20, n %% 10,
        'account ' || n %% 10, CASE WHEN n %% 10 = 3 THEN 'aws' ELSE 'anthropic' END, 'anthropic', 'messages',
        'claude-' || n %% 30, 'claude-' || n %% 30,
        CASE WHEN n %% 50000 = 7 THEN 'claude-rare' ELSE 'claude-' || n %% 30 || '-20251001' END, true,
        CASE WHEN n %% 20000 = 0 THEN 'interrupted' WHEN n %% 50 = 0 THEN 'client_disconnected' ELSE 'ok' END, 200, '',
        CASE WHEN n %% 50 = 0 THEN 'partial' ELSE 'provider' END, n %% 5000, n %% 900, 0, n %% 70000, 0, n %% 99999 = 0,
        'v',
        '[{"meter": "input_tokens", "quantity": 100, "model": "claude", "rate": 3000, "cost": 3}]',
        900, '[]', '[]', '[]', '{"input_tokens":100,"output_tokens":20}', 'client', 'req_' || h, 'msg_' || h,
        'session ' || n / 40, '', 'claude-cli/2.0', '{}', ''
    FROM (
        SELECT n, md5(n::text) AS h, (%s + n * %s)::bigint AS ms FROM generate_series(%s::bigint, %s::bigint) AS n
    ) AS numbered
"""
