"""What published loops do besides their equations: terms multiplied by 0, and losses that count on their own GPU"""
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from commands import TINY, SMALL
from wsss_nb.data.datasets import open_dataset
from wsss_nb.methods import toco, tscd
from wsss_nb.run.evaluate import quick_validation
from wsss_nb.run.folder import Run, load_checkpoint
from wsss_nb.run.loop import zero_idle_gradients
from wsss_nb.run.settings import resolve_config
from wsss_nb.use.names import get_method

CLASSES = ("background", "a", "b", "c")
START, STEPS = 4, 8
SETTINGS = {
    "toco": ("seg_start=3", "contrast_start=3", "local_size=32", "proj_hidden=32", "proj_bottleneck=16", "proj_dim=16"),
    "tscd": ("seg_start=3", "drop_path=0"),
}
MODULES = {"toco": toco, "tscd": tscd}


def network(name, *more):
    method = get_method(name)
    given = [*SETTINGS[name], "crop_size=64", "batch_size=2", "pretrained=false", "zero_heads=false", *more]
    torch.manual_seed(0)
    return method.network(resolve_config(method.config(), method.presets, "shapes", given), CLASSES).train()


def batch(net, seed, size=64):
    torch.manual_seed(seed)
    images = {view: torch.randn(2, 3, size, size) for view in net.views}
    labels = torch.tensor([[1.0, 0, 0], [0, 1, 1]])
    return images | {"box": torch.tensor([[0, size, 0, size]] * 2), "image_labels": labels}


def trained(name, form):
    """Return the weights after some steps, before the middle of which most terms do not count

    `literal`: every term is computed in every step and multiplied by its weight, 0 or not."""
    net = network(name)
    adam = torch.optim.AdamW(net.param_groups(), weight_decay=0.01)
    for step in range(STEPS):
        given = batch(net, step)
        torch.manual_seed(100 + step)
        weights = net.config.weights(step)
        assert (min(weights.values()) == 0) == (step < START)
        if form == "literal":
            terms = MODULES[name].Step(net, given, step, dict.fromkeys(weights, 1)).losses()
            loss = sum(weights[k] * value for k, (_, value) in terms.items())
        else:
            loss = sum(w * value for w, value in net.training_losses(given, step).values())
        loss.backward()
        if form == "zero":
            zero_idle_gradients(adam)
        adam.step()
        adam.zero_grad(set_to_none=True)
    return {k: v.detach().clone() for k, v in net.named_parameters()}


@pytest.mark.parametrize("name", SETTINGS)
def test_zeros_are_what_a_literal_loop_has(name):
    literal, zero, absent = (trained(name, form) for form in ("literal", "zero", "absent"))
    late = [k for k in literal if k.startswith("decoder.")]

    def distance(a):
        return max(float((a[k] - literal[k]).norm() / literal[k].norm().clamp(min=1e-3)) for k in late)

    assert late and distance(zero) < 1e-4 < 1e-3 < distance(absent)


def test_published_presets_have_both():
    for name in ("toco", "tsd-cam", "cpdgl", "tscd"):
        method = get_method(name)
        for preset in method.presets:
            config = resolve_config(method.config(), method.presets, preset)
            toy = any(word in preset for word in ("shapes", "photos", "pets"))
            wanted = ("absent", "all") if toy else ("zero", "process")
            assert (config.idle_gradients, config.loss_counts) == wanted, (name, preset)


@pytest.mark.parametrize("form,steps", [("zero", {3}), ("absent", {3, 1, None})])
def test_runs_follow_the_setting(call, tmp_path, scenes, form, steps):
    "A segmenter that learns in the last of three steps: its weights have been seen three times, or once; others never"
    given = [*TINY, *SMALL.get("toco", ()), "iters=3", "seg_start=1", "contrast_start=5", f"idle_gradients={form}"]
    assert call("wsss-run", "toco", "--data", scenes, "--out", tmp_path / "run", "--stages", "train", *given)[0] == 0
    state = load_checkpoint(Run(tmp_path / "run"))["optimizer"]
    seen = {int(state["state"][p]["step"]) if p in state["state"] else None
            for group in state["param_groups"] for p in group["params"]}
    assert seen == steps


