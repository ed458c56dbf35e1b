"The rules that keep the notebooks a book and the package small: what a reviewer would otherwise have to look for in every change."
import ast,io,json,re,subprocess,sys,tokenize
from functools import cache
from pathlib import Path

import pytest
from notebooks import HIDDEN

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT/"nbs").rglob("[!.]*.ipynb"))
SHORT = ("cli", "evaluate", "experiment", "io")  # modules that are another one under a short name
MODULES = sorted(p for p in (ROOT/"wsss_nb").rglob("*.py") if p.name not in ("__init__.py", "_modidx.py")
                 and p.relative_to(ROOT/"wsss_nb").with_suffix("").as_posix() not in SHORT)
NO_TORCH = ("wsss_nb", "wsss_nb.ground.core", "wsss_nb.ground.io", "wsss_nb.ground.viz", "wsss_nb.data.core",
            "wsss_nb.data.shapes", "wsss_nb.data.folder", "wsss_nb.data.voc",
            "wsss_nb.data.datasets", "wsss_nb.scores.confusion", "wsss_nb.scores.report", "wsss_nb.use.known", "wsss_nb.use.cli")
MACHINE_PATH = re.compile(r"(?<![\w.~<>/])/(?:root|tmp|home|work|Users)/\w")

each_notebook = pytest.mark.parametrize("nb", NOTEBOOKS, ids=lambda p: p.relative_to(ROOT/"nbs").as_posix().removesuffix(".ipynb"))
each_module = pytest.mark.parametrize("module", MODULES, ids=lambda p: p.relative_to(ROOT/"wsss_nb").as_posix())

# %% Reading
def text_of(lines): return "".join(lines)

@cache
def cells_of(nb): return json.loads(nb.read_text(encoding="utf-8"))["cells"]
def code_of(nb): return [text_of(c["source"]) for c in cells_of(nb) if c["cell_type"] == "code"]

def split_cell(source):
    "Return the directives at the head of a cell, such as {'export': ''}, and its code without them"
    head = re.match(r"(?:[ \t]*(?:#\|.*)?\n)*(?:#\|.*$)?", source)[0]
    return dict(re.findall(r"#\| *([\w-]+):? *(.*)", head)),source[len(head):]

def is_exported(source): return not {"export", "exports", "exporti"}.isdisjoint(split_cell(source)[0])

def parse(source):
    "Return the syntax tree of a cell; lines for the shell and magics are left out"
    return ast.parse(re.sub(r"(?m)^(\s*)[!%].*$", r"\1pass", source))

def module_of(nb):
    "Return the module that a notebook exports, without the package's name, or None"
    return next((d["default_exp"] for d,_ in map(split_cell, code_of(nb)) if "default_exp" in d), None)

def room_of(nb): return nb.parent.name if nb.parent.name != "nbs" else ""
def number_of(nb):
    "Return the place of a notebook in the flow of data: the numbers of its room and of itself"
    return tuple(int(part[:2]) for part in (room_of(nb), nb.name)) if room_of(nb) else (-1,-1)
def is_plain(nb):
    "Is it a lesson, which may import from all rooms and exports nothing?"
    return module_of(nb) is None

def own_imports(tree):
    "Return the modules of the package that a syntax tree imports anywhere, without the package's name"
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import): found += [a.name for a in node.names]
        if isinstance(node, ast.ImportFrom) and node.module == "wsss_nb": found += [f"wsss_nb.{a.name}" for a in node.names]
        elif isinstance(node, ast.ImportFrom): found.append(node.module or "")
    return [m.removeprefix("wsss_nb.") for m in found if m.startswith("wsss_nb.")]

# %% Notebooks
@each_notebook
def test_name_is_module(nb):
    "The listing of nbs/ is the table of contents: NN_room/NN_name.ipynb makes wsss_nb/room/name.py"
    if nb == ROOT/"nbs"/"index.ipynb": return
    assert re.fullmatch(r"\d\d_[a-z]+", room_of(nb)) and re.fullmatch(r"\d\d_[a-z]\w*", nb.stem), "name it NN_room/NN_name.ipynb"
    assert is_plain(nb) or module_of(nb) == f"{room_of(nb)[3:]}.{nb.stem[3:]}", f"default_exp says {module_of(nb)}"

