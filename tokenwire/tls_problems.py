"""Why a connection failed, told from what gRPC says of it: words for people. Knows no connection."""

PROBLEMS = (
    ("WRONG_VERSION_NUMBER", "the server does not speak TLS there: connect without it, or to its TLS port"),
    ("certificate has expired", "the server's certificate has expired"),
    ("certificate is not yet valid", "the server's certificate is not valid yet"),
    ("CERTIFICATE_VERIFY_FAILED", "the server's certificate is of no CA that is trusted here"),
    ("Hostname Verification", "the server's certificate is for another name than the one that was called"),
    ("TLSV1_ALERT_PROTOCOL_VERSION", "the server refuses this version of TLS"),
    ("ls handshake failed", "the TLS handshake failed"),
    ("Socket closed", "the server closes connections at once: it may speak TLS, or ask for a client certificate"),
)
"""What stands in gRPC's message, and what it means; the first that fits."""


def tls_problem(message: str) -> str:
    """What keeps TLS from working, from the message of a call that failed to connect; empty when it is not that."""
    if not message.startswith("failed to connect"):
        return ""
    return next((meaning for mark, meaning in PROBLEMS if mark in message), "")