HALVES = """
import json, sys
import torch
from torch import distributed as dist
from test_published_loops import batch, network
from wsss_nb.ground.parallel import join, leave, processes
from wsss_nb.run.loop import LossStep

def gradient(given, per_process):
    net = network("toco", "w_ctc=0")  # whose crops are drawn for the images of all
    torch.manual_seed(7)
    total, terms = LossStep(net, per_process)(given, 50)
    total.backward()
    return torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])

def part(k):  # of the first two images both labels are sure somewhere, of the others hardly any
    given = batch(network("toco"), 3 + k)
    return given | {"box": torch.tensor([[0, 64, 0, 64 - 24 * k]] * 2)}
alone = [gradient(part(k), False) for k in (0, 1)]  # each half by itself, before there are processes
join()
rank, world = processes()
told = {}
for form in (True, False):
    mine = gradient(part(rank), form)
    dist.all_reduce(mine)
    wanted = sum(alone) / 2
    told[form] = float((mine / world - wanted).norm() / wanted.norm())
if rank == 0: print(json.dumps(told))
leave()
"""


def test_losses_count_in_their_own_process(tmp_path):
    "The gradient of two processes is the mean of what each has alone; counted over all, it is another"
    script = tmp_path / "halves.py"
    script.write_text(HALVES)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["true"] < 1e-5 < 1e-3 < told["false"]


@pytest.mark.parametrize("name,wanted", [("toco", False), ("tsd-cam", False), ("cpdgl", False), ("tscd", True)])
def test_each_normalises_in_its_own_order(name, wanted):
    "A training image is what the recipe's own arithmetic gives, to the last bit"
    method = get_method(name)
    net = method.network(resolve_config(method.config(), method.presets, "shapes", ["photometric=false"]), CLASSES)
    transform = net.transform()
    size = transform.size
    levels = np.tile(np.arange(256, dtype=np.uint8), size * size)[: size * size].reshape(size, size, 1).repeat(3, 2)
    transform.scale_range = (1.0, 1.0)
    found = transform(levels, np.random.RandomState(0))["input"].numpy()
    mean, std = (np.float32([v]).T[..., None] for v in ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)))
    x = np.float32(levels.transpose(2, 0, 1))
    if not wanted:
        mean, std = (np.float32([v]).T[..., None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        x = x / np.float32(255)
    x = (x - mean) / std
    assert any(np.array_equal(found, y) for y in (x, x[..., ::-1]))


def test_training_is_watched_as_the_recipe_says():
    "All images of val; TSCD and AFA look at them at their own size, ToCo's family at that of the training crop"
    for name, size in (("toco", "crop"), ("tsd-cam", "crop"), ("cpdgl", "crop"), ("tscd", "own")):
        method = get_method(name)
        config = resolve_config(method.config(), method.presets, "voc")
        assert (config.val_images, config.val_size) == ("all", size)
    seen = []
    net = network("toco", "val_images=all", "val_size=own")
    data = open_dataset("shapes:n=60", "val", masks=True)
    net.seg_logits = lambda x: seen.append(tuple(x.shape[-2:])) or torch.zeros(1, data.num_classes, 8, 8)
    net.cam_layers = ()
    quick_validation(net.eval(), data, net.config.val_images)
    assert seen == [data[i].image.shape[:2] for i in range(len(data))] and len(seen) > 5
    seen.clear()
    object.__setattr__(net.config, "val_size", "crop")
    quick_validation(net, data, 2)
    assert seen == [(64, 64)] * 2


def test_words_say_what_watched_the_training(call, scenes, tmp_path):
    given = ["--data", scenes, "--out", tmp_path / "run", *TINY, "val_images=all"]
    assert call("wsss-run", "baseline", *given)[0] == 0
    told = json.loads((tmp_path / "run" / "result.json").read_text())["ground_truth"]
    assert any(s.startswith("All images of val, squashed to 64x64, were scored every") for s in told)
