"""What is released, as its users meet it: `make release-check`, or `python tests/release_check.py [--offline]
[--keep]`.

From the last commit, in a temporary folder: an sdist; a wheel of it with a compiler, and one where there is none;
sdist and wheel installed into fresh environments, again with and without a compiler. In each the tests below run,
from a folder outside of the checkout, and `test_installed.py` asserts that it is the installed package which they
import.

A fresh environment has pip's packages of the one that runs this (torch and the rest are large) behind its own: a
`.pth` file names their folder. `.pth` files inside that folder count for nothing there, so that a package installed
in place stays unseen. What is needed and lacks pip fetches. Sdist and wheel are built in isolation, for which pip
needs setuptools and pybind11; with `--offline` those of this environment serve and nothing is fetched."""
import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Tests that need neither notebooks nor site: commands, files of
# the package, numbers with and without the compiled lattice.
TESTS = ("test_installed.py", "test_commands.py", "test_old_runs.py", "test_golden_densecrf.py",
         "test_golden_bilateral.py",
         "test_lattice_ext.py", "test_colours.py", "test_par.py")
KINDS = {"compiled": {}, "plain": {"CC": "/no/such/cc", "CXX": "/no/such/c++"}}


def run(*command, env=None, **kw):
    "Run a command; its output is shown if it fails"
    own = {k: v for k,v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run([str(c) for c in command], env=own | (env or {}), stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT,
                          text=True, **kw)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}\nrelease-check: failed, status {done.returncode}")
    return done.stdout

def fresh(folder):
    "Make an environment and return its interpreter"
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    python = folder/"bin"/"python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (site/"shared.pth").write_text(sysconfig.get_path("purelib")+"\n")
    return python

def check(name, package, kind, work, flags):
    "Install a package into a fresh environment and run the tests there"
    begin,python = time.perf_counter(),fresh(work/name)
    run(sys.executable, "-m", "pip", "--python", python, "install", "-q", *flags, package, cwd=work, env=KINDS[kind])
    said = run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(work/"tests"/t for t in TESTS),
               cwd=work/"elsewhere",
               env=KINDS[kind] | {"WSSS_INSTALLED": kind})
    print(f"{name:16} {said.strip().splitlines()[-1]}; {time.perf_counter()-begin:.0f} s in all", flush=True)

def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--offline", action="store_true", help="build without isolation, and let pip fetch nothing")
    parser.add_argument("--keep", action="store_true", help="leave the temporary folder")
    args = parser.parse_args()
    flags = ["--no-build-isolation", "--no-index"] if args.offline else []
    begin,work = time.perf_counter(),Path(tempfile.mkdtemp(prefix="release-"))
    try:
        if run("git", "-C", ROOT, "status", "--porcelain", "-uno"): print("note: what is not committed is not in it")
        (work/"src").mkdir()
        run("git", "-C", ROOT, "archive", "-o", work/"src.tar", "HEAD")
        run("tar", "-x", "-C", work/"src", "-f", work/"src.tar")
        isolation = ["--no-isolation"] if args.offline else []
        run(sys.executable, "-m", "build", "--sdist", *isolation, "--outdir", work/"dist", work/"src")
        sdist, = (work/"dist").iterdir()
        (work/"src"/"tests").rename(work/"tests")
        (work/"elsewhere").mkdir()
        for kind in KINDS:
            run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", *flags, "-w", work/kind, sdist, cwd=work,
                env=KINDS[kind])
            wheel, = (work/kind).iterdir()
            check(f"wheel-{kind}", wheel, kind, work, flags)
            check(f"sdist-{kind}", sdist, kind, work, flags)
        print(f"release-check: {sdist.name} and wheels pass, {time.perf_counter()-begin:.0f} s")
    finally:
        if args.keep: print(work)
        else: shutil.rmtree(work)

if __name__ == "__main__": main()
