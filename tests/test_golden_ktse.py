"""Golden vectors of KTSE's classifier (area `ktse`): sizes, options and case counts come from the files.

Its CRF is in test_golden_crf_of_methods."""
import numpy as np
import pytest
import torch
from golden_files import cases, golden

from wsss_nb.backbones.core import create_backbone, read_weights
from wsss_nb.backbones.wide_resnet import WideBlock, WideBottleneck, published_name


def load(path): return {k: torch.as_tensor(v) if v.dtype.kind != "U" else v for k, v in np.load(path).items()}

def close(a, b, atol=0., rtol=0.):
    assert a.shape == b.shape
    torch.testing.assert_close(a.detach().double(), torch.as_tensor(b).double(), atol=atol, rtol=rtol)

def within(a, b, share):
    "Absolute error at most `share` of the largest magnitude of the array"
    close(a, b, atol=share*b.abs().max().item())

def tensors(z, kind): return {k.removeprefix(f"{kind}/"): v for k, v in z.items() if k.startswith(f"{kind}/")}


# %% Backbone
@pytest.mark.parametrize("path", golden("ktse", "resblock"))
def test_blocks(path):
    z = load(path)
    def option(name): return z[f"opt/{name}"].item()
    params = tensors(z, "param")
    if "conv_branch2b2.weight" in params:
        block = WideBottleneck(option("in_channels"), option("out_channels"), option("stride"), option("dilation"),
                               option("dropout"))
    else:
        block = WideBlock(option("in_channels"), option("mid_channels"), option("out_channels"), option("stride"),
                          option("first_dilation"), option("dilation"))
    block.load_state_dict(params)
    with torch.no_grad():
        close(block.eval()(z["in/x"]), z["out/y"], atol=1e-5)
        close(block.bn_branch2a(z["in/x"]).relu(), z["out/pre"], atol=1e-5)


@pytest.mark.parametrize("path", golden("ktse", "mxnet_params"))
def test_imagenet_file(path, tmp_path):
    "Every layout gives the same tensors, and they fill a network whose widths are theirs"
    z = np.load(path)
    expected, file = {k[4:]: z[k] for k in z if k.startswith("out/")}, tmp_path/"net.params"
    layouts = [k for k in z if k.startswith("in/file")]
    assert layouts
    for layout in layouts:
        file.write_bytes(z[layout].tobytes())
        found = {published_name(k): v.numpy() for k, v in read_weights(file).items()}
        assert found.pop(None, None) is not None and found.keys() == expected.keys()
        for k, v in expected.items():
            assert found[k].dtype == v.dtype
            np.testing.assert_array_equal(found[k], v)
    conv1a, stages = len(expected["conv1a.weight"]), range(2, 8)
    def out(s): return len(expected.get(f"b{s}.conv_branch2b2.weight", expected.get(f"b{s}.conv_branch2b1.weight")))
    net = create_backbone("wide_resnet38", init=file, widths=(conv1a, *map(out, stages)))
    for k, v in expected.items(): np.testing.assert_array_equal(net.state_dict()[k], v)
