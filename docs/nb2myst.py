"""Notebooks, prepared by nbdev as for Quarto, -> MyST notebooks for Sphinx; index.ipynb -> README.md. Needs no Quarto.

`generate(folder)` writes the pages that Sphinx reads (conf.py calls it); `python docs/nb2myst.py` writes README.md."""
import ast,os,re,shutil,typing
from concurrent.futures import ProcessPoolExecutor
from functools import cache,partial
from multiprocessing import get_context
from pathlib import Path

import nbdev.config
import nbformat.v4 as v4
import traitlets.traitlets
from fastcore.nbio import read_nb
from nbdev.config import get_config,nbpath2html
from nbdev.doclinks import NbdevLookup
from nbdev.processors import FilterDefaults
from nbformat import from_dict

import cite
import numbers_pages
import troubles

# A widget's signature names `Self`, which traitlets imports for type checkers only; early releases of Python 3.11 look
# it up.
traitlets.traitlets.Self = typing.Self

nbdev.config._load_toml = cache(nbdev.config._load_toml)  # nbdev looks its settings up for every cell
root = Path(__file__).parent.parent
cfg = get_config(root)
site = cfg.doc_host + cfg.doc_baseurl
LIB = cfg.lib_path.name
lookup = NbdevLookup()
WIDGET = "application/vnd.jupyter.widget-view+json"
# The rooms, in the order of the data flow: a folder of nbs/ is
# a room, and has a page of its own that lists what is in it.
ROOMS = {
    "00_start": ("Course",
                 "Lessons that export nothing, in the order in which to read them: the whole road in a minute, nine "
                 "ideas of a quarter of an hour each, then your own method and your own photos."),
    "10_ground": ("Ground",
                  "What every other room leans on: errors in one line, files that are whole or absent, pictures, "
                  "processes."),
    "20_data": ("Data",
                "Toy scenes, folders, VOC and COCO; what training sees of them; downloading, preparing and checking."),
    "30_backbones": ("Backbones", "From an image to features."),
    "40_cam": ("Class activation maps", "From features to a map for every class."),
    "50_refine": ("Refinement", "From a map to a better map: lattice, CRF, PAR, affinity, random walk."),
    "55_labels": ("Labels", "From maps to seeds and pseudo labels, crops, and rules with saliency."),
    "60_networks": ("Networks", "Classifier and segmenter in one, decoders, projections, memories."),
    "65_scores": ("Scores", "How good a label map is, where it fails and why; the report of a run."),
    "70_losses": ("Losses", "One idea a page."),
    "75_run": ("Run", "The engine: a folder, a training loop, stages. It knows no method."),
    "80_methods": ("Methods", "One page for each published method."),
    "90_use": ("Use", "From names to runs: experiments, published checkpoints, commands, launching."),
    "95_explore": ("Explore", "Live panels for every stage, each with a plain function that draws the same."),
}

LESSONS = "00_start"  # their explorers stay where they are

PROJECT = ("CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff")  # beside nbs/, and part of the site

def _page(nb):
    "The page of a notebook, from the folder of all pages, without suffix: 20_data/10_core.ipynb -> 20_data/core"
    return nbpath2html(Path(nb)).as_posix().removesuffix(".html")

def _is_page(path):
    "Is a notebook a page of the site, and not somebody's Untitled.ipynb?"
    rel = path.relative_to(cfg.nbs_path)
    return rel.name == cfg.readme_nb or rel.parts[0] in ROOMS and len(rel.parts) == 2 and rel.name[:2].isdigit()

# %% Markdown: what is left of Quarto's dialect
def _symbol_links(md, link):
    """Rewrite links to symbols in the site; `link` gets the symbol and its address, such as core.html#progress

    Where the author has set a link already, it is kept, and the one that nbdev put inside goes. So it does in a title,
    which becomes a link elsewhere."""
    symbol = rf"\[(`[^`\]]+`)\]\({re.escape(site)}/[^)]+\)"
    md = re.sub(rf"\[{symbol}\]\(", r"[\1](", md)
    md = re.sub(r"^# .*", lambda m: re.sub(symbol, r"\1", m[0]), md, flags=re.M)
    return re.sub(rf"\[`([^`\]]+)`\]\({re.escape(site)}/([^)]+)\)", lambda m: link(m[1], m[2]), md)

