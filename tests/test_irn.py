"""What the reference vectors of IRN leave open: images of odd sizes, of one class, of none, alone; order and optimiser.

The walk of a photo without boundary and of one that is boundary everywhere; a checkpoint under other names."""
import csv
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from wsss_nb.data.pieces import PieceTransform, draw_box
from wsss_nb.ground.io import read_cam, read_label, write_cam
from wsss_nb.labels.confidence import confident, label_of_scores, walk_scores
from wsss_nb.methods.irn import METHOD, PRESETS, Config, Network, irn_label, walk_image
from wsss_nb.methods.resnet_cam import METHOD as CLASSIFIER
from wsss_nb.networks.irnet import irnet_state, is_irnet, load_irnet
from wsss_nb.refine.paths import boundary_walk
from wsss_nb.run.chain import join_methods
from wsss_nb.run.engine import run_stages
from wsss_nb.run.folder import Run
from wsss_nb.run.settings import resolve_config
from wsss_nb.backbones.core import read_weights
from wsss_nb.data.datasets import open_dataset

CLASSES = ("background", "cat", "dog", "boat")
TINY = ["irn.iters=2", "irn.batch_size=2", "irn.crop_size=64", "irn.radius=4", "irn.width=32", "irn.exp_times=3"]


def photos(folder, sizes, labels):
    "Write a folder of photos of these sizes, with the names of their classes"
    rng = np.random.RandomState(0)
    (folder/"JPEGImages").mkdir(parents=True)
    (folder/"ImageSets"/"Segmentation").mkdir(parents=True)
    ids = [f"photo{n}" for n in range(len(sizes))]
    for i, size in zip(ids, sizes): Image.fromarray(rng.randint(0, 256, (*size, 3)).astype(np.uint8)).save(
        folder/"JPEGImages"/f"{i}.jpg")
    (folder/"ImageSets"/"Segmentation"/"train.txt").write_text("\n".join(ids))
    (folder/"classes.txt").write_text("\n".join(CLASSES))
    with open(folder/"labels.csv", "w", newline="") as f:
        csv.writer(f).writerows([("image", "labels"), *zip(ids, labels)])
    return ids


def maps_for(folder, data, without=()):
    "Write class maps of every image, a bright corner each; of those in `without` a file of no map"
    for n, i in enumerate(data.ids):
        keys, size = np.flatnonzero(data.image_labels(n)*(n not in without)), data.load_image(n).shape[:2]
        fading = np.outer(np.linspace(1, 0, size[0]), np.linspace(1, 0, size[1]))
        maps = np.repeat(fading[None], len(keys), axis=0)
        write_cam(folder/f"{i}.npz", maps.astype(np.float32), keys)


@pytest.mark.parametrize("sizes,labels,without", [
    ([(37, 50), (64, 31), (9, 70)], ["cat dog", "cat", "boat"], ()),
    ([(37, 50), (40, 40)], ["cat", "dog"], (1,)),
    ([(33, 21)], ["dog"], ())], ids=["odd", "no-class", "one-image"])
def test_stages(tmp_path, sizes, labels, without):
    ids = photos(tmp_path/"data", sizes, labels)
    maps_for(tmp_path/"maps", open_dataset(str(tmp_path/"data"), "train"), without)
    chain, out = join_methods([METHOD]), tmp_path/"run"
    stages = ["given-cams", "irn-labels", "irn-train", "irn-walk"]
    run_stages(chain, str(tmp_path/"data"), out, "shapes", stages, device="cpu",
               overrides=[f"given.cams={tmp_path/'maps'}", *TINY, "irn.save_scores=true"])
    run = Run(out)
    for n, (i, size) in enumerate(zip(ids, sizes)):
        words = "" if n in without else labels[n]
        known = {0, *(CLASSES.index(w) for w in words.split())}
        assert set(np.unique(read_label(run.file("irn_labels", i)))) <= known | {255}
        label = read_label(run.file("labels", i))
        assert label.shape == size and set(np.unique(label)) <= known
        with Image.open(run.file("confidence", i)) as mask: assert mask.mode == "L" and mask.size == size[::-1]
        keys, scores = read_cam(run.file("scores", i))
        assert scores.shape == (len(known)-1, *size) and (keys+1).tolist() == sorted(known-{0})
        if not words: assert not label.any() and not read_label(run.file("irn_labels", i)).any()


def test_classifier_of_one_class(tmp_path):
    "Its own classifier before it, photos of odd sizes"
    photos(tmp_path/"data", [(37, 50), (64, 31), (20, 20)], ["cat", "cat", "cat"])
    changes = "iters=2", "batch_size=2", "crop_size=64", "long_side=32,64", "cam_scales=1,0.5"
    small = [f"resnet_cam.{s}" for s in changes]
    chain, out = join_methods([CLASSIFIER, METHOD]), tmp_path/"run"
    stages = [s for s in chain.stage_names() if s != "evaluate"]
    assert stages == ["train", "cams", "irn-labels", "irn-train", "irn-walk"]
    run_stages(chain, str(tmp_path/"data"), out, "shapes", stages, device="cpu", overrides=[*small, *TINY])
    keys, kept = read_cam(Run(out).file("cams", "photo0"), "small")
    assert keys.tolist() == [0] and kept.shape == (1, 10, 13)
    assert read_label(Run(out).file("labels", "photo2")).shape == (20, 20)


