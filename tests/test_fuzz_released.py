"""Weight files that somebody wrote: whatever their names, shapes and values are, a file is read, or refused in one line
that names what is odd.

A few seconds here; `FUZZ=5000 pytest tests/test_fuzz_released.py` for an hour."""
import os
import random
import zlib
from functools import cache

import numpy as np
import pytest
import torch
from test_released import cpdgl_shapes, published_beco, published_ktse, random_tensors, toco_shapes

from wsss_nb.backbones.core import create_backbone
from wsss_nb.data.voc import VOC_CLASSES
from wsss_nb.ground.core import UserError
from wsss_nb.use.released import load_released, our_tensors

TRIES = int(os.environ.get("FUZZ", 12))  # of each family


def with_encoder(shapes, backbone):
    "Tensors of another encoder under the names of these"
    made = {f"encoder.{k}": v for k, v in create_backbone(backbone).state_dict().items()}
    return random_tensors({k: s for k, s in shapes.items() if not k.startswith("encoder")}) | made

@cache
def toco(): return with_encoder(toco_shapes(20), "vit:img_size=32,embed_dim=64,depth=3,num_heads=1")

def cpdgl(): return with_encoder(cpdgl_shapes(20), "vit:img_size=32,embed_dim=64,depth=3,num_heads=1")

def tscd():
    from wsss_nb.methods import tscd as method
    return method.Network(method.Config(backbone="mit_toy", hidden=16, crop_size=128), VOC_CLASSES).state_dict()

def i2crc():
    from wsss_nb.use.names import parts_of
    from wsss_nb.run.settings import resolve_config
    part = parts_of("i2crc")[0]
    config = resolve_config(part.config(), part.presets, "voc", (), backbone="resnet_toy")
    return part.network(config, VOC_CLASSES).state_dict()

def ktse(): return published_ktse()[1]

def aeft(): return published_ktse(False)[1]

def beco():
    nets = published_beco()[1]["net_state_dict"]
    return {f"{name}.{k}": v for name, net in nets.items() for k, v in net.items()}

FAMILIES = {f.__name__: f for f in (toco, cpdgl, tscd, i2crc, ktse, aeft, beco)}

@pytest.fixture(scope="module", params=FAMILIES)
def family(request): return request.param, FAMILIES[request.param]()


# %% Single damages: each is one tensor's, and that tensor is named if the file is refused
SHAPES = {"0-d": lambda v: torch.zeros(()), "1-d": lambda v: torch.zeros(3), "empty": lambda v: torch.zeros(0),
          "empty, many": lambda v: torch.zeros(*v.shape, 0), "no rows": lambda v: v[:0] if v.ndim else torch.zeros(0),
          "more rows": lambda v: torch.cat([v, v]) if v.ndim else torch.zeros(2),
          "turned": lambda v: v.reshape(-1)[None], "one more axis": lambda v: v[None],
          "wide": lambda v: torch.zeros(2**20, 0, 2**20)}
VALUES = {"meta": lambda v: v.to("meta"), "NaN": lambda v: torch.full(v.shape, torch.nan),
          "infinity": lambda v: torch.full(v.shape, torch.inf), "complex": lambda v: v+1j,
          "bytes": lambda v: v.to(torch.int8), "half": lambda v: v.half(), "double": lambda v: v.double(),
          "expanded": lambda v: torch.zeros(1).expand(10**9), "sparse": lambda v: torch.ones(2, 2).to_sparse()}
DAMAGES = SHAPES | VALUES

def opened(state, path, **options):
    "What a reader makes of these tensors: a report, or the line of its refusal"
    torch.save(state, path)
    try: return load_released(path, **options)[1], None
    except UserError as e: line = str(e)
    assert "\n" not in line and line.startswith(f"{path}: ") and len(line) < 1000, line
    return None, line.removeprefix(f"{path}: ")

def names_of(name, state):
    "What a tensor of a file may be called in a message: as it is there, or as the method calls it"
    return {name, *(k for k, v in our_tensors(state).items() if v is state[name])}

def test_whole_files(family, tmp_path):
    report, line = opened(family[1], tmp_path/"w.pth")
    assert line is None and len(report.classes) == 21

def test_one_tensor_is_odd(family, tmp_path):
    name, state = family
    rng = random.Random(zlib.crc32(name.encode()))
    tried = [(k, d) for k in state for d in DAMAGES]
    for key, damage in rng.sample(tried, min(TRIES, len(tried))):
        spoilt = state | {key: DAMAGES[damage](state[key])}
        _, line = opened(spoilt, tmp_path/"w.pth")
        called = names_of(key, state)
        assert line is None or any(n.removesuffix(".weight").removesuffix(".bias") in line for n in called), \
            (key, damage, line)