def _source_link(up, module, name):
    "A link to the copy of a module that the site carries; a browser that knows text fragments scrolls to the name"
    name = name.rpartition(".")[2]
    begins = f"class%20{name}" if name[0].isupper() else f"def%20{name}("
    return f'<a class="nb-source" href="{up}source/{module}.py.txt#:~:text={begins}">source</a>'

def copy_sources(site):
    "Put a copy of every module into the folder of a built site, as text that any browser shows"
    for path in sorted(p for p in (root/LIB).rglob("*.py") if not p.name.startswith("_")):
        to = site/"source"/f"{path.relative_to(root/LIB)}.txt"
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, to)

def myst(md, up="", own=()):
    """Markdown for a page of the site

    `up` leads from the page to the folder of all pages, `own` names the recipes that it is about."""
    md = _symbol_links(md, lambda name, address: f'<a class="nb-sym" href="{up}{address}"><code>{name}</code></a>')
    md = re.sub(rf'\[source\]\([^)]*/{LIB}/([^)#]+)\.py#L\d+\)\{{target[^}}]*\}}(?=\s+#+ (\S+))',
                lambda m: _source_link(up, m[1], m[2]), md)
    md = re.sub(r"\]\((?:\.\./)+docs/recipes/", f"]({up}recipes/", md)
    md = re.sub(rf"\]\(\.\./({'|'.join(map(re.escape, PROJECT))})\)", rf"]({up}\1)", md)
    md = re.sub(r"\]\((?!\w+:)([^)#]+\.ipynb)(#[^)]*)?\)", lambda m: f"]({_page(m[1])}.ipynb{m[2] or ''})", md)
    md = re.sub(r"^:::+ *\{\.callout-(\w+)[^}]*\}", r":::{\1}", md, flags=re.M)

    def anchored(m):
        return f'<a id="{m[2].lower()}"></a>\n\n{m[1]} ' + m[2].replace("_", r"\_")  # where nbdev's links point to

    return cite.linked(re.sub(r"^(#{2,5}) (\S+)$", anchored, md, flags=re.M), up, own)

def readme(md):
    "Markdown for README.md, which stands beside nbs/"
    notebooks = [nb.relative_to(cfg.nbs_path) for nb in cfg.nbs_path.rglob("*.ipynb") if _is_page(nb)]
    sources = {_page(nb): f"nbs/{nb.as_posix()}" for nb in notebooks}
    md = _symbol_links(md, lambda name, address: f"[`{name}`]({sources[address.split('.html')[0]]})")
    return re.sub(r"\]\((?!\w+:|#|nbs/)([^)]+)\)", lambda m: f"]({os.path.normpath(f'nbs/{m[1]}')})", md)

# %% Cells
def _prepared(path):
    "The notebook at `path` as nbdev makes it for Quarto: hidden cells gone, exported ones documented, symbols linked"
    nb = read_nb(path)
    for c in nb.cells:
        if c.cell_type != "code": continue
        exported = re.match(r"#\| *export", c.source)
        # constants have no documentation but their source
        if exported and re.search(r"^[A-Z][A-Z_0-9, ]*=", c.source, flags=re.M):
            c.source = re.sub(r"\A#\| *export\b", "#| exports", c.source)
        # nbdev would also run every cell that imports something; what it documents needs only the exported ones
        if not exported and not re.search(r"^show_doc", c.source, flags=re.M): c.source = "#| eval: false\n" + c.source
    os.environ["IN_TEST"] = "1"  # what nbdev sets when notebooks run without anybody watching
    FilterDefaults()(nb)
    return nb

def _opening(nb):
    "The first text of a notebook: nbdev keeps its title and subtitle and drops the paragraphs below them"
    return lookup.linkify(next(c.source for c in nb.cells if c.cell_type == "markdown"))

def _module_mark(nb):
    "The line below a page's title that names the module it documents; nothing where there is none"
    found = [m[1] for c in nb.cells if (m := re.match(r"#\| *default_exp +(\S+)", c.source))]
    return f"\n\n[{LIB}.{found[0]}]{{.nb-module}}" if found else ""