def test_numbers_are_unique():
    numbers = [number_of(nb) for nb in NOTEBOOKS]
    assert len(set(numbers)) == len(numbers), [nb.name for nb in NOTEBOOKS]

def test_the_map_names_every_notebook():
    "Each room has a row in the map of the README, with a link to each of its pages"
    index = "".join(text_of(c["source"]) for c in cells_of(ROOT/"nbs"/"index.ipynb"))
    rows = dict(re.findall(r"(?m)^\| `(\d\d_[a-z]+)` \|(.*)$", index))
    linked = {place for row in rows.values() for place in re.findall(r"\]\((\d\d_[a-z]+/\w+)\.ipynb\)", row)}
    pages = {f"{room_of(nb)}/{nb.stem}" for nb in NOTEBOOKS if room_of(nb)}
    assert linked == pages, f"not in the map: {sorted(pages-linked)}; no such page: {sorted(linked-pages)}"
    assert all(place.startswith(f"{room}/") for room,row in rows.items() for place in re.findall(r"\]\(([^)]*)\)", row))

@each_notebook
def test_imports_only_from_lower_rooms_and_numbers(nb):
    place = {module_of(n): number_of(n) for n in NOTEBOOKS if module_of(n)}
    imported = {m for source in code_of(nb) for m in own_imports(parse(source))}
    unknown = imported - place.keys() - {"_modidx", "_lattice"} - (set(SHORT) if is_plain(nb) else set())  # made by nbdev; compiled from ext/
    assert not unknown, f"no notebook exports {sorted(unknown)}"
    late = {m: place[m] for m in imported & place.keys() if not is_plain(nb) and place[m] >= number_of(nb)}
    assert not late, f"{nb.name} imports from notebooks that come later: {late}"

@each_notebook
def test_size(nb): assert nb.stat().st_size <= 2**20, "more than 1 MB: make figures smaller"

def wide(source): return [f"line {i} has {len(line)} columns" for i,line in enumerate(source.split("\n"), 1) if len(line) > 120]

@each_notebook
def test_code_fits_into_120_columns(nb):
    faults = [f"cell {i}: {fault}" for i,c in enumerate(cells_of(nb)) if c["cell_type"] == "code" for fault in wide(text_of(c["source"]))]
    assert not faults, "\n".join(faults)

@pytest.mark.parametrize("module", sorted(p for p in (ROOT/"wsss_nb").rglob("*.py") if p.name != "_modidx.py"), ids=lambda p: p.relative_to(ROOT/"wsss_nb").as_posix())
def test_modules_fit_into_120_columns(module):
    assert not (faults := wide(module.read_text(encoding="utf-8"))), "\n".join(faults)

@each_notebook
def test_frame(nb):
    "A title and a subtitle, which becomes the module's docstring; exercises at the end"
    texts = [text_of(c["source"]) for c in cells_of(nb) if c["cell_type"] == "markdown"]
    assert re.match(r"# .+\n\n> .+", texts[0]), "the first text begins with '# Title', an empty line and '> subtitle'"
    if not is_plain(nb): assert re.search(r"(?m)^## Exercises$", texts[-1]), "the last text holds '## Exercises'"

@each_notebook
def test_no_machine_paths_nor_errors(nb):
    for c in cells_of(nb):
        shown = [text_of(c["source"])]
        for o in c.get("outputs", []):
            assert o["output_type"] != "error", f"a stored error: {o['ename']}: {o['evalue']}"
            shown += [text_of(o.get("text", ""))] + [text_of(v) for k,v in o.get("data", {}).items() if k.startswith("text/")]
        for text in shown:
            if m := MACHINE_PATH.search(text): pytest.fail(f"a path of some machine: {text[max(0, m.start()-60):m.end()+60]!r}")

@pytest.mark.parametrize("source", [*NOTEBOOKS, *MODULES], ids=lambda p: p.relative_to(ROOT).as_posix())
def test_hidden_imports(source):
    "What a package does not import by itself is imported where its full name is written: the process in which the notebooks run has it anyway"
    trees = [parse(c) for c in code_of(source)] if source.suffix == ".ipynb" else [ast.parse(source.read_text(encoding="utf-8"))]
    nodes = [n for tree in trees for n in ast.walk(tree)]
    written = {ast.unparse(n) for n in nodes if isinstance(n, ast.Attribute)} & {*HIDDEN}
    imported = {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
    assert written <= imported, f"import {', '.join(sorted(written-imported))}"

def is_patch(node): return any("patch" in ast.unparse(d) for d in node.decorator_list)
def public(nodes): return [n for n in nodes if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and not n.name.startswith("_")]

def binds(tree):
    "Return the names that a cell makes"
    made = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return made | {n.name for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.ClassDef))}

