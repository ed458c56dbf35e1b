"""The site: every page is a notebook that nb2myst.py translates when the build begins.

Nothing is fetched from elsewhere."""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from nb2myst import cfg, generate

project, author, release = cfg.title, cfg.author, cfg.version
copyright = f"2026, {author}"
html_title, html_theme, html_show_sourcelink, html_copy_source = f"{project} {release}", "furo", False, False
extensions = ["myst_nb", "sphinx_copybutton", "sphinx-mathjax-offline"]  # the last one is spelt with hyphens
html_static_path, html_css_files = ["_static"], ["nb.css"]
nb_execution_mode, nb_ipywidgets_js = "off", {}  # stored outputs; no scripts from elsewhere
nb_merge_streams, nb_output_stderr = True, "remove"  # progress bars
myst_enable_extensions = ["colon_fence", "attrs_inline", "dollarmath", "amsmath"]
suppress_warnings = ["mystnb.unknown_mime_type", "myst.header"]

def setup(app):
    app.connect("builder-inited", lambda app: generate(Path(app.srcdir)))
    app.extensions[
        "sphinx-mathjax-offline"
    ].parallel_read_safe = True  # it only names files, and does not say that this is safe
