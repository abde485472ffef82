"""Gemini on Vertex: the Gemini API's requests at Vertex's addresses, and the few fields that stand elsewhere there.

Source: google-genai 3.4.0 (models.py, the `_to_vertex` side of it).
"""

from __future__ import annotations

import re

import msgspec

from relay.call import Call
from relay.dialects import body as json_body
from relay.dialects.gemini import MODEL_KEY
from relay.providers.base import UpstreamRequest
from relay.providers.claude_table import Fields
from relay.providers.gemini import readable_headers, readable_query, version_and_verb

# Vertex has no v1alpha; what is new there is in v1beta1.
VERSIONS = {"v1": "v1"}
NEWEST = "v1beta1"
EMBED, EMBED_MANY, COUNT = "embedContent", "batchEmbedContents", "countTokens"
# Fields of an embedding that the Gemini API has beside the content, and Vertex in its own object.
EMBED_CONFIG = frozenset(
    "taskType task_type title outputDimensionality output_dimensionality autoTruncate auto_truncate".split()
)
EMBEDS = re.compile(r"gemini|maas")
CONFIG = "embedContentConfig"
WRAPPED = ("generateContentRequest", "generate_content_request")
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_raws = msgspec.json.Decoder(dict[str, msgspec.Raw])
_list = msgspec.json.Decoder(list[msgspec.Raw])


def embeds(model: str) -> bool:
    """Whether Vertex embeds with this model by `embedContent`; the older ones know `predict` only, which is another
    format (google-genai, `t_is_vertex_embed_content_model`)."""
    return EMBEDS.search(model) is not None


def version_of(call: Call) -> str:
    return VERSIONS.get(version_and_verb(call.path)[0], NEWEST)


def request(call: Call, parent: str, model: str) -> UpstreamRequest:
    """The request without its credential; `parent` is the address of the project's location, `model` quoted."""
    verb = version_and_verb(call.path)[1]
    query, dropped = readable_query(call.query)
    headers, left_out = readable_headers(call.headers)
    url = f"{parent}/publishers/google/models/{model}:{verb}" + (f"?{query}" if query else "")
    return UpstreamRequest(call.method, url, headers, vertex_body(call.body, verb), (*dropped, *left_out))


def vertex_body(body: bytes, verb: str) -> bytes:
    """The body as Vertex has it: the model stands in the path alone. The same bytes where nothing differs."""
    if verb in {EMBED, EMBED_MANY, COUNT}:
        fields: Fields = dict(json_body.fields(body))
        changed = {EMBED: one_embedding, EMBED_MANY: many_embeddings, COUNT: count}[verb](dict(fields))
        return body if changed == fields else json_body.join(changed)
    if MODEL_KEY.search(body) is None:
        return body
    fields = dict(json_body.fields(body))
    return json_body.join(fields) if fields.pop("model", None) is not None else body


def one_embedding(fields: Fields) -> Fields:
    fields.pop("model", None)
    moved = {name: fields.pop(name) for name in EMBED_CONFIG & fields.keys()}
    if moved:
        fields[CONFIG] = json_body.join({**moved, **objects(fields.get(CONFIG))})
    return fields


def many_embeddings(fields: Fields) -> Fields:
    """Each request by itself; what is none is the vendor's to judge."""
    try:
        items = [dict(_raws.decode(item)) for item in _list.decode(bytes(fields.get("requests", b"")))]
    except UNREADABLE:
        return fields
    joined = b",".join(json_body.join(one_embedding({**item})) for item in items)
    return {**fields, "requests": b"[" + joined + b"]"}


def count(fields: Fields) -> Fields:
    """The Gemini API may wrap what is to be counted; Vertex takes the same fields at the top."""
    for name in WRAPPED:
        fields = {**{key: raw for key, raw in fields.items() if key != name}, **objects(fields.get(name))}
    fields.pop("model", None)
    return fields


def objects(raw: bytes | msgspec.Raw | None) -> Fields:
    """The fields of an object, none where there is none."""
    try:
        return dict(_raws.decode(bytes(raw))) if raw is not None else {}
    except UNREADABLE:
        return {}
