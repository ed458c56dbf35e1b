"""Every file of benchmarks/ runs

The smallest case of each, smaller still where sizes can be set, once and without the memory of fresh processes. What
is measured here says nothing; that both sides agree does."""
import ast
import importlib
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import cv2
import pytest
import torch
from commands import SMALL

from wsss_nb.ground.core import UserError
from wsss_nb.run.folder import Run

FOLDER = Path(__file__).parent.parent/"benchmarks"
FILES = sorted(p.stem for p in FOLDER.glob("*.py"))
# what each is run with: options, and globals of the file that make it smaller
CASES = {
    "beco_step": ({"backbone": "resnet_toy", "crop": 64, "batch": 2, "threads": 1}, {}),
    "affinity": ({"only": "head-32", "threads": 1}, {"HEADS": 4}),
    "cam": ({"only": "cam-toy-112-b1", "threads": 1}, {}),
    "crf": ({"only": "crf-500x375-3-80-13", "threads": 1}, {"HEIGHT": 45, "WIDTH": 60}),
    "ktse_step": ({"batch": 4, "crop": 96, "threads": 1}, {}),
    "irn_step": ({"only": "step-irn-resnet_toy", "threads": 1}, {"CROP": 64}),
    "lattice": ({"only": "filter-256-2-b1", "threads": 1}, {}),
    "loader": ({"images": 2, "crop": 64}, {}),
    "par": ({"threads": 1}, {"CASES": ("par-32x32-2-b1", "aprm-40x40-3-b2")}),
    "seeds_stage": ({"images": 2, "only": "seeds-toy-112", "threads": 1}, {}),
    "step_options": ({"methods": "baseline", "backbones": "vit_toy", "crop": 64, "device": "cpu", "only": "fused"}, {}),
    "walk": ({"only": "walk-112x112", "threads": 1}, {}),
}
ELSEWHERE = {"all", "evaluate", "explorer", "gpu_step", "processes", "train_step"}  # tests of their own, below
# of train_step and others
PARTS = {"literal", "roofline", *(f"literal_{k}" for k in ("beco", "cpdgl", "irn", "ktse", "tscd"))}


@pytest.fixture
def benchmark(monkeypatch):
    "Return a function that imports a file of benchmarks/, which is forgotten again, like the number of threads it sets"
    monkeypatch.syspath_prepend(FOLDER)
    threads, before = (torch.get_num_threads(), cv2.getNumThreads()), set(sys.modules)
    yield importlib.import_module
    torch.set_num_threads(threads[0]), cv2.setNumThreads(threads[1])
    for name in set(FILES) & set(sys.modules)-before: del sys.modules[name]


def test_all_are_tried(): assert set(FILES) == {*CASES, *ELSEWHERE, *PARTS}


@pytest.mark.parametrize("name", CASES)
def test_smallest_case(benchmark, monkeypatch, tmp_path, name):
    if name == "crf": pytest.importorskip("pydensecrf", reason="pydensecrf is not installed: pip install -e '.[crf]'")
    module, (options, smaller) = benchmark(name), CASES[name]
    for k, v in smaller.items(): monkeypatch.setattr(module, k, v)
    if hasattr(module, "memory_of"): monkeypatch.setattr(module, "memory_of", lambda *args, **options: 1)
    module.main(json=str(tmp_path/"rows.json"), rounds=1, **options)
    result = json.loads((tmp_path/"rows.json").read_text())
    assert result["rows"] and "cpu" in result["machine"] and not any("cannot" in r for r in result["rows"])
    if name in ("crf", "lattice"): assert result["images"] == "toy scenes"


def test_maps(benchmark, monkeypatch):
    "Ours agree, and with pytorch-grad-cam where it is installed; where it is not, the rows say so"
    module = benchmark("cam")
    monkeypatch.setitem(module.MAPS, "toy", ("resnet_toy", 64, 3, 4))
    found, why = module.maps_of("toy")
    assert (found["cam"]()-found["grad-cam"]()).abs().max() <= 1e-5 and ("peer" in found) == (why is None)
    if why is None: assert all(r["ratio"] > 0 for r in module.map_rows("toy", 1))
    monkeypatch.setitem(sys.modules, "pytorch_grad_cam", None)
    assert ["cannot be imported" in r["cannot"] for r in module.map_rows("toy", 1)] == [True, True]


