"""On a GPU: the same numbers as on a CPU, half precision, batches with nothing to learn, whole commands, resuming,
memory that is not enough. Skipped where there is no CUDA device.

    python -m pytest tests/test_cuda.py
"""
import copy
import json
import math
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from commands import SMALL, STAGED, TINY
from golden_files import golden
from test_golden_cpdgl import each_step, gradients
from test_golden_cpdgl import method_like as cpdgl_like
from test_golden_toco import method_like as toco_like
from test_golden_tsd_cam import close, load
from test_golden_tsd_step import NAMES, backward, check_grads, counting
from test_golden_tsd_step import method_like as tsd_like

from wsss_nb.ground.core import seed_everything
from wsss_nb.data.datasets import open_dataset
from wsss_nb.data.loader import TrainingSet, training_batches
from wsss_nb.ground.io import read_label
from wsss_nb.methods.i2crc import make_classifier
from wsss_nb.refine.crf import dense_crf
from wsss_nb.run.folder import Run, read_log
from wsss_nb.run.settings import resolve_config
from wsss_nb.use.names import get_method

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
SINGLE = ("baseline", "toco", "tsd-cam", "cpdgl", "tscd")
METHODS = (*SINGLE, "i2crc")
PRECISIONS = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@pytest.fixture(autouse=True)
def full_precision(monkeypatch):
    "Convolutions in single precision: TF32 has 10 bits"
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)

@pytest.fixture
def same_draws(monkeypatch):
    "Random numbers come from the CPU's stream, whatever the device"
    for name in ("rand", "randn"):
        monkeypatch.setattr(torch, name,
                            lambda *size, device=None, real=getattr(torch, name), **kw: real(*size, **kw).to(device))
    real = torch.nn.functional.dropout2d
    def dropout2d(x, p=.5, training=True, inplace=False):
        return x*real(torch.ones(x.shape[:2]+(1, 1)), p, training).to(x.device) if training else x
    monkeypatch.setattr(torch.nn.functional, "dropout2d", dropout2d)


def on_gpu(values): return {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in values.items()}


# %% Whole steps of the golden files
@pytest.mark.parametrize("path", golden("tsd_cam", "toco_step"))
def test_golden_toco(path, monkeypatch):
    z = on_gpu(load(path))
    net, batch = toco_like(z, monkeypatch)
    total = backward(net.cuda().training_losses(batch, net.config.seg_start+1))
    close(total, z["out/total_main"].squeeze(), 1e-4)
    check_grads(net, z, "main")

@pytest.mark.parametrize("path", golden("tsd_cam", "tsd_step"))
def test_golden_tsd_cam(path, monkeypatch):
    z = on_gpu(load(path))
    net, batch = tsd_like(z, monkeypatch)
    terms = net.cuda().training_losses(batch, net.config.corr_start+1)
    assert list(terms) == counting(net)
    for name, (_, value) in terms.items():
        close(value, z[f"out/loss_{NAMES[name]}"].squeeze(), 1e-4 if name != "reg" else 0, rtol=1e-4)
    close(backward(terms), z["out/total_full"].squeeze(), 1e-4)
    check_grads(net, z, "full")

@each_step
def test_golden_cpdgl(path, form, monkeypatch):
    z = on_gpu(load(path))
    for i, step in enumerate(z["in/iters"].tolist()):
        net, batch = cpdgl_like(z, form, monkeypatch)
        close(backward(net.cuda().training_losses(batch, step)).detach(), z[f"out/loss_{i}"], 2e-4)
        gradients(z, dict(net.named_parameters()), 2e-4, f"_{i}")


# %% Any method against the CPU, and in half precision
@pytest.fixture(scope="module")
def toy(): return open_dataset("shapes:n=12,size=64", "train")

def networks(name, toy):
    "Return pairs of a network to train and a batch for it, on the CPU, and the step at which all terms count"
    seed_everything(0)
    method, given = get_method(name), STAGED.get(name) or (*TINY, *SMALL.get(name, ()), "zero_heads=false")
    config = resolve_config(method.config(), method.presets, "shapes", [s for s in given if "=" in s])
    net = method.network(config, toy.classes).train()
    if name not in STAGED:
        return [(net, next(training_batches(TrainingSet(toy, net.transform()), config.batch_size)), 5)]
    n, s = config.cls_batch, config.cls_size
    images = torch.stack([torch.as_tensor(toy[k].image[:s, :s]).permute(2, 0, 1)/128-1 for k in range(n)])
    labels, saliency = (torch.stack([torch.as_tensor(toy[k].image_labels) for k in range(n)]).float(),
                        torch.rand(n, s, s))
    classify = {"input": images, "image_labels": labels, "saliency": saliency,
                "has_saliency": torch.ones(n, dtype=torch.bool)}
    segment = {"input": images, "label": torch.randint(len(toy.classes), (n, s, s))}
    return [(make_classifier(config, toy.classes).train(), classify, 0), (net, segment, 0)]


@pytest.mark.parametrize("name", METHODS)
def test_equals_cpu(name, toy, same_draws):
    for net, batch, step in networks(name, toy):
        on_device, found = copy.deepcopy(net).cuda(), []
        for m, b in ((net, batch), (on_device, on_gpu(batch))):
            torch.manual_seed(0)
            terms = m.training_losses(b, step)
            backward(terms)
            found.append(({k: v.item() for k, (_, v) in terms.items()},
                          {k: p.grad.cpu() for k, p in m.named_parameters() if p.grad is not None}))
        (losses, grads), (losses_gpu, grads_gpu) = found
        assert losses_gpu == pytest.approx(losses, rel=1e-4, abs=1e-5)
        assert grads.keys() == grads_gpu.keys()
        largest = max(g.abs().max() for g in grads.values())
        for k, g in grads.items(): assert (grads_gpu[k]-g).abs().max() < 1e-3*largest, k


