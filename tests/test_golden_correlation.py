"Golden vectors of the correlation loss (areas `tsd_cam` and `tscd`): sizes and case counts come from the files."
import pytest
from golden_files import cases, golden
from test_golden_tsd_cam import close, load

from wsss_nb.losses.correlation import correlation_loss, correlation_maps, sample_maps

# of the READMEs
TOL = {"tsd_cam": dict(loss=1e-5, grad=1e-8, maps=1e-5), "tscd": dict(loss=2e-6, grad=2e-6, maps=1e-5)}


def read(z, i, area):
    "Return CAMs and logits of two views, places of both, and the names of what is stored for them"
    if area == "tsd_cam": names = [f"cams{i}", f"cams2{i}", f"segs{i}", f"segs2{i}"]
    else: names = [f"{k}{i}" for k in ("feats", "feats_pos", "code", "code_pos")]
    places = [z[f"in/rand{k}{i}"] if area == "tsd_cam" else (z[f"in/coords{k}{i}"]+1)/2 for k in (1, 2)]
    return [z[f"in/{k}"].clone() for k in names], places, names[2:]


@pytest.mark.parametrize("path", golden("tsd_cam", "tsd_corr") + golden("tscd", "scd_corr_loss"))
def test_correlation(path):
    z, area = load(path), path.parent.name
    tol, found = TOL[area], cases(z, "in/cams" if area == "tsd_cam" else "in/feats")
    assert found
    for i in found:
        maps, places, names = read(z, i, area)
        assert all(p.shape[1] == z[f"opt/feature_samples{i}"] for p in places)
        for x in maps[2:]: x.requires_grad_()
        loss = correlation_loss(*maps, rand1=places[0], rand2=places[1])
        loss.backward()
        close(loss, z[f"out/loss{i}"], tol["loss"])
        for x, k in zip(maps[2:], names, strict=True): close(x.grad, z[f"grad/{k}"], tol["grad"])


@pytest.mark.parametrize("path", golden("tsd_cam", "tsd_corr") + golden("tscd", "scd_corr_loss"))
def test_correlation_maps(path):
    z, area = load(path), path.parent.name
    if area == "tsd_cam": stored, similar, pairs = ("feat1", "feat2", "code1", "code2"), "cd", "pair_loss"
    else: stored, similar, pairs = ("sampled_feats", None, None, "sampled_code_pos"), "code_corr", "loss_map"
    complete = [i for i in cases(z, f"out/{similar}")]
    assert complete
    for i in complete:
        maps, places, _ = read(z, i, area)
        sampled = [sample_maps(x, places[k % 2]) for k, x in enumerate(maps)]
        for x, k in zip(sampled, stored):
            if k: close(x, z[f"out/{k}{i}"], TOL[area]["maps"])
        target, cosines = correlation_maps(*sampled)
        expected = z[f"out/{pairs}{i}"]
        close(cosines.view_as(expected), z[f"out/{similar}{i}"], TOL[area]["maps"])
        close((-cosines.clamp(min=0)*target).view_as(expected), expected, TOL[area]["maps"])
