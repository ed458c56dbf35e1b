"""Every citation of a recipe leads to a section that there is.

Looked at are the text of the notebooks, docstrings, comments, and the recipes themselves."""
import ast,io,json,re,sys,tokenize
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT/"docs"))
import cite  # noqa: E402

NOTEBOOKS = sorted((ROOT/"nbs").rglob("[!.]*.ipynb"))
MODULES = sorted(p for p in (ROOT/"wsss_nb").rglob("*.py") if p.name != "_modidx.py")
PAGES = sorted((ROOT/"docs"/"recipes").glob("*.md"))
each_recipe = pytest.mark.parametrize("recipe", sorted(cite.RECIPES))

@cache
def text_of(recipe): return (cite.FOLDER/f"{recipe}.md").read_text(encoding="utf-8")
@cache
def sections_of(recipe): return set(cite.sections(text_of(recipe)))

def faults(text, own=()):
    "Return what is wrong with the citations in `text`; `own`: the recipes that its page may cite without a name"
    lost = [c for c in cite.citations(text, own) if c.section not in sections_of(c.recipe)]
    strange = [f"{s!r} names no recipe" for s in cite.strangers(text, own)]
    return [f"{c.recipe}.md has no section {c.section}" for c in lost] + strange

def spoken(source):
    "Return the docstrings and the comments of a Python text; lines for the shell and magics are left out"
    source = re.sub(r"(?m)^(\s*)[!%].*$", r"\1pass", source)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docs = [ast.get_docstring(n) or "" for n in ast.walk(ast.parse(source)) if isinstance(n, documented)]
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return docs + [t.string for t in tokens if t.type == tokenize.COMMENT]

@cache
def texts():
    "Return (where, text, the recipes that may be cited there without a name) of all that is written in the project"
    found = []
    for nb in NOTEBOOKS:
        for i,c in enumerate(json.loads(nb.read_text(encoding="utf-8"))["cells"]):
            source = "".join(c["source"])
            parts = spoken(source) if c["cell_type"] == "code" else [source]
            found += [(f"{nb.relative_to(ROOT)}, cell {i}", part, cite.own_recipes(nb)) for part in parts]
    for path in MODULES:
        where,own = str(path.relative_to(ROOT)),cite.own_recipes(path)
        found += [(where, part, own) for part in spoken(path.read_text(encoding="utf-8"))]
    return found + [(str(p.relative_to(ROOT)), p.read_text(encoding="utf-8"), cite.own_recipes(p)) for p in PAGES]

# %% What is written
def test_citations_lead_somewhere():
    found = [f"{where}: {fault}" for where,text,own in texts() for fault in faults(text, own)]
    assert not found, "\n".join(found)

def test_there_are_citations():
    "A test that finds nothing to test would be green"
    named = [(where.split("/")[0], c.recipe) for where,text,own in texts() for c in cite.citations(text, own)]
    count = Counter(where for where,_ in named)
    assert count["nbs"] > 150 and count["wsss_nb"] > 100
    assert {recipe for where,recipe in named if where != "docs"} >= cite.RECIPES.keys() - {"beco"}

@each_recipe
def test_recipe(recipe):
    "It begins with its name, a subtitle, the paper and where its numbers come from; sections have numbers of their own"
    text = text_of(recipe)
    assert re.match(r"# .+\n\n> .+\n\n(\* \*\*Papers?\*\*: .+\b(19|20)\d\d.*\n)(\* .+\n)*", text)
    assert "**From the paper" in text and "code" in text
    titles = re.findall(r"(?m)^#{2,4} ([TS]?\d[\d.]*\d|[TS]?\d)\b", text)
    assert len(titles) > 8 and len(set(titles)) == len(titles), "a section occurs twice"
    assert all(t[0] == {"toco": "T", "tsd_cam": "S"}.get(recipe, t[0]) for t in titles)
    assert text_of("index").count(f"]({recipe}.md)") == 1, "the introduction lists it once"