def changed(batch):
    "Batches that have little or nothing to learn from"
    one = torch.zeros_like(batch["image_labels"])
    one[:, 0] = 1
    yield "no class", batch | {"image_labels": one*0}
    yield "one class", batch | {"image_labels": one}
    if "box" in batch: yield "all ignored", batch | {"box": torch.zeros_like(batch["box"])}
    if len(one) % 2 == 0 and "view2" not in batch:
        yield "oblong", {k: v[..., :56] if isinstance(v, torch.Tensor) and v.ndim == 4 else v
                         for k, v in batch.items()} | ({"box": batch["box"].clamp(max=56)} if "box" in batch else {})
    yield "one image", {k: v[:1] for k, v in batch.items()}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", METHODS)
def test_odd_batches(name, precision, toy):
    for net, batch, step in networks(name, toy):
        net.cuda()
        several = (changed(batch) if "image_labels" in batch
                   else (("all ignored", batch | {"label": torch.full_like(batch["label"], 255)}),
                         ("one image", {k: v[:1] for k, v in batch.items()})))
        for what, odd in (("as it is", batch), *several):
            if what == "one image" and name == "cpdgl": continue  # its queue takes batches of one size
            net.zero_grad()
            with torch.autocast("cuda", PRECISIONS[precision], enabled=precision != "no"):
                terms = net.training_losses(on_gpu(odd), step)
            assert all(v.isfinite() for _, v in terms.values()), (what, terms)
            total = sum(w*v for w, v in terms.values())
            total.backward()
            assert all(p.grad.isfinite().all() for p in net.parameters() if p.grad is not None), what


def test_crf_of_what_is_on_the_gpu():
    image, draws = (np.random.RandomState(0).randint(0, 256, (40, 56, 3)).astype(np.uint8),
                    torch.Generator().manual_seed(0))
    probs = torch.randn(4, 40, 56, generator=draws).softmax(0)
    close(dense_crf(image, probs.cuda()).cpu(), dense_crf(image, probs), 1e-5)


# %% Commands
def settings(name): return STAGED[name] if name in STAGED else (*TINY, *SMALL.get(name, ()))

@pytest.mark.parametrize("name,precision", [*((m, "no") for m in METHODS), ("toco", "bf16"), ("toco", "fp16"),
                                            ("cpdgl", "bf16"), ("i2crc", "bf16")])
def test_run(name, precision, scenes, here, call):
    status, _, err = call("wsss-run", name, "--data", scenes, "--out", "run", "--device", "cuda", *settings(name),
                          f"precision={precision}")
    assert status == 0, err
    result = json.loads(Run("run").result.read_text())
    assert result["device"] == "cuda" and all(0 <= v <= 1 for v in result["miou"].values())
    assert {"prediction"} <= result["miou"].keys()
    assert all(math.isfinite(float(v)) for file in here.glob("run/log*.csv") for row in read_log(file)
               for v in row.values() if v)
    labels = []
    for device in ("cuda", "cpu"):
        status, _, err = call("wsss-predict", "run", scenes/"JPEGImages", "--out", device, "--device", device)
        assert status == 0, err
        labels.append([read_label(f) for f in sorted((here/device).glob("*.png"))])
    assert labels[0] and np.mean([(a == b).mean() for a, b in zip(*labels, strict=True)]) > .99


@pytest.mark.parametrize("name", ["toco", "cpdgl"])
def test_resume(name, scenes, here, call):
    argv = ("wsss-run", name, "--data", scenes, "--out", "run", "--device", "cuda", "--stages", "train",
            *settings(name), "iters=6", "save_every=3", "log_every=1", "lr=1e-3", "val_every=100")
    assert call(*argv)[0] == 0
    run = Run("run")
    whole = read_log(run.log)
    shutil.copytree("run", "torn")
    run.previous.replace(run.last)
    status, _, err = call(*argv, "--resume")
    assert status == 0, err
    again = read_log(run.log)
    assert [r["step"] for r in again] == [r["step"] for r in whole]
    for a, b in zip(again, whole): assert float(a["loss"]) == pytest.approx(float(b["loss"]), rel=1e-3)


def test_memory_that_is_not_enough(scenes, here, fails):
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved()+4*2**20)/total)
    try:
        line = fails("wsss-run", "baseline", "--data", scenes, "--out", "run", "--device", "cuda", *TINY,
                     "batch_size=12")
    finally: torch.cuda.set_per_process_memory_fraction(1.)
    assert "out of memory; try fewer images per step (--set batch_size=...)" in line


def test_torchrun(scenes, here):
    "NCCL, with as many processes as there are GPUs, at most two"
    n = min(torch.cuda.device_count(), 2)
    script = here/"launched.py"
    script.write_text(
        "import sys, torch\nfrom wsss_nb.use.cli import main\nstatus = main(sys.argv[1:])\nprint('backend', "
        "torch.distributed.get_backend(), torch.distributed.get_world_size())\nsys.exit(status)\n")
    argv = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n), str(script),
            "wsss-run", "cpdgl", "--data", str(scenes), "--out", "run", "--device", "cuda", *settings("cpdgl")]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "destroy_process_group" not in done.stderr, done.stderr
    assert "nccl" in done.stdout and json.loads(Run("run").result.read_text())["processes"] == n
