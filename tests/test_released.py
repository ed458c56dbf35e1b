"""Published checkpoints: the reference networks saved as authors save theirs, and the names of the real files at
small width."""
import json
import os
import pickle

import numpy as np
import pytest
import torch
from commands import chain
from golden_files import cases, golden
from PIL import Image
from safetensors.torch import save_file
from test_golden_tsd_cam import close, load, params

from wsss_nb.backbones.core import current_name
from wsss_nb.ground.core import UserError
from wsss_nb.data.voc import COCO_CLASSES, VOC_CLASSES
from wsss_nb.ground.io import read_label
from wsss_nb.run.folder import Run, load_checkpoint
from wsss_nb.use.released import LAYOUTS, load_released

NEWER = {"last_layer.weight_g": "last_layer.parametrizations.weight.original0",
         "last_layer.weight_v": "last_layer.parametrizations.weight.original1"}
NAMINGS = {"weight_g": lambda k: k,
           "original0": lambda k: next((k.replace(a, b) for a, b in NEWER.items() if a in k), k)}


def saved(state, path, naming="weight_g"):
    "Write tensors as a training on several GPUs does"
    torch.save({f"module.{NAMINGS[naming](k)}": v for k, v in state.items()}, path)
    return path


def text(v): return ",".join(map(str, v.tolist())) if v.ndim else str(v.item())


def opened(z, path, naming="weight_g", method=None, unused=("encoder.head.",), missing=(), state=None, **settings):
    """The method of a reference file, through a checkpoint

    Nothing else of the file is unused than what the method has no use for"""
    if "opt/aux_layer" in z: settings["aux_layer"] = text(z["opt/aux_layer"])
    model, report = load_released(saved(state or params(z), path, naming), method, heads=int(z["opt/heads"]),
                                  overrides=[f"{k}={v}" for k, v in settings.items()])
    assert (all(k.startswith(tuple(missing)) for k in report.missing)
            and all(k.startswith(tuple(unused)) for k in report.unused)), report
    return model


# %% The reference networks
@pytest.mark.parametrize("naming", NAMINGS)
@pytest.mark.parametrize("path", golden("tsd_cam", "toco_network"))
def test_toco_network(path, naming, tmp_path):
    "Every output of the network with its crops, so projection heads and the moving average as well"
    z = load(path)
    method = opened(z, tmp_path/"toco.pth", naming, momentum=text(z["opt/momentum"]))
    out = method(z["in/x"], view2=z["in/global1"], crops=torch.stack([z[f"in/local{i}"] for i in cases(z, "in/local")]))
    for k, name in {"cls": "cls_logits", "seg": "seg_logits", "fmap": "last", "cls_aux": "aux_cls_logits",
                    "proj_t": "teacher", "proj_s": "student"}.items():
        close(out[name], z[f"out/{k}"], 1e-4)
    for k, layer in (("cam", "last"), ("cam_aux", "aux")): close(method.raw_cam(z["in/x"], layer), z[f"out/{k}"], 1e-4)
    assert len(method.classes) == z["opt/num_classes"]


@pytest.mark.parametrize("path", golden("tsd_cam", "toco_infer"))
def test_toco_inference(path, tmp_path):
    "The published fusion of both benchmarks"
    z = load(path)
    scales = text(z["opt/scales"])
    for name, settings in {"voc": {}, "coco": {"infer_size": text(z["opt/coco_resize"]), "fusion": "max-sum"}}.items():
        method = opened(z, tmp_path/f"{name}.pth", infer_scales=scales, **settings)
        logits = method.segmentation(z["in/x"])
        close(logits, z[f"out/{name}_logits"], 1e-3)
        assert (logits.argmax(1) == z[f"out/{name}_pred"]).float().mean() >= .999


