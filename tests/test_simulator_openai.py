"""The simulated OpenAI and Azure, as the official SDK sees them."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import openai
import pytest
from openai import AzureOpenAI, OpenAI
from openai.types.responses import ResponseCompletedEvent, ResponseIncompleteEvent

from relay.simulator.run import simulator

HI: list[Any] = [{"role": "user", "content": "Hi there"}]
TOOL: Any = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with simulator() as address:
        yield address


@pytest.fixture
def clients() -> Iterator[ExitStack]:
    """Closes every client that a test makes."""
    with ExitStack() as opened:
        yield opened


@pytest.fixture
def client(url: str, clients: ExitStack) -> OpenAI:
    return clients.enter_context(client_of(url))


def client_of(url: str, key: str = "sk-sim") -> OpenAI:
    return OpenAI(api_key=key, base_url=f"{url}/v1", max_retries=0)


def azure(url: str, **options: Any) -> AzureOpenAI:
    return AzureOpenAI(api_key="az", azure_endpoint=url, api_version="2025-04-01-preview", max_retries=0, **options)


def test_a_chat_says_what_was_said(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="gpt-4o", messages=HI)

    assert answer.choices[0].message.content == "You said: Hi there"
    assert (answer.choices[0].finish_reason, answer.model) == ("stop", "gpt-4o")
    # "Hi there" is 8 bytes, "You said: Hi there" 18
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (2, 5)


@pytest.mark.parametrize("asked", [True, False])
def test_a_chat_stream_reports_usage_only_when_asked(client: OpenAI, asked: bool) -> None:
    options: Any = {"stream_options": {"include_usage": True}} if asked else {}
    chunks = list(client.chat.completions.create(model="gpt-4o~chunks=5", messages=HI, stream=True, **options))

    texts = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    assert len(texts) == 5
    assert (chunks[-1].usage is not None) is asked


def test_a_tool_is_called_until_its_result_has_come(client: OpenAI) -> None:
    first = client.chat.completions.create(model="gpt-4o", messages=HI, tools=[TOOL])
    result: Any = {"role": "tool", "tool_call_id": "c", "content": "sunny"}
    second = client.chat.completions.create(model="gpt-4o", messages=[*HI, result], tools=[TOOL])

    call = (first.choices[0].message.tool_calls or [])[0]
    assert call.type == "function" and json.loads(call.function.arguments) == {"city": "simulated"}
    assert (first.choices[0].finish_reason, second.choices[0].finish_reason) == ("tool_calls", "stop")


def test_a_streamed_tool_call_adds_up(client: OpenAI) -> None:
    with client.chat.completions.stream(model="gpt-4o", messages=HI, tools=[TOOL]) as stream:
        answer = stream.get_final_completion()

    call = (answer.choices[0].message.tool_calls or [])[0]
    assert call.type == "function" and json.loads(call.function.arguments) == {"city": "simulated"}


def test_each_choice_counts(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="gpt-4o~say=12345678", messages=HI, n=3)

    assert len(answer.choices) == 3
    assert answer.usage is not None and answer.usage.completion_tokens == 6


def test_the_maximum_cuts_the_answer(client: OpenAI) -> None:
    chat = client.chat.completions.create(model="gpt-4o~chunks=50", messages=HI, max_completion_tokens=3)
    response = client.responses.create(model="gpt-4o~chunks=50", input="Hi", max_output_tokens=3)

    assert (chat.choices[0].finish_reason, response.status) == ("length", "incomplete")
    assert chat.usage is not None and response.usage is not None
    assert chat.usage.completion_tokens == response.usage.output_tokens == 3


def test_a_response_streams_in_order(client: OpenAI) -> None:
    events = list(client.responses.create(model="gpt-4o~chunks=3~thinking=4", input="Hi", stream=True))

    assert [event.sequence_number for event in events] == list(range(len(events)))
    last = events[-1]
    assert isinstance(last, ResponseCompletedEvent)
    assert last.response.usage is not None and last.response.usage.output_tokens_details.reasoning_tokens == 4
    assert sum(event.type == "response.output_text.delta" for event in events) == 3
    assert last.response.output_text


def test_a_response_that_is_cut_ends_incomplete(client: OpenAI) -> None:
    *_, last = client.responses.create(model="m~chunks=50", input="Hi", max_output_tokens=2, stream=True)

    assert isinstance(last, ResponseIncompleteEvent)


def test_the_sdks_own_accumulation_takes_the_stream(client: OpenAI) -> None:
    tool: Any = {"type": "function", "name": "weather", "parameters": {}, "strict": False}
    with client.responses.stream(model="gpt-4o", input="Hi", tools=[tool]) as stream:
        final = stream.get_final_response()

    assert [item.type for item in final.output] == ["message", "function_call"]


def test_counts_come_from_the_script(client: OpenAI) -> None:
    script = "in=10~out=5~cache_read=100~cache_30m=20~cache_12h=7~searches=2~tier=flex"
    response = client.responses.create(model=f"gpt-4o~{script}", input="Hi")

    assert response.usage is not None and response.tool_usage is not None
    details = response.usage.input_tokens_details
    assert (response.usage.input_tokens, details.cached_tokens, details.cache_write_tokens) == (137, 100, 27)
    assert (response.usage.output_tokens, response.tool_usage.web_search.num_requests) == (5, 2)
    assert response.service_tier == "flex"


def test_a_stored_response_belongs_to_its_credential(url: str, client: OpenAI, clients: ExitStack) -> None:
    made = client.responses.create(model="gpt-4o", input="Remember me")
    other = clients.enter_context(client_of(url, "sk-other"))

    assert client.responses.retrieve(made.id).output_text == made.output_text
    assert [item.type for item in client.responses.input_items.list(made.id)] == ["message"]
    followed = client.responses.create(model="gpt-4o", input="And?", previous_response_id=made.id)
    assert followed.usage is not None and made.usage is not None
    assert followed.usage.input_tokens > made.usage.input_tokens
    with pytest.raises(openai.NotFoundError):
        other.responses.retrieve(made.id)
    with pytest.raises(openai.BadRequestError, match="Previous response"):
        other.responses.create(model="gpt-4o", input="And?", previous_response_id=made.id)
    with pytest.raises(openai.BadRequestError, match="synchronous"):
        client.responses.cancel(made.id)
    client.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)


def test_what_is_not_stored_can_not_be_retrieved(client: OpenAI) -> None:
    made = client.responses.create(model="gpt-4o", input="Forget me", store=False)

    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)


def test_it_compacts_and_counts(client: OpenAI) -> None:
    compacted = client.responses.compact(model="gpt-4o", input="x" * 40)
    counted = client.responses.input_tokens.count(model="gpt-4o", input="x" * 40)

    assert (compacted.usage.input_tokens, counted.input_tokens) == (10, 10)


def test_embeddings_depend_on_the_text(client: OpenAI) -> None:
    answer = client.embeddings.create(model="text-embedding-3-small", input=["a", "b", "a"], dimensions=4)
    first, second, third = (item.embedding for item in answer.data)

    assert first == third != second and len(first) == 4
    assert answer.usage.prompt_tokens == 3


def test_it_lists_models(client: OpenAI) -> None:
    assert "gpt-5.6-luna" in {model.id for model in client.models.list()}
    assert client.models.retrieve("gpt-4o").id == "gpt-4o"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nope")


@pytest.mark.parametrize(
    "name, raised, code",
    [
        ("401", openai.AuthenticationError, "invalid_api_key"),
        ("quota", openai.RateLimitError, "insufficient_quota"),
        ("429", openai.RateLimitError, "rate_limit_exceeded"),
        ("nomodel", openai.NotFoundError, "model_not_found"),
        ("model_forbidden", openai.PermissionDeniedError, "model_not_found"),
        ("toolong", openai.BadRequestError, "context_length_exceeded"),
        ("overloaded", openai.InternalServerError, "server_is_overloaded"),
        ("500", openai.InternalServerError, None),
        ("nonsense", openai.BadRequestError, None),
    ],
)
def test_errors_are_openais_own(
    client: OpenAI, name: str, raised: type[openai.APIStatusError], code: str | None
) -> None:
    with pytest.raises(raised) as caught:
        client.chat.completions.create(model=f"gpt-4o~error={name}", messages=HI)

    assert caught.value.code == code


def test_a_bad_key_is_refused(url: str) -> None:
    with client_of(url, "bad") as client, pytest.raises(openai.AuthenticationError):
        client.responses.create(model="gpt-4o", input="Hi")


def test_a_field_can_be_rejected(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="stream_options"):
        client.chat.completions.create(
            model="gpt-4o~reject=stream_options", messages=HI, stream=True, stream_options={"include_usage": True}
        )


def test_streams_fail_as_openais_do(client: OpenAI) -> None:
    with pytest.raises(openai.APIError, match="server had an error"):
        list(client.chat.completions.create(model="gpt-4o~fail=500@2", messages=HI, stream=True))
    *_, last = client.responses.create(model="gpt-4o~fail=500@2", input="Hi", stream=True)
    assert last.type == "response.failed"


def test_azures_paths(url: str, clients: ExitStack) -> None:
    client = clients.enter_context(azure(url))
    own = clients.enter_context(azure(url, azure_deployment="own"))
    first, *_ = client.chat.completions.create(model="prod", messages=HI, stream=True)

    assert first.choices == []
    assert client.chat.completions.create(model="prod", messages=HI).model == "prod"
    assert client.embeddings.create(model="emb", input="a").usage.prompt_tokens == 1
    assert client.responses.create(model="prod", input="Hi").output_text == "You said: Hi"
    assert own.chat.completions.create(model="x", messages=HI).model == "own"


def test_azures_dated_paths_want_their_version(url: str) -> None:
    def status(path: str) -> int:
        body = json.dumps({"model": "m", "input": "Hi"}).encode()
        headers = {"api-key": "k", "content-type": "application/json"}
        try:
            with urllib.request.urlopen(urllib.request.Request(url + path, body, headers)) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            error.close()
            return error.code

    assert [
        status(path) for path in ("/openai/responses", "/openai/v1/responses", "/openai/responses?api-version=1")
    ] == [
        404,
        200,
        200,
    ]
