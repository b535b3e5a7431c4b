import pytest

from simmatch_tf.experiments import summary
from simmatch_tf.flags.errors import InputError


def test_a_table_is_inserted_into_a_page(tmp_path):
    page = tmp_path / "README.md"
    page.write_text("a\n<!-- x -->\nold\n<!-- /x -->\nb\n")
    summary.insert(page, "x", "| new |")
    assert page.read_text() == "a\n<!-- x -->\n| new |\n<!-- /x -->\nb\n"
    for text in ("", "<!-- /x --><!-- x -->", "<!-- x -->" * 2 + "<!-- /x -->"):
        with pytest.raises(ValueError, match="<!-- x --> and <!-- /x -->"):
            summary.place(text, "x")


def test_a_page_keeps_its_line_ends(tmp_path):
    page = tmp_path / "README.md"
    page.write_bytes(b"a\r\n<!-- x -->\r\n<!-- /x -->\r\nb\n")
    summary.insert(page, "x", "1\n2")
    assert page.read_bytes() == (
        b"a\r\n<!-- x -->\r\n1\r\n2\r\n<!-- /x -->\r\nb\n"
    )


def test_a_page_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    page = tmp_path / "README.md"
    page.write_text("<!-- x -->\n<!-- /x -->\nb\n")

    def write_text(path, *_, **__):
        path.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", write_text)
    with pytest.raises(InputError, match="README.md: cannot be written"):
        summary.insert(page, "x", "1")
    assert page.read_text() == "<!-- x -->\n<!-- /x -->\nb\n"
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
