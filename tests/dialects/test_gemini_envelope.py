"""What Baton reads of Gemini's requests, by either name of each field."""

from __future__ import annotations

import json
from typing import Any

import pytest

from relay.call import Envelope
from relay.dialects.gemini import Gemini
from relay.errors import InvalidRequest
from tests.providers.case import fixture

DIALECT = Gemini()
MODEL = "gemini-3.1-pro-preview"
HI = [{"role": "user", "parts": [{"text": "Hi"}]}]
RECORDED = json.loads(fixture("gemini/gemini_cli_request.json"))


def read(*, verb: str = "generateContent", headers: dict[bytes, bytes] | None = None, **fields: Any) -> Envelope:
    body = json.dumps({"contents": HI, **fields}).encode()
    return DIALECT.read_envelope(body, headers=headers or {}, path_model=f"{MODEL}:{verb}")


def bounds(**fields: Any) -> Envelope:
    body = json.dumps({"contents": HI, **fields}).encode()
    return DIALECT.bounded(body, DIALECT.read_envelope(body, headers={}, path_model=f"{MODEL}:generateContent"))


@pytest.mark.parametrize(
    ("path", "model", "stream"),
    [
        (f"{MODEL}:generateContent", MODEL, False),
        (f"{MODEL}:streamGenerateContent", MODEL, True),
        (f"{MODEL}:countTokens", MODEL, False),
        ("odd:name:generateContent", "odd:name", False),
        (MODEL, MODEL, False),
    ],
)
def test_model_and_stream_stand_in_the_path(path: str, model: str, stream: bool) -> None:
    envelope = DIALECT.read_envelope(b'{"contents":[]}', headers={}, path_model=path)
    assert (envelope.model, envelope.stream) == (model, stream)


@pytest.mark.parametrize("path", [":generateContent", " :generateContent", "..:generateContent", "x" * 201, "a\nb"])
def test_a_model_that_is_none_is_refused(path: str) -> None:
    with pytest.raises(InvalidRequest, match="model"):
        DIALECT.read_envelope(b"{}", headers={}, path_model=path)


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff"])
def test_a_body_that_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest, match="JSON object"):
        DIALECT.read_envelope(body, headers={}, path_model=MODEL)


@pytest.mark.parametrize(
    "config",
    [
        {"generationConfig": {"maxOutputTokens": 50, "candidateCount": 2}},
        {"generation_config": {"max_output_tokens": 50, "candidate_count": 2}},
        {"generationConfig": {"maxOutputTokens": "50", "candidateCount": 2.0}},
    ],
)
def test_the_bounds_are_read_by_either_name_and_as_text(config: dict[str, Any]) -> None:
    envelope = read(**config)
    assert (envelope.max_output_tokens, envelope.answers) == (50, 2)


@pytest.mark.parametrize("config", [{}, {"generationConfig": None}, {"generationConfig": {"maxOutputTokens": 0}}])
def test_a_maximum_that_is_unset_is_none(config: dict[str, Any]) -> None:
    assert read(**config).max_output_tokens is None


@pytest.mark.parametrize("value", [-1, 1.5, "many", True, [1], 2**31, "1e3"])
def test_a_maximum_that_is_none_is_refused_by_name(value: object) -> None:
    with pytest.raises(InvalidRequest, match=r"generationConfig\.maxOutputTokens") as caught:
        read(generationConfig={"maxOutputTokens": value})
    said = json.loads(DIALECT.render_error(caught.value, "id").body)["error"]
    assert said["details"][2]["fieldViolations"][0]["field"] == "generationConfig.maxOutputTokens"


@pytest.mark.parametrize(
    "fields",
    [
        {"generationConfig": {}, "generation_config": {"maxOutputTokens": 9}},
        {"generationConfig": {"maxOutputTokens": 1, "max_output_tokens": 9}},
    ],
)
def test_a_field_by_both_its_names_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="it stands in the body as"):
        read(**fields)


@pytest.mark.parametrize("verb", ["embedContent", "batchEmbedContents"])
def test_embeddings_put_nothing_out(verb: str) -> None:
    assert read(verb=verb).max_output_tokens == 0


@pytest.mark.parametrize(
    "body",
    [
        b'{"contents":[],"generationConfig":{"maxOutputTokens":1,"maxOutputTokens":9},"a":[1]}',
        b'{"generationConfig":{"maxOutputTokens":1},"contents":[],"generationConfig":{"maxOutputTokens":9},"a":[1]}',
    ],
)
def test_what_stands_twice_goes_on_once_as_it_was_read(body: bytes) -> None:
    envelope = DIALECT.read_envelope(body, headers={}, path_model=MODEL)
    sent = DIALECT.canonical(body, envelope)
    assert (envelope.max_output_tokens, envelope.repeats, sent.count(b"maxOutputTokens")) == (9, True, 1)
    assert json.loads(sent) == {"contents": [], "generationConfig": {"maxOutputTokens": 9}, "a": [1]}