@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_stands_alone(page):
    "Links lead somewhere, recorded vectors that are named exist, nothing points out of the repository"
    text = page.read_text(encoding="utf-8")
    lost = [t for t in re.findall(r"\]\((?!\w+:|#)([^)#]+)", text) if not (page.parent/t).resolve().exists()]
    assert not lost, f"links to what is not there: {lost}"
    found = re.findall(r"(?i)\bshared/|\bthis spec\b|specification|(?<![\w.])/(?:root|tmp|home|work)/", text)
    assert not found, found
    areas = {m.rstrip("`/,.") for m in re.findall(r"tests/golden/(\w+)", text)} - {"AREA"}
    assert all((ROOT/"tests"/"golden"/area).is_dir() for area in areas), areas
    known = {f.stem for area in areas for f in (ROOT/"tests"/"golden"/area).glob("*.npz")}
    lists = re.findall(r"[Gg]oldens? ((?:`\w+`(?:, | and )?)+)", text)
    named = set(re.findall(r"`([a-z]\w+)\.npz`", text)) | {n for names in lists for n in re.findall(r"`(\w+)`", names)}
    assert named <= known, f"vectors that are not in tests/golden: {sorted(named-known)}"

@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_products_are_no_emphasis(page):
    "Two stars in a line of prose, as in kh*kw*out, would vanish and leave khkwout"
    prose = re.sub(r"(?ms)^ *```.*?^ *```|`[^`\n]+`", "", page.read_text(encoding="utf-8"))
    found = re.findall(r".{,30}(?<!\*)\w\*\w.{,30}|.{,30}[\w)\]]\*[(\[].{,30}", prose)
    assert not found, found

# %% The rules themselves
@pytest.mark.parametrize("text,own,found", [
    ("ToCo T4.7", (), ["toco T4.7"]),
    ("(ToCo T2, T5.6)", (), ["toco T2", "toco T5.6"]),
    ("ToCo (T2-T7)", (), ["toco T2", "toco T7"]),
    ("T2-T7", ("toco",), ["toco T2", "toco T7"]),
    ("(T12.1)", ("toco",), ["toco T12.1"]),
    ("ToCo T9c; IRN 8.1", (), ["toco T9c", "irn 8.1"]),
    ("TSD-CAM S6.1, steps 1 and 2", (), ["tsd_cam S6.1"]),
    ("TSD-CAM S5, TSCD 4.5", (), ["tsd_cam S5", "tscd 4.5"]),
    ("CPDGL, section 4.10", (), ["cpdgl 4.10"]),
    ("CPDGL (sections 2 and 4.9)", (), ["cpdgl 2", "cpdgl 4.9"]),
    ("CPDGL, sections 3 to 7", (), ["cpdgl 3", "cpdgl 7"]),
    ("section 7, as CPDGL 7.1", ("cpdgl",), ["cpdgl 7", "cpdgl 7.1"]),
    ("KTSE §2.3, 2.4", (), ["ktse 2.3", "ktse 2.4"]),
    ("§6.3", ("ktse",), ["ktse 6.3"]),
    ("I2CRC (6.1)", (), ["i2crc 6.1"]),
    ("TSCD 3.9, 3.10, 9", (), ["tscd 3.9", "tscd 3.10", "tscd 9"]),
    ("8 of TSD-CAM, 7 of CPDGL, 9 of TSCD", (), []),
    ("Ru et al., CVPR 2023, section 3.4; Adams et al. 2010, sections 3.1 and 3.2", ("cpdgl",), []),
    ("| TSCD | 67.3 |, CPDGL 2025, ToCo's T, 5 of ToCo, 600 steps of ToCo, TSCD 67%", (), [])])
def test_what_a_citation_is(text, own, found):
    assert [f"{c.recipe} {c.section}" for c in cite.citations(text, own)] == found
    assert not faults(text, own)