@pytest.mark.parametrize("name", ["toco", "tsd-cam"])
@pytest.mark.parametrize("path", golden("tsd_cam", "toco_step")+golden("tsd_cam", "tsd_step"))
def test_toco_and_tsd_step(path, name, tmp_path):
    "The network of a whole step, read as either method: its segmentation and class maps"
    z = load(path)
    method = opened(z, tmp_path/"step.pth", method=name,
                    unused=("encoder.head.", "proj_head")[:1 if name == "toco" else 2],
                    cam_scales=text(z["opt/cam_scales"]))
    out = method(z["in/inputs"])
    for k, name in {"cls": "cls_logits", "segs": "seg_logits", "cls_aux": "aux_cls_logits"}.items():
        close(out[name], z[f"out/{k}"], 1e-4)
    for k, layer in (("cams", "last"), ("cams_aux", "aux")):
        close(method.cam(z["in/inputs"], layer=layer), z[f"out/{k}"], 1e-4)


SLOW = ("encoder_k.", "proj_head_t.", "prototypes", "queue")  # what CPDGL has beside its network


@pytest.mark.parametrize("path", golden("cpdgl", "network_heads"))
def test_cpdgl_network(path, tmp_path):
    z = load(path)
    method = opened(z, tmp_path/"cpdgl.pth", missing=("proj_head.", *SLOW))
    out = method(z["in/x"])
    def near(a, key): close(a, z[key], 1e-5*z[key].abs().max().item())
    for k, name in {"cls": "cls_logits", "seg": "seg_logits", "x4": "last", "cls_aux": "aux_cls_logits"}.items():
        near(out[name], f"out/{k}")
    for k, layer in (("cam_only", "last"), ("cam_only_aux", "aux")): near(method.raw_cam(z["in/x"], layer), f"out/{k}")


@pytest.mark.parametrize("path", golden("cpdgl", "seg_inference"))
def test_cpdgl_inference(path, tmp_path):
    """The published inference of both benchmarks

    The file has neither classifiers nor anything else that a prediction does not need"""
    z, missing = load(path), ("classifier.", "aux_classifier.", "proj_head.", *SLOW)
    scales = text(z["opt/scales"])
    for name, settings in {"voc": {"infer_size": text(z["opt/voc_base"]), "infer_direct": "true"},
                           "coco": {"infer_size": 0, "infer_direct": "false"}}.items():
        method = opened(z, tmp_path/f"{name}.pth", missing=missing, infer_scales=scales, **settings)
        logits, expected = (method.segmentation(z["in/x"], size=z[f"out/{name}_pred"].shape[-2:]),
                            z[f"out/{name}_logits"])
        close(logits, expected, 1e-4*expected.abs().max().item())
        assert (logits.argmax(1)[0] == z[f"out/{name}_pred"]).float().mean() >= .995


@pytest.mark.parametrize("naming", NAMINGS)
@pytest.mark.parametrize("path", golden("cpdgl", "train_step"))
def test_cpdgl_step(path, naming, tmp_path):
    "A whole checkpoint, buffers as well: everything but the last layer of the projection heads is used"
    z = load(path)
    state = params(z) | {k.removeprefix("state/"): v for k, v in z.items() if k.startswith("state/")}
    method = opened(z, tmp_path/"step.pth", naming, unused=("encoder.head.", "encoder_k.head.", "proj_head.last_layer.",
                                                            "proj_head_t.last_layer."), state=state,
                    cam_scales=text(z["opt/cam_scales"]),
                    queue_len=len(state["queue"]), batch_size=len(z["in/inputs"]), num_crops=int(z["opt/ncrops"])-2)
    state = {current_name(k): v for k, v in state.items()}
    for k, v in method.state_dict().items(): assert torch.equal(v, state[k]), k
    for k, layer in (("cams", "last"), ("cams_aux", "aux")):
        close(method.cam(z["in/inputs"], layer=layer), z[f"out/{k}"], 5e-5)


# %% The names of the real files (toco.md T11, cpdgl.md 10), at width 64
def encoder(name, dim, blocks=12):
    shapes = {"cls_token": (1, 1, dim), "pos_embed": (1, 197, dim), "patch_embed.proj.weight": (dim, 3, 16, 16),
              "patch_embed.proj.bias": (dim,), "norm.weight": (dim,), "norm.bias": (dim,),
              "head.weight": (1000, dim), "head.bias": (1000,)}
    for i in range(blocks):
        for part, (rows, columns) in {"attn.qkv": (3*dim, dim), "attn.proj": (dim, dim), "mlp.fc1": (4*dim, dim),
                                      "mlp.fc2": (dim, 4*dim)}.items():
            shapes |= {f"blocks.{i}.{part}.weight": (rows, columns), f"blocks.{i}.{part}.bias": (rows,)}
        shapes |= {f"blocks.{i}.{norm}.{k}": (dim,) for norm in ("norm1", "norm2") for k in ("weight", "bias")}
    return {f"{name}.{k}": v for k, v in shapes.items()}


