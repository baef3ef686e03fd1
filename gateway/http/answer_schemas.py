"""What answers look like, as JSON schemas. Held to real answers by tests; does not know requests or paths."""

from typing import Any

from tokenwire.requests import FinishReason

Schema = dict[str, Any]

STRING: Schema = {"type": "string"}
TEXT_OR_NULL: Schema = {"type": ["string", "null"]}
COUNT: Schema = {"type": "integer", "minimum": 0}
NUMBER: Schema = {"type": "number"}
NULL: Schema = {"type": "null"}


def ref(name: str) -> Schema:
    """A schema of `ANSWERS`, or of a request."""
    return {"$ref": f"#/components/schemas/{name}"}


def array(items: Schema) -> Schema:
    """A list of these."""
    return {"type": "array", "items": items}


def optional(schema: Schema) -> Schema:
    """The same, or null."""
    return {"anyOf": [schema, NULL]}


def record(required: dict[str, Schema], others: dict[str, Schema] | None = None) -> Schema:
    """An object of these fields and no more."""
    return {
        "type": "object",
        "properties": {**required, **(others or {})},
        "required": list(required),
        "additionalProperties": False,
    }


def _head(kind: str) -> dict[str, Schema]:
    return {
        "id": STRING,
        "object": {"const": kind},
        "created": COUNT,
        "model": STRING,
        "system_fingerprint": TEXT_OR_NULL,
    }


TIER = {"service_tier": {"const": "default"}}
ENDS = {"enum": ["stop", "length", "tool_calls"]}
TOKEN = record({"token": STRING, "logprob": NUMBER, "bytes": array(COUNT)})
PLAIN = record({"token_id": COUNT, "text": STRING, "logprob": NUMBER})

ERROR = record({"message": STRING, "type": STRING, "param": TEXT_OR_NULL, "code": STRING})

ANSWERS: dict[str, Schema] = {
    "Error": record({"error": ERROR}),
    "Usage": record(
        {
            "prompt_tokens": COUNT,
            "completion_tokens": COUNT,
            "total_tokens": COUNT,
            "prompt_tokens_details": record({"cached_tokens": COUNT, "audio_tokens": {"const": 0}}),
            "completion_tokens_details": record(
                {
                    "reasoning_tokens": COUNT,
                    "accepted_prediction_tokens": {"const": 0},
                    "rejected_prediction_tokens": {"const": 0},
                    "audio_tokens": {"const": 0},
                }
            ),
        }
    ),
    "ToolCall": record(
        {"id": STRING, "type": {"const": "function"}, "function": record({"name": STRING, "arguments": STRING})}
    ),
    "ChatMessage": record(
        {"role": {"const": "assistant"}, "content": TEXT_OR_NULL, "refusal": NULL},
        {"reasoning_content": STRING, "tool_calls": array(ref("ToolCall"))},
    ),
    "ChatLogprobs": record(
        {
            "content": array(
                record({**TOKEN["properties"], "top_logprobs": array(TOKEN)}),
            ),
            "refusal": NULL,
        }
    ),
    "ChatCompletion": record(
        {
            **_head("chat.completion"),
            "choices": array(
                record(
                    {
                        "index": COUNT,
                        "message": ref("ChatMessage"),
                        "logprobs": optional(ref("ChatLogprobs")),
                        "finish_reason": ENDS,
                    }
                )
            ),
            "usage": ref("Usage"),
        },
        TIER,
    ),
    "CompletionLogprobs": record(
        {
            "tokens": array(STRING),
            "token_logprobs": array(optional(NUMBER)),
            "top_logprobs": array(optional({"type": "object", "additionalProperties": NUMBER})),
            "text_offset": array(COUNT),
        }
    ),
    "Completion": record(
        {
            **_head("text_completion"),
            "choices": array(
                record(
                    {
                        "index": COUNT,
                        "text": STRING,
                        "logprobs": optional(ref("CompletionLogprobs")),
                        "finish_reason": ENDS,
                    }
                )
            ),
            "usage": ref("Usage"),
        },
        TIER,
    ),
    "TokenLogprob": record({**PLAIN["properties"], "text_offset": COUNT, "top": array(PLAIN)}),
    "Generated": record(
        {
            "outputs": array(
                record(
                    {
                        "index": COUNT,
                        "text": STRING,
                        "finish_reason": {"enum": [reason.value for reason in FinishReason]},
                        "usage": ref("Usage"),
                        "error": optional(ERROR),
                    },
                    {"logprobs": array(ref("TokenLogprob")), "prompt_logprobs": array(ref("TokenLogprob"))},
                )
            )
        }
    ),
    "Embeddings": record(
        {
            "object": {"const": "list"},
            "data": array(
                record(
                    {
                        "object": {"const": "embedding"},
                        "index": COUNT,
                        "embedding": {"anyOf": [array(NUMBER), STRING]},
                    }
                )
            ),
            "model": STRING,
            "usage": record({"prompt_tokens": COUNT, "total_tokens": COUNT}),
        }
    ),
    "Model": record(
        {
            "id": STRING,
            "object": {"const": "model"},
            "created": COUNT,
            "owned_by": STRING,
            "max_context_tokens": COUNT,
            "capabilities": array(STRING),
            "embedding_size": COUNT,
        },
        {"root": STRING, "parent": STRING},
    ),
    "Models": record({"object": {"const": "list"}, "data": array(ref("Model"))}),
    "Alive": record({"status": {"const": "ok"}}),
    "Ready": record({"status": {"const": "ready"}}, {"models": array(STRING)}),
    "NotReady": record({"status": {"const": "not ready"}}, {"missing": STRING}),
}
