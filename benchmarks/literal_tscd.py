"""A training step of TSCD the plain way, as in literal.py: its recipe line by line. Numbers in brackets are its
sections.

Attention logits of the last two blocks stand in memory, head by head; the decoder enlarges and stacks four stages,
and runs in every CAM pass as the published code lets it; the pass at scale 1 is made a second time for the CAM. Only
the encoder's and heads' own weights and the encoder's passes come from the package.
"""
import torch
import torch.nn.functional as F
from literal import IGNORE, Literal, LiteralTSD, multi_scale_cam, seg_loss

from wsss_nb.backbones.mit import attention_logits


def radius_mask(h, w, radius):
    "[3.5]: (hw,hw), 1 where two cells are at most `radius` apart"
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    y, x = y.flatten(), x.flatten()
    return (torch.max((y[:, None]-y).abs(), (x[:, None]-x).abs()) <= radius).long()


def affinity_labels(label, mask):
    "[3.5]: (B,hw,hw), 1 equal, 0 different, 255 ignored"
    b, h, w = label.shape
    flat = F.interpolate(label[:, None].float(), size=(h//16, w//16),
                         mode="nearest").reshape(b, 1, -1).repeat(1, h//16*(w//16), 1)
    pairs = (flat == flat.permute(0, 2, 1)).long()
    pairs[mask[None].expand_as(pairs) == 0] = IGNORE
    pairs[flat == IGNORE] = IGNORE
    pairs[flat.permute(0, 2, 1) == IGNORE] = IGNORE
    return pairs


def affinity_loss(p, pairs):
    "[4.3]"
    same, other = (pairs == 1).float(), (pairs == 0).float()
    return .5*(same*(1-p)).sum()/(same.sum()+1)+.5*(other*p).sum()/(other.sum()+1)


class LiteralTSCD(Literal):
    "One iteration of [2] and [5.5]"
    def decode(self, stages):
        "[3.2]"
        d, size = self.net.decoder, stages[0].shape[-2:]
        maps = []
        for s in (4, 3, 2, 1):
            x = stages[s-1]
            flat = getattr(d, f"linear_c{s}").proj(x.flatten(2).transpose(1, 2))
            x = flat.permute(0, 2, 1).reshape(len(x), -1, *x.shape[-2:])
            maps.append(x if s == 1 else F.interpolate(x, size=size, mode="bilinear", align_corners=False))
        return d.linear_pred(F.dropout2d(F.relu(d.linear_fuse(torch.cat(maps, dim=1))), .1, True))
    def affinity(self, pairs):
        "[3.4]"
        logits = torch.cat([attention_logits(q, k) for q, k in pairs], dim=1)
        return F.conv2d(logits, self.net.attn_proj.weight, self.net.attn_proj.bias)[:, 0].sigmoid()
    def forward(self, x):
        "[3.3]: cls, seg, attn_pred"
        out = self.net.encoder(x, (-2, -1))
        cls = self.net.classifier(F.adaptive_max_pool2d(out["stage4"], 1)).flatten(1)
        return cls, self.decode([out[f"stage{s}"] for s in (1, 2, 3, 4)]), self.affinity(out["attention"])
    def cam_only(self, x):
        "[3.3, 8.3]: the decoder runs, for nothing but its statistics, and without touching the draws that count"
        out = self.net.encoder(x, (-2, -1))
        self.affinity(out["attention"])
        with torch.random.fork_rng(): self.decode([out[f"stage{s}"] for s in (1, 2, 3, 4)])
        return (F.conv2d(out["stage4"], self.net.classifier.weight).detach(),)
    def cams(self, x): return multi_scale_cam(self.cam_only, x, self.c.cam_scales)[0]
    correlation = LiteralTSD.correlation
    def affinity_term(self, affinity, label):
        grid = [n//16 for n in label.shape[-2:]]
        return affinity_loss(affinity, affinity_labels(label, radius_mask(*grid, self.c.radius)))
    def losses(self, batch, step):
        "Every term at every step: name -> (weight, value)"
        c, x, y = self.c, batch["input"], batch["image_labels"]
        size = tuple(int(c.view_scale*n) for n in x.shape[-2:])
        def enlarge(v, size): return F.interpolate(v, size=size, mode="bilinear", align_corners=True)
        cls, seg, affinity = self.forward(x)
        cam = self.cams(x)
        label = self.pseudo_label(batch, cam)
        segs = enlarge(seg, x.shape[-2:])
        x2 = enlarge(x, size)
        seg2, cam2 = self.forward(x2)[1], self.cams(x2)
        segs2, late = enlarge(seg2, size), float(step > c.seg_start)
        return {"cls": (1., F.multilabel_soft_margin_loss(cls, y)), "seg": (c.w_seg*late, seg_loss(segs, label)),
                "reg": (c.w_reg*late, self.energy_term(batch, segs, label)),
                "aff": (c.w_aff*late, self.affinity_term(affinity, label)),
                "corr": (c.w_corr*late, self.correlation(cam, cam2, segs, segs2)),
                "er": (c.w_er*late, (enlarge(cam, size)[:, 1:]-cam2[:, 1:]).abs().mean())}
