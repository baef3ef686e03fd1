"""`tokenwire keys`: what is printed, and what is kept."""

from pathlib import Path

from click.testing import CliRunner

from tokenwire.cli.examples import examples
from tokenwire.cli.main import cli
from tokenwire.identity_file import hash_of, read_identity_file


def run(*words: str, code: int = 0, given: str = "") -> str:
    result = CliRunner().invoke(cli, words, input=given)
    assert result.exit_code == code, result.output
    return result.output


def test_a_key_is_printed_once_and_its_hash_kept(tmp_path: Path) -> None:
    file = str(tmp_path / "identities.json")
    key = run("keys", "new", file, "laptop", "--tenant", "alice", "--model", "m", "--max-priority", "5").strip()
    grant = read_identity_file(Path(file)).keys[hash_of(key)]
    assert (grant.name, grant.tenant, grant.models, grant.max_priority) == ("laptop", "alice", frozenset({"m"}), 5)
    assert run("keys", "list", file) == "laptop  alice  m  5  no end\n"
    assert "has a key named" in run("keys", "new", file, "laptop", "--tenant", "alice", code=1)
    run("keys", "new", file, "ops", "--tenant", "ops", "--admin", "--days", "1")
    assert run("keys", "list", file).splitlines()[1].endswith("+00:00  admin")
    run("keys", "revoke", file, "laptop")
    assert hash_of(key) not in read_identity_file(Path(file)).keys


def test_a_key_that_exists_is_taken_by_its_hash(tmp_path: Path) -> None:
    file = str(tmp_path / "identities.json")
    digest = run("keys", "hash", given="my own key\n").strip()
    assert digest == hash_of("my own key")
    assert run("keys", "new", file, "mine", "--tenant", "t", "--sha256", digest) == ""
    assert "on standard input" in run("keys", "hash", code=2)


def test_the_examples_send_the_key_from_the_environment() -> None:
    shown = dict(examples("m", "127.0.0.1:1", "127.0.0.1:2", asks_who=True))
    assert '-H "Authorization: Bearer $TOKENWIRE_API_KEY"' in shown["curl"]
    assert 'api_key=os.environ["TOKENWIRE_API_KEY"]' in shown["Python"]
    assert not any("API_KEY" in command for _, command in examples("m", "127.0.0.1:1", "127.0.0.1:2"))


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    assert "nowhere.json: No such file" in run("keys", "list", str(tmp_path / "nowhere.json"), code=1)
