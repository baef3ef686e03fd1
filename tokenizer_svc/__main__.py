"""`python -m tokenizer_svc`: text in, text out, token ids in between."""

from tokenizer_svc.server import serve
from tokenizer_svc.settings import TokenizerTierSettings
from tokenwire import logs
from tokenwire.models import resolve
from tokenwire.server import run
from tokenwire.settings import parse_settings


def main() -> None:
    """Parse settings, find the model's folder, serve."""
    settings = parse_settings(TokenizerTierSettings, "tokenizer", description=__doc__ or "")
    logs.configure("tokenizer")

    async def start() -> None:
        await serve(settings, resolve(settings.model))

    run(start)


if __name__ == "__main__":
    main()
