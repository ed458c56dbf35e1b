"`wsss-crf`: folders in, label maps out; it may be stopped, called again, and meet damaged files."
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from wsss_nb.data.datasets import open_dataset
from wsss_nb.ground.io import read_image, read_label, write_cam, write_image
from wsss_nb.refine.crf import CRF_PRESETS, cam_probs, dense_crf
from wsss_nb.refine.crf_files import read_scores
from wsss_nb.refine.lattice import extension

COMMAND = [sys.executable, "-c",
           "import sys; from wsss_nb.use.cli import main; sys.exit(main(['wsss-crf', *sys.argv[1:]]))"]


def probabilities(shape, seed):
    "Smooth random class probabilities (K,H,W), float32"
    noise = torch.randn(1, shape[0], 6, 6, generator=torch.Generator().manual_seed(seed))
    return (3*torch.nn.functional.interpolate(noise, size=shape[1:], mode="bicubic"))[0].softmax(0).numpy()


@pytest.fixture
def folders(here):
    "Five images of different sizes with the probabilities of four classes"
    data = open_dataset("shapes:n=50,size=48")
    for i, (h, w) in enumerate([(48, 48), (31, 40), (40, 31), (48, 47), (20, 24)]):
        write_image(here/"images"/f"photo{i}.{'jpg' if i % 2 else 'png'}", data[i].image[:h, :w])
        (here/"probs").mkdir(exist_ok=True)
        np.savez(here/"probs"/f"photo{i}.npz", probs=probabilities((4, h, w), i))
    return here


def label(root, i): return read_label(root/"out"/f"photo{i}.png")
def photo(root, i): return read_image(next((root/"images").glob(f"photo{i}.*")))
def stamps(root): return {p.name: p.stat().st_mtime_ns for p in (root/"out").glob("*.png")}


needs_extension = pytest.mark.skipif(extension() is None, reason="the extension was not built")
@pytest.mark.parametrize("backend", ["torch", pytest.param("lattice", marks=needs_extension)])
@pytest.mark.parametrize("options,same",
                         [(("--preset", "psa"), {"preset": "psa"}),
                          (("--preset", "i2crc", "--iters", "3", "--scale-factor", "2"),
                           {"preset": "i2crc", "iters": 3, "scale_factor": 2.}),
                          (("--pos-xy-std", "2", "--pos-w", "1", "--bi-xy-std", "20", "--bi-rgb-std",
                            "9", "--bi-w", "6"), {"pos_xy_std": 2., "pos_w": 1., "bi_xy_std": 20.,
                                                  "bi_rgb_std": 9., "bi_w": 6.}),
                          (("--bi-w", "0", "--crf-image", "mean_wrapped", "--channels", "bgr"),
                           {"bi_w": 0.}), (("--min-prob", ".9"), {"min_prob": .9})])
def test_what_it_writes_is_the_function(call, folders, options, same, backend):
    status, out, err = call("wsss-crf", "images", "probs", "--out", "out", "--backend", backend, *options)
    assert (status, err) == (0, "") and "5 label maps written to out" in out
    for i in range(5):
        q = dense_crf(photo(folders, i), np.load(folders/"probs"/f"photo{i}.npz")["probs"], as_labels=True,
                      backend=backend, **same)
        assert (label(folders, i) == q).all(), i
    assert Image.open(folders/"out"/"photo0.png").mode == "P"
    assert {p.suffix for p in (folders/"out").iterdir()} == {".png", ".json"}


def test_kinds_of_arrays(call, folders):
    "Arrays alone, logits of any size, CAMs of a run; probabilities on request"
    p = np.load("probs/photo0.npz")["probs"]
    for i, suffix in ((0, ".npz"), (1, ".npz"), (2, ".npz")): (folders/"probs"/f"photo{i}{suffix}").unlink()
    np.save("probs/photo0.npy", p.astype(np.float64))
    np.savez("probs/photo1.npz", logits=np.log(probabilities((4, 16, 20), 9)))
    write_cam("probs/photo2.npz", probabilities((2, 40, 31), 5), [1, 6])
    status, out, err = call("wsss-crf", "images", "probs", "--out", "out", "--preset", "cam_alpha", "--alpha", "4",
                            "--save-probs")
    assert (status, err) == (0, "")
    assert (label(folders, 0) == dense_crf(photo(folders, 0), p, preset="cam_alpha", as_labels=True)).all()
    logits = torch.nn.functional.interpolate(torch.from_numpy(np.load("probs/photo1.npz")["logits"])[None],
                                             size=(31, 40), mode="bilinear")[0]
    assert ((label(folders, 1) == dense_crf(photo(folders, 1), logits.softmax(0), preset="cam_alpha",
                                            as_labels=True).numpy()).mean() > .999)
    with np.load("probs/photo2.npz") as z: scores = cam_probs(z["cam"], 4)
    q = dense_crf(photo(folders, 2), scores, preset="cam_alpha")
    assert (label(folders, 2) == np.array([0, 2, 7])[q.argmax(0)]).all()
    with np.load("out/photo2.npz") as z:
        assert z["labels"].tolist() == [0, 2, 7] and np.abs(z["probs"]-q.numpy()).max() < 1e-3
    assert read_scores(folders/"out"/"photo2.npz", (40, 31))[0].shape == (3, 40, 31)   # can be read again


