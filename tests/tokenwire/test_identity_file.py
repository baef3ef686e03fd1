"""The identity file: what is refused, and what writing leaves behind."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tokenwire.errors import InvalidRequest
from tokenwire.identity_file import (
    Grant,
    TenantLimits,
    add_key,
    hash_of,
    new_key,
    parsed,
    read_identity_file,
    remove_key,
)

KEY = {"name": "a", "tenant": "t", "sha256": "0" * 64}


def test_everything_that_may_stand_there(tmp_path: Path) -> None:
    path = tmp_path / "identities.json"
    expires = "2027-01-01T00:00:00+00:00"
    whole = {
        "keys": [{**KEY, "models": ["m"], "max_priority": -3, "admin": True, "expires": expires}],
        "certificates": [{"name": "spiffe://a", "tenant": "*"}],
        "tenants": {"t": {"requests_per_s": 0.5, "tokens_per_min": 1000, "max_streams": 2}},
    }
    path.write_text(json.dumps(whole))
    found = read_identity_file(path)
    assert found.keys == {"0" * 64: Grant("a", "t", frozenset({"m"}), -3, True, 1798761600.0)}
    assert found.certificates == {"spiffe://a": Grant("spiffe://a", "*")}
    assert found.tenants == {"t": TenantLimits(0.5, 1000, 2)} and found.asks


@pytest.mark.parametrize(
    ("whole", "said"),
    [
        ([], "a JSON object"),
        ({"key": []}, "no field 'key'"),
        ({"keys": {}}, "a list of objects"),
        ({"keys": [{**KEY, "sha256": "0" * 63}]}, "keys[0].sha256: must be 64"),
        ({"keys": [{**KEY, "sha256": "A" * 64}]}, "keys[0].sha256: must be 64"),
        ({"keys": [{**KEY, "key": "tw-…"}]}, "no field 'key'"),
        ({"keys": [{**KEY, "name": ""}]}, "keys[0].name"),
        ({"keys": [{**KEY, "tenant": ""}]}, "keys[0].tenant"),
        ({"keys": [{**KEY, "tenant": "t" * 5000}]}, "keys[0].tenant"),
        ({"keys": [{**KEY, "models": "m"}]}, "keys[0].models"),
        ({"keys": [{**KEY, "max_priority": 101}]}, "from -100 to 100"),
        ({"keys": [{**KEY, "max_priority": True}]}, "max_priority"),
        ({"keys": [{**KEY, "admin": 1}]}, "keys[0].admin"),
        ({"keys": [{**KEY, "expires": "2027-01-01T00:00:00"}]}, "with its offset"),
        ({"keys": [{**KEY, "expires": 5}]}, "with its offset"),
        ({"keys": [KEY, {**KEY, "name": "b"}]}, "there already"),
        ({"keys": [KEY, {**KEY, "sha256": "1" * 64}]}, "there already"),
        ({"certificates": [{"name": "a", "tenant": "t"}] * 2}, "there already"),
        ({"certificates": [{**KEY}]}, "no field 'sha256'"),
        ({"tenants": []}, "tenants: must be"),
        ({"tenants": {"t": 5}}, "must be an object"),
        ({"tenants": {"t": {"requests": 5}}}, "no field 'requests'"),
        ({"tenants": {"t": {"requests_per_s": -1}}}, "from 0 on"),
        ({"tenants": {"t": {"requests_per_s": float("nan")}}}, "from 0 on"),
        ({"tenants": {"t": {"max_streams": 1.5}}}, "an integer"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(whole: Any, said: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parsed(whole, "file.json")
    assert said in caught.value.message and caught.value.message.startswith("file.json")
    assert "0" * 63 not in caught.value.message


def test_keys_are_added_and_taken_out(tmp_path: Path) -> None:
    path = tmp_path / "identities.json"
    key = new_key()
    add_key(path, {**KEY, "sha256": hash_of(key)})
    assert os.stat(path).st_mode & 0o777 == 0o600
    assert key not in path.read_text() and key.startswith("tw-") and len(key) == 46
    with pytest.raises(InvalidRequest, match="has a key named 'a'"):
        add_key(path, {**KEY, "sha256": "1" * 64})
    with pytest.raises(InvalidRequest, match="sha256"):
        add_key(path, {"name": "b", "tenant": "t", "sha256": "short"})
    os.chmod(path, 0o640)
    add_key(path, {"name": "b", "tenant": "t", "sha256": "1" * 64})
    assert os.stat(path).st_mode & 0o777 == 0o640
    with pytest.raises(InvalidRequest, match="no key named 'c'"):
        remove_key(path, "c")
    remove_key(path, "a")
    remove_key(path, "b")
    assert read_identity_file(path).asks and not read_identity_file(path).keys
    assert [each.name for each in tmp_path.iterdir()] == ["identities.json"]


def test_a_file_that_is_no_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "identities.json"
    path.write_text("{")
    with pytest.raises(InvalidRequest, match="is not JSON"):
        add_key(path, KEY)