def head(name, dim, hidden, sphere, out):
    widths = {"0": (hidden, dim), "2": (hidden, hidden), "4": (sphere, hidden)}
    return ({f"{name}.mlp.{i}.{k}": (w if k == "weight" else w[:1]) for i, w in widths.items()
             for k in ("weight", "bias")} | {f"{name}.last_layer.weight_g": (out, 1),
                                             f"{name}.last_layer.weight_v": (out, sphere)})


def toco_shapes(num_fg, dim=64):
    shapes = encoder("encoder", dim) | head("proj_head", dim, 48, 32, 40) | head("proj_head_t", dim, 48, 32, 40)
    shapes |= {"decoder.conv6.weight": (24, dim, 3, 3), "decoder.conv7.weight": (24, 24, 3, 3),
               "decoder.conv8.weight": (num_fg+1, 24, 1, 1)}
    return shapes | {"classifier.weight": (num_fg, dim, 1, 1), "aux_classifier.weight": (num_fg, dim, 1, 1)}


def cpdgl_shapes(num_fg, dim=64):
    shapes = (encoder("encoder", dim) | encoder("encoder_k", dim) | head("proj_head", dim, 48, dim, 40)
              | head("proj_head_t", dim, 48, dim, 40))
    for i in range(4): shapes |= {f"decoder.c{i}.weight": (num_fg+1, dim, 3, 3), f"decoder.c{i}.bias": (num_fg+1,)}
    shapes |= {"classifier.weight": (num_fg, dim, 1, 1), "aux_classifier.weight": (num_fg, dim, 1, 1)}
    return (shapes | {"prototypes": (num_fg, dim), "queue": (4608, dim), "queue_label_flag": (4608, 1),
                      "queue_ptr": (1,)})


def random_tensors(shapes):
    g = torch.Generator().manual_seed(0)
    return {k: torch.full(s, 48) if k == "queue_ptr" else torch.ones(s)
            if k.endswith(("norm1.weight", "norm2.weight", "norm.weight", "weight_g"))
            else .3*torch.randn(s, generator=g)/max(1, int(np.prod(s[1:])))**.5 for k, s in shapes.items()}


FAMILIES = {"toco": toco_shapes, "tsd-cam": toco_shapes, "cpdgl": cpdgl_shapes}
UNUSED = {"toco": (".head.",), "tsd-cam": (".head.", "proj_head"), "cpdgl": (".head.", ".last_layer.")}
OF_VOC, OF_COCO = ({"infer_scales": (1., 1.5, 1.25), "fusion": "sum-max", "infer_size": 0, "bg_thresh": .5},
                   {"infer_scales": (1., 1.25, 1.5), "fusion": "max-sum", "infer_size": 448, "bg_thresh": .45})
SECO = {"infer_scales": (1., 1.25, 1.5), "fusion": "sum-max", "crf": "cpdgl"}
PUBLISHED = {("toco", "voc"): OF_VOC | {"crf": "toco"}, ("toco", "coco"): OF_COCO | {"crf": "toco"},
             ("tsd-cam", "voc"): OF_VOC | {"crf": "tsd_cam_voc"}, ("tsd-cam", "coco"): OF_COCO
             | {"crf": "tsd_cam_coco"},
             ("cpdgl", "voc"): SECO | {"infer_size": 448, "infer_direct": True, "bg_thresh": .5},
             ("cpdgl", "coco"): SECO | {"infer_size": 0, "infer_direct": False, "bg_thresh": .45}}


