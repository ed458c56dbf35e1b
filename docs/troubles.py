"""The page "What can go wrong with your data": a row for every test that is marked `trouble(symptom, cause, command)`.

So each row is proved by the test it was written beside, and goes when the test goes."""
import ast
from pathlib import Path

TESTS = Path(__file__).parent.parent/"tests"
LEAD = """# What can go wrong with your data

Look for what you see on the left; `wsss-data check FOLDER` finds most of it before a training does. Each row is what a
test of the kit tries with files of that kind.

| what you see | what it comes from | what to do |
|---|---|---|
"""

def _is_trouble(node): return isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.trouble"

def rows():
    "The three texts of each marked test, in the order of the files"
    found = []
    for path in sorted(TESTS.glob("test_users_*.py")):
        for test in ast.parse(path.read_text(encoding="utf-8")).body:
            marks = filter(_is_trouble, getattr(test, "decorator_list", ()))
            found += [tuple(ast.literal_eval(a) for a in mark.args) for mark in marks]
    return found

def page():
    "The page in Markdown"
    return LEAD + "".join("| {} |\n".format(" | ".join(s.replace("|", "\\|") for s in row)) for row in rows())
