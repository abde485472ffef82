"""The simulated Gemini API, as the official SDK sees it."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from google import genai
from google.genai import errors, types

from relay.simulator.run import simulator

MODEL = "gemini-3.1-pro-preview"
TOOL = types.Tool(
    function_declarations=[
        types.FunctionDeclaration(
            name="weather",
            parameters=types.Schema(type=types.Type.OBJECT, properties={"city": types.Schema(type=types.Type.STRING)}),
        )
    ]
)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with simulator() as address:
        yield address


@pytest.fixture
def client(url: str) -> Iterator[genai.Client]:
    with client_of(url) as made:
        yield made


def client_of(url: str, key: str = "AIza-sim") -> genai.Client:
    return genai.Client(api_key=key, http_options=types.HttpOptions(base_url=url))


def ask(url: str, path: str, body: object = None, *, key: str = "AIza-sim") -> tuple[int, bytes]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{url}{path}", data, {"content-type": "application/json", "x-goog-api-key": key})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def test_an_answer_says_what_was_said(client: genai.Client) -> None:
    answer = client.models.generate_content(model=MODEL, contents="Hi there")
    assert (answer.text, answer.model_version) == ("You said: Hi there", MODEL)
    # "Hi there" is 8 bytes, "You said: Hi there" 18
    usage = answer.usage_metadata
    assert usage is not None
    assert (usage.prompt_token_count, usage.candidates_token_count, usage.total_token_count) == (2, 5, 7)


def test_a_stream_tells_the_counts_so_far(client: genai.Client) -> None:
    chunks = list(client.models.generate_content_stream(model=f"{MODEL}~chunks=3~size=8~cache_read=7", contents="Hi"))
    assert [bool(chunk.candidates and chunk.candidates[0].finish_reason) for chunk in chunks] == [False] * 3 + [True]
    counts = [chunk.usage_metadata.candidates_token_count for chunk in chunks if chunk.usage_metadata]
    assert counts == [2, 4, 6, 6]
    assert chunks[-1].usage_metadata and chunks[-1].usage_metadata.cached_content_token_count == 7


def test_without_alt_sse_a_stream_is_one_array(url: str) -> None:
    path = f"/v1beta/models/{MODEL}~chunks=2:streamGenerateContent"
    status, body = ask(url, path, {"contents": [{"parts": [{"text": "Hi"}]}]})
    assert (status, len(json.loads(body)), body[:1], body[-2:]) == (200, 3, b"[", b"]\n")


@pytest.mark.parametrize(("point", "before"), [("first", 0), ("1", 1)])
def test_an_error_inside_an_array_leaves_it_whole(url: str, point: str, before: int) -> None:
    path = f"/v1beta/models/{MODEL}~chunks=2~fail=503@{point}:streamGenerateContent"
    _, body = ask(url, path, {"contents": [{"parts": [{"text": "Hi"}]}]})
    assert [next(iter(item)) for item in json.loads(body)] == ["candidates"] * before + ["error"]


def test_a_tool_is_called_with_arguments(client: genai.Client) -> None:
    answer = client.models.generate_content(
        model=MODEL, contents="Hi", config=types.GenerateContentConfig(tools=[TOOL])
    )
    assert answer.function_calls and answer.function_calls[0].name == "weather"
    assert "city" in (answer.function_calls[0].args or {})


def test_counts_and_vectors(client: genai.Client) -> None:
    assert client.models.count_tokens(model=MODEL, contents="Hi there").total_tokens == 2
    answer = client.models.embed_content(model="gemini-embedding-001", contents=["one", "two"])
    assert [len(item.values or ()) for item in answer.embeddings or ()] == [8, 8]


def test_models_are_listed(client: genai.Client) -> None:
    assert f"models/{MODEL}" in [model.name for model in client.models.list()]
    assert client.models.get(model=MODEL).input_token_limit == 1_048_576
    with pytest.raises(errors.ClientError):
        client.models.get(model="gemini-0")


@pytest.mark.parametrize(
    ("name", "code", "status"),
    [("key", 400, "INVALID_ARGUMENT"), ("503", 503, "UNAVAILABLE"), ("quota_day", 429, "RESOURCE_EXHAUSTED")],
)
def test_errors_are_google_s(client: genai.Client, name: str, code: int, status: str) -> None:
    with pytest.raises(errors.APIError) as caught:
        client.models.generate_content(model=f"{MODEL}~error={name}", contents="Hi")
    assert (caught.value.code, caught.value.status) == (code, status)


@pytest.mark.parametrize(("key", "status"), [("", 403), ("bad", 400)])
def test_a_key_is_wanted(url: str, key: str, status: int) -> None:
    assert ask(url, "/v1beta/models", key=key)[0] == status


def test_what_it_does_not_serve_is_404(url: str) -> None:
    assert ask(url, f"/v1beta/models/{MODEL}:predict", {})[0] == 404
    assert ask(url, f"/v1beta/models/{MODEL}:generateContent", {})[0] == 400
