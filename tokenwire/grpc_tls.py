"""gRPC's credentials from TLS files. A server's follow the files; a channel's are those of the moment it is made."""

from typing import Any

import grpc

from tokenwire.tls import ClientTls, Pems, ServerFiles, ServerTls


def server_credentials(tls: ServerTls) -> grpc.ServerCredentials:
    """For a server's port. Raises FailedPrecondition naming the file that is wrong."""
    files = ServerFiles(tls)

    def fetch() -> Any:
        """Called by gRPC's threads for every connection; None: nothing new."""
        return _configuration(files.pems) if files.refresh() else None

    return grpc.dynamic_ssl_server_credentials(_configuration(files.pems), fetch, bool(tls.client_ca))


def channel_credentials(tls: ClientTls) -> grpc.ChannelCredentials:
    """For a channel. Raises FailedPrecondition naming the files."""
    pems = tls.pems()
    return grpc.ssl_channel_credentials(pems.ca, pems.key, pems.certificate)


def channel_options(tls: ClientTls) -> list[tuple[str, Any]]:
    """What a channel with these credentials takes besides."""
    return [("grpc.ssl_target_name_override", tls.server_name)] if tls.server_name else []


def _configuration(pems: Pems) -> Any:
    return grpc.ssl_server_certificate_configuration([(pems.key, pems.certificate)], pems.ca)