@pytest.mark.parametrize("naming", NAMINGS)
@pytest.mark.parametrize("family,benchmark", PUBLISHED)
def test_real_layout(family, benchmark, naming, tmp_path):
    names = {"voc": VOC_CLASSES, "coco": COCO_CLASSES}[benchmark]
    state = random_tensors(FAMILIES[family](len(names)-1))
    given = family if family == "tsd-cam" else None  # not told apart from ToCo
    method, report = load_released(saved(state, tmp_path/"w.pth", naming), given)
    state = {current_name(k): v for k, v in state.items()}
    assert (report.method, report.preset, report.classes, method.classes) == (family, benchmark, names, names)
    assert set(report.unused) == {k for k in state if any(u in k for u in UNUSED[family])} and not report.missing
    assert set(report.loaded) == set(state)-set(report.unused)
    for k in report.loaded: assert torch.equal(method.state_dict()[k], state[k]), k
    again, _ = load_released(saved(method.state_dict(), tmp_path/"again.pth"), family)  # and under the names of today
    for k, v in method.state_dict().items(): assert torch.equal(again.state_dict()[k], v), k
    for k, v in PUBLISHED[family, benchmark].items(): assert getattr(method.config, k) == v, k
    assert method.encoder.aux_layer == 9 and method.encoder.blocks[0].attn.num_heads == 1 and not method.training
    shown = str(report)
    for words in (f"read as {family}", f"preset {benchmark}", f"{len(names)-1}: {names[1]}", names[-1],
                  "encoder.head 2 (", "missing  nothing"):
        assert words in shown, shown


def test_what_is_missing_or_of_another_shape(tmp_path):
    "What no prediction needs may be missing or differ and is reported; what one needs may not"
    state = random_tensors(toco_shapes(3))
    assert (load_released(saved(state, tmp_path/"three.pth"))[0].classes
            == ("background", "class 1", "class 2", "class 3"))
    bare = {k: v for k, v in state.items() if k.startswith(("encoder.", "decoder."))}
    method, report = load_released(saved(bare, tmp_path/"bare.pth"), classes=["background", "leaf", "stem", "root"])
    assert method.classes[1:] == ("leaf", "stem", "root")
    assert {k.split(".")[0] for k in report.missing} == {"classifier", "aux_classifier", "proj_head", "proj_head_t"}
    assert "missing  classifier 1 (class maps), aux_classifier 1" in str(report)
    _, report = load_released(saved(state | {"classifier.weight": torch.zeros(5, 64, 1, 1)}, tmp_path/"other.pth"))
    assert report.missing == ("classifier.weight",) and "classifier.weight" in report.unused
    x = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    full = load_released(tmp_path/"three.pth")[0].segmentation(x)
    assert torch.equal(method.segmentation(x), full)
    save_file(state, tmp_path/"w.safetensors")
    wrapped = tmp_path/"wrapped.pth"
    torch.save({"state_dict": state, "epoch": 3}, wrapped)
    for other in (tmp_path/"w.safetensors", wrapped): assert torch.equal(load_released(other)[0].segmentation(x), full)


def test_another_position_grid(tmp_path):
    state = random_tensors(toco_shapes(20))
    table = state["encoder.pos_embed"]
    state["encoder.pos_embed"] = torch.randn(1, 1+24**2, 64)
    method, report = load_released(saved(state, tmp_path/"w.pth"))
    assert not report.missing and method.encoder.pos_embed.shape == (1, 577, 64)
    assert "img_size=384" in method.config.backbone
    state["encoder.pos_embed"] = torch.cat([table[:, :1], table], 1)
    with pytest.raises(UserError, match="w.pth: encoder.pos_embed has 198 positions"):
        load_released(saved(state, tmp_path/"w.pth"))


# %% Families with other stems, by the names and shapes that the references recorded
def in_layout(path, names, shapes):
    "Random tensors, positive where a batch norm needs it, under recorded names"
    z = np.load(path)
    sizes = [tuple(int(n) for n in (s.split("x") if isinstance(s, str) else s) if n != "" and int(n) >= 0)
             for s in z[shapes].tolist()]
    g = torch.Generator().manual_seed(0)
    return {k: torch.zeros(s, dtype=torch.long) if k.endswith("num_batches_tracked") else torch.rand(s, generator=g)*.1
            for k, s in zip(z[names].tolist(), sizes, strict=True)}


