import pytest
from torch import nn

from model_svc.model.handover import Handover, handed_to


def test_content_reaches_every_module_of_its_model_while_it_is_carried() -> None:
    first, second = nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2))
    one, other = Handover(first), Handover(second)
    with one.carrying("a step"), other.carrying("another"):
        assert [handed_to(module) for module in (first, first[0], second[0])] == ["a step", "a step", "another"]


def test_nothing_is_kept_after_a_pass_even_one_that_fails() -> None:
    model = nn.Linear(2, 2)
    handover = Handover(model)
    with pytest.raises(ZeroDivisionError), handover.carrying("a step"):
        raise ZeroDivisionError
    with pytest.raises(RuntimeError, match="Linear was called outside"):
        handed_to(model)


def test_a_module_that_belongs_to_no_loaded_model() -> None:
    with pytest.raises(RuntimeError, match="outside of its model's forward pass"):
        handed_to(nn.Linear(2, 2))
