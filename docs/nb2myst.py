"""Notebooks, prepared by nbdev as for Quarto, -> MyST notebooks for Sphinx; index.ipynb -> README.md. Needs no Quarto.

`generate(folder)` writes the pages that Sphinx reads (conf.py calls it); `python docs/nb2myst.py` writes README.md."""
import ast,os,re,shutil,typing
from bisect import bisect
from pathlib import Path

import nbformat.v4 as v4
import traitlets.traitlets
from fastcore.nbio import read_nb
from nbdev.config import get_config,nbpath2html
from nbdev.doclinks import NbdevLookup
from nbdev.processors import FilterDefaults
from nbformat import from_dict

# A widget's signature names `Self`, which traitlets imports for type checkers only; early releases of Python 3.11 look it up.
traitlets.traitlets.Self = typing.Self

root = Path(__file__).parent.parent
cfg = get_config(root)
site = cfg.doc_host + cfg.doc_baseurl
lookup = NbdevLookup()
WIDGET = "application/vnd.jupyter.widget-view+json"
# A notebook's number is its place in the flow of data: the first number of each group, and the group's name in the sidebar.
GROUPS = {0: "Start here", 1: "Foundations", 10: "Data", 20: "Backbones", 30: "Class activation maps", 40: "Refinement", 50: "Pseudo labels, segmentation",
          70: "Evaluation", 72: "Losses", 79: "Training", 82: "Methods", 92: "Commands and widgets"}

def _page(nb): return nbpath2html(nb).as_posix().removesuffix(".html")  # 10_data.core.ipynb -> data.core
def _group(nb):
    "The group of a notebook's number; all of the package `data` stand together, also what came to need higher numbers"
    return "Data" if re.match(r"\d+_data\.", nb.name) else list(GROUPS.values())[bisect(list(GROUPS), int(re.match(r"\d+", nb.name)[0])) - 1]

# %% Markdown: what is left of Quarto's dialect
def _symbol_links(md, link):
    "Rewrite links to symbols in the site; `link` gets the symbol and its address, such as core.html#progress"
    return re.sub(rf"\[`([^`\]]+)`\]\({re.escape(site)}/([^)]+)\)", lambda m: link(m[1], m[2]), md)

def myst(md):
    "Markdown for a page of the site"
    md = _symbol_links(md, lambda name, address: f'<a class="nb-sym" href="{address}"><code>{name}</code></a>')
    md = re.sub(r'\]\(([^)]+)\)\{target="_blank"[^}]*\}', r"](\1){.nb-source}", md)
    md = re.sub(r"\]\((?!\w+:)([^)#]+\.ipynb)(#[^)]*)?\)", lambda m: f"]({_page(m[1])}.ipynb{m[2] or ''})", md)
    md = re.sub(r"^:::+ *\{\.callout-(\w+)[^}]*\}", r":::{\1}", md, flags=re.M)
    def anchored(m): return f'<a id="{m[2].lower()}"></a>\n\n{m[1]} ' + m[2].replace("_", r"\_")  # where nbdev's links point to
    return re.sub(r"^(#{2,5}) (\S+)$", anchored, md, flags=re.M)

def readme(md):
    "Markdown for README.md, which stands beside nbs/"
    sources = {_page(nb.name): f"nbs/{nb.name}" for nb in cfg.nbs_path.glob("*.ipynb")}
    md = _symbol_links(md, lambda name, address: f"[`{name}`]({sources[address.split('.html')[0]]})")
    return re.sub(r"\]\((?!\w+:|#|nbs/)([^)]+)\)", r"](nbs/\1)", md)

# %% Cells
def _prepared(path):
    "The notebook at `path` as nbdev makes it for Quarto: hidden cells gone, exported ones documented, symbols linked"
    nb = read_nb(path)
    for c in nb.cells:
        if c.cell_type != "code": continue
        exported = re.match(r"#\| *export", c.source)
        if exported and re.search(r"^[A-Z][A-Z_0-9, ]*=", c.source, flags=re.M):  # constants have no documentation but their source
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
    return f"\n\n[{cfg.lib_path.name}.{found[0]}]{{.nb-module}}" if found else ""

def _method(cls, f):
    "A list entry for the method `f`, with the anchor that links to it name"
    args = "" if any(ast.unparse(d) == "property" for d in f.decorator_list) else f"({', '.join(a.arg for a in f.args.args[1:])})"
    says = f": {lookup.linkify(ast.get_docstring(f))}" if ast.get_docstring(f) else ""
    return f'- <a id="{cls.name.lower()}.{f.name.lower()}"></a>`{f.name}{args}`{says}'

def _classes(nb):
    "For each class that a notebook exports, what show_doc leaves out: (source of its fields, if it is a dataclass; its methods)"
    found = {}
    for source in (c.source for c in nb.cells if c.cell_type == "code" and re.match(r"#\| *export", c.source)):
        for cls in (n for n in ast.parse(source).body if isinstance(n, ast.ClassDef)):
            methods = [_method(cls, n) for n in cls.body if isinstance(n, ast.FunctionDef) and not n.name.startswith("_")]
            fields = [n for n in cls.body if isinstance(n, ast.AnnAssign)] if any("dataclass" in ast.unparse(d) for d in cls.decorator_list) else []
            lines = source.split("\n")[fields[0].lineno-1:fields[-1].end_lineno] if fields else []
            found[cls.name] = "\n".join(lines),"\n".join(methods)
    return found

