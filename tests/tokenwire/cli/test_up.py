"""`tokenwire up` and `tokenwire demo` as a user runs them; the answers of the real model are e2e's business."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.waiting import wait_until_serving
from tokenwire.addresses import free_ports, is_free
from tokenwire.cli.examples import command_name, examples
from tokenwire.cli.tiers import UpSettings
from tokenwire.cli.up import metrics_addresses, only_embed
from tokenwire.client import Client, ModelCard

TOKENWIRE = [sys.executable, "-m", "tokenwire.cli.main"]
FREE_PORTS = [f"--{name}port=0" for name in ("", "http-", "tokenizer-", "model-")]
FREE_PORTS += [f"--{tier}-metrics-port=0" for tier in ("gateway", "tokenizer", "model")]
ENVIRON = {key: value for key, value in os.environ.items() if not key.startswith("TOKENWIRE_") or key.endswith("_HOME")}


def test_a_taken_port_is_told_before_anything_is_started() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = str(listener.getsockname()[1])
        command = [*TOKENWIRE, "up", *FREE_PORTS, "--http-port", port]
        result = subprocess.run(command, capture_output=True, text=True, env=ENVIRON)
    assert result.returncode == 1
    assert f"--http-port {port} is in use" in result.stderr
    assert "starting" not in result.stdout


def test_examples_of_embeddings_are_for_those_who_can_do_nothing_else() -> None:
    generates, embeds = (ModelCard(name, 100, 10, "", capabilities=(name,)) for name in ("generate", "embed"))
    assert only_embed([embeds]) and only_embed([embeds, embeds])
    assert not any(map(only_embed, ([generates], [embeds, generates], [])))


def test_an_unknown_option_is_told_where_the_settings_of_tiers_are_given() -> None:
    result = subprocess.run([*TOKENWIRE, "up", "--max-batch-size", "4"], capture_output=True, text=True, env=ENVIRON)
    assert result.returncode == 2
    assert "--max-batch-size" in result.stderr and "TOKENWIRE_MODEL_MAX_BATCH_SIZE" in result.stderr


def test_an_unknown_model_is_told_before_anything_is_started() -> None:
    command = [*TOKENWIRE, "up", *FREE_PORTS, "--model", "./nowhere"]
    result = subprocess.run(command, capture_output=True, text=True, env=ENVIRON)
    assert result.returncode == 1
    assert "'./nowhere': no such file or folder" in result.stderr
    assert "starting" not in result.stdout


@pytest.mark.model
def test_a_bad_setting_of_a_tier_ends_up_with_that_tiers_words() -> None:
    environ = {**ENVIRON, "TOKENWIRE_TOKENIZER_ENCODE_THREADS": "none"}
    command = [*TOKENWIRE, "up", *FREE_PORTS, "--engine", "mock"]
    result = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=120)
    assert result.returncode == 1
    assert "the tokenizer tier ended with status 2" in result.stderr
    assert "TOKENWIRE_TOKENIZER_ENCODE_THREADS='none': must be an integer" in result.stderr


@pytest.mark.model
def test_the_demo_answers_and_stops() -> None:
    command = [*TOKENWIRE, "demo", "--engine", "mock", "Say something"]
    result = subprocess.run(command, capture_output=True, text=True, env=ENVIRON, timeout=300)
    assert result.returncode == 0, result.stderr
    assert "> Say something\n" in result.stdout
    assert re.search(r"\(\d+ tokens, first after \d+ ms, [\d.]+ tokens/s\)", result.stdout)
    assert [line.split()[0] for line in result.stdout.splitlines() if line.endswith("drained")] == [
        "gateway", "tokenizer", "model",
    ]  # fmt: skip


@pytest.mark.model
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_starting_stops_everything(number: signal.Signals) -> None:
    command = [*TOKENWIRE, "up", *FREE_PORTS, "--engine", "mock"]
    environ = {**ENVIRON, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environ, start_new_session=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "starting" in line:
                break
        time.sleep(0.5)
        process.send_signal(number)
        said = process.stdout.read()
        assert process.wait(60) == 0
    assert f"{number.name}: draining" in said
    assert "Serving" not in said


@pytest.mark.model
def test_a_second_signal_leaves_at_once_without_a_traceback() -> None:
    command = [*TOKENWIRE, "up", *FREE_PORTS, "--engine", "mock"]
    environ = {**ENVIRON, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environ, start_new_session=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "Ctrl-C drains" in line:
                break
        process.send_signal(signal.SIGINT)
        for line in process.stdout:
            if "SIGINT: draining" in line:
                break
        process.send_signal(signal.SIGINT)
        said = process.stdout.read()
        assert process.wait(60) == 130
    assert "SIGINT again: leaving at once" in said
    assert "Traceback" not in said


@pytest.mark.model
@pytest.mark.parametrize("reader_leaves", [False, True], ids=["full disk", "reader that leaves"])
def test_words_that_cannot_be_written_stop_nobody(reader_leaves: bool) -> None:
    """Every tier starts, serves and is drained, and the command ends well."""
    ports = free_ports(4)
    names = ("port", "http-port", "tokenizer-port", "model-port")
    command = [*TOKENWIRE, "up", *FREE_PORTS, "--engine", "mock"]
    command += [f"--{name}={port}" for name, port in zip(names, ports, strict=True)]
    target = f"127.0.0.1:{ports[0]}"
    with open("/dev/full", "wb") as full, subprocess.Popen(
        command, stdout=subprocess.PIPE if reader_leaves else full, stderr=subprocess.STDOUT, env=ENVIRON,
        start_new_session=True,
    ) as process:  # fmt: skip
        if process.stdout is not None:
            assert b"starting" in process.stdout.readline()
            process.stdout.close()
        wait_until_serving(target, process)
        with Client(target) as client:
            assert client.generate("Hello", max_tokens=3, ignore_eos=True).outputs()[0].terminal.error is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0
    assert all(map(is_free, ports))


def test_the_banner_names_the_metrics_that_are_on() -> None:
    settings = UpSettings(model="m", host="0.0.0.0", gateway_metrics_port=1, model_metrics_port=3)
    assert metrics_addresses(settings) == "gateway http://127.0.0.1:1/metrics  model http://127.0.0.1:3/metrics"
    assert metrics_addresses(UpSettings(model="m")) == ""


def test_the_examples_name_this_server_and_this_python() -> None:
    found = dict(examples("m", "127.0.0.1:7", "127.0.0.1:8"))
    assert '"model": "m"' in found["curl"]
    assert "http://127.0.0.1:8/" in found["curl"]
    assert "127.0.0.1:7" in found["Python"]
    assert found["CLI"].startswith(f"{command_name()} chat --target 127.0.0.1:7 ")


@pytest.mark.model
def test_tls_on_every_hop_and_a_key_work_as_the_examples_say(tmp_path: Path) -> None:
    certs, identities = str(tmp_path / "certs"), str(tmp_path / "identities.json")
    subprocess.run([*TOKENWIRE, "certs", "make", certs], check=True, capture_output=True, env=ENVIRON)
    made = [*TOKENWIRE, "keys", "new", identities, "laptop", "--tenant", "alice"]
    key = subprocess.run(made, check=True, capture_output=True, text=True, env=ENVIRON).stdout.strip()
    environ = {
        **ENVIRON, "PYTHONUNBUFFERED": "1", "TOKENWIRE_API_KEY": key, "TOKENWIRE_GATEWAY_IDENTITY_FILE": identities,
        "TOKENWIRE_MODEL_MOCK_STEP_MS": "0.1", "TOKENWIRE_MODEL_MOCK_MAX_CONTEXT_TOKENS": "256",
    }  # fmt: skip
    command = [*TOKENWIRE, "up", *FREE_PORTS, "--engine", "mock", "--tls", certs]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environ) as process:
        assert process.stdout is not None
        said = ""
        for line in process.stdout:
            said += line
            if "Ctrl-C drains" in line:
                break
        shown = re.findall(r"^(curl|Python|CLI):\n  (.*)$", said, re.MULTILINE)
        answers = [
            subprocess.run(each, shell=True, capture_output=True, text=True, env=environ, timeout=60)
            for name, each in shown
            if name != "curl" or shutil.which("curl")
        ]
        process.send_signal(signal.SIGTERM)
        said += process.stdout.read()
    assert len(shown) == 3 and "https://" in said, said
    assert [(answer.returncode, bool(answer.stdout.strip())) for answer in answers] == [(0, True)] * len(answers)
    assert key not in said
