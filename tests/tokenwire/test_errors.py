from tokenwire.errors import Internal, InvalidRequest, let_go


def test_an_error_that_is_let_go_holds_no_frame_nor_do_those_it_came_of() -> None:
    def fail() -> None:
        try:
            try:
                raise KeyError("first")
            except KeyError:
                raise ValueError("second")  # noqa: B904 (the context is what this is about)
        except ValueError as error:
            raise InvalidRequest("third") from error

    try:
        fail()
    except InvalidRequest as error:
        third = error
    second = third.__cause__
    assert second is not None and second.__context__ is not None
    assert third.__traceback__ and second.__traceback__ and second.__context__.__traceback__
    let_go(third)
    assert (third.__traceback__, second.__traceback__, second.__context__.__traceback__) == (None, None, None)
    assert third.message == "third" and third.__cause__ is second


def test_a_circle_of_errors_has_an_end() -> None:
    first, second = Internal("a"), Internal("b")
    first.__cause__, second.__cause__ = second, first
    let_go(first)