def _method(cls, f):
    "A list entry for the method `f`, with the anchor that links to it name"
    args = ("" if any(ast.unparse(d) == "property" for d in f.decorator_list)
            else f"({', '.join(a.arg for a in f.args.args[1:])})")
    says = f": {lookup.linkify(ast.get_docstring(f))}" if ast.get_docstring(f) else ""
    return f'- <a id="{cls.name.lower()}.{f.name.lower()}"></a>`{f.name}{args}`{says}'

def _classes(nb):
    """For each class that a notebook exports, what show_doc leaves out: (source of its fields, if it is a dataclass;
    its methods)"""
    found = {}
    for source in (c.source for c in nb.cells if c.cell_type == "code" and re.match(r"#\| *export", c.source)):
        for cls in (n for n in ast.parse(source).body if isinstance(n, ast.ClassDef)):
            methods = [_method(cls, n) for n in cls.body if isinstance(n, ast.FunctionDef)
                       and not n.name.startswith("_")]
            fields = ([n for n in cls.body if isinstance(n, ast.AnnAssign)]
                      if any("dataclass" in ast.unparse(d) for d in cls.decorator_list) else [])
            lines = source.split("\n")[fields[0].lineno-1:fields[-1].end_lineno] if fields else []
            found[cls.name] = "\n".join(lines),"\n".join(methods)
    return found

def _show_doc(md, classes):
    """What show_doc wrote, without the rule at its top (a section may not begin with one)

    Classes are called so and show all they have; the notebook's own types have no module before their name"""
    md = md.replace("__main__.", "")
    fields,methods = classes.get(re.search(r"^#+ (\S+)$", md, flags=re.M)[1], ("", ""))
    md = re.sub(r"^```python\ndef (?=_*[A-Z])", "```python\nclass ", md.removeprefix("---\n\n"), flags=re.M)
    if fields:
        md = re.sub(r"^(```python\nclass \w+)\(.*?^```", lambda m: f"{m[1]}:  # a dataclass\n{fields}\n```", md,
                    flags=re.M | re.S)
    return f"{md}\n\n{methods}"

def _options(source):
    "Quarto's options at the head of a cell, and the rest of the cell"
    head = re.match(r"(?:#\|.*\n?)*", source)[0]
    return dict(re.findall(r"#\|\s*([\w-]+)\s*:?[ \t]*(.*)", head)),source[len(head):].strip()

def _plain(md):
    "A line of Markdown without links and marks"
    return re.sub(r"\[([^]]*)\]\([^)]*\)(\{[^}]*\})?|[\\`*$]", r"\1", re.sub(r"<[^>]+>", "", md))

def _sentence(md):
    "The last sentence of a text in plain words, or nothing where it is a list, a table or a formula"
    text = re.sub(r"\s+", " ", md.strip().split("\n\n")[-1])
    if re.match(r"#|[*|$>:`-]", text): return ""
    return re.split(r"(?<=[.!?:]) (?=[A-Z])", _plain(text))[-1].rstrip(":")

def alt_text(cell, above):
    """What somebody who does not see the picture of a cell is told

    The option `fig-alt` of the cell, else the section and the sentence above it; `above` are the texts before."""
    given = _options(cell.source)[0].get("fig-alt", "").strip('"')
    if given: return given
    headings = [_plain(m) for md in above for m in re.findall(r"^#+ (.+)$", md, flags=re.M)]
    said = next((t for md in above[::-1] if (t := _sentence(md))), "")
    return f"Picture of “{headings[-1] if headings else 'this page'}”. {said}".strip()

def _code(cell, classes, above=()):
    "A code cell as a page shows it, or None; `above`: the texts before it"
    opts,source = _options(cell.source)
    if opts.get("include") == "false": return None
    docs = ["".join(o.data["text/markdown"]) for o in cell.outputs if "text/markdown" in o.get("data", {})]
    if opts.get("output") == "asis" and docs:
        return v4.new_markdown_cell("\n\n".join(_show_doc(d, classes) for d in docs))
    outputs = [from_dict(o) for o in cell.outputs if opts.get("output") != "false" and WIDGET not in o.get("data", {})]
    tag = "remove-input" if opts.get("echo") == "false" else "hide-input" if "code-fold" in opts else None
    metadata = ({"tags": [tag], "mystnb": {"code_prompt_show": opts.get("code-summary", "Show code").strip('"')}}
                if tag else {})
    if any(kind.startswith("image/") for o in outputs for kind in o.get("data", {})):
        metadata.setdefault("mystnb", {})["image"] = {"alt":alt_text(cell, above)}
    return v4.new_code_cell(source, outputs=outputs, metadata=metadata)

