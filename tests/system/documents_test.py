"""Tests of documents as HTML and Markdown."""

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

from absl.testing import absltest, parameterized

from jigclu.system.charts import Bars, Chart
from jigclu.system.document_html import to_html
from jigclu.system.document_markdown import to_markdown
from jigclu.system.documents import (
    Block,
    Bullets,
    Charts,
    Code,
    Document,
    Paragraph,
    Picture,
    Section,
    Table,
)

EVIL = "</pre><script>alert('1')</script> | `a` *b* _c_ [d](e) &amp; \"f\""
CHART = Chart(EVIL, EVIL, {EVIL: [(0.0, 0.5), (1.0, 0.25)], "b": []}, {EVIL: 0.1}, True)
BARS = Bars(EVIL, {EVIL: [0.5]}, {EVIL: 0.1}, True)
ALL = (
    Paragraph(EVIL),
    Bullets([EVIL]),
    Table((EVIL, "b"), [(EVIL, "1.5")]),
    Code(f"```\n{EVIL}"),
    Charts([CHART, BARS]),
    Picture(EVIL, Path("pictures/a b.png"), b"png"),
)


def document(*blocks: Block, is_folded: bool = False) -> Document:
    return Document("title", "summary", [Section("section", blocks, is_folded)])


class _Tags(HTMLParser):
    """Collects the tags of a page, and fails for tags that are not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Notes a tag."""
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Notes a tag that is closed."""
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        """Closes the last tag."""
        assert self.open.pop() == tag


class HtmlTest(parameterized.TestCase):
    def tags(self, page: str) -> _Tags:
        tags = _Tags()
        tags.feed(page)
        self.assertEmpty(tags.open)
        return tags

    @parameterized.parameters(*ALL)
    def test_texts_are_escaped(self, *block: Block) -> None:
        # absl passes a named tuple as its items.
        (given,) = [b for b in ALL if tuple(b) == tuple(block)]
        page = to_html(document(given))
        self.assertNotIn("<script", page)
        self.assertIn("alert(&#x27;1&#x27;)", page)
        self.tags(page)

    def test_title_and_headings_are_escaped(self) -> None:
        page = to_html(Document(EVIL, EVIL, [Section(EVIL, [Paragraph("a")])]))
        self.assertNotIn("<script", page)
        self.tags(page)

    def test_page_refers_to_no_other_file(self) -> None:
        tags = self.tags(to_html(document(*ALL)))
        for tag, attributes in tags.seen:
            self.assertNotIn(tag, ("script", "link", "iframe"))
            self.assertNotIn("href", attributes)
            self.assertStartsWith(attributes.get("src") or "data:", "data:")
        self.assertNotIn("url(", to_html(document(*ALL)))

    def test_picture_is_embedded(self) -> None:
        page = to_html(document(Picture("caption", Path("a.png"), b"content")))
        data = re.findall(r"data:image/png;base64,([^\"]+)", page)
        self.assertEqual([base64.b64decode(text) for text in data], [b"content"])

    def test_columns_of_numbers_are_aligned(self) -> None:
        rows = [("1.5", "1.5", ""), ("-3e-05", "a", "12.1% ± 0.5%")]
        page = to_html(document(Table(("a", "b", "c"), rows)))
        self.assertEqual(page.count('<td class="number">'), 4)
        self.assertIn('<th class="number">c</th>', page)

    def test_folded_and_empty_sections(self) -> None:
        self.assertIn("<details>", to_html(document(Paragraph("a"), is_folded=True)))
        self.assertNotIn("section</h2>", to_html(document()))


class MarkdownTest(absltest.TestCase):
    def test_special_characters_are_escaped(self) -> None:
        text = to_markdown(document(Paragraph(EVIL), Bullets(["knn_accuracy\n# b"])))
        self.assertIn(r"\</pre\>\<script\>alert('1')\</script\> \| \`a\` \*b\* \_c\_", text)
        self.assertIn("\n- knn_accuracy \\# b\n", text)

    def test_tables_have_a_row_per_line(self) -> None:
        text = to_markdown(document(Table(("a", "b"), [("1\n2", "x|y"), ("3", "")])))
        self.assertIn("| a | b |\n| --- | --- |\n| 1 2 | x\\|y |\n| 3 |  |\n", text)

    def test_code_is_fenced_with_more_backticks_than_it_contains(self) -> None:
        text = to_markdown(document(Code("a ```` b")))
        self.assertIn("\n`````\na ```` b\n`````\n", text)
        self.assertIn("\n```\na\n```\n", to_markdown(document(Code("a"))))

    def test_charts_become_tables(self) -> None:
        series = {"accuracy": [(0.0, 0.5), (1.0, 0.75), (2.0, 0.25)], "empty": []}
        chart = Chart("accuracy", "step", series, {"chance": 0.1}, True)
        text = to_markdown(document(Charts([chart])))
        self.assertIn("| accuracy | 50.0% | 25.0% | 75.0% | 25.0% | chance 10.0% |\n", text)
        self.assertNotIn("empty", text)

    def test_bars_become_a_table_of_their_own(self) -> None:
        chart = Bars("top1", {"a": [0.5], "b": [0.1, 0.3]}, {"untrained": 0.05}, True)
        text = to_markdown(document(Charts([chart])))
        self.assertEndsWith(text, "| a | 50.0% |\n| b | 20.0% ± 14.1% |\n| untrained | 5.0% |\n")

    def test_pictures_refer_to_their_files(self) -> None:
        text = to_markdown(document(Picture("a", Path("pictures/a b.png"), b"")))
        self.assertIn("![a](<pictures/a b.png>)", text)


if __name__ == "__main__":
    absltest.main()