def test_names_are_odd(family, tmp_path):
    name, state = family
    rng = random.Random(zlib.crc32(name.encode())+1)
    for _ in range(TRIES//3):
        spoilt = dict(state)
        for _ in range(rng.randint(1, 3)):
            key = rng.choice([k for k in spoilt if isinstance(k, str)])
            value, words = spoilt.pop(key), key.split(".")
            kind = rng.choice(["drop", "int", "bytes", "tuple", "none", "word", "number", "huge", "cut", "dot", "text"])
            if kind == "drop": continue
            at = rng.randrange(len(words))
            words[at] = {"word": "x", "number": "7", "huge": "9"*rng.choice([3, 30]), "dot": "", "text": "²\n"}.get(
                kind, words[at])
            new = {"int": 5, "bytes": key.encode(), "tuple": (key,), "none": None, "cut": key[:len(key)//2]}.get(
                kind, ".".join(words))
            spoilt[new] = rng.choice([value, value, 3, "text", None, [value]])
        opened(spoilt, tmp_path/"w.pth")

@pytest.mark.parametrize("key", ["encoder.patch_embed.proj.weight", "encoder.pos_embed", "decoder.conv6.weight",
                                 "encoder.blocks.0.mlp.fc1.weight", "decoder.conv8.weight", "proj_head.mlp.0.weight",
                                 "proj_head.last_layer.weight_v"])
@pytest.mark.parametrize("damage", [*SHAPES, "meta", "NaN", "complex", "bytes"])
def test_every_tensor_whose_shape_is_read(key, damage, tmp_path):
    state = toco()
    report, line = opened(state | {key: DAMAGES[damage](state[key])}, tmp_path/"w.pth")
    more_classes = (key, damage) == ("decoder.conv8.weight", "more rows")
    assert key in line if line else key.startswith("proj_head") or more_classes, line

def test_one_class_and_no_background(tmp_path):
    state = random_tensors(toco_shapes(20)) | {"decoder.conv8.weight": torch.ones(1, 24, 1, 1)}
    assert "decoder.conv8.weight has one row" in opened(state, tmp_path/"w.pth")[1]


# %% Bytes
@pytest.mark.parametrize("zipped", [True, False])
def test_bytes(zipped, tmp_path):
    """One bit of a file: it is told, or no tensor changes

    A file from before zip archives has no sums: then it is read or refused, no more."""
    state, path = toco(), tmp_path/"w.pth"
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    whole, rng = path.read_bytes(), random.Random(7)
    sound = load_released(path)[0].state_dict()
    head = whole.index(b"data/0") if zipped else 20_000
    places = [rng.randrange(len(whole)) for _ in range(TRIES)] + [rng.randrange(head) for _ in range(TRIES)] \
        + [len(whole)-1-rng.randrange(20_000) for _ in range(TRIES)]
    refused = 0
    for at in places:
        path.write_bytes(whole[:at]+bytes([whole[at] ^ 1 << rng.randrange(8)])+whole[at+1:])
        try: found = load_released(path)[0].state_dict()
        except UserError as e:
            assert "\n" not in str(e)
            refused += 1
            continue
        if zipped:
            for k, v in sound.items(): assert torch.equal(found[k], v), (at, k)
    assert refused > TRIES/2 or not zipped

def test_beside_the_weights(tmp_path):
    "What training code keeps beside weights is read over: numbers and arrays of NumPy, options, paths, dates"
    from argparse import Namespace
    from datetime import datetime
    from pathlib import Path
    state, path = toco(), tmp_path/"w.PTH"
    more = {"best": np.float64(61.2), "iou": np.arange(21.), "args": Namespace(lr=.1, out=Path("out")), "it": 20_000,
            "when": datetime(2024, 1, 2), "names": np.array(["a", "b"]), "optimizer": {"state": {0: torch.ones(2)}}}
    for key in ("state_dict", "model_state_dict", "net_state_dict", "net", "network", "ema", "params", "model"):
        report, line = opened({key: {f"module.module.{k}": v for k, v in state.items()}} | more, path)
        assert line is None and report.method == "toco" and not report.missing, (key, line)
    report, line = opened(state | more, path)
    assert line is None and not report.missing