def is_live(cell):
    "Does a cell show the page of an explorer?"
    return any('class="wsss-live"' in "".join(o.get("data", {}).get("text/html", "")) for o in cell.get("outputs", ()))

def _live_first(cells):
    "The cells of a page with its explorer, if it has one, below title and opening, without the line that shows it"
    live = [c for c in cells if is_live(c)]
    for c in live: c.metadata = {"tags": ["remove-input"]}
    rest = [c for c in cells if not is_live(c)]
    return rest[:1] + live + rest[1:]

def translate(path, markdown, mark=False):
    """The notebook at `path` with every cell as a page shows it and its text put through `markdown`

    `mark`: name its module below the title"""
    original,cells = read_nb(path),[]
    classes = _classes(original)
    for cell in _prepared(path).cells:
        if cell.cell_type == "raw" and cell.source.lstrip().startswith("---"):
            below = _module_mark(original) if mark else ""
            cell = v4.new_markdown_cell(re.sub(r"\A# .*", lambda m: m[0] + below, _opening(original)))
        elif cell.cell_type == "code":
            cell = _code(cell, classes, [c.source for c in cells if c.cell_type == "markdown"])
        if cell is None or not cell.source.strip(): continue
        if cell.cell_type == "markdown": cell = v4.new_markdown_cell(markdown(cell.source))
        cell.id = f"c{len(cells)}"  # the same on every build
        cells.append(cell)
    if path.parent.name != LESSONS: cells = _live_first(cells)  # in a lesson, a question comes first
    return v4.new_notebook(cells=cells, metadata={"language_info": {"name": "python"}})

# %% Pages and README.md
def _write(path, text):
    "Write only what differs: Sphinx reads again what is newer"
    if not path.exists() or path.read_text(encoding="utf-8") != text: path.write_text(text, encoding="utf-8")

def _toc(pages, caption=""):
    "A list of pages for the sidebar, not shown on the page itself"
    named = [f":caption: {caption}"] if caption else []
    return v4.new_markdown_cell("\n".join(("```{toctree}", ":hidden:", *named, "", *pages, "```")),
                                id=f"toctree{caption}")

def _room(room, pages):
    "The page of a room: its name, what is in it, and a list of its pages with their subtitles"
    title,lead = ROOMS[room]
    listed = [f"* [{title}]({Path(page).name}.ipynb): {subtitle}" for page,(title,subtitle) in pages.items()]
    cells = [v4.new_markdown_cell("\n".join((f"# {title}", "", lead, "", *listed)), id="room")]
    return v4.new_notebook(cells=[*cells, _toc(Path(page).name for page in pages)],
                           metadata={"language_info": {"name": "python"}})

def _recipes(write):
    "Write the recipes, with an anchor at each section; their first page lists the others for the sidebar"
    for path in sorted(cite.FOLDER.glob("*.md")):
        md = re.sub(r"\]\(\.\./\.\./nbs/([^)]+)\)", r"](../\1)", cite.anchored(path.read_text(encoding="utf-8")))
        md = re.sub(r"\]\(\.\./([^)]+\.ipynb)\)", lambda m: f"](../{_page(m[1])}.ipynb)", md)
        if path.stem == "index": md += "\n" + _toc(cite.RECIPES).source + "\n"
        write(path.name, cite.linked(md, "../", cite.own_recipes(path)))

def _heading(nb):
    "Title and subtitle of a notebook"
    return re.match(r"# (.+)\n\n> (.+)", _opening(nb)).groups()

def _site_page(path):
    "The page of the notebook at `path` for the site"
    up = "../"*(len(path.relative_to(cfg.nbs_path).parts)-1)
    return translate(path, partial(myst, up=up, own=cite.own_recipes(path)), mark=True)

