"""Requirements, extras and console scripts are declared once, in settings.ini; the static facts are in pyproject.toml.
Here the lattice in ext/ is compiled, if it can be."""
import platform
import sys
from configparser import ConfigParser
from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension, build_ext
from setuptools import setup

if platform.system() == "Windows": sys.exit("wsss_nb runs on Linux and macOS, not on Windows (WSL is Linux)")

cfg = ConfigParser(delimiters=["="], interpolation=None)
cfg.read(Path(__file__).parent / "settings.ini", encoding="utf-8")
cfg = cfg["DEFAULT"]
lib = cfg["lib_path"]

class build_lattice(build_ext):
    "One source is compiled for AVX2 on x86-64 and chosen at run time, so that a wheel runs on any processor"
    def build_extension(self, ext):
        compile = self.compiler._compile
        avx2 = ["-mavx2", "-mfma"] if platform.machine().lower() in ("x86_64", "amd64") else []
        def one(obj, src, suffix, cc_args, extra, pp_opts):
            return compile(obj, src, suffix, cc_args, extra + (avx2 if "avx2" in Path(src).stem else []), pp_opts)
        self.compiler._compile = one
        try: super().build_extension(ext)
        finally: self.compiler._compile = compile

lattice = Pybind11Extension(
    f"{lib}._lattice",
    [f"ext/{name}.cpp" for name in ("module", "kernels_base", "kernels_avx2")],
    include_dirs=["ext"], depends=sorted(map(str, Path("ext").glob("*.[hi]*"))), cxx_std=17,
    extra_compile_args=["-O3", "-ffp-contract=off", "-pthread"], extra_link_args=["-pthread"],
    optional=True)  # without a compiler the kit works in plain PyTorch

setup(
    classifiers=[
        "Development Status :: " + cfg["status"],
        "Operating System :: POSIX :: Linux",
        "Operating System :: MacOS",
        "Programming Language :: Python :: 3"],
    install_requires=cfg["requirements"].split(),
    extras_require={k: cfg[f"{k}_requirements"].split() for k in ("dev", "docs", "data", "crf")},
    entry_points={"console_scripts": cfg["console_scripts"].split(), "nbdev": [f"{lib}={lib}._modidx:d"]},
    package_data={lib: ["assets/*"]},
    ext_modules=[lattice], cmdclass={"build_ext": build_lattice},
    zip_safe=False)