def test_called_again(call, folders):
    "What is missing or out of date is made; other settings make everything again"
    def crf(*options): return call("wsss-crf", "images", "probs", "--out", "out", *options)
    assert crf()[0] == 0
    before = stamps(folders)
    assert "0 label maps written to out, 5 up to date" in crf()[1] and stamps(folders) == before
    (folders/"out"/"photo1.png").unlink()
    np.savez("probs/photo3.npz", probs=probabilities((4, 48, 47), 77))
    assert "2 label maps written to out, 3 up to date" in crf()[1]
    after = stamps(folders)
    assert {k for k in after if after[k] != before[k]} == {"photo1.png", "photo3.png"}
    assert "5 label maps" in crf("--iters", "2")[1] and "5 label maps" in crf()[1]
    assert "5 up to date" in crf("--jobs", "1", "--threads", "2")[1]


def test_damaged_files(call, folders):
    "Each is named in one line, everything else is made, the status is 1; nothing that was good is lost"
    assert call("wsss-crf", "images", "probs", "--out", "out")[0] == 0
    good = (folders/"out"/"photo0.png").read_bytes()
    (folders/"probs"/"photo0.npz").write_bytes(b"PK half a file")
    (folders/"images"/"photo1.jpg").write_bytes((folders/"images"/"photo1.jpg").read_bytes()[:200])
    np.savez("probs/photo2.npz", probs=probabilities((4, 9, 9), 0))                    # another size
    np.savez("probs/photo3.npz", probs=np.full((4, 48, 47), np.nan, np.float32))
    np.savez("probs/photo4.npz", scores=np.zeros(3))
    np.savez("probs/nobody.npz", probs=np.zeros((4, 9, 9)))
    status, out, err = call("wsss-crf", "images", "probs", "--out", "out")
    lines = err.splitlines()
    assert status == 1 and "Traceback" not in err and len(lines) == 6 and "6 not made" in out
    for name, says in (("photo0.npz", "array file"), ("photo1.jpg", "cannot be decoded"),
                       ("photo2.npz", "image is 40x31"), ("photo3.npz", "NaN"), ("photo4.npz", "wanted is `probs`"),
                       ("nobody.npz", "no image")):
        assert [l for l in lines if l.startswith("wsss-crf: ") and name in l and says in l], (name, err)
    assert (folders/"out"/"photo0.png").read_bytes() == good
    for p in (folders/"probs").iterdir(): p.unlink()
    np.savez("probs/photo2.npz", probs=probabilities((4, 40, 31), 2))
    assert call("wsss-crf", "images", "probs", "--out", "out")[0] == 0


@pytest.mark.parametrize("options,says",
                         [(("--preset", "pas"), "did you mean psa"), (("--backend", "gpu"), "CRF backend"),
                          (("--bi-xy-std", "-3"), "positive"), (("--iters", "-1"), "0 rounds or more"),
                          (("--jobs", "0"), "1 or more"),
                          (("--iters", "ten"), "invalid int value"),
                          (("--bi-srgb", "3"), "did you mean --bi-rgb-std"),
                          (("--crf-image", "wrapped"), "mean_wrapped"),
                          (("--channels", "grb"), "channels"),
                          (("--scale-factor", "0"), "positive factor"), (("--device", "tpu"), "device"),
                          (("--threads", "-1"), "1 or more")])
def test_wrong_options(fails, folders, options, says):
    assert says in fails("wsss-crf", "images", "probs", "--out", "out", *options)
    assert not (folders/"out"/"photo0.png").exists()


def test_wrong_paths(fails, folders):
    assert "none: no such folder" in fails("wsss-crf", "none", "probs", "--out", "out")
    assert "none: no such folder" in fails("wsss-crf", "images", "none", "--out", "out")
    assert "no .npy or .npz" in fails("wsss-crf", "images", "images", "--out", "out")
    assert "--out is missing" in fails("wsss-crf", "images", "probs")
    np.save("probs/photo0.npy", np.zeros((4, 48, 48)))
    assert "photo0 is there as .npy and as .npz" in fails("wsss-crf", "images", "probs", "--out", "out")
    (folders/"probs"/"photo0.npy").unlink()
    (folders/"file").write_text("")
    assert "file" in fails("wsss-crf", "images", "probs", "--out", "file")


def test_presets_are_listed(call):
    listed = call("wsss-list", "crf")[1]
    assert [l.split()[0] for l in listed.splitlines()] == list(CRF_PRESETS)
    assert "psa  iters=10 pos_xy_std=3 pos_w=3 bi_xy_std=80 bi_rgb_std=13 bi_w=10" in listed


def test_progress(folders):
    "A bar with the rate, on standard error"
    env = {**os.environ, "TQDM_DISABLE": "0"}
    done = subprocess.run([*COMMAND, "images", "probs", "--out", "out"], capture_output=True, text=True,
                          timeout=120, env=env)
    assert done.returncode == 0 and "dense CRF: 100%" in done.stderr and "5/5" in done.stderr
    assert "image/s" in done.stderr


def test_stopped_and_continued(folders):
    "Ctrl-C: whole files only, status 130; the same command does the rest"
    shape = (8, 120, 120)
    for i in range(30):
        write_image(folders/"images"/f"large{i}.png",
                    np.random.RandomState(i).randint(0, 255, (*shape[1:], 3), dtype=np.uint8))
        np.save(folders/"probs"/f"large{i}.npy", probabilities(shape, i))
    args = [*COMMAND, "images", "probs", "--out", "out", "--backend", "torch", "--jobs", "1", "--preset", "psa",
            "--iters", "30"]
    process = subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    end = time.monotonic()+90
    while not list(folders.glob("out/*.png")) and time.monotonic() < end: time.sleep(.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode == 130 and err.splitlines()[-1]
            == "wsss-crf: stopped; what is written stays, and the same command goes on"), err
    made = list((folders/"out").iterdir())
    assert 0 < len(made) < 36 and all(p.name == "crf.json" or read_label(p).ndim == 2 for p in made), made