def reads(tree):
    "Return the names that code reads, and its attributes of a name, as 'name.attribute'; not what it imports, nor words in strings"
    names = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    return names | {f"{n.value.id}.{n.attr}" for n in ast.walk(tree) if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name)}

def asserts(tree):
    "Does code assert something, or call one of fastcore's tests?"
    called = {ast.unparse(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call)}
    return any(isinstance(n, ast.Assert) for n in ast.walk(tree)) or any(name.startswith("test_") for name in called)

def heard(nb):
    "Return the trees of the cells of a notebook, beside exported ones, that assert or show something or make what such a cell reads"
    cells = [(split_cell(text_of(c["source"])), c["outputs"]) for c in cells_of(nb) if c["cell_type"] == "code"]
    cells = [(parse(source), outputs) for (head,source),outputs in cells if not {"export", "exports", "exporti"} & head.keys() and head.get("eval") != "false"]
    found,wanted = [],set()
    for tree,outputs in reversed(cells):
        if not (outputs or asserts(tree) or binds(tree) & wanted): continue
        found.append(tree)
        wanted |= reads(tree)
    return found

def origins(trees):
    "Return where names come from that are imported from the package: {name: (module, its name there)}; the name of a module itself is empty"
    found = {}
    for node in (n for tree in trees for n in ast.walk(tree)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "wsss_nb":
            for a in node.names: found[a.asname or a.name] = (node.module.removeprefix("wsss_nb").removeprefix("."), a.name)
        if isinstance(node, ast.Import):
            for a in node.names: found |= {a.asname: (a.name.removeprefix("wsss_nb."), "")} if a.asname else {}
    return found

@cache
def tried():
    "Return (module, name) of all that notebooks and tests call or read, in code that is heard; a module under a short name is ''"
    found = set()
    def note(tree, come_from, own):
        for name in reads(tree):
            root,_,attribute = name.partition(".")
            module,there = come_from.get(root, (own, root))
            if not attribute: found.add(("" if module in SHORT else module, there))
            elif root in come_from: found.update({(f"{module}.{there}".strip("."), attribute), (module, attribute)})
    for nb in NOTEBOOKS:
        come_from = origins([parse(split_cell(source)[1]) for source in code_of(nb)])
        for tree in heard(nb): note(tree, come_from, module_of(nb))
    for file in (ROOT/"tests").rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        note(tree, origins([tree]), None)
    return found

@pytest.mark.parametrize("code,read", [("f(x)", 1), ("y = [f]", 1), ("# f(x)", 0), ("print('f(x)')", 0), ("import f", 0), ("from m import f", 0), ("f = 1", 0), ("x.f()", 0)])
def test_the_rule_on_names(code, read): assert ("f" in reads(ast.parse(code))) == read

@each_notebook
def test_public_symbols_are_tried(nb):
    "What a notebook exports is called or read by its name, as code, in a cell that asserts or shows something, or that such a cell depends on; or in a test"
    exported = {n.name for source in code_of(nb) if is_exported(source) for n in public(parse(split_cell(source)[1]).body) if not is_patch(n)}
    idle = {name for name in exported if not {(module_of(nb), name), ("", name)} & tried()}
    assert not idle, f"exported, but neither shown nor asserted: {sorted(idle)}"

# %% Modules
@each_module
def test_no_star_imports(module):
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        assert not (isinstance(node, ast.ImportFrom) and node.names[0].name == "*"), f"line {node.lineno}: import what is used, by name"

@each_module
def test_imports_are_used(module):
    tree = ast.parse(module.read_text(encoding="utf-8"))
    brought = {(a.asname or a.name).partition(".")[0] for n in ast.walk(tree) if isinstance(n, (ast.Import, ast.ImportFrom)) for a in n.names}
    unused = brought-{n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
    assert not unused, f"{module.name}: imported and not used: {', '.join(sorted(unused))}; what only the pages' own cells need is imported in a hidden cell"

@each_module
def test_nothing_is_defined_twice(module):
    "The later of two definitions wins silently; patched methods are told apart by their class"
    def names(body):
        for node in body:
            if isinstance(node, ast.ClassDef): yield from (f"{node.name}.{n.name}" for n in node.body if isinstance(n, ast.FunctionDef) and not n.decorator_list)
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)): yield f"{ast.unparse(node.args.args[0].annotation)}.{node.name}" if is_patch(node) else node.name
    found = list(names(ast.parse(module.read_text(encoding="utf-8")).body))
    assert not (twice := {n for n in found if found.count(n) > 1}), f"defined twice: {', '.join(sorted(twice))}"

