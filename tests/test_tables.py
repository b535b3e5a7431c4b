import pytest

from simmatch_tf import tables


def test_plain_text():
    text = tables.plain([["class", "images"], ["a", "1,000"], ["bird", "5"]])
    assert text.split("\n") == [
        "class  images",
        "-----  ------",
        "a       1,000",
        "bird        5",
    ]


def test_names_that_would_break_a_plain_table():
    names = ["a\tb", "c\nd", "caf\u00e9 \u3000\u0645\u06cc\u200c"]
    text = tables.plain([["class", "images"], *([n, "1"] for n in names)])
    lines = text.split("\n")
    assert len(lines) == 2 + len(names) and "\t" not in text
    assert lines[2].split() == [r"a\tb", "1"]
    assert lines[3].split() == [r"c\nd", "1"]
    assert names[2] in lines[4]
    assert len(set(map(len, lines))) == 1


def test_markdown():
    text = tables.markdown([["model", "top-1"], ["a\nb", "1"]])
    assert text.split("\n") == [
        "| model | top-1 |",
        "| --- | --- |",
        r"| a\\nb | 1 |",
    ]


@pytest.mark.parametrize(
    ("name", "escaped"),
    [
        (r"a|b *d* `e` \f", r"a\|b \*d\* \`e\` \\f"),
        ("<!-- c --> & d", "&lt;!-- c --> &amp; d"),
        ("g_h _i_", r"g_h \_i\_"),
        ("[-0.5, +4.5] (3)", "[-0.5, +4.5] (3)"),
        ("[a](b) [c][d]", r"[a\](b) [c\][d]"),
    ],
)
def test_names_mean_nothing_in_markdown(name, escaped):
    assert tables.escape(name) == escaped


def test_numbers():
    assert tables.percent(0.975) == "97.50 %"
    assert tables.percent(1.0, 0) == "100 %"
    assert tables.percent(None) == "-"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(99.4, "99 s"), (100, "2 min"), (5940, "99 min"), (12_000, "3 h 20 min")],
)
def test_durations(seconds, text):
    assert tables.duration(seconds) == text


def test_comma_separated():
    rows = [["a", "b"], ["x, y", None], [0.5, 'say "z"']]
    assert tables.comma_separated(rows) == 'a,b\n"x, y",\n0.5,"say ""z"""\n'