@pytest.mark.parametrize("path", golden("tscd", "checkpoint_layout"))
def test_tscd_layout(path, tmp_path):
    state = in_layout(path, "out/names", "out/shapes")
    method, report = load_released(saved(state, tmp_path/"w.pth"))
    assert ((report.method, report.config.backbone, len(report.classes), report.missing, report.unused)
            == ("tscd", str(np.load(path)["opt/backbone"]), np.load(path)["opt/num_classes"], (), ()))
    for k, v in state.items(): assert torch.equal(method.state_dict()[k], v), k
    with torch.no_grad():
        assert method.segmentation(torch.randn(1, 3, 64, 96)).shape == (1, len(report.classes), 64, 96)


@pytest.mark.parametrize("path", golden("i2crc", "checkpoint_layout"))
def test_i2crc_layout(path, tmp_path):
    "The file as published, a bare list of tensors; and the classifier's, which is no segmenter"
    state = in_layout(path, "out/segmentation_names", "out/segmentation_shapes")
    torch.save(state, tmp_path/"checkpoint_69.3.pth")
    method, report = load_released(tmp_path/"checkpoint_69.3.pth")
    assert ((report.method, report.config.backbone, report.missing, report.unused, len(report.loaded))
            == ("i2crc", "resnet101", (), (), len(state)))
    own = {k.replace("encoder.", "base.features.").replace("decoder.convs.", "base.classifier.conv2d_list."): v
           for k, v in method.state_dict().items()}
    for k, v in state.items(): assert torch.equal(own[k], v), k
    assert "scales=0.5,0.75 norm=bgr crf=i2crc" in str(report)
    with torch.no_grad():
        assert method.segmentation(torch.randn(1, 3, 64, 96)).shape == (1, len(report.classes), 64, 96)
    torch.save({"epoch": 3, "state_dict": in_layout(path, "out/classification_names", "out/classification_shapes")},
               tmp_path/"classifier.pth")
    with pytest.raises(UserError, match="classifier.pth: holds I2CRC's classifier"):
        load_released(tmp_path/"classifier.pth")


# %% What is refused
class Evil:
    def __init__(self, mark): self.mark = mark
    def __reduce__(self): return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("write", [torch.save, lambda x, f: torch.save(x, f, _use_new_zipfile_serialization=False),
                                   lambda x, f: f.write_bytes(pickle.dumps(x))], ids=["zip", "old", "pickle"])
def test_nothing_is_executed(write, tmp_path, fails):
    mark = tmp_path/"executed"
    write({"module.encoder.cls_token": torch.zeros(1, 1, 64), "module.classifier.weight": Evil(mark)},
          tmp_path/"evil.pth")
    line = fails("wsss-predict", tmp_path/"evil.pth", tmp_path, "--out", tmp_path/"labels")
    assert "evil.pth: not a readable weight file (it holds " in line and "not executed" in line and not mark.exists()
    pickle.loads(pickle.dumps(Evil(mark)))
    assert mark.exists()  # it would have


@pytest.mark.parametrize("spoil,words", [
    (lambda s: [1, 2], "w.pth: holds list, not tensors by name"),
    (lambda s: {"epoch": 3}, "w.pth: holds no tensors by name"),
    (lambda s: torch.zeros(2), "w.pth: holds Tensor, not tensors by name"),
    (lambda s: {"layer4.2.conv3.weight": torch.zeros(1)},
     "are of no known checkpoint; known are those of ToCo or TSD-CAM; CPDGL or SeCo"),
    (lambda s: {k.removeprefix("encoder."): v for k, v in s.items() if k.startswith("encoder.")},
     "holds a backbone alone"),
    (lambda s: {k: v for k, v in s.items() if not k.startswith("decoder.")},
     "most like those of ToCo or TSD-CAM, but decoder.conv6.weight is missing"),
    (lambda s: {k: v for k, v in random_tensors(cpdgl_shapes(20)).items() if not k.startswith("decoder.c3")},
     "most like those of CPDGL or SeCo, but decoder.c3.weight is missing"),
    (lambda s: {k: v for k, v in s.items() if "blocks.5" not in k}, "w.pth: encoder.blocks.5.norm1.weight is missing"),
    (lambda s: s | {"decoder.conv7.weight": torch.zeros(24, 12, 3, 3)},
     "w.pth: decoder.conv7.weight is (24, 12, 3, 3), needed is (24, 24, 3, 3)"),
    (lambda s: random_tensors(toco_shapes(20, 40)), "w.pth: its width of 40 is no multiple of 64"),
])
def test_wrong_files(spoil, words, tmp_path):
    torch.save(spoil(random_tensors(toco_shapes(20))), tmp_path/"w.pth")
    with pytest.raises(UserError) as e: load_released(tmp_path/"w.pth")
    assert words in str(e.value) and str(tmp_path/"w.pth") in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 torn"])
