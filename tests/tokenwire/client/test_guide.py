"""The examples of the client's guide, run against a whole stack with the mock engine."""

import doctest
from pathlib import Path

from tests.fakes.background import in_background
from tests.fakes.tokenizers_trained import write_folder
from tests.fakes.whole_stack import whole_stack

GUIDE = Path(__file__).parents[3] / "docs" / "python-client.md"
TARGET = "127.0.0.1:50051"


def test_the_examples_of_the_guide(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "tiny-model")
    with in_background(whole_stack(folder, mock_step_ms=2.0)) as stack:
        text = GUIDE.read_text()
        assert text.count(TARGET) == 2
        examples = text.replace(TARGET, stack.gateway.grpc_target).replace("```\n", "\n")
        test = doctest.DocTestParser().get_doctest(examples, {}, GUIDE.name, str(GUIDE), 0)
        assert len(test.examples) > 20
        result = doctest.DocTestRunner(optionflags=doctest.FAIL_FAST).run(test)
    assert result.failed == 0
