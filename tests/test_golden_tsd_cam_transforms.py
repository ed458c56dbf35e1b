"""Golden vectors of the data pipeline (area `tsd_cam`, family `toco_transforms`): sizes, seeds, scales and case
counts come from the file."""
import random

import numpy as np
import pytest
import torch
from golden_files import cases, golden

from wsss_nb.ground.core import IGNORE_INDEX
from wsss_nb.data.transforms import (crop_at, denormalise, draw_crop, gaussian_blur, normalise, random_crop, rescale,
                                     resize_short, resize_to, solarise)

each_file = pytest.mark.parametrize("path", golden("tsd_cam", "toco_transforms"))


def near(ours, theirs):
    # a grey level: Pillow's rounding may change
    assert ours.shape == theirs.shape and np.abs(ours.astype(int)-theirs).max() <= 1


@each_file
def test_sizes(path):
    z = np.load(path)
    assert cases(z, "opt/scale"), "no case of rescaling"
    for c in cases(z, "opt/scale"): near(rescale(z["in/image"], float(z[f"opt/scale{c}"])), z[f"out/rescaled{c}"])
    label = z["out/rescaled_label"]
    np.testing.assert_array_equal(resize_to(z["in/label"], label.shape), label)
    near(resize_short(z["in/image"], int(z["opt/min_size"])), z["out/resize_short"])


@each_file
def test_crops(path):
    z = np.load(path)
    assert cases(z, "opt/crop_size"), "no case of a crop"
    for c in cases(z, "opt/crop_size"):
        size,seed,pad,start = (z[f"opt/{k}{c}"].tolist() for k in ("crop_size", "seed", "pad_top_left", "crop_start"))
        drawn = draw_crop(z["in/image"].shape, size, np.random.RandomState(seed), random.Random(seed))
        assert drawn == dict(pad_top_left=tuple(pad), start=tuple(start))
        for crop,box in (crop_at(z["in/image"], size, pad, start),
                         random_crop(z["in/image"], size, np.random.RandomState(seed), random.Random(seed))):
            np.testing.assert_array_equal(crop, z[f"out/crop{c}"])
            np.testing.assert_array_equal(box, z[f"out/img_box{c}"])
            assert box.dtype == z[f"out/img_box{c}"].dtype
        inside = crop_at(z["in/label"], size, pad, start, fill=IGNORE_INDEX)[0]
        y0,y1,x0,x1 = z[f"out/img_box{c}"]
        (a,b),(r,q) = pad,start
        np.testing.assert_array_equal(inside[y0:y1,x0:x1], z["in/label"][y0+r-a:y1+r-a,x0+q-b:x1+q-b])


@each_file
def test_normalisation(path):
    z = np.load(path)
    x = normalise(z["in/image"])
    torch.testing.assert_close(x[None], torch.from_numpy(z["out/tensor_normalised"]), atol=1e-6, rtol=0)
    # the form with constants 0..255
    torch.testing.assert_close(x.permute(1,2,0), torch.from_numpy(z["out/normalised"]), atol=1e-6, rtol=0)
    back = denormalise(torch.from_numpy(z["out/tensor_normalised"]))
    np.testing.assert_array_equal(back, z["out/denorm_u8"])
    torch.testing.assert_close(back/255, torch.from_numpy(z["out/denorm_unit"]), atol=1e-6, rtol=0)


@each_file
def test_photometric(path):
    z = np.load(path)
    near(gaussian_blur(z["in/image"], float(z["opt/blur_radius"])), z["out/blurred"])
    near(solarise(z["in/image"]), z["out/solarised"])