def test_no_weight_file_at_all(content, tmp_path):
    (tmp_path/"w.pth").write_bytes(content)
    with pytest.raises(UserError, match=r"w\.pth: not a readable weight file \(.+\)$"): load_released(tmp_path/"w.pth")


def test_layouts_differ():
    "No family's signs are all among another's"
    assert not any(set(a.signs) <= set(b.signs) for a in LAYOUTS for b in LAYOUTS if a is not b)


# %% The command
@pytest.fixture
def photos(here):
    (here/"photos").mkdir()
    for i, size in enumerate(((90, 60), (64, 80))):
        Image.fromarray(np.random.RandomState(i).randint(0, 256, (*size[::-1], 3),
                                                         np.uint8)).resize(size).save(here/"photos"/f"p{i}.png")
    return here/"photos"


@pytest.mark.parametrize("family", FAMILIES)
def test_predict_with_a_released_file(family, call, photos, here):
    saved(random_tensors(FAMILIES[family](20)), here/"released.pth")
    status, out, err = call("wsss-predict", "released.pth", "photos", "--out", "labels", "--overlay", "--crf",
                            *(["--method", family] if family == "tsd-cam" else []))
    assert (status, err) == (0, ""), err
    assert f"read as {family}" in out and "20: aeroplane, bicycle" in out
    assert f"2 label maps in labels, refined by the dense CRF {PUBLISHED[family, 'voc']['crf']}" in out
    assert sorted(p.name for p in (here/"labels").iterdir()) == ["p0.png", "p0_overlay.png", "p1.png", "p1_overlay.png"]
    label = read_label(here/"labels"/"p0.png")
    assert label.shape == (60, 90) and label.max() <= 20 and Image.open(here/"labels"/"p0.png").mode == "P"
    held = {VOC_CLASSES[i]: sum(i in np.unique(read_label(here/"labels"/f"p{j}.png")) for j in (0, 1))
            for i in range(1, 21)}
    assert f"found: {', '.join(f'{k} in {n}' for k, n in held.items() if n) or 'nothing but background'}\n" in out


def test_predict_with_names(call, fails, photos, here, trained):
    saved(random_tensors(toco_shapes(2)), here/"released.pth")
    (here/"classes.txt").write_text("background\nleaf\nstem\n")
    status, out, err = call("wsss-predict", "released.pth", "photos", "--out", "labels", "--classes", "classes.txt",
                            "--method", "toco")
    assert (status, err) == (0, "") and "classes  2: leaf, stem\n" in out
    (here/"classes.txt").write_text("background\nleaf\n")
    assert "released.pth: has 3 classes with background, 2 names were given" in \
        fails("wsss-predict", "released.pth", "photos", "--out", "l", "--classes", "classes.txt")
    assert "did you mean toco?" in fails("wsss-predict", "released.pth", "photos", "--out", "l", "--method", "tco")
    assert "a run knows its own" in fails("wsss-predict", trained[0], "photos", "--out", "l",
                                          "--classes", "classes.txt")
    assert ("is a run of baseline, not of toco"
            in fails("wsss-predict", trained[0], "photos", "--out", "l", "--method", "toco"))


# %% KTSE, IRN and BECO: small networks of ours under the names of the published files
def published_ktse(background=True):
    from wsss_nb.methods import ktse
    net = ktse.Network(ktse.Config(backbone="wrn_toy", width=8), VOC_CLASSES).eval()
    back = {ours: theirs for theirs, ours in ktse.PUBLISHED}
    def named(k): return next((t+k.removeprefix(o) for o, t in back.items() if k.startswith(o)), k)
    state = {named(k): v for k, v in net.state_dict().items()}
    if not background: state["fc9.weight"] = state["fc9.weight"][1:]
    return net, state | {f"bn8.{k}": torch.ones(8) for k in ("weight", "bias", "running_mean", "running_var")}

