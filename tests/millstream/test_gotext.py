"""Go's forms of text: quoted strings, durations, templates."""

import re

import pytest
from hypothesis import given, strategies as st

from millstream.gotext import TemplateError, duration, expand, parse_duration, quoted


@pytest.mark.parametrize(
    ("text", "as_go_writes_it"),
    [
        ("linux.debian", '"linux.debian"'),
        ('say "hi"\\', r'"say \"hi\"\\"'),
        ("tab\tline\nbell\a", r'"tab\tline\nbell\a"'),
        ("Zürich", '"Zürich"'),
        ("\x00\x7f", r'"\x00\x7f"'),
        ("\u200b\U000e0001", r'"\u200b\U000e0001"'),
    ],
)
def test_a_quoted_text_is_as_go_writes_it(text: str, as_go_writes_it: str) -> None:
    assert quoted(text) == as_go_writes_it


@pytest.mark.parametrize(
    ("seconds", "as_go_writes_it"),
    [
        (0, "0s"),
        (521.903e-6, "521.903µs"),
        (1.787288e-3, "1.787288ms"),
        (1.5, "1.5s"),
        (5, "5s"),
        (17e-9, "17ns"),
    ],
)
def test_a_duration_is_as_go_writes_it(seconds: float, as_go_writes_it: str) -> None:
    assert duration(seconds) == as_go_writes_it


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("300ms", 0.3), ("5s", 5), ("1m30s", 90), ("1.5h", 5400), ("0", 0), ("2.5", 2.5)],
)
def test_a_duration_flag_is_read_as_go_reads_it(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "abc", "5 s", "-1s", "-1", "inf", "nan", "5d"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="duration"):
        parse_duration(text)


@given(st.integers(min_value=0, max_value=59_999_999_999))
def test_a_duration_below_a_minute_is_read_back_as_it_was_written(nanoseconds: int) -> None:
    assert parse_duration(duration(nanoseconds / 1e9)) == pytest.approx(nanoseconds / 1e9, abs=1e-9)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("plain", "plain"),
        ("message {{Count}} of {{ .Count }}", "message 7 of 7"),
        ("{{Request}}!", "hello!"),
        ("{{ not closed", "{{ not closed"),
    ],
)
def test_a_template_is_filled_in(template: str, text: str) -> None:
    assert expand(template, count=7, request="hello") == text


@pytest.mark.parametrize(
    ("template", "form"),
    [
        ("{{Random 3 5}}", r"[a-zA-Z]{3,5}"),
        ("{{ID}}", r"[0-9A-Za-z]{22}"),
        ("{{Unix}}", r"\d{10}"),
        ("{{UnixNano}}", r"\d{19}"),
        ("{{Time}}", r"\d{1,2}:\d\d[AP]M"),
        ("{{TimeStamp}}", r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d"),
    ],
)
def test_a_template_function_has_the_usual_form(template: str, form: str) -> None:
    assert re.fullmatch(form, expand(template, count=1))


@pytest.mark.parametrize("template", ["{{Nope}}", "{{Request}}", "{{Random 5}}", "{{Random 5 3}}"])
def test_a_template_that_makes_no_sense_is_refused(template: str) -> None:
    with pytest.raises(TemplateError):
        expand(template, count=1)
