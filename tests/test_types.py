"""What signatures promise. Every annotation of the package is a type that exists; every default, every field and
what is returned fit it.

Two looks at the same thing: Python itself, which sees what `patch` and decorators made, and mypy, which reads bodies
too. Of mypy's findings those count that stand on a signature or a field, or are about what is returned: the rest is
mostly about attributes that torch and `patch` add where mypy cannot see it."""
import ast
import dataclasses
import inspect
import re
import subprocess
import sys
import types
import typing
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(p.relative_to(ROOT) for p in (ROOT/"wsss_nb").rglob("*.py")
               if p.name not in ("__init__.py", "_modidx.py"))

IN_ROOMS = [".".join(f.with_suffix("").parts) for f in FILES if len(f.parts) == 3]

# Modules that are being rewritten, and do not hold yet. Whoever mends one takes it off this list.
PENDING = {}

# %% What Python sees
def fits(value, hint):
    "May `value` stand where `hint` is written? What cannot be decided from the value alone counts as yes"
    origin,inner = typing.get_origin(hint),typing.get_args(hint)
    if hint is typing.Any or isinstance(hint, typing.TypeVar): return True
    if hint is None: return value is None
    if origin is typing.Annotated: return fits(value, inner[0])
    if origin in (typing.Union, types.UnionType): return any(fits(value, h) for h in inner)
    if origin is typing.Literal: return value in inner
    if hint is Callable or origin is Callable: return callable(value)
    if hint is float: return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int: return isinstance(value, int) and not isinstance(value, bool)
    if not isinstance(value, origin or hint): return False
    if origin is tuple and inner[-1:] != (...,): return len(value) == len(inner) and all(map(fits, value, inner))
    if origin is dict: return all(fits(k, inner[0]) and fits(v, inner[1]) for k,v in value.items())
    if inner and isinstance(value, (list, tuple, set)): return all(fits(v, inner[0]) for v in value)
    return True

def made(cls, method):
    "Was a method made from fields, which are looked at by themselves?"
    return method == "__init__" and dataclasses.is_dataclass(cls) or method == "__new__" and hasattr(cls, "_fields")

def defaults_of(x):
    "Return the defaults of the parameters of a function, or of the fields of a class"
    if dataclasses.is_dataclass(x):
        return {f.name: f.default for f in dataclasses.fields(x) if f.default is not dataclasses.MISSING}
    if hasattr(x, "_fields"): return x._field_defaults
    if inspect.isclass(x): return {k: v for k,v in vars(x).items() if not callable(v) and not isinstance(v, property)}
    return {k: p.default for k,p in inspect.signature(x).parameters.items() if p.default is not p.empty}

def functions(module):
    "Yield (name, function or class) of all that a module defines, methods and patched methods too"
    def own(x): return getattr(x, "__module__", None) == module.__name__
    for name,x in vars(module).items():
        if inspect.isclass(x) and own(x):
            yield name,x
            for k,f in vars(x).items():
                f = getattr(f, "__func__", getattr(f, "fget", f))
                if inspect.isfunction(f) and own(f) and not made(x, k): yield f"{name}.{k}",f
        elif inspect.isfunction(x := inspect.unwrap(x) if callable(x) else x) and own(x): yield name,x

def faults(module):
    "Return what is wrong with the annotations of a module, a line each"
    found = []
    for name,x in functions(module):
        try: hints = typing.get_type_hints(x, include_extras=True)
        except (NameError, AttributeError, TypeError) as e:
            found.append(f"{name}: {e}")
            continue
        wrong = {k: v for k,v in defaults_of(x).items() if k in hints and not fits(v, hints[k])}
        found += [f"{name}: {k} is {hints[k]}, its default {v!r}" for k,v in wrong.items()]
    return found

@pytest.mark.parametrize("name", IN_ROOMS)
def test_annotations(name):
    found = faults(import_module(name))
    if found and name in PENDING: pytest.xfail(PENDING[name])
    assert not found, "\n".join(found)