def published_beco(segmenter="deeplab"):
    from wsss_nb.methods import beco
    from wsss_nb.networks.deeplab_plus import name_in_beco
    backbone = "resnet_toy"
    net = beco.Network(beco.Config(segmenter=segmenter, backbone=backbone), VOC_CLASSES).eval()
    parts = {k: {} for k in ("network1", "network2")}
    for k, v in net.state_dict().items():
        if k.startswith("network"): parts[k[:8]][name_in_beco(k)[9:]] = v
    return net, {"net_state_dict": parts}

@pytest.mark.parametrize("background", [True, False], ids=["ktse", "aeft"])
def test_ktse_layout(background, tmp_path, call, photos):
    net, state = published_ktse(background)
    torch.save(state, tmp_path/"039net_main.pth")
    read, report = load_released(tmp_path/"039net_main.pth")
    assert (report.method, report.classes) == ("ktse", VOC_CLASSES) and not report.missing
    for k, v in net.state_dict().items():
        if k != "fc9.weight" or background: assert torch.equal(read.state_dict()[k], v), k
    x = torch.randn(1, 3, 64, 48)
    with torch.no_grad(): assert torch.equal(read.raw_cam(x), net.raw_cam(x))
    assert call("wsss-predict", tmp_path/"039net_main.pth", photos, "--out", tmp_path/"out")[::2] == (0, "")

@pytest.mark.parametrize("segmenter", ["deeplab", "deeplab_plus"])
def test_beco_layout(segmenter, tmp_path, call, photos):
    net, state = published_beco(segmenter)
    torch.save(state, tmp_path/"best_ckpt_KTSE_73.0.pth")
    read, report = load_released(tmp_path/"best_ckpt_KTSE_73.0.pth")
    assert (report.method, report.config.segmenter, report.classes) == ("beco", segmenter, VOC_CLASSES)
    assert not report.missing and not report.unused
    for k, v in net.state_dict().items(): assert torch.equal(read.state_dict()[k], v), k
    argv = "wsss-predict", tmp_path/"best_ckpt_KTSE_73.0.pth", photos, "--out", tmp_path/"out", "--crf"
    status, out, err = call(*argv)
    assert (status, err) == (0, "") and "refined by the dense CRF beco" in out
    del state["net_state_dict"]["network2"]
    torch.save(state, tmp_path/"half.pth")
    with pytest.raises(UserError, match="half.pth: "): load_released(tmp_path/"half.pth")

def test_refiners_have_no_segmenter(tmp_path):
    for name, words in (("fc_edge6.weight", "holds IRNet"), ("resnet50.conv1.weight", "holds IRN's classifier")):
        torch.save({name: torch.ones(1)}, tmp_path/"w.pth")
        with pytest.raises(UserError, match=words): load_released(tmp_path/"w.pth")

def test_a_chain_of_published_weights(scenes, call, tmp_path):
    "Nothing is trained: classifier and IRNet are read from files, and the run holds them"
    from wsss_nb.methods import irn, ktse
    from wsss_nb.networks.irnet import irnet_state
    settings = chain("ktse", "irn")
    classes = ("background", *[f"class {i}" for i in range(1, 6)])
    classifier = ktse.Network(ktse.Config(backbone="wrn_toy", width=8), classes)
    torch.save(classifier.state_dict(), tmp_path/"classifier.pth")
    refiner = irn.Network(irn.Config(backbone="resnet_toy", width=32), classes)
    torch.save(irnet_state(refiner, aliases=True), tmp_path/"res50_irn.pth")
    assert call("wsss-run", "ktse+irn", "--data", scenes, "--out", tmp_path/"out", *settings,
                f"ktse.weights={tmp_path}/classifier.pth", f"irn.weights={tmp_path}/res50_irn.pth")[::2] == (0, "")
    told = json.loads((tmp_path/"out"/"result.json").read_text())
    assert told["miou"].keys() == {"seed", "pseudo_label"} and "irn-labels" not in told["seconds"]
    for stage, net in ((None, classifier), ("irn-train", refiner)):
        kept = load_checkpoint(Run(tmp_path/"out", stage))["model"]
        for k, v in net.state_dict().items(): assert torch.equal(kept[k], v), k