@cache
def hooks():
    "Return the names of methods that some class of the package has: who overrides one need not document it again"
    classes = [n for m in MODULES for n in ast.walk(ast.parse(m.read_text(encoding="utf-8"))) if isinstance(n, ast.ClassDef)]
    return {"forward"} | {f.name for c in classes for f in c.body if isinstance(f, ast.FunctionDef)}

def uncommented(function, commented):
    "Return the parameters of `function` that have no comment of their own; `commented` holds the lines that have one"
    a = function.args
    params = [p for p in [*a.posonlyargs, *a.args, a.vararg, *a.kwonlyargs, a.kwarg] if p and p.arg not in ("self", "cls")]
    lines = [p.lineno for p in params]
    return [p.arg for p in params if p.lineno not in commented or lines.count(p.lineno) > 1]

@each_module
def test_documented(module):
    "Docstring and docments: one parameter per line, with a comment that says shape, range or unit"
    source = module.read_text(encoding="utf-8")
    comments = [t for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type == tokenize.COMMENT]
    alone = {t.start[0] for t in comments if t.line.lstrip().startswith("#")}  # these speak of the line below
    commented = {t.start[0] for t in comments} | {n+1 for n in alone}
    faults = []
    for node in public(ast.parse(source).body):
        if isinstance(node, ast.FunctionDef) and is_patch(node) and node.name in hooks(): continue
        if not ast.get_docstring(node): faults.append(f"{node.name}: no docstring")
        inits = [n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"] if isinstance(node, ast.ClassDef) else [node]
        faults += [f"{node.name}: no comment on {p}" for f in inits for p in uncommented(f, commented)]
        if isinstance(node, ast.ClassDef) and any("dataclass" in ast.unparse(d) for d in node.decorator_list):
            faults += [f"{node.name}: no comment on {n.target.id}" for n in node.body if isinstance(n, ast.AnnAssign) and n.lineno not in commented]
    assert not faults, "\n".join(faults)

def holds(node, value):
    "Is `node` the number `value`?"
    return isinstance(node, ast.Constant) and type(node.value) is int and node.value == value

COUNTS_CLASSES = re.compile(r"class|cls|fg|channel|label", re.I)
TAKES_A_COUNT = {"Conv2d", "Linear", "one_hot", "bincount", "range", "arange", "zeros", "ones", "full", "randint", "eye"}
TAKES_A_LABEL = {"where", "masked_fill", "masked_fill_"}

def named_values(node):
    "Return the (name, value) pairs that a node makes: keywords, defaults, assignments"
    if isinstance(node, ast.keyword): return [(node.arg or "", node.value)]
    if isinstance(node, ast.Assign): return [(ast.unparse(t), node.value) for t in node.targets]
    if isinstance(node, ast.AnnAssign): return [(ast.unparse(node.target), node.value)]
    if not isinstance(node, ast.arguments): return []
    pairs = [*zip([*node.posonlyargs, *node.args][::-1], node.defaults[::-1]), *zip(node.kwonlyargs, node.kw_defaults)]
    return [(p.arg, default) for p,default in pairs]

def is_bare(node):
    "Does `node` write a number of classes (VOC's 20 and 21) or the label to ignore (255) as a number?"
    if holds(node, 21): return True
    if isinstance(node, ast.Compare):
        return any(isinstance(op, (ast.Eq, ast.NotEq)) for op in node.ops) and any(holds(n, 255) for n in [node.left, *node.comparators])
    if isinstance(node, ast.Call):
        function = ast.unparse(node.func).split(".")[-1]
        return function in TAKES_A_COUNT and any(holds(n, 20) for a in node.args for n in ast.walk(a)) or \
               function in TAKES_A_LABEL and any(holds(n, 255) for n in node.args)
    return any(holds(value, 20) and COUNTS_CLASSES.search(name) or holds(value, 255) and re.search(r"ignore|\[", name, re.I)
               for name,value in named_values(node))

def bare_numbers(source):
    "Return the lines of `source` that `is_bare` finds, the definition of IGNORE_INDEX excepted"
    found = [n for n in ast.walk(ast.parse(source)) if is_bare(n)]
    lines = {n.lineno if hasattr(n, "lineno") else n.args[0].lineno for n in found}
    return [f"{i}: {line.strip()}" for i,line in enumerate(source.split("\n"), 1) if i in lines and not line.startswith("IGNORE_INDEX")]

@each_module
def test_no_bare_class_counts(module):
    "num_fg, num_classes and IGNORE_INDEX have names; 255 is allowed as the largest uint8"
    bad = bare_numbers(module.read_text(encoding="utf-8"))
    assert not bad, "\n".join(bad)

@pytest.mark.parametrize("code,bad", [
    ("x == 255", 1), ("f(x, ignore_index=255)", 1), ("m[0] = 255", 1), ("n = 21", 1), ("def f(x, ignore=255): pass", 1), ("np.where(a, b, 255)", 1),
    ("nn.Conv2d(d, 20, 1)", 1), ("num_fg = 20", 1), ("def f(x, *, num_classes:int=20): pass", 1), ("np.zeros((20, h))", 1),
    ("IGNORE_INDEX = 255", 0), ("x/255", 0), ("np.clip(x, 0, 255)", 0), ("log_every = 20", 0), ("x = 2**20", 0), ("d[8:20]", 0), ("(235,130,20)", 0)])
def test_the_rule_on_numbers(code, bad): assert len(bare_numbers(code)) == bad

# %% The package as its users meet it
def test_light_imports():
    "`--help`, data listings and pictures must not wait for torch"
    modules = NO_TORCH
    code = f"import importlib,sys\nfor m in {modules!r}:\n    importlib.import_module(m)\n    assert 'torch' not in sys.modules, m + ' imports torch'"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]

