"""The site: every page is a notebook that nb2myst.py translates when the build begins.

Nothing is fetched from elsewhere."""
import re
import shutil
import sys
from pathlib import Path

from PIL import Image

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
    # parts of the bundle, or never asked for
    inside = ("core.js", "node-main.js", "input/tex.js", "input/tex-base.js", "input/tex-full.js", "input/asciimath.js",
              "input/tex/extensions/all-packages.js", "input/mml.js", "output/chtml.js", "output/svg.js", "ui/menu.js")
    for path in (*bundles, *spoken, *(mathjax/name for name in inside)): path.unlink(missing_ok=True)
    for other in ("adaptors", "input/mml"): shutil.rmtree(mathjax/other, ignore_errors=True)  # other pages' formulas
    if "svg" not in loaded: shutil.rmtree(mathjax/"output"/"svg", ignore_errors=True)

def rewrite_pages(site, pattern, replacement):
    "Replace what fits a pattern in every page"
    for page in Path(site).rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        now = re.sub(pattern, replacement, text)
        if now != text: page.write_text(now, encoding="utf-8")

LARGE = 20_000  # bytes of a picture above which it is worth another format

def make_pictures_smaller(app, error):
    "Write large pictures as WebP, which takes a fifth, and say so to the pages; what is read in `nbs/` stays as it is"
    if error: return
    site = Path(app.outdir)
    large = [p for p in (site/"_images").glob("*.png") if p.stat().st_size > LARGE]
    for path in large:
        with Image.open(path) as image: image.convert("RGBA").save(path.with_suffix(".webp"), quality=82, method=6)
        path.unlink()
    renamed = {p.with_suffix(".png").name: p.name for p in (site/"_images").glob("*.webp")}
    rewrite_pages(site, r"(?<=_images/)[\w.-]+\.png", lambda m: renamed.get(m[0], m[0]))

def make_reachable(app, error):
    "Let keys scroll what is wider than the page, and tell those who read by ear the level of a sidebar's heading"
    if error: return
    wide = r'<div class="highlight"><pre(?=>)|<div class="table-wrapper[^">]*"(?=>)'
    rewrite_pages(app.outdir, wide, r'\g<0> tabindex="0"')
    rewrite_pages(app.outdir, r'<p class="caption" role="heading"(?=>)', r'\g<0> aria-level="2"')

def drop_plain_spans(app, error):
    "Take off what marks names and punctuation in code, a tenth of the site: both themes show them as any code"
    if not error: rewrite_pages(app.outdir, r'<span class="[np]">([^<]*)</span>', r"\1")

def setup(app):
    app.connect("builder-inited", lambda app: generate(Path(app.srcdir)))
    app.connect("build-finished", drop_unused_mathjax)
    app.connect("build-finished", make_pictures_smaller)
    app.connect("build-finished", make_reachable)
    app.connect("build-finished", drop_plain_spans)
    app.connect("build-finished", lambda app, error: error or copy_sources(Path(app.outdir)))
    app.extensions[
        "sphinx-mathjax-offline"
    ].parallel_read_safe = True  # it only names files, and does not say that this is safe
