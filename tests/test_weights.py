"""Published presets ask for the weights that belong to them: by name, from a file, or at random on purpose.

No test fetches any."""

import pytest
import torch
from wsss_nb.backbones import core
from wsss_nb.run.engine import run_warnings
from wsss_nb.run.settings import resolve_config
from wsss_nb.use.names import METHODS, get_method

DATA = ("--data", "shapes:n=6,size=64", "--set", "train_split=train")
SMALL = ("iters=1", "crop_size=64", "batch_size=2", "workers=0", "val_images=1", "cam_scales=1")


@pytest.fixture
def cut_off(monkeypatch, tmp_path):
    "No weights are here, and whoever asks the network is told so"
    asked = []
    def refuse(*args, **kw):
        asked.append(args)
        raise ConnectionError("no route")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *args: None)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path/"hub"))
    return asked


@pytest.mark.parametrize(
    "method,preset,words",
    [
        (
            "toco",
            "voc",
            "vit_base_patch16_224.orig_in21k_ft_in1k begins with model.safetensors of https://huggingface.co/timm/",
        ),
        ("tsd-cam", "coco", "orig_in21k_ft_in1k"),
        ("cpdgl", "released", "orig_in21k_ft_in1k"),
        ("baseline", "voc", "orig_in21k"),
        ("tscd", "voc", "mit_b1 begins with mit_b1.pth of SegFormer's release"),
        ("tscd", "afa", "mit_b1.pth"),
        ("i2crc", "voc", "resnet101-63fe2227.pth"),
        ("resnet-cam", "voc", "resnet50-0676ba61.pth"),
        ("resnet-cam+irn+beco", "voc", "(--set resnet_cam.init=FILE)"),
        ("i2crc+none", "voc", "vgg16-397923af.pth"),  # its own segmenter takes no part
    ],
)
def test_one_line_before_any_work(cut_off, fails, tmp_path, method, preset, words):
    first = method.partition("+")[0].replace("-", "_")
    data = (*DATA[:3], f"{first}.train_split=train") if "+" in method else DATA
    more = {"i2crc": ["saliency=none"], "i2crc+none": ["i2crc.saliency=none"]}.get(method, ())
    said = fails("wsss-run", method, *data, *more, "--preset", preset, "--out", tmp_path/"out")
    assert words in said and "--init none" in said
    assert "HTTPS_PROXY" in said or "cannot be fetched by itself" in said
    assert not (tmp_path/"out").exists()


def test_random_on_purpose(cut_off, call, tmp_path):
    argv = ("wsss-run", "baseline", *DATA, *SMALL, "--preset", "voc", "--stages", "train", "--out", tmp_path/"out")
    status,_,err = call(*argv, "--init", "none", "--backbone", "deit_tiny_patch16_224.fb_in1k")
    assert status == 0 and not cut_off and "random" not in err
    assert "pretrained = false" in (tmp_path/"out"/"config.toml").read_text()


def test_networks_that_take_no_part():
    "I2CRC has a classifier and a segmenter; a chain that takes its labels trains the first only"
    def told(name):
        method = get_method(name)
        config = resolve_config(method.config(), method.presets, "voc")
        return run_warnings(method, config, "voc")
    assert [said.split()[0] for said in told("i2crc")] == ["resnet101", "vgg16"]
    assert "--set i2crc.init" not in "".join(told("i2crc+beco"))
    assert "--set i2crc.cls_init=FILE" in told("i2crc+beco")[0]


def test_weights_that_are_here_are_taken(cut_off, call, tmp_path, monkeypatch):
    made = []
    real = core.import_module("wsss_nb.backbones.vit").build_backbone
    def build(name, pretrained=False, **options):
        made.append((name, pretrained))
        return real(name, **options)
    monkeypatch.setattr("wsss_nb.backbones.vit.build_backbone", build)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *args: "here")
    argv = ("wsss-run", "baseline", *DATA, *SMALL, "--preset", "voc", "--stages", "train")
    status,_,err = call(*argv, "--backbone", "deit_tiny_patch16_224.fb_in1k", "--out", tmp_path/"out")
    assert (status, made) == (0, [("deit_tiny_patch16_224.fb_in1k", True)]), err
    assert not cut_off and "pretrained = true" in (tmp_path/"out"/"config.toml").read_text()


