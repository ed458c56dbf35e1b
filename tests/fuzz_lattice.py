"""Fuzz the compiled lattice under AddressSanitizer and UndefinedBehaviorSanitizer.

    python tests/fuzz_lattice.py [--seconds 300] [--seed 0] [--sanitizer address,undefined | thread]

Builds ext/ with the sanitizers into a temporary folder and, in a process that loads them first, calls everything
with random shapes, values, types, layouts and thread counts, good and bad. Fails if a sanitizer complains, if
something other than a ValueError comes out, if a result is not finite, or if two numbers of threads give different
bits. Leaks are looked for by test_lattice_ext.py, since the interpreter itself never frees all.
"""
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


def why_not(sanitizer="address,undefined"):
    "Why the sanitizers cannot be used here; None if they can"
    cxx = os.environ.get("CXX", "g++")
    if sys.platform != "linux": return "only on Linux"
    if not shutil.which(cxx): return f"no {cxx}"
    try: import pybind11  # noqa: F401
    except ImportError: return "pybind11 is not installed"
    for lib in runtimes(sanitizer):
        if not Path(lib).is_absolute(): return f"{cxx} has no {lib}"


def runtimes(sanitizer):
    "The libraries to load first"
    names = {"address": "libasan.so", "undefined": "libubsan.so", "thread": "libtsan.so"}
    return [subprocess.run([os.environ.get("CXX", "g++"), f"-print-file-name={names[s]}"], capture_output=True,
                           text=True).stdout.strip() for s in sanitizer.split(",")]


def build(folder, sanitizer):
    "Compile the extension for `sanitizer` into `folder`, assertions of the standard library on"
    import pybind11

    flags = [
        "-O1",
        "-g1",
        "-std=c++17",
        "-fPIC",
        "-ffp-contract=off",
        "-pthread",
        "-fvisibility=hidden",
        f"-fsanitize={sanitizer}",
        "-fno-sanitize-recover=all",
        "-fno-omit-frame-pointer",
        "-D_GLIBCXX_ASSERTIONS",
        f"-I{pybind11.get_include()}",
        f"-I{sysconfig.get_paths()['include']}",
    ]
    cxx, x86 = os.environ.get("CXX", "g++"), os.uname().machine == "x86_64"
    jobs = [subprocess.Popen([cxx, *flags, *(["-mavx2", "-mfma"] if x86 and "avx2" in s.stem else []), "-c", s, "-o",
                              Path(folder)/f"{s.stem}.o"]) for s in sorted((ROOT/"ext").glob("*.cpp"))]
    if any(j.wait() for j in jobs): raise SystemExit("does not compile")
    out = Path(folder)/f"_lattice{sysconfig.get_config_var('EXT_SUFFIX')}"
    subprocess.run([cxx, "-shared", f"-fsanitize={sanitizer}", "-pthread", *sorted(Path(folder).glob("*.o")), "-o",
                    out], check=True)