def _show_doc(md, classes):
    "What show_doc wrote, without the rule at its top (a section may not begin with one); classes are called so and show all they have"
    fields,methods = classes.get(re.search(r"^#+ (\S+)$", md, flags=re.M)[1], ("", ""))
    md = re.sub(r"^```python\ndef (?=_*[A-Z])", "```python\nclass ", md.removeprefix("---\n\n"), flags=re.M)
    if fields: md = re.sub(r"^(```python\nclass \w+)\(.*?^```", lambda m: f"{m[1]}:  # a dataclass\n{fields}\n```", md, flags=re.M | re.S)
    return f"{md}\n\n{methods}"

def _options(source):
    "Quarto's options at the head of a cell, and the rest of the cell"
    head = re.match(r"(?:#\|.*\n?)*", source)[0]
    return dict(re.findall(r"#\|\s*([\w-]+)\s*:?[ \t]*(.*)", head)),source[len(head):].strip()

def _code(cell, classes):
    "A code cell as a page shows it, or None"
    opts,source = _options(cell.source)
    if opts.get("include") == "false": return None
    docs = ["".join(o.data["text/markdown"]) for o in cell.outputs if "text/markdown" in o.get("data", {})]
    if opts.get("output") == "asis" and docs: return v4.new_markdown_cell("\n\n".join(_show_doc(d, classes) for d in docs))
    outputs = [from_dict(o) for o in cell.outputs if opts.get("output") != "false" and WIDGET not in o.get("data", {})]
    tag = "remove-input" if opts.get("echo") == "false" else "hide-input" if "code-fold" in opts else None
    metadata = {"tags": [tag], "mystnb": {"code_prompt_show": opts.get("code-summary", "Show code").strip('"')}} if tag else {}
    return v4.new_code_cell(source, outputs=outputs, metadata=metadata)

def translate(path, markdown, mark=False):
    "The notebook at `path` with every cell as a page shows it and its text put through `markdown`; `mark`: name its module below the title"
    original,cells = read_nb(path),[]
    classes = _classes(original)
    for cell in _prepared(path).cells:
        if cell.cell_type == "raw" and cell.source.lstrip().startswith("---"):
            below = _module_mark(original) if mark else ""
            cell = v4.new_markdown_cell(re.sub(r"\A# .*", lambda m: m[0] + below, _opening(original)))
        elif cell.cell_type == "code": cell = _code(cell, classes)
        if cell is None or not cell.source.strip(): continue
        if cell.cell_type == "markdown": cell = v4.new_markdown_cell(markdown(cell.source))
        cell.id = f"c{len(cells)}"  # the same on every build
        cells.append(cell)
    return v4.new_notebook(cells=cells, metadata={"language_info": {"name": "python"}})

# %% Pages and README.md
def _write(path, text):
    "Write only what differs: Sphinx reads again what is newer"
    if not path.exists() or path.read_text(encoding="utf-8") != text: path.write_text(text, encoding="utf-8")

def _toc(groups):
    "The sidebar: a list of pages under each group's name"
    toc = "\n\n".join("```{toctree}\n:hidden:\n:caption: %s\n%s\n```" % (name, "\n".join(pages)) for name,pages in groups.items())
    return v4.new_markdown_cell(toc, id="toctree")

def generate(dst):
    "Write the pages into the folder `dst`, and remove those whose notebook is gone"
    kept,groups = set(),{}
    for path in sorted(p for p in cfg.nbs_path.rglob("*") if p.is_file() and not any(part[0] in "._" for part in p.relative_to(cfg.nbs_path).parts)):
        rel = path.relative_to(cfg.nbs_path)
        page = dst/(f"{_page(rel)}.ipynb" if rel.suffix == ".ipynb" else rel)
        page.parent.mkdir(parents=True, exist_ok=True)
        kept.add(page)
        if rel.suffix != ".ipynb": shutil.copy2(path, page)  # a picture that some notebook shows
        else:
            nb = translate(path, myst, mark=True)
            if rel.name == cfg.readme_nb: nb.cells.append(_toc(groups))
            else: groups.setdefault(_group(rel), []).append(_page(rel))
            _write(page, v4.writes(nb))
    for f in dst.rglob("*"):
        if f.is_file() and f not in kept: f.unlink()

def write_readme():
    "Write README.md and the pictures it shows"
    from nbconvert import MarkdownExporter
    text,res = MarkdownExporter().from_notebook_node(translate(cfg.nbs_path/cfg.readme_nb, readme), {"output_files_dir": "README_files"})
    shutil.rmtree(root/"README_files", ignore_errors=True)
    for name,data in res["outputs"].items():
        (root/name).parent.mkdir(exist_ok=True)
        (root/name).write_bytes(data)
    (root/"README.md").write_text(re.sub(r"\n{3,}", "\n\n", text).strip() + "\n", encoding="utf-8")

if __name__ == "__main__": write_readme()
