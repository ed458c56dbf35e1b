"""The code blocks of README.md and of the pages of the site, and the commands in them, as they stand there.

A page is found by what the site is made from: README.md (nbs/index.ipynb is its source), CONTRIBUTING.md, CHANGELOG.md,
the recipes, the text of every notebook in a room, and the page of troubles, whose rows stand beside their tests."""
import json
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT/"docs"))
import troubles  # noqa: E402

# What may stand behind the three marks of a block. What nobody types, such as output and diagrams, is text.
KINDS = ("sh", "python", "toml", "text")
PROGRAMS = ("wsss-", "make ", "python ", "pip ", "torchrun ", "accelerate ", "sbatch ", "jupyter ", "git ", "source ",
            "pytest ", "nbdev-", "sh ", ".venv/", "$ ")

@dataclass(frozen=True)
class Block:
    "A code block: where it stands, which of its page it is, its tag, its lines"
    page: str
    number: int
    kind: str
    text: str
    def __str__(self):
        told = re.sub(r"[^\w./+-]+", " ", self.text).split()[:3]
        return f"{self.page} {self.number}: {' '.join(told)}"


def pages():
    "Return {page: its pieces of Markdown}"
    plain = [ROOT/name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    plain += sorted((ROOT/"docs"/"recipes").glob("*.md"))
    found = {path.relative_to(ROOT).as_posix(): [path.read_text(encoding="utf-8")] for path in plain}
    for path in sorted((ROOT/"nbs").glob("[0-9][0-9]_*/[0-9][0-9]_*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        found[path.relative_to(ROOT).as_posix()] = ["".join(c["source"]) for c in cells if c["cell_type"] == "markdown"]
    return found | {"docs/troubles.py": [troubles.page()]}

def split(text):
    "Return the code blocks of a Markdown text, (tag, lines), and the text without them; tag None: by indentation alone"
    blocks,rest,fence,item = [],[],None,False
    for line in text.split("\n"):
        mark = re.match(r"( *)(`{3,}|~{3,})(.*)$", line)
        if fence:
            if mark and mark[2].startswith(fence[2]) and not mark[3].strip(): fence = None
            else: blocks[-1][1].append(line[min(len(fence[1]), len(line)-len(line.lstrip())):])
            continue
        if mark:
            fence = mark
            blocks.append((mark[3].strip(), []))
            continue
        if line.strip() and not line.startswith(" "): item = bool(re.match(r"([*+-]|\d+\.) ", line))
        indented = re.match(r"(?: {4}|\t)", line) and not item
        if indented and rest[-1:] in ([], [""]): blocks.append((None, [line]))
        else: rest.append(line)
    return [(tag, "\n".join(lines)+"\n") for tag,lines in blocks],"\n".join(rest)

def blocks():
    "Return all code blocks"
    found = []
    for page,pieces in pages().items():
        own = [b for piece in pieces for b in split(piece)[0]]
        found += [Block(page, n, kind, text) for n,(kind,text) in enumerate(own, 1)]
    return found

def spans():
    "Return (page, text) of what stands in a line between backticks and begins with a command of the kit and a word"
    found = []
    for page,pieces in pages().items():
        for piece in pieces:
            texts = [m[2] for m in re.finditer(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", split(piece)[1], re.DOTALL)]
            found += [(page, " ".join(t.split())) for t in texts if re.match(r"wsss-\w+\s+\S", t)]
    return found

def commands(text):
    "Return the commands of a shell block, a list of words each; signs of a shell other than && are refused"
    found = []
    for line in text.replace("\\\n", " ").split("\n"):
        lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;<>$`")
        lexer.whitespace_split,words = True,[[]]
        for word in lexer:
            if word == "&&": words.append([])
            elif re.fullmatch(r"[&|;<>$`]+", word): raise ValueError(f"{line}: {word} is unknown here")
            else: words[-1].append(word)
        found += [w for w in words if w]
    return found