def test_toys_begin_as_before(cut_off, call, tmp_path):
    argv = ("wsss-run", "baseline", *DATA, *SMALL, "--preset", "voc", "--stages", "train")
    status,_,err = call(*argv, "--backbone", "vit_toy", "--set", "aux_layer=-2", "--out", tmp_path/"out")
    assert status == 0 and "vit_toy begins with random weights" in err and not cut_off


def test_runs_of_before_go_on(cut_off, call, tmp_path):
    argv = ("wsss-run", "baseline", *DATA, *SMALL, "--preset", "voc", "--stages", "train",
            "--backbone", "deit_tiny_patch16_224", "--out", tmp_path/"out")
    assert call(*argv, "--init", "none")[0] == 0
    assert call(*argv, "--resume")[0] == 0 and not cut_off  # begun with pretrained=false


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_published_preset_has_a_source(method):
    "A backbone of a published preset has a file that is known, or none is asked for it"
    from wsss_nb.run.engine import _parts_with_backbones, beginnings
    from wsss_nb.backbones.weights import weights_source
    found = get_method(method)
    for preset in {*found.presets} & {*found.published}:
        config = resolve_config(found.config(), found.presets, preset)
        for _,part in _parts_with_backbones(config):
            for name,_ in beginnings(part).values():
                assert weights_source(name) is not None, (preset, name)


def test_any_network_of_timm(cut_off, fails, call, tmp_path):
    published = ("wsss-run", "baseline", *DATA, "--preset", "voc", "--out", tmp_path/"out")
    said = fails(*published, "--backbone", "convnext_atto.d2_in1k")
    assert "convnext_atto.d2_in1k begins with model.safetensors of https://huggingface.co/timm/convnext_atto" in said
    assert "did you mean convnext_atto" in fails(*published, "--backbone", "timm:convnext_ato")
    assert "output_stride=N" in fails(*published, "--backbone", "convnext_atto:stride=8", "--init", "none")
    status,_,err = call("wsss-run", "baseline", *DATA, *SMALL, "pretrained=false", "encoder=frozen", "fixed_views=1",
                        "--stages", "train", "--backbone", "convnext_atto", "--out", tmp_path/"out")
    assert status == 0 and "convnext_atto" in (tmp_path/"out"/"config.toml").read_text(), err


def test_timms_names_are_listed_when_asked_for(call):
    _,every,_ = call("wsss-list", "backbones")
    _,found,_ = call("wsss-list", "backbones", "convnext")
    assert "convnext_atto" in found.split() and "convnext_atto" not in every.split()
    assert "of timm: wsss-list backbones WORD" in every


@pytest.mark.parametrize("method,setting", [("baseline", "pretrained"), ("resnet-cam+none", "resnet_cam.pretrained"),
                                            ("ktse+none", "ktse.pretrained"), ("i2crc", "pretrained")])
def test_weights_out_of_reach_are_one_line(cut_off, fails, monkeypatch, tmp_path, method, setting):
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", cut_off_timm)
    more = ("saliency=none",) if method == "i2crc" else ()
    changed = ("--set", f"{setting}=true", *more)
    said = fails("wsss-run", method, *DATA[:2], "--preset", "photos", "--out", tmp_path/"out", *changed)
    assert "cannot be fetched (ConnectionError); check the network, or give a file with --init" in said


def cut_off_timm(*args, **kw): raise ConnectionError("no route")


def test_no_photos_preset_asks_the_network():
    for name in METHODS:
        method = get_method(name)
        settings = method.presets.get("photos", {})
        asked = {k: v for k, v in settings.items() if k.split(".")[-1] == "pretrained"}
        assert not any(asked.values()), f"{name}: {asked}"
