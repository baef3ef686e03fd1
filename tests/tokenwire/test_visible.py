from tokenwire.visible import visible


def test_what_steers_a_terminal_is_written_out() -> None:
    assert visible("\x1b[31mred\x07\x9b2J\x7f\u202e\ud800") == "\\x1b[31mred\\x07\\x9b2J\\x7f\\u202e\\ud800"


def test_what_is_text_stays() -> None:
    text = 'naïve 日本語 👩‍👩‍👧 \\n "quoted" می‌خواهم'
    assert visible(text) is text


def test_lines_and_tabs_stay_where_they_may() -> None:
    assert visible("a\n\tb\r\n", keep="\n\t") == "a\n\tb\\x0d\n"
    assert visible("a\nb") == "a\\x0ab"