@pytest.mark.parametrize(
    "method,backbone,crop",
    [("toco", "vit_toy", 64), ("tsd-cam", "vit_toy", 64), ("cpdgl", "vit_toy", 64), ("tscd", "mit_b0", 224)],
)
def test_train_step(benchmark, monkeypatch, tmp_path, method, backbone, crop):
    "Each method beside its literal twin, before and after the warm-up, with the same losses"
    module, case = benchmark("train_step"), f"step-{method}"
    small = {
        k: ast.literal_eval(v) for k, v in (s.split("=") for s in SMALL[method]) if k != "walk_start"
    }  # the twin knows no walk
    monkeypatch.setitem(
        module.SETTINGS,
        case,
        module.SETTINGS.get(case, {}) | small | {"crop_size": crop, "batch_size": 2, "hidden": 16},
    )
    monkeypatch.setattr(module, "memory_of", lambda *args, **options: 1)
    module.main(json=str(tmp_path/"rows.json"), only=case, backbone=backbone, rounds=1)
    result = json.loads((tmp_path/"rows.json").read_text())
    assert [r["case"] for r in result["rows"]] == [case, f"{case}-warmup"] and result["images"] == "toy scenes"


@pytest.mark.parametrize("name,case", [("affinity", "head-32"), ("lattice", "filter-256-2-b1"),
                                       ("par", "par-32x32-2-b1")])
def test_memory(benchmark, capsys, name, case):
    "What a fresh process is asked for is a number; here it is that of this process"
    benchmark(name).main(memory=case, threads=1)
    assert float(capsys.readouterr().out) >= 0


@pytest.mark.parametrize("name", ["crf", "lattice"])
def test_a_folder_without_photos(benchmark, tmp_path, name):
    if name == "crf": pytest.importorskip("pydensecrf", reason="pydensecrf is not installed: pip install -e '.[crf]'")
    with pytest.raises(SystemExit, match="no photos in JPEGImages/"): benchmark(name).main(voc=str(tmp_path))


def test_evaluate(tmp_path):
    done = subprocess.run(
        [sys.executable, FOLDER / "evaluate.py", "--images", "12", "--repeats", "1", "--json", tmp_path / "out.json"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path/"out.json").read_text())
    assert result == json.loads(done.stdout)
    from_files = [r for r in result["rows"] if r["case"].startswith("evaluate")]
    assert (
        all(r.keys() == {"case", "threads", "ours_ms", "peer_ms", "ratio", "ours_mb", "peer_mb"} for r in from_files)
        and "cpu" in result["machine"]
    )
    in_memory = {r["case"]: r for r in result["rows"] if r not in from_files}
    assert [*in_memory] == [f"confusion-vs-{peer}-12-500x375-21" for peer in ("histograms", "torchmetrics")]
    absent = {case for case, r in in_memory.items() if "cannot" in r}
    assert all(r["ratio"] > 0 for case, r in in_memory.items() if case not in absent)
    if find_spec("torchmetrics"): assert not absent
    else: assert absent == {"confusion-vs-torchmetrics-12-500x375-21"}


def test_explorer(benchmark):
    rows = benchmark("explorer").benchmark(1)
    assert len(rows) >= 8 and all(r["ours_ms"] > 0 for r in rows)


def test_explorers(benchmark):
    "One that needs no run and one that does; each control is moved, and what is too slow is marked"
    module = benchmark("explorer")
    rows = module.widget_rows("SweepExplorer, 64", 2, (64,))+module.widget_rows("LiveExplorer, 64", 1, (64,))
    assert [r["case"] for r in rows] == ["widget SweepExplorer, 64x64", "widget LiveExplorer, 64x64"]
    assert all(0 < r["cpu_ms"] and r["slowest_ms"] > 0 and r["limit_ms"] == 200 for r in rows)
    said = module.table([rows[0] | {"cpu_ms": 100.}, rows[1] | {"cpu_ms": 999.}, {"case": "other", "ours_ms": 1.}])
    assert [l.endswith("TOO SLOW") for l in said.split("\n")] == [False, False, True, False]


def test_explorers_in_a_browser(benchmark):
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'")
    module = benchmark("explorer")
    try: rows = module.page_rows("page 25_sweep", 2)
    except UserError as e: pytest.skip(str(e))
    assert [r["case"] for r in rows] == ["page 25_sweep"] and rows[0]["views"] > 20 and rows[0]["cpu_ms"] > 0
    assert rows[0]["slowest"] in ("image", "threshold")


