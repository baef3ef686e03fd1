"""`python -m tokenizer_svc`: text in, text out, token ids in between."""

import os

from tokenizer_svc.server import serve
from tokenizer_svc.settings import TokenizerTierSettings
from tokenwire import logs
from tokenwire.models import resolve
from tokenwire.server import run
from tokenwire.settings import parse_settings
from tokenwire.worker_place import place_from
from tokenwire.workers import serve_workers


def main() -> None:
    """Parse settings, find the model's folder, serve."""
    settings = parse_settings(TokenizerTierSettings, "tokenizer", description=__doc__ or "")
    logs.configure("tokenizer")
    place = place_from(os.environ)

    async def start() -> int:
        folder = resolve(settings.model, tokenizer_only=True)  # once for all workers
        if settings.workers > 1 and place is None:
            return await serve_workers("tokenizer_svc", settings, ("port",))
        await serve(settings, folder, place)
        return 0

    raise SystemExit(run(start))


if __name__ == "__main__":
    main()
