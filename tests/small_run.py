"""The run in `data/run_1`: so small that it is kept, so that what was trained before can be resumed after. `python
tests/small_run.py` makes it anew, which is right only when `CHECKPOINT_FORMAT` is raised, and then beside the old
one.

It is stopped at the checkpoint of step 3 of 6 and has the log of all six steps: resumed, it must write the last
three lines again."""
import subprocess
import sys
from pathlib import Path

from wsss_nb.run.folder import CHECKPOINT_FORMAT, Run

FOLDER = Path(__file__).parent/"data"
COMMAND = ("wsss-run", "cpdgl", "--data", "shapes:n=12,size=64", "--stages", "train", "--preset", "shapes",
           "--backbone", "vit:img_size=64,patch_size=8,embed_dim=8,depth=3,num_heads=1,mlp_ratio=2",
           "--set", "pretrained=false", "zero_heads=false", "batch_size=4", "iters=6", "save_every=3", "log_every=1",
           "val_every=6", "val_images=2", "warmup_iter=1", "lr=1e-3", "crop_size=64", "hidden=8", "cam_scales=1",
           "infer_scales=1", "infer_par=1", "seg_start=0", "ptc_start=0", "contrast_start=0", "proto_from=1",
           "final_from=3", "ramp_iters=4", "num_crops=2", "local_size=24", "proj_hidden=8", "queue_len=40")

if __name__ == "__main__":
    out = FOLDER/f"run_{CHECKPOINT_FORMAT}"
    subprocess.run([Path(sys.executable).parent/COMMAND[0], *COMMAND[1:], "--out", out], check=True)
    run = Run(out)
    run.previous.replace(run.last)
    for file in (run.best, run.result, *out.glob("events*")): file.unlink()
    print({str(p.relative_to(FOLDER)): p.stat().st_size for p in out.rglob("*") if p.is_file()})
