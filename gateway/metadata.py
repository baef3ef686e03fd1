"""What a gRPC call's metadata says. Knows no service."""

import grpc

REQUEST_ID, TRACEPARENT = "x-request-id", "traceparent"


def metadata_value(context: grpc.aio.ServicerContext, name: str) -> str:
    """The text under this name; empty where there is none, or several, of which none counts."""
    found = [value for key, value in context.invocation_metadata() or () if key == name]
    return found[0] if len(found) == 1 and isinstance(found[0], str) else ""
