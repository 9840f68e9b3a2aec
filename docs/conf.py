"""The site: `pip install -e ".[docs]" && sphinx-build -W -b html docs build/docs`. No network is needed."""

import sys
from pathlib import Path

from sphinx.application import Sphinx

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import reference  # noqa: E402

from instructrec_jax import __version__  # noqa: E402

project = "instructrec_jax"
copyright = "the authors of instructrec_jax, Apache-2.0"
version = release = __version__
extensions = ["myst_parser"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["images"]
html_theme = "furo"
html_title = f"instructrec_jax {__version__}"
html_copy_source = False
html_show_sphinx = False
# The reader's own fonts: nothing is loaded from elsewhere.
fonts = {
    "font-stack": "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif",
    "font-stack--monospace": "ui-monospace, SFMono-Regular, Menlo, Consolas, monospace",
}
html_theme_options = {"light_css_variables": fonts, "dark_css_variables": fonts}


def setup(app: Sphinx) -> None:
    app.connect("builder-inited", lambda app: reference.write(Path(app.srcdir) / "reference"))