def setting(key): return re.search(rf"(?m)^{key} = (.*)$", (ROOT/"settings.ini").read_text(encoding="utf-8"))[1]
def readme_lines():
    "Return the command lines in README.md's shell blocks, comments and line continuations resolved"
    blocks = re.findall(r"(?ms)^```(?:sh|bash|console)\n(.*?)^```", (ROOT/"README.md").read_text(encoding="utf-8"))
    lines = "\n".join(blocks).replace("\\\n", " ").split("\n")
    return [line for raw in lines if (line := raw.split(" #")[0].removeprefix("$ ").strip()) and not line.startswith("#")]

def test_readme_commands_exist():
    scripts = dict(s.split("=") for s in setting("console_scripts").split())
    targets = re.findall(r"(?m)^([a-z]+):", (ROOT/"Makefile").read_text(encoding="utf-8"))
    assert readme_lines(), "README.md shows no command"
    for line in readme_lines():
        word,*rest = line.split()
        if word == "make": assert rest[0] in targets, f"`{line}`: the Makefile makes {targets}"
        if word.startswith("wsss-"): assert word in scripts, f"`{line}`: the commands are {list(scripts)}"
        if word == "python" and rest[0].endswith(".py"): assert (ROOT/rest[0]).exists(), f"`{line}`: no such file"

def test_readme_options_exist():
    scripts,helps = dict(s.split("=") for s in setting("console_scripts").split()),{}
    for line in readme_lines():
        word,*rest = line.split()
        if word not in scripts: continue
        command = (word, rest[0]) if word == "wsss-data" else (word,)  # each of its actions has options of its own
        if command not in helps: helps[command] = subprocess.run([Path(sys.executable).with_name(word), *command[1:], "--help"], cwd=ROOT, capture_output=True, text=True).stdout
        missing = [o for w in rest if w.startswith("--") and (o := w.split("=")[0]) not in helps[command]]
        assert not missing, f"`{line}`: {' '.join(command)} --help does not know {missing}"
    assert helps, "README.md shows no command of the package"

def test_readme_links_lead_somewhere():
    targets = re.findall(r"\]\((?!\w+:|#)([^)#]+)", (ROOT/"README.md").read_text(encoding="utf-8"))
    assert targets
    for target in targets: assert (ROOT/target).exists(), f"README.md points to {target}, which does not exist"
