"""Compressed messages over gRPC: a few kilobytes that would become gigabytes are read by no tier."""

import asyncio
import sys
from pathlib import Path

import pytest

from tests.fakes.whole_stack import whole_stack

CLIENT = """
import sys
import grpc

algorithm, num_bytes = grpc.Compression[sys.argv[1]], int(sys.argv[2])
for target in sys.argv[3:]:
    with grpc.insecure_channel(target, [("grpc.max_send_message_length", -1)], compression=algorithm) as channel:
        for method in ("unary_unary", "stream_stream"):
            call = getattr(channel, method)("/grpc.health.v1.Health/Check")
            try:
                answer = call(b"\\0" * num_bytes) if method == "unary_unary" else list(call(iter([b"\\0" * num_bytes])))
                print("answered", len(answer))
            except grpc.RpcError as error:
                print(error.code().name)
"""
BOMB_BYTES = 256 * 2**20


def peak_rss_bytes() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


@pytest.mark.parametrize("algorithm", ["Gzip", "Deflate"])
def test_no_tier_reads_a_compressed_message(trained_folder: Path, algorithm: str) -> None:
    async def codes_of(num_bytes: int, *targets: str) -> list[str]:
        command = (sys.executable, "-c", CLIENT, algorithm, str(num_bytes), *targets)
        client = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        output, _ = await client.communicate()
        return output.decode().split("\n")[:-1]

    async def main() -> None:
        async with whole_stack(trained_folder) as stack:
            model = f"127.0.0.1:{stack.model.port}"
            targets = (stack.gateway.grpc_target, stack.tokenizer.target, model)
            assert await codes_of(1000, *targets) == ["UNIMPLEMENTED"] * 6
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
            before = peak_rss_bytes()
            assert await codes_of(BOMB_BYTES, *targets) == ["UNIMPLEMENTED"] * 6
            assert peak_rss_bytes() - before < BOMB_BYTES / 4

    asyncio.run(main())