def _site_pages(paths):
    "The pages of notebooks, made on all cores; what takes time to import is here before a process forks"
    import timm  # noqa: F401
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    with ProcessPoolExecutor(cores, get_context("fork")) as pool: return dict(zip(paths, pool.map(_site_page, paths)))

def _first_look(made, opening):
    "The head of the first page: title, subtitle and first paragraph of its opening, an explorer, the rest"
    shown = cfg.nbs_path/"95_explore"/"25_sweep.ipynb"
    page = _page(shown.relative_to(cfg.nbs_path))
    text = ("**Try it here.** A class activation map (CAM) says where a classifier looked. A threshold makes labels of "
            "it: move it, and watch the labels, their score (mIoU) and the curve of all thresholds. "
            f"[What this panel teaches]({page}.ipynb) · [all panels](95_explore/index.ipynb) · "
            "[the course](00_start/index.ipynb)")
    live = next(c for c in made[shown].cells if is_live(c))
    *head,rest = opening.split("\n\n", 3)
    return [v4.new_markdown_cell("\n\n".join((*head, text)), id="head"), from_dict(live | {"id":"try"}),
            v4.new_markdown_cell(rest, id="rest")]

def generate(dst):
    "Write the pages into the folder `dst`, and remove those whose notebook is gone"
    kept,rooms,numbered = set(),{room: {} for room in ROOMS},numbers_pages.pages()
    def write(page, nb):
        page.parent.mkdir(parents=True, exist_ok=True)
        kept.add(page)
        _write(page, nb if isinstance(nb, str) else v4.writes(nb))
    def hidden(path): return any(part[0] in "._" for part in path.relative_to(cfg.nbs_path).parts)
    found = sorted(p for p in cfg.nbs_path.rglob("*") if p.is_file() and not hidden(p))
    strays = [p for p in found if p.suffix == ".ipynb" and not _is_page(p)]
    for path in strays: print(f"{path.relative_to(root)}: is no page (NN_room/NN_name.ipynb) and is left out")
    found = [p for p in found if p not in strays]
    made = _site_pages([p for p in found if p.suffix == ".ipynb"])
    for path in found:
        rel = path.relative_to(cfg.nbs_path)
        if rel.suffix != ".ipynb":  # a picture that some notebook shows
            kept.add(dst/rel)
            (dst/rel).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, dst/rel)
            continue
        nb = made[path]
        if rel.name == cfg.readme_nb:
            nb.cells[:1] = _first_look(made, nb.cells[0].source)
            nb.cells += [_toc([f"{room}/index" for room in (*ROOMS, "recipes")], "Rooms"),
                         _toc([*numbered, "troubles"], "Numbers"),
                         _toc([Path(name).stem for name in PROJECT if name.endswith(".md")], "Project")]
        else: rooms[rel.parts[0]][_page(rel)] = _heading(read_nb(path))
        write(dst/f"{_page(rel)}.ipynb", nb)
    for room,pages in rooms.items(): write(dst/room/"index.ipynb", _room(room, pages))
    _recipes(lambda name, md: write(dst/"recipes"/name, md))
    for name,md in numbered.items(): write(dst/f"{name}.md", md)
    write(dst/"troubles.md", troubles.page())
    for name in PROJECT:  # links to notebooks lead to their pages
        text = (root/name).read_text(encoding="utf-8")
        write(dst/name, re.sub(r"\]\(nbs/([^)#]+\.ipynb)", lambda m: f"]({_page(m[1])}.ipynb", text))
    for f in dst.rglob("*"):
        if f.is_file() and f not in kept: f.unlink()

def write_readme():
    "Write README.md and the pictures it shows"
    from nbconvert import MarkdownExporter
    text,res = MarkdownExporter().from_notebook_node(translate(cfg.nbs_path/cfg.readme_nb, readme),
                                                     {"output_files_dir": "README_files"})
    shutil.rmtree(root/"README_files", ignore_errors=True)
    for name,data in res["outputs"].items():
        (root/name).parent.mkdir(exist_ok=True)
        (root/name).write_bytes(data)
    (root/"README.md").write_text(re.sub(r"\n{3,}", "\n\n", text).strip() + "\n", encoding="utf-8")

if __name__ == "__main__": write_readme()
