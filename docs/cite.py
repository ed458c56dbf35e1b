"""Citations of the recipes in docs/recipes: `ToCo T4.7`, `TSCD 3.10`, `CPDGL, section 7`.

`citations(text)` finds them, `sections(md)` says which sections a recipe has, `linked(md)` makes links in a page.
On a page that is a recipe's own (`own`) the name may be left out: `T5.2`, `section 7`, `§6.3`."""
import re
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent/"recipes"

# %% What a citation looks like
_GAP = r"(?:[ ]|\n[ ]*(?!\d+\.[ ]))"  # a blank, or the end of a line that does not begin a list
_WORD = rf"(?:sections?{_GAP}|§§? ?)"
_PAPER = rf"\d{{4}}[a-z]?\)?[,:]?{_GAP}"  # `CVPR 2023, section 3.4` is a section of the paper

def _numbers(letter):
    "One section or several in a row: `T2`, `T3.3, T3.4`, `2 and 4.9`, `S2-S7`; an item may have a letter, as `T9c` has"
    one = rf"{letter}\d{{1,2}}(?:\.\d{{1,2}})*[a-c]?(?![\w%]|\.\d)"
    return rf"{one}(?:(?:,{_GAP}and{_GAP}|,{_GAP}|{_GAP}and{_GAP}|{_GAP}to{_GAP}|-|–){one})*"

def _patterns(name, letter=""):
    """The regular expressions of a recipe: with its name in front, and without it on its own pages.

    Plain numbers without the name need the word `section`, and none is a year's."""
    own = rf"(?<![\w.^-]){_numbers(letter)}" if letter else \
        rf"(?<!\d{{4}}\s)(?<!\d{{4}},\s)(?<!\d{{4}}:\s){_WORD}{_numbers(letter)}"
    between = rf",?{_GAP}\(?{_WORD}?" if letter else rf"(?:,?{_GAP}\(?{_WORD}|{_GAP}\(?)"
    return re.compile(rf"\b{name}{between}{_numbers(letter)}"),re.compile(own)

RECIPES = {  # file -> how it is cited
    "toco": _patterns("ToCo", "T"),
    "tsd_cam": _patterns("TSD-CAM", "S"),
    "cpdgl": _patterns("CPDGL"),
    "tscd": _patterns("TSCD"),
    "i2crc": _patterns("I2CRC"),
    "ktse": _patterns("KTSE"),
    "irn": _patterns("IRN"),
    "beco": _patterns("BECO"),
    "bilateral": _patterns("Bilateral"),
    "densecrf": _patterns("DenseCRF"),
}
OWN = {"tsd_cam": ("tsd_cam", "toco")}  # pages that may leave out the names of two recipes

@dataclass(frozen=True)
class Citation:
    "A section of a recipe that a text names"
    start:int    # where it stands in the text
    end:int
    recipe:str   # a key of `RECIPES`
    section:str  # such as T4.7

def own_recipes(page):
    "The recipes whose own page or module `page` is, a path whose stem is the name of a recipe or 50_name"
    stem = re.sub(r"^\d\d_", "", Path(page).stem)
    return OWN.get(stem, (stem,)) if stem in RECIPES else ()

def citations(text, own=()):
    "Every section that `text` names, in order; `own`: recipes that need no name there"
    found,taken = [],[]
    for recipe,pattern in [*((r, p[0]) for r,p in RECIPES.items()), *((r, RECIPES[r][1]) for r in own)]:
        for m in pattern.finditer(text):
            if any(m.start() < end and start < m.end() for start,end in taken): continue
            taken.append(m.span())
            at,behind = m.start(),m.start() + 5*m[0].startswith("I2CRC")  # this name holds digits
            for n in re.finditer(r"(?<![\w.])[TS]?\d{1,2}(?:\.\d{1,2})*[a-c]?(?=\W|$)", text[behind:m.end()]):
                found.append(Citation(at, behind+n.end(), recipe, n[0]))
                at = behind+n.end()
    return sorted(found, key=lambda c: c.start)

