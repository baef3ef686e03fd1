import json
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import click
import pytest

from tests.tokenwire.cli.test_up import ENVIRON, FREE_PORTS, TOKENWIRE
from tokenwire.cli.one_key import IDENTITY_FILE, KEY, MIN_KEY_CHARS, SAY_WHO_MAY_CALL, one_key
from tokenwire.identity_file import hash_of, read_identity_file


def test_a_key_is_made_and_printed_and_gone_afterwards(capsys: pytest.CaptureFixture[str]) -> None:
    environ: dict[str, str] = {}
    with one_key(environ):
        printed = capsys.readouterr().out.split()[-1]
        path = Path(environ[IDENTITY_FILE])
        assert environ[KEY] == printed
        assert list(read_identity_file(path).keys) == [hash_of(printed)]
    assert environ == {} and not path.exists()


def test_a_key_that_is_given_is_asked_for_and_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    key = "k" * MIN_KEY_CHARS
    environ = {KEY: key}
    with one_key(environ):
        assert list(read_identity_file(Path(environ[IDENTITY_FILE])).keys) == [hash_of(key)]
    assert environ == {KEY: key}
    assert capsys.readouterr().out == ""


def test_a_key_that_can_be_guessed_is_refused_without_being_shown() -> None:
    with pytest.raises(click.UsageError, match="10 characters") as refused, one_key({KEY: "a-password"}):
        pass
    assert "a-password" not in str(refused.value)


@pytest.mark.model
def test_a_key_that_nobody_would_see_is_not_made() -> None:
    command = [*TOKENWIRE, "up", *FREE_PORTS, "--engine", "mock", "--make-key"]
    with open("/dev/full", "wb") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=ENVIRON, timeout=60)
    assert ended.returncode == 1 and f"give one in {KEY}" in ended.stderr
    assert "Traceback" not in ended.stderr and "Exception ignored" not in ended.stderr


@pytest.mark.parametrize("name", SAY_WHO_MAY_CALL)
def test_it_stands_back_where_the_gateway_asks_already(name: str) -> None:
    environ = {name: "/somewhere"}
    with one_key(environ):
        assert environ == {name: "/somewhere"}


@pytest.mark.model
def test_a_gateway_that_others_reach_serves_whoever_has_the_key() -> None:
    environ = {**ENVIRON, "PYTHONUNBUFFERED": "1"}
    command = [*TOKENWIRE, "up", *FREE_PORTS, "--engine", "mock", "--host", "0.0.0.0", "--make-key"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environ) as process:
        assert process.stdout is not None
        said = ""
        for line in process.stdout:
            said += line
            if "Ctrl-C drains" in line:
                break
        try:
            (key,) = re.findall(r"Callers need this key.*\n  (\S+)", said)
            (url,) = re.findall(r"HTTP (http://\S+)", said)
            request = urllib.request.Request(f"{url}/v1/models", headers={"Authorization": f"Bearer {key}"})
            with urllib.request.urlopen(request, timeout=30) as response:
                assert json.load(response)["data"]
            with pytest.raises(urllib.error.HTTPError, match="401") as refused:
                urllib.request.urlopen(f"{url}/v1/models", timeout=30)
            refused.value.close()
        finally:
            process.send_signal(signal.SIGTERM)
            said += process.stdout.read()
    assert process.returncode == 0, said
    assert said.count(key) == 1


@pytest.mark.model
def test_insecure_needs_no_key() -> None:
    arguments = ["up", *FREE_PORTS, "--engine", "mock", "--insecure", "--make-key"]
    script = f"import sys; sys.argv = ['tokenwire', *{arguments!r}]\nfrom tokenwire.cli.main import cli\ncli()"
    with subprocess.Popen(
        [sys.executable, "-u", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENVIRON
    ) as process:
        assert process.stdout is not None
        said = ""
        for line in process.stdout:
            said += line
            if "Ctrl-C drains" in line:
                break
        process.send_signal(signal.SIGTERM)
        said += process.stdout.read()
    assert "Serving" in said and "key" not in said, said
