"""`tokenwire adapters` against a running model tier."""

import asyncio
import json
from pathlib import Path

from click.testing import CliRunner

from tests.fakes.adapter_folders import adapter_folder
from tests.fakes.live_model_tier import live_model_tier
from tokenwire.addresses import is_free
from tokenwire.cli.main import cli


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli, ["adapters", *arguments])
    return result.exit_code, result.output


def test_load_list_and_unload(tmp_path: Path) -> None:
    async def main() -> None:
        adapter_folder(tmp_path / "poet")
        async with live_model_tier(adapter_folder=str(tmp_path), served_name="base") as live:
            at = ("--model-target", f"127.0.0.1:{live.port}")
            assert await asyncio.to_thread(run, "load", "poet", "poet", *at) == (0, "loaded poet\n")
            assert await asyncio.to_thread(run, "list", *at) == (0, "poet\n")
            code, out = await asyncio.to_thread(run, "list", "--json", *at)
            assert (code, json.loads(out)) == (0, {"model": "base", "adapters": ["poet"]})
            code, out = await asyncio.to_thread(run, "load", "poet", "poet", *at)
            assert code == 1 and "already" not in out and "unload it first" in out
            assert await asyncio.to_thread(run, "unload", "poet", *at) == (0, "unloaded poet\n")
            code, out = await asyncio.to_thread(run, "unload", "poet", *at)
            assert code == 1 and out.startswith("Error: ") and "'poet' is not loaded" in out

    asyncio.run(main())


def test_a_tier_that_is_not_there_is_one_line() -> None:
    port = next(port for port in range(50900, 51000) if is_free(port))
    code, out = run("list", "--model-target", f"127.0.0.1:{port}")
    assert code == 1 and out == f"Error: no model tier answers at 127.0.0.1:{port}: name one with --model-target\n"


def test_a_bad_timeout_is_refused() -> None:
    code, out = run("unload", "x", "--timeout", "0")
    assert code == 1 and "timeout_s" in out
