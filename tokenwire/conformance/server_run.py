"""Runs the contract's cases against a server. Does not know how results are shown."""

from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc

from tokenwire.bearer import bearer
from tokenwire.channels import aio_channel
from tokenwire.conformance import generate_cases, session_cases, session_credit_cases, session_refusals, token_cases
from tokenwire.conformance.results import Case, CaseFailed, Result, chosen, run_case
from tokenwire.conformance.target import Target
from tokenwire.errors import FailedPrecondition, Unavailable
from tokenwire.status import TLS_FAILED, from_rpc_error
from tokenwire.tls import ClientTls
from tokenwire.v1 import gateway_pb2, tokenizer_pb2

SERVICE = gateway_pb2.DESCRIPTOR.services_by_name["GenerationService"].full_name
SERVER_CASES: list[Case[Target]] = [
    *generate_cases.cases.all,
    *session_cases.cases.all,
    *session_credit_cases.cases.all,
    *session_refusals.cases.all,
    *token_cases.cases.all,
]


async def run_server(
    address: str,
    *,
    api_key: str = "",
    plaintext_key: bool = False,
    tls: ClientTls | None = None,
    model: str = "",
    names: Sequence[str] = (),
    timeout_s: float = 30.0,
) -> AsyncIterator[Result]:
    """Try each case in turn. Raises UnknownCase, and TokenwireError where the server cannot be asked."""
    cases = chosen(SERVER_CASES, names)
    metadata = bearer(api_key, address, tls, plaintext_key)
    async with aio_channel(address, tls) as channel:
        target = Target(channel, metadata)
        call: Any = target.stub.ListModels(
            tokenizer_pb2.ListModelsRequest(), metadata=target.metadata, timeout=timeout_s, wait_for_ready=False
        )
        try:
            target.choose(list((await call).models), model)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                message = f"what answers at {address} is no gateway, and the cases are of one: it has no {SERVICE}"
                raise FailedPrecondition(message) from None
            found = from_rpc_error(error)
            if isinstance(found, Unavailable) and found.reason != TLS_FAILED and "failed to connect" in found.message:
                raise Unavailable(f"nothing answers at {address}: name another server with --target") from None
            raise found from None
        except CaseFailed as failed:
            raise FailedPrecondition(str(failed)) from None
        for case in cases:
            yield await run_case(case, target, timeout_s)