def fuzz(seconds, seed):
    "The calls; runs in the process that has the sanitizers"
    import numpy as np
    import _lattice as ext
    rng = np.random.RandomState(seed)
    counts = {"ok": 0, "refused": 0}
    def pick(*options): return options[rng.randint(len(options))]
    def size(): return int(pick(1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, rng.randint(1, 90)))
    def floats(*shape):
        "Mostly harmless numbers; sometimes of another type, layout, or with something bad inside"
        x = (rng.randn(*shape) if rng.rand() < .5
             else rng.rand(*shape))*float(pick(0, 1e-40, 1e-3, 1, 1, 1, 30, 255, 255, 1e4, 1e9, 1e37))
        x = x.astype(pick(np.float32, np.float32, np.float32, np.float32, np.float64, ">f4"))
        if rng.rand() < .03 and x.size: x.flat[rng.randint(x.size)] = pick(np.nan, np.inf, -np.inf)
        if rng.rand() < .02:
            x = np.nan_to_num(x).clip(-1e3, 1e3).astype(pick(np.int32, np.uint8, np.complex64, bool), casting="unsafe")
        if rng.rand() < .02: x = pick(x[None], x.ravel(), x[:0], x.tolist(), None)
        if isinstance(x, np.ndarray) and x.ndim and rng.rand() < .15:
            x = pick(np.asfortranarray, lambda v: np.repeat(v, 2, -1)[..., ::2],
                     lambda v: np.ascontiguousarray(v[::-1])[::-1], lambda v: np.broadcast_to(v[:1], v.shape))(x)
        return x
    def threads(): return int(pick(1, 1, 2, 3, 4, 9, 9, pick(0, -1, 70)))
    def sigma(): return float(pick(1e-3, .3, 1, 3, 15, 50, 80, 1e6, pick(0., -1., np.nan, np.inf, 1e-30, 1e300)))
    def either(x, one_thread):
        "Compare with one thread, in bits"
        for a, b in zip(*(v if isinstance(v, (tuple, list)) else (v,) for v in (x, one_thread()))):
            assert np.array_equal(a, b, equal_nan=True), "threads change the result"
        return x
    def tame(*arrays):
        return all(isinstance(a, np.ndarray) and a.dtype.kind == "f" and (np.abs(a) < 1e6).all() for a in arrays)
    def finite(ok, *results): assert not ok or all(np.isfinite(r).all() for r in results), "not finite"

    def lattice():
        d, n = rng.randint(1, 10), size()*pick(1, 1, 7)
        f, v, t = floats(n, d), floats(size() % 40+1, n if rng.rand() < .97 else n+1), threads()
        x = ext.Lattice(f, pad_to=pick(4, 4, 0, 1, 2, 8, 3), threads=t)
        assert x.vertex_keys().shape == (x.num_vertices, x.dim) and x.offset().max() < x.num_vertices
        assert x.neighbours().max() < x.num_vertices and np.isfinite(x.barycentric()).all()
        back = bool(rng.randint(2))
        finite(tame(v), either(x.filter(v, reverse=back, threads=t), lambda: x.filter(v, reverse=back)))
    def filtered():
        b, k, h, w = rng.randint(1, 4), size() % 50+1, size(), size()
        args = floats(b, 3, h, w), floats(b, k, h, w+(rng.rand() < .02)), sigma(), sigma()
        t = threads()
        finite(tame(*args[:2]), either(ext.bilateral_filter(*args, threads=t), lambda: ext.bilateral_filter(*args)))
    def energy():
        b, k, h, w = rng.randint(1, 4), size() % 50+1, size(), size()
        free = pick(None, rng.rand(b, h, w) < .5, rng.randint(0, 256, (b, h, w)).astype(np.uint8), floats(b, h, w),
                    rng.rand(b, w, h) < .5)
        args, t = (floats(b, 3, h, w), floats(b, k, h, w), floats(b, h, w), free, sigma(), sigma()), threads()
        finite(tame(*args[:3]), *either(ext.energy(*args, threads=t), lambda: ext.energy(*args)))
    def halved():
        b, k, h, w = rng.randint(1, 4), size() % 50+1, 2*size(), 2*size()
        x, g, t = floats(b, k, h+(rng.rand() < .02), w), floats(b, k, h//2, w//2), threads()
        r = pick(None, None, floats(b, h//2, w//2))
        finite(tame(x), either(ext.halve_softmax(x, threads=t), lambda: ext.halve_softmax(x)))
        finite(tame(x, g) and (r is None or tame(r)), either(ext.halve_softmax_backward(x, g, r, 2., threads=t),
                                                             lambda: ext.halve_softmax_backward(x, g, r, 2.)))
    def crf():
        k, h, w = size() % 50+1, size(), size()
        def term():
            compat = pick(3., -1, 0., rng.randn(k), rng.randn(k, k).astype(np.float32), floats(k),
                          pick("x", rng.randn(k+1), None, [1, 2]))
            common = dict(compat=compat, normalization=pick(3, 3, 0, 1, 2, pick(4, "x", 1.5)))
            return pick(dict(kind="gaussian", sxy=pick(sigma(), (sigma(), sigma()))),
                        dict(kind="bilateral", sxy=sigma(), srgb=pick(sigma(), (sigma(), 5, 9.))),
                        dict(kind="features", features=floats(h*w, rng.randint(1, 7))),
                        pick({}, dict(kind="gaussian", sxy=(1, 2, 3)), dict(kind="bilateral", sxy=3))) | common
        image = rng.randint(0, 256, (h, w, 3)).astype(np.uint8)
        if rng.rand() < .1:
            image = pick(image[::-1, ::-1], image.astype(int), image[1:], None, np.asfortranarray(image))
        t = threads()
        x = ext.CRF(h, w, [term() for _ in range(rng.randint(0, 4))], image, pad_to=pick(4, 4, 0), threads=t)
        u, iters = floats(k, h*w), int(pick(0, 1, 2, 5, 5, -1))
        if rng.rand() < .3 and isinstance(u, np.ndarray) and u.ndim == 2 and k > 2:
            u = np.where((np.arange(k) > 1)[:, None], np.float32(11.5), u).astype(np.float32)
        q = either(x.infer(u, iters, threads=t), lambda: x.infer(u, iters))
        labels = x.infer(u, iters, threads=t, labels=True)
        assert labels.shape == (h*w,) and labels.min() >= 0 and labels.max() < k
        if x.num_vertices: x.apply(rng.randint(len(x.num_vertices)+1), q, transpose=bool(rng.randint(2)), threads=t)
    def colours():
        x = rng.randint(0, 256, (size()*pick(1, 7), size(), 3)).astype(np.uint8)
        if rng.rand() < .2:
            x = pick(x[::-1, ::-1], x[..., ::-1], x[:0], x[:, :0], np.asfortranarray(x), x.astype(int),
                     x[..., :2], x.tolist())
        turned, mean = ext.turn_hue(x, int(pick(0, 1, 127, 255, rng.randint(256), pick(-1, 256)))), ext.grey_mean(x)
        faded = ext.fade(x, float(pick(0, 1, .5, 2*rng.rand(), -3, 1e9, -1e30, pick(np.nan, np.inf))),
                         pick(None, None, 0, 255, rng.randint(256), pick(-1, 256)))
        assert turned.shape == faded.shape == x.shape and 0 <= mean <= 255

    def refined():
        b, c, h, w = rng.randint(1, 4), size() % 23+1, size(), size()
        far = [int(pick(1, 2, 5, 24, 0, 10**9, rng.randint(1, 90), pick(-1, 1))) for _ in range(rng.randint(1, 7))]
        x, m = np.abs(rng.rand(b, 3, h, w)).astype(np.float32), floats(b, c, h, w+(rng.rand() < .02))
        if rng.rand() < .3: x = floats(b, 3, h, w)
        close = [float(pick(0, .01, rng.rand())) for _ in range(8*len(far)-(rng.rand() < .02))]
        change = float(pick(0, .01, -1, pick(0, np.nan)))
        args = x, m, far, int(pick(0, 1, 2, 3, pick(-1, 10**6))), sigma(), close, change
        t, ordinary = threads(), tame(m) and tame(x) and x.min() >= 0 and x.max() <= 1 and .1 < args[4] < 100
        finite(ordinary, either(ext.refine(*args, threads=t), lambda: ext.refine(*args)))

    end, calls = time.monotonic()+seconds, (lattice, filtered, energy, halved, crf, colours, refined)
    while time.monotonic() < end:
        state, call = rng.get_state(), pick(*calls)
        try:
            call()
            counts["ok"] += 1
        except ValueError: counts["refused"] += 1
        except BaseException:
            print(f"{call.__name__} failed, call {sum(counts.values())} of seed {seed}, state[2]={state[2]}",
                  file=sys.stderr)
            raise
        if rng.rand() < .01: ext.release_memory()
    print(f"{sum(counts.values())} calls: {counts['ok']} answered, {counts['refused']} refused")
    assert counts["ok"] and counts["refused"]


def run(seconds=300, seed=0, sanitizer="address,undefined"):
    "Build, fuzz in a child; return the finished process"
    with tempfile.TemporaryDirectory() as folder:
        build(folder, sanitizer)
        env = os.environ | {"LD_PRELOAD": " ".join(runtimes(sanitizer)), "PYTHONPATH": folder,
                            "OPENBLAS_NUM_THREADS": "1", "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
                            "UBSAN_OPTIONS": "print_stacktrace=1",
                            "TSAN_OPTIONS": "halt_on_error=1:report_signal_unsafe=0"}
        return subprocess.run([sys.executable, __file__, "--child", "--seconds", str(seconds), "--seed", str(seed)],
                              env=env, capture_output=True, text=True)


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--seconds", type=float, default=300)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--sanitizer", default="address,undefined")
    p.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.child: return fuzz(args.seconds, args.seed)
    if why := why_not(args.sanitizer): raise SystemExit(why)
    done = run(args.seconds, args.seed, args.sanitizer)
    print(done.stdout, done.stderr[-8000:], sep="")
    raise SystemExit(done.returncode)


if __name__ == "__main__": main()