@pytest.mark.parametrize("value,hint,good", [
    (None, int, False), (None, int|None, True), (1, float, True), (True, int, False), ("a", int|str, True),
    ((1, 2), tuple[int,int], True),
    ((1, 2, 3), tuple[int,int], False), ((1, 2.), tuple[int,...], False), ([1], list[str], False),
    (1, typing.Literal[1,2], True),
    (3, typing.Literal[1,2], False), (len, Callable, True), (None, Callable, False), ({"a": 1}, dict[str,int], True),
    (None, typing.Annotated[str,"x"], False)])
def test_fits(value, hint, good): assert fits(value, hint) == good

def test_faults_are_found():
    "`x:int=None`, a type that does not exist, a field that does not fit"
    module = types.ModuleType("wrong")
    source = "class A:\n    x:int = None\ndef f(x:int=None): pass\ndef g(x:'Tensr'): pass\ndef h(x:int=1)->'A': pass"
    exec(source, vars(module))
    for x in ("A", "f", "g", "h"): getattr(module, x).__module__ = "wrong"
    found = faults(module)
    assert [line.split(":")[0] for line in found] == ["A", "f", "g"] and "'Tensr' is not defined" in found[2], found

# %% What mypy reads
ABOUT_RESULTS = {"return", "return-value", "empty-body"}
# What mypy cannot know: how many there are in `tuple(... for
# ...)`; that a sum of tensors which begins with 0 is a tensor.
LIMITS = re.compile(r'got "tuple\[(\w+), \.\.\.\]", expected "tuple\[\1(, \1)+\]"|got "int", expected "Tensor"')
# A loop that runs at least once, as an error above it sees to.
AT_LEAST_ONCE = "wsss_nb/networks/decoders.py", 'got "Any | Tensor | None", expected "Tensor"'

def place(node): return node.lineno,node.col_offset+1

@cache
def promises(source):
    "Return where signatures, annotated fields and constants begin and end: pairs of (line, column)"
    nodes = list(ast.walk(ast.parse(source)))
    fields = [f for n in nodes if isinstance(n, (ast.Module, ast.ClassDef)) for f in n.body
              if isinstance(f, ast.AnnAssign)]
    return [(place(n), place(n.body[0])) for n in nodes if isinstance(n, ast.FunctionDef)] + \
           [(place(f), (f.end_lineno, f.end_col_offset+1)) for f in fields]

def broken_promises(root, *files):
    "Return mypy's findings in `files` below `root` that are about signatures, fields and results"
    command = [sys.executable, "-m", "mypy", "--config-file", ROOT/"pyproject.toml", *files]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stdout+done.stderr
    found = re.findall(r"(?m)^((\S+?):(\d+):(\d+): error: .* \[([\w-]+)\])$", done.stdout)
    def counts(file, at, code):
        return code in ABOUT_RESULTS or any(a <= at < b for a,b in promises((root/file).read_text(encoding="utf-8")))
    return [said for said,file,line,column,code in found if counts(file, (int(line), int(column)), code)]

def test_mypy():
    pytest.importorskip("mypy")
    files = {f"wsss_nb/{name.removeprefix('wsss_nb.').replace('.', '/')}.py": name for name in IN_ROOMS}
    found = [said for said in broken_promises(ROOT, *FILES) if not LIMITS.search(said)]
    found = [said for said in found if not (said.startswith(AT_LEAST_ONCE[0]) and AT_LEAST_ONCE[1] in said)]
    mended = PENDING.keys()-{files.get(said.partition(":")[0]) for said in found}
    assert not mended, f"take {mended} off PENDING"
    found = [said for said in found if files.get(said.partition(":")[0]) not in PENDING]
    assert not found, "\n".join(found)

def test_mypy_finds_faults(tmp_path):
    pytest.importorskip("mypy")
    lines = ["def a(x:int=None): return x", "def b(x:'Tensr'): return x", "def c()->int: return 'one'",
             "def d(x:int): x.y = 1",
             "class E:", "    x:int = None"]
    (tmp_path/"wrong.py").write_text("\n".join(lines), encoding="utf-8")
    assert [int(said.split(":")[1]) for said in broken_promises(tmp_path, "wrong.py")] == [1, 2, 3, 6]