def test_smallest_images():
    config = resolve_config(Config(), PRESETS, "shapes", ["width=32"])
    net = Network(config, CLASSES).eval()
    for h, w in ((1, 1), (1, 40), (3, 2), (17, 5)):
        image, cam = np.zeros((h, w, 3), np.uint8), np.ones((1, h, w), np.float32)
        assert irn_label(image, cam, np.array([1]), config).shape == (h, w)
        scores = walk_image(net, image, torch.ones(1, (h+3)//4, (w+3)//4), config)
        assert scores.shape == (2, h, w) and scores.isfinite().all()
        assert confident(scores, label_of_scores(scores, [1])).shape == (h, w)


def test_walk_without_anything_left_is_background():
    "Published: NaN, of which an argmax takes the first class"
    nothing = boundary_walk(torch.rand(2, 9, 7), torch.ones(9, 7))
    assert (label_of_scores(walk_scores(nothing, (36, 28)), [3, 5]) == 0).all()
    plain = boundary_walk(torch.ones(1, 9, 7), torch.zeros(9, 7))
    torch.testing.assert_close(plain.sum(), torch.tensor(63.), rtol=1e-4, atol=0)  # no score is lost on the way


def test_draws_in_order():
    "Scale, mirror, columns, rows: of equal draws from one stream"
    class Stream:
        def __init__(self): self.asked = []
        def uniform(self, *a): return self.asked.append(("scale", *a)) or 1.
        def random_sample(self): return self.asked.append(("flip",)) or .9
        def randint(self, n): return self.asked.append(("offset", n)) or 0
    stream = Stream()
    PieceTransform(16, (.5, 1.5))(np.zeros((20, 30, 3), np.uint8), stream, np.zeros((20, 30), np.uint8))
    assert stream.asked == [("scale", .5, 1.5), ("flip",), ("offset", 15), ("offset", 5)]  # 30 and 20 pixels into 16
    assert draw_box((20, 12), 16, np.random.RandomState(0))[4:6] != (0, 20)


def test_optimiser_is_the_published_one():
    c = Config()
    assert (c.lr, c.lr*c.dp_mult, c.momentum, c.weight_decay, c.iters, c.batch_size) == (.1, 1., 1e-4, 1e-4, 990, 32)
    assert (c.radius, c.walk_radius, c.beta, c.exp_times, c.pad_to) == (10, 5, 10., 8, 512)
    assert (c.conf_fg, c.conf_bg, c.bg_thresh, c.fraction) == (.3, .1, .25, .5)
    original = resolve_config(c, PRESETS, "original")
    assert original == replace(c, conf_bg=.05, pad_to=None)
    net = Network(resolve_config(c, PRESETS, "voc", ["backbone=resnet_toy", "width=32"]), CLASSES)
    groups = {g["name"]: (g["lr"], len(g["params"])) for g in net.param_groups()}
    assert groups == {"edge": (.1, 17), "dp": (1., 22)}  # norms among them; nothing of the backbone


def test_boundary_does_not_depend_on_the_other_branch():
    "The same steps with and without the displacement branch: the same boundary branch"
    config = resolve_config(Config(), PRESETS, "voc", ["backbone=resnet_toy", "width=32", "crop_size=64", "radius=4"])
    torch.manual_seed(0)
    both = Network(config, CLASSES)
    alone = Network(replace(config, displacement=False), CLASSES)
    alone.load_state_dict({k: v for k, v in both.state_dict().items() if k in alone.state_dict()})
    batch = {"input": torch.randn(2, 3, 64, 64), "label": torch.randint(0, 3, (2, 8, 8)).repeat_interleave(8, 1)
             .repeat_interleave(8, 2).byte()}
    for net in (both, alone):
        optimizer = torch.optim.SGD(net.param_groups(), momentum=config.momentum, weight_decay=config.weight_decay)
        for step in range(3):
            sum(w*v for w, v in net.training_losses(batch, step).values()).backward()
            optimizer.step()
            optimizer.zero_grad()
    for k, v in alone.state_dict().items(): assert torch.equal(v, both.state_dict()[k]), k


def test_published_file(tmp_path):
    "A file as the published code saves it: aliases and tables of paths, read without executing anything"
    config = resolve_config(Config(), PRESETS, "voc", ["backbone=resnet_toy", "width=32"])
    net = Network(config, CLASSES)
    net.mean_shift.running_mean[:] = torch.tensor([.5, -.25])
    torch.save(irnet_state(net, aliases=True) | {"path_indices0": torch.zeros(2, 2, 9).long(),
                                                 "disp_target": torch.zeros(1, 2, 152, 1)}, tmp_path/"res50_irn.pth")
    state = read_weights(tmp_path/"res50_irn.pth")
    assert is_irnet(state)
    fresh = Network(config, CLASSES)
    load_irnet(fresh, state)
    for k, v in net.state_dict().items(): assert torch.equal(v, fresh.state_dict()[k]), k
    assert not any("layers" in k or "stage" in k or "path" in k for k in irnet_state(fresh))
