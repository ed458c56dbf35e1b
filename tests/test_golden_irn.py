"""Golden vectors of IRN (area `irn`): sizes, options and case counts come from the files.

Its CRF on hard labels is in test_golden_crf_of_methods."""
import numpy as np
import pytest
import torch
from golden_files import cases, golden

from wsss_nb.cam.strided import image_pairs, merge_strided, padded_size, scaled_size, strided_size


def load(path): return {k: torch.as_tensor(v) if v.dtype.kind != "U" else v for k, v in np.load(path).items()}

def close(a, b, atol=0., rtol=0.):
    assert a.shape == b.shape
    torch.testing.assert_close(a.detach().double(), b.double(), atol=atol, rtol=rtol)

def within(a, b, share):
    "Absolute error at most `share` of the largest magnitude of the array"
    close(a, b, atol=share*b.abs().max().item())

def tensors(z, kind): return {k.removeprefix(f"{kind}/"): v for k, v in z.items() if k.startswith(f"{kind}/")}


# %% CAMs at two sizes
@pytest.mark.parametrize("path", golden("irn", "merge_cams"))
def test_merge_cams(path):
    z = load(path)
    for i in cases(z, "in/size"):
        keys = z[f"in/label{i}"].nonzero()[:, 0]
        assert keys.tolist() == z[f"out/keys{i}"].tolist()
        maps = [z[f"in/cam{i}_s{n}"] for n in range(len(z["opt/scales"]))]
        small, high = merge_strided(maps, z[f"in/size{i}"].tolist(), keys)
        close(small, z[f"out/cam{i}"], 1e-5)
        close(high, z[f"out/high_res{i}"], 1e-5)


@pytest.mark.parametrize("path", golden("irn", "msf_views"))
def test_views(path):
    z = load(path)
    image, scales = z["in/rgb"].numpy(), z["opt/scales"].tolist()
    pairs = list(image_pairs(image, scales))
    assert [list(p.shape[2:]) for p in pairs] == z["out/sizes_hw"].tolist()
    assert [list(scaled_size(image.shape[:2], s)) for s in scales] == z["out/sizes_hw"].tolist()
    (half,) = [p for p, s in zip(pairs, scales) if s == .5]
    close(half, z["out/half_scale"], 1/255/.224+1e-6)  # a grey level
    close(half, z["out/half_scale"], 1e-6)             # the same Pillow: no level at all
