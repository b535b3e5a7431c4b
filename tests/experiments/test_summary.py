import pytest

from simmatch_tf.experiments import summary
from simmatch_tf.flags.errors import InputError


def test_a_table_is_inserted_into_a_page(tmp_path):
    page = tmp_path / "README.md"
    page.write_text("a\n<!-- x -->\nold\n<!-- /x -->\nb\n")
    summary.insert(str(page), "x", "| new |")
    assert page.read_text() == "a\n<!-- x -->\n| new |\n<!-- /x -->\nb\n"
    for text in ("", "<!-- /x --><!-- x -->", "<!-- x -->" * 2 + "<!-- /x -->"):
        page.write_text(text)
        with pytest.raises(InputError, match="<!-- x --> and <!-- /x -->"):
            summary.check_page(str(page), "x")


def test_a_page_keeps_its_line_ends(tmp_path):
    page = tmp_path / "README.md"
    page.write_bytes(b"a\r\n<!-- x -->\r\n<!-- /x -->\r\nb\n")
    summary.insert(str(page), "x", "1\n2")
    assert page.read_bytes() == (
        b"a\r\n<!-- x -->\r\n1\r\n2\r\n<!-- /x -->\r\nb\n"
    )
