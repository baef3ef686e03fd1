import pytest

from tokenwire.addresses import stays_on_this_machine
from tokenwire.bearer import bearer
from tokenwire.client import AsyncClient, Client
from tokenwire.errors import FailedPrecondition, InvalidRequest
from tokenwire.tls import ClientTls

HERE = [
    "127.0.0.1:1",
    "localhost:1",
    "[::1]:1",
    "dns:///localhost:1",
    "ipv4:127.0.0.1:1,127.0.0.2:1",
    "ipv6:[::1]:1",
    "unix:/a",
]
AWAY = [
    "10.0.0.1:1",
    "gateway:1",
    "dns:///gateway:1",
    "dns://8.8.8.8/localhost:1",
    "ipv4:127.0.0.1:1,10.0.0.1:1",
    "xds:///gateway",
    "0.0.0.0:1",
]


@pytest.mark.parametrize(("target", "here"), [*((each, True) for each in HERE), *((each, False) for each in AWAY)])
def test_where_a_target_is(target: str, here: bool) -> None:
    assert stays_on_this_machine(target) is here


@pytest.mark.parametrize("target", AWAY)
def test_a_key_goes_to_other_machines_by_tls_or_by_leave(target: str) -> None:
    with pytest.raises(FailedPrecondition, match="unencrypted") as refused:
        bearer("tw-secret", target, None, False)
    assert refused.value.reason == "KEY_IN_PLAINTEXT" and "tw-secret" not in str(refused.value)
    sent = (("authorization", "Bearer tw-secret"),)
    assert bearer("tw-secret", target, None, True) == bearer("tw-secret", target, ClientTls(), False) == sent
    assert bearer("", target, None, False) == ()


def test_both_clients_ask() -> None:
    for client in (Client, AsyncClient):
        with pytest.raises(FailedPrecondition, match="unencrypted"):
            client("10.0.0.1:1", api_key="tw-secret")


@pytest.mark.parametrize("key", ["tw-secret\n", " tw-secret\t", "tw-secret\r\n"])
def test_white_space_around_a_key_is_left_out(key: str) -> None:
    assert bearer(key, HERE[0], None, False) == (("authorization", "Bearer tw-secret"),)


@pytest.mark.parametrize("key", ["tw-secret\ntw", "tw-secret b", "tw-secrét", "tw-secret\x00", " \n", b"tw-secret"])
def test_a_key_that_no_header_can_carry_is_refused_and_not_shown(key: str) -> None:
    for target in (HERE[0], AWAY[0]):
        with pytest.raises(InvalidRequest, match="api_key") as refused:
            bearer(key, target, None, False)
        assert "tw-" not in str(refused.value) and "secr" not in repr(refused.value)
