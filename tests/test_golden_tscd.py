"Golden vectors of TSCD's and AFA's parts (area `tscd`): sizes, options and weights come from the files."
import pytest
import torch
from golden_files import cases, golden
from test_golden_tsd_cam import close, load, params

from wsss_nb.backbones.core import load_matching
from wsss_nb.backbones.mit import MiT, attention_logits, build_backbone


@pytest.mark.parametrize("path", golden("tscd", "mit_encoder"))
def test_encoder(path):
    z = load(path)
    names = {"widths": "embed_dims", "heads": "num_heads", "depths": "depths", "reductions": "sr_ratios", "stride": "stride"}
    encoder = MiT(**{k: z[f"opt/{v}"].tolist() for k, v in names.items()}, aux_layer=-1).eval()
    assert not load_matching(encoder, params(z))
    blocks = cases(z, "out/attn")
    assert len(blocks) == sum(encoder.depths)
    out = encoder(z["in/x"], attention=range(len(blocks)))
    for s in range(1, 5): close(out[f"stage{s}"], z[f"out/x{s}"], 2e-5)
    for i, pair in zip(blocks, out["attention"]): close(attention_logits(*pair), z[f"out/attn{i}"], 2e-4)
