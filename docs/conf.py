"""The site: every page is a notebook that nb2myst.py translates when the build begins.

Nothing is fetched from elsewhere."""
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from nb2myst import cfg, copy_sources, generate

project, author, release = cfg.title, cfg.author, cfg.version
copyright = f"2026, {author}"
html_title, html_theme, html_show_sourcelink, html_copy_source = f"{project} {release}", "furo", False, False
extensions = ["myst_nb", "sphinx_copybutton", "sphinx-mathjax-offline"]  # the last one is spelt with hyphens
html_static_path, html_css_files = ["_static"], ["nb.css"]
html_search_scorer = str(Path(__file__).parent/"_static"/"scorer.js")
nb_execution_mode, nb_ipywidgets_js = "off", {}  # stored outputs; no scripts from elsewhere
nb_merge_streams, nb_output_stderr = True, "remove"  # progress bars
myst_enable_extensions = ["colon_fence", "attrs_inline", "dollarmath", "amsmath"]
suppress_warnings = ["mystnb.unknown_mime_type", "myst.header"]

def drop_unused_mathjax(app, error):
    "Remove what no page loads: the other bundles of MathJax, its SVG output, its words in other languages"
    mathjax = Path(app.outdir)/"_static"/"mathjax"
    if error or not mathjax.is_dir(): return
    loaded = Path(app.config.mathjax_path).name
    bundles = [p for kind in ("chtml", "svg") for p in mathjax.glob(f"*-{kind}*.js") if p.name != loaded]
    spoken = [p for p in (mathjax/"sre"/"mathmaps").glob("*.json") if p.stem not in ("base", "en", "nemeth")]
    for path in (*bundles, *spoken): path.unlink()
    if "svg" not in loaded: shutil.rmtree(mathjax/"output"/"svg", ignore_errors=True)

def setup(app):
    app.connect("builder-inited", lambda app: generate(Path(app.srcdir)))
    app.connect("build-finished", drop_unused_mathjax)
    app.connect("build-finished", lambda app, error: error or copy_sources(Path(app.outdir)))
    app.extensions[
        "sphinx-mathjax-offline"
    ].parallel_read_safe = True  # it only names files, and does not say that this is safe