_LIKE = re.compile(rf"""(?<!\w)(?:
      (?P<letter>[TS]\d{{1,2}}(?:\.\d{{1,2}})*)(?![\w.%]|\ ?[×x]\ ?\d)     # T5.2 that no recipe in sight explains
    | (?P<word>(?:{_PAPER})?(?:sections?{_GAP}|§\ ?)[TS]?\d[\d.]*)         # section 7 of what?
    | (?P<file>\w+\.md,?\ (?:§|section\ )?[TS]?\d[\d.]*)                 # toco.md T11
    | (?<=[(;])\ ?(?P<name>(?!VOC|COCO)[A-Z][\w-]*[A-Z\d][\w-]*\ \d{{1,2}}\.\d{{1,2}})(?=[),;])  # (WeTr 3.4)
    )""", re.X)

def strangers(text, own=()):
    "What looks like a citation in `text` and names no recipe that we have"
    for c in reversed(citations(text, own)): text = text[:c.start] + " "*(c.end-c.start) + text[c.end:]
    return [m[0].strip() for m in _LIKE.finditer(text) if not (m["word"] and re.match(_PAPER, m["word"]))]

# %% What a recipe has
def anchor(section):
    "The anchor of a section: T4.7 -> t4-7, 3.10 -> s3-10"
    return ("s" if section[0].isdigit() else "") + section.lower().replace(".", "-")

def _marked(md):
    """Each line of a recipe as (section or None, where its anchor goes, line).

    Sections are headings with a number, items of numbered lists, and rows of tables whose first column counts."""
    heading = r"#{2,4} ([TS]?\d+(?:\.\d+)*)\b"
    fenced,at,rows,seen = False,None,False,set()
    titled = set(re.findall(rf"^{heading}", md, flags=re.M))
    for line in md.split("\n"):
        if line.lstrip().startswith("```"): fenced = not fenced
        section,where = None,0
        if not fenced:
            if m := re.match(heading, line): section = at = m[1]
            elif line.startswith("## "): at = None
            elif at and (m := re.match(r"(\d+)\. ", line)): section,where = f"{at}.{m[1]}",m.end()
            elif at and (m := re.match(r"[-*] \*\*([a-c])\*\* ", line)): section,where = f"{at}{m[1]}",2
            elif (m := re.match(r"\| (\d+(?:\.\d+)*) \|", line)) and at and (rows or m[1].startswith(f"{at}.")):
                section,where = (m[1] if m[1].startswith(f"{at}.") else f"{at}.{m[1]}"),2
            rows = line.startswith("| # |") or rows and line.startswith("|")
        if section in seen or section in titled and not line.startswith("#"): section = None
        seen.add(section)
        yield section,where,line

def sections(md):
    "The sections of a recipe that can be cited"
    return [section for section,_,_ in _marked(md) if section]

def anchored(md):
    "A recipe with an anchor at every section"
    def line(section, where, text):
        mark = f'<a id="{anchor(section)}"></a>' if section else ""
        return f"{mark}\n\n{text}" if section and text.startswith("#") else text[:where] + mark + text[where:]
    return "\n".join(line(*m) for m in _marked(md))

# %% Links
_LEAVE = re.compile("|".join((  # what stays as it is:
    r"^ *```.*?^ *```",                           # blocks of code
    r"^#+ .*?$",                                  # headings
    r"(`+)(?!`).*?(?<!`)\1(?!`)",                 # code in a line
    r"!?\[[^\]]*\]\([^)]*\)(?:\{[^}]*\})?",       # links and pictures
    r"<a [^>]*>.*?</a>", r"<[^>]+>",              # HTML
    r"\$\$.*?\$\$", r"\$[^$\n]+\$")), re.M | re.S)  # formulas
_JOIN = re.compile(r"((?:,\s+and\s+|,\s+|\s+and\s+|\s+to\s+|-|–)?)(.*)", re.S)

def linked(md, up="", own=()):
    """Markdown of a page with a link on every citation outside of code, formulas, headings and links.

    `up` leads from the page to the folder of all pages."""
    def link(text):
        for c in reversed(citations(text, own)):
            join,shown = _JOIN.fullmatch(text[c.start:c.end]).groups()
            target = f"{up}recipes/{c.recipe}.html#{anchor(c.section)}"
            text = f'{text[:c.start]}{join}<a class="nb-cite" href="{target}">{shown}</a>{text[c.end:]}'
        return text
    out,at = [],0
    for m in _LEAVE.finditer(md):
        out += [link(md[at:m.start()]), m[0]]
        at = m.end()
    return "".join([*out, link(md[at:])])