@pytest.mark.parametrize("text,own,fault", [
    ("ToCo T4.8", (), "toco.md has no section T4.8"),
    ("ToCo T4.7, T14", (), "toco.md has no section T14"),
    ("T5.7", ("toco",), "toco.md has no section T5.7"),
    ("TSD-CAM S12", (), "tsd_cam.md has no section S12"),
    ("TSCD 3.11", (), "tscd.md has no section 3.11"),
    ("TSCD 8.17", (), "tscd.md has no section 8.17"),
    ("CPDGL, sections 4.9 and 4.11", (), "cpdgl.md has no section 4.11"),
    ("section 12", ("cpdgl",), "cpdgl.md has no section 12"),
    ("I2CRC section 10", (), "i2crc.md has no section 10"),
    ("KTSE §12.1", (), "ktse.md has no section 12.1"),
    ("IRN 15", (), "irn.md has no section 15"),
    ("BECO 11", (), "beco.md has no section 11"),
    ("Bilateral 3.10", (), "bilateral.md has no section 3.10"),
    ("DenseCRF 10", (), "densecrf.md has no section 10"),
    ("ToCo section 3", (), "'section 3' names no recipe"),
    ("what T5.2 says", (), "'T5.2' names no recipe"),
    ("(S6)", ("cpdgl",), "'S6' names no recipe"),
    ("sections 3.5 and 4 of its recipe", (), "'sections 3.5' names no recipe"),
    ("§ 7", (), "'§ 7' names no recipe"),
    ("(toco.md T11)", (), "'toco.md T11' names no recipe"),
    ("(SeCo 4.2)", (), "'SeCo 4.2' names no recipe"),
    ("(ToCo T4.7; WeTr 3.4)", (), "'WeTr 3.4' names no recipe")])
def test_made_up_citations_fail(text, own, fault): assert faults(text, own) == [fault]

def test_anchors():
    "Headings, items of lists and rows of tables that count have an anchor each, once"
    md = "## T4 Maps\n\n### T4.7 Masks\n\n1. first\n2. second\n\n```\n1. no item\n```\n\n## T12 Oddities\n\n" \
         "| # | what |\n|---|---|\n| 1 | row |\n\n1. again\n\n- **a** letter\n"
    assert cite.sections(md) == ["T4", "T4.7", "T4.7.1", "T4.7.2", "T12", "T12.1", "T12a"]
    marked = cite.anchored(md)
    assert '<a id="t4-7"></a>\n\n### T4.7 Masks' in marked and '1. <a id="t4-7-1"></a>first' in marked
    assert '| <a id="t12-1"></a>1 | row |' in marked and "```\n1. no item\n```" in marked
    assert cite.anchor("3.10") == "s3-10"
    for recipe in cite.RECIPES:
        ids = re.findall(r'<a id="([^"]+)">', cite.anchored(text_of(recipe)))
        assert len(set(ids)) == len(ids) == len(sections_of(recipe))

def link(address, text): return f'<a class="nb-cite" href="../recipes/{address}">{text}</a>'

@pytest.mark.parametrize("text,own,expected", [
    ("*so (ToCo T2, T8)*", (), ("*so (", link("toco.html#t2", "ToCo T2"), ", ", link("toco.html#t8", "T8"), ")*")),
    ("CPDGL, section 2 and 3", (), (link("cpdgl.html#s2", "CPDGL, section 2"), " and ", link("cpdgl.html#s3", "3"))),
    ("see T5.2", ("toco",), ("see ", link("toco.html#t5-2", "T5.2"))),
    ("a line ends (TSD-CAM\nS4)", (), ("a line ends (", link("tsd_cam.html#s4", "TSD-CAM\nS4"), ")"))])
def test_links(text, own, expected): assert cite.linked(text, "../", own) == "".join(expected)

@pytest.mark.parametrize("text", [
    "see T5.2", "`ToCo T4.7`", "```\nToCo T4.7\n```", "## ToCo T4.7", "[ToCo T4.7](toco.md)", "$T_4$",
    "of TSCD\n3. item", '<a id="ToCo T4.7"></a>'])
def test_no_links(text):
    "Code, formulas, headings and links stay as they are"
    assert cite.linked(text, "../") == text

def test_site():
    "On the built site every link of a citation leads to an anchor"
    site = ROOT/"_build"/"html"
    if not (site/"recipes"/"index.html").exists(): pytest.skip("the site is not built: make docs")
    ids,count = {},0
    for page in site.rglob("*.html"):
        for target in re.findall(r'class="nb-cite" href="([^"]+)"', page.read_text(encoding="utf-8")):
            file,section = target.split("#")
            file = (page.parent/file).resolve()
            if file not in ids: ids[file] = set(re.findall(r'id="([^"]+)"', file.read_text(encoding="utf-8")))
            assert section in ids[file], f"{page.relative_to(site)}: {target}"
            count += 1
    assert count > 300