def test_gpu_step(benchmark, tmp_path):
    module = benchmark("gpu_step")
    if torch.cuda.is_available(): module.main(json=str(tmp_path/"rows.json"), only="step-toco", rounds=1)
    else:
        with pytest.raises(UserError): module.main()


def test_processes(benchmark):
    "The comparison, with a run and itself; `test_processes` tests what is launched"
    run = Run(Path(__file__).parent/"data"/"run_1")
    assert benchmark("processes").compare(run, run) == {"weights": 0, "all_weights": 0, "losses": 0}


def test_all(benchmark, monkeypatch, tmp_path, capsys):
    "The list of all knows every file that measures speed, and sets goals beside what it found"
    module = benchmark("all")
    assert set(module.FILES) == set(FILES)-PARTS-{"all", "gpu_step", "processes", "step_options"}
    rows = [{"case": "filter-256-21-b1", "threads": 2, "ours_ms": 2., "peer_ms": 30., "ratio": 15.},
            {"case": "crf-500x375-3-80-13", "threads": 1, "ours_ms": 2., "peer_ms": 16., "ratio": 8.},
            {"case": "loader-toco-448", "threads": 1, "ours_images_per_second": 80., "ratio": 2.},
            {"case": "step-tsd-cam-warmup", "threads": 1, "ours_ms": 2., "peer_ms": 2., "ratio": 1.}]
    monkeypatch.setattr(module, "measured", lambda name, options: {"rows": [dict(r) for r in rows]})
    monkeypatch.setattr(module, "ceilings", lambda threads: module_of_limits.Ceilings(10.*threads, 100.*threads))
    module_of_limits, file = benchmark("roofline"), tmp_path/"speed.json"
    file.write_text(json.dumps({"parts": {"walk": {"rows": [], "commit": "c0ffee"}}}))
    module.main(json=str(file), only="crf", short=True)
    parts = json.loads(file.read_text())["parts"]
    found = parts["crf"]["rows"]
    assert [r.get("reached") for r in found] == [False, True, True, None] and found[0]["goal"] == {"ratio": 20}
    assert parts["crf"]["short"] and parts["crf"]["machine"]["2 threads"] == "20 GB/s, 200 Gflop/s"
    assert [*parts] == ["crf", "walk"] and parts["walk"]["commit"] == "c0ffee"  # of an earlier run: kept
    assert [r.get("limit_ms") for r in found] == [.59, 15.75, None, None]       # moved: 11.8 MB in 20 GB/s
    assert "limit 0.59 ms, ratio 15.00, goal 20 (missed)" in capsys.readouterr().out
    with pytest.raises(UserError, match="no benchmark, there are lattice"): module.main(only="crff")


def test_limits(benchmark):
    "Work grows with points and vertices; the slower ceiling is the limit; a case that nobody counted has none"
    module = benchmark("roofline")
    work = module.work_of({"case": "filter-noise-256-21-b1", "vertices_per_pixel": 2.})
    more = module.work_of({"case": "filter-256-21-b4", "vertices_per_pixel": 2.})
    assert more == module.Work(4*work.megabytes, 4*work.gigaflop) and work.megabytes == pytest.approx(11.8, abs=.01)
    assert module.work_of({"case": "crf-500x375-21-67-3", "vertices_per_pixel": [1, 9, 2]}).gigaflop > \
        module.work_of({"case": "crf-500x375-21-67-3", "vertices_per_pixel": [1, 1, 1]}).gigaflop
    assert module.work_of({"case": "crf-folder-500x375-21-80-13"}) is None
    assert module.limit_ms(module.Work(10, 1), module.Ceilings(10, 100)) == 10
    assert module.limit_ms(module.Work(1000, 1), module.Ceilings(10, 100)) == 100
    assert module.bandwidth(2, 1) > 0 and module.arithmetic(1, 64) > 0


def test_all_says_what_could_not_be_measured(benchmark, monkeypatch, tmp_path):
    "A file that fails is named, and the others are kept"
    module = benchmark("all")
    monkeypatch.setitem(module.FILES, "walk", ("--rounds", "nothing"))
    with pytest.raises(SystemExit, match="not measured: walk"):
        module.main(json=str(tmp_path/"speed.json"), only="walk", short=True)
    assert "nothing" in json.loads((tmp_path/"speed.json").read_text())["parts"]["walk"]["cannot"]