def test_a_plain_body_goes_on_as_it_came() -> None:
    body = json.dumps({"contents": HI, "generationConfig": {"maxOutputTokens": 9}}, indent=1).encode()
    envelope = DIALECT.read_envelope(body, headers={}, path_model=MODEL)
    assert DIALECT.canonical(body, envelope) is body


def test_gemini_cli_s_request_is_read_and_bounded() -> None:
    body = json.dumps(RECORDED["body"]).encode()
    envelope = DIALECT.read_envelope(body, headers={}, path_model=f"{MODEL}:streamGenerateContent")
    known = DIALECT.bounded(body, envelope)
    assert (envelope.model, envelope.stream, envelope.repeats) == (MODEL, True, False)
    assert (known.inline_text, known.unbounded, envelope.tied) == (True, (), False)
    assert envelope.affinity and known.hidden_input_tokens


def test_a_conversation_is_named_by_the_first_that_exists() -> None:
    system: Any = {"systemInstruction": {"parts": [{"text": "Be brief."}]}}
    other = [{"role": "user", "parts": [{"text": "Bye"}]}]
    header = {b"x-session-id": b"s1"}
    assert read().affinity == read(generationConfig={"temperature": 1}).affinity != read(contents=other).affinity
    assert read(**system).affinity == read(**system, contents=other).affinity != read().affinity
    assert read(headers=header).affinity == read(headers=header, **system).affinity
    assert read(headers=header).session == "s1"
    assert read(cachedContent="cachedContents/a").affinity == read(cachedContent="cachedContents/a", **system).affinity


def test_cached_content_is_tied_to_its_account() -> None:
    assert read(cachedContent="cachedContents/a").tied
    assert read(cached_content="cachedContents/a").tied
    assert not read().tied


@pytest.mark.parametrize(
    "part",
    [
        {"inlineData": {"mimeType": "image/png", "data": "aWs="}},
        {"inline_data": {"mime_type": "image/png", "data": "aWs="}},
        {"fileData": {"fileUri": "https://youtu.be/x"}},
        {"file_data": {"file_uri": "gs://x"}},
    ],
)
def test_what_is_no_text_is_seen(part: dict[str, Any]) -> None:
    assert not bounds(contents=[{"parts": [part]}]).inline_text
    assert bounds().inline_text


def test_an_escaped_name_hides_nothing() -> None:
    body = rb'{"contents":[{"parts":[{"\u0069nlineData":{"data":"aWs="}}]}]}'
    assert not DIALECT.bounded(body, DIALECT.read_envelope(body, headers={}, path_model=MODEL)).inline_text


@pytest.mark.parametrize(
    ("fields", "unbounded"),
    [
        ({"tools": [{"functionDeclarations": [{"name": "f"}]}]}, ()),
        ({"tools": [{"function_declarations": [{"name": "f"}]}]}, ()),
        ({"tools": [{"googleSearch": {}}]}, ("tools",)),
        ({"tools": [{"functionDeclarations": []}, {"url_context": {}}]}, ("tools",)),
        ({"tools": "odd"}, ("tools",)),
        ({"cachedContent": "cachedContents/a"}, ("cachedContent",)),
        ({"requests": [{"content": {"parts": [{"inlineData": {}}]}}]}, ("requests",)),
    ],
)
def test_what_can_not_be_bounded_is_named(fields: dict[str, Any], unbounded: tuple[str, ...]) -> None:
    assert bounds(**fields).unbounded == unbounded


def test_meters_that_can_not_apply_are_ruled_out() -> None:
    out = bounds(generationConfig={"responseModalities": ["TEXT"]}).ruled_out
    assert {"batch", "priority", "audio_input_tokens", "image_output_tokens"} <= set(out)
    assert "image_output_tokens" not in bounds().ruled_out
    assert "priority" not in bounds(serviceTier="priority").ruled_out
    assert "audio_input_tokens" not in bounds(contents=[{"parts": [{"inlineData": {}}]}]).ruled_out


@pytest.mark.parametrize(
    ("body", "sent"),
    [
        (b'{"contents":[{"role":"model"}]}', b'{"contents":[{"role":"model"}]}'),
        (b'{"model":"models/a","content":{"x":1.0}}', b'{"model":"models/b","content":{"x":1.0}}'),
        (b'{"model":"models/b" }', b'{"model":"models/b" }'),
        (
            b'{"requests":[{"model":"models/a","content":1.50},{"content":2}]}',
            b'{"requests":[{"model":"models/b","content":1.50},{"content":2,"model":"models/b"}]}',
        ),
        (
            b'{"generateContentRequest":{"model": "models/a","contents":[]}}',
            b'{"generateContentRequest":{"model":"models/b","contents":[]}}',
        ),
        (b'{"requests":5,"model" : 7}', b'{"requests":5,"model":"models/b"}'),
    ],
)
def test_a_body_that_names_the_model_names_the_one_that_is_asked(body: bytes, sent: bytes) -> None:
    assert DIALECT.set_model(body, "b") == sent
