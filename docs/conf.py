"""Settings of Sphinx, which `make docs` runs in the folder above this one."""

from pygments.lexers.python import PythonLexer
from sphinx.application import Sphinx

project = "JigClu"
extensions = ["myst_parser"]
root_doc = "docs/index"
include_patterns = ["docs/*.md", "docs/index.rst", "detection/README.md", "C*.md"]
exclude_patterns = ["docs/README.md", ".*", "build", "data", "runs"]
highlight_language = "text"
myst_heading_anchors = 3
smartquotes = False
html_theme = "furo"
html_title = "JigClu"
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False
html_extra_path = ["index.html"]
html_static_path = ["site.css"]
html_css_files = ["site.css"]


def setup(app: Sphinx) -> None:
    """Colors gin like Python, of whose literals its values consist."""
    app.add_lexer("gin", PythonLexer)
