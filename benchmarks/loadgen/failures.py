"""An exception in one line, for tables and reasons. Loads no gRPC: its errors are known by their methods."""

MAX_CHARACTERS = 200


def in_one_line(error: BaseException) -> str:
    """The type and the first line of the text; of a failed gRPC call the status code and the details."""
    code, details = getattr(error, "code", None), getattr(error, "details", None)
    if callable(code) and callable(details):
        status = code()
        said = f"{getattr(status, 'name', status)}: {' '.join((details() or '').split())}"
    else:
        said = str(error)
    return f"{type(error).__name__}: {said}".splitlines()[0][:MAX_CHARACTERS]
