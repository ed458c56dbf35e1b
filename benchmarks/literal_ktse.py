"""A training step of KTSE the plain way, as in literal.py: its recipe line by line. Numbers in brackets are its
sections.

All partners pass the network, and every pass makes scores; masks and maps of all classes are enlarged; labels are made
for all images of both sides, image by image, as in the recipe. Only the encoder's own passes and the weights of the
heads come from the package. One thing is kinder than the published code: labels are made without gradient, which
here would take gigabytes.
"""
import copy

import torch
import torch.nn.functional as F
from literal import IGNORE, par_weights, refine_masks, statistics_of


def up(x, size): return F.interpolate(x, size=size, mode="bilinear", align_corners=False)

def normalised(c):
    "[4.1] N(c)"
    r = F.relu(c)
    low, high = r.flatten(2).min(dim=2)[0][:, :, None, None], r.flatten(2).max(dim=2)[0][:, :, None, None]
    return F.relu(r-low-1e-5)/(high-low+1e-5)

def gate(conv_p, conv_n, x, y):
    "[3.3]"
    s = torch.sigmoid(F.conv2d(torch.cat([F.relu(x), F.relu(y)], dim=1), conv_p, padding=1))
    t = torch.sigmoid(F.conv2d(torch.cat([F.relu(-x), F.relu(-y)], dim=1), conv_n, padding=1))
    return (F.relu(x)*s[:, :1]+F.relu(y)*s[:, 1:])/2-(F.relu(-x)*t[:, :1]+F.relu(-y)*t[:, 1:])/2

@torch.no_grad()
def pseudo_label(x, cam, y, high, low):
    "[6]"
    mean, std = statistics_of(x)
    images = ((x*std+mean)*255).to(torch.uint8).float()/255
    size = images.shape[-2:]
    half = (size[0]//2, size[1]//2)
    cam = up(cam/(cam.flatten(2).max(dim=2)[0][:, :, None, None]+1e-5), size)
    small, labels = up(images, half), {}
    for t in (high, low):
        scores = up(torch.cat([torch.full_like(cam[:, :1], t), cam], dim=1), half)
        labels[t] = []
        for i in range(len(x)):
            keys = torch.cat([y.new_zeros(1).long(), y[i].nonzero()[:, 0]+1])
            s = refine_masks(small[i:i+1], scores[i:i+1, keys].softmax(dim=1), par_weights)
            labels[t].append(keys[up(s, size).argmax(dim=1)[0]])
    at_high, at_low = torch.stack(labels[high]), torch.stack(labels[low])
    label = at_high.clone()
    label[at_high == 0] = IGNORE
    label[(at_high == 0) & (at_low == 0)] = 0
    return label

def cross_entropy(scores, label, keep):
    "[5.5] mean over the pixels that are kept"
    return F.cross_entropy(scores, torch.where(keep, label, torch.full_like(label, IGNORE)), ignore_index=IGNORE)


class LiteralKTSE:
    "One step of [5] from epoch T on"
    def __init__(self, net): self.net, self.c = copy.deepcopy(net), net.config
    def forward(self, x):
        "[3.2, 3.3]: cam, logits, cam_seg"
        n = self.net
        seg = F.conv2d(F.relu(F.conv2d(n.encoder(x)["last"], n.fc8.weight)), n.fc9.weight)
        cam = seg[:, 1:]
        p = [up(F.adaptive_avg_pool2d(cam, k), cam.shape[-2:]) for k in (2, 4, 8, 16)]
        g = p[0]
        for conv, fine in zip((n.pyramid.gconv1, n.pyramid.gconv2, n.pyramid.gconv3), p[1:], strict=True):
            g = gate(conv.att_p[0].weight, conv.att_n[0].weight, g, fine)
        logits = (F.relu(cam)*F.relu(g)).mean(dim=(2, 3))-(F.relu(-cam)*F.relu(-g)).mean(dim=(2, 3))
        return cam, logits, seg
    def losses(self, batch, step):
        "Every term: name -> (weight, value)"
        c, x, x2, y, y2 = self.c, *(batch[k] for k in ("input", "input2", "image_labels", "image_labels2"))
        n, size = min(c.pair_images, len(x)), x.shape[-2:]
        cam, logits, seg = self.forward(x)
        cam2, _, _ = self.forward(x2)
        label = pseudo_label(x, cam, y, c.high_thresh, c.low_thresh)
        label2 = pseudo_label(x2, cam2, y2, c.high_thresh, c.low_thresh)
        keep_low = (normalised(cam)*y[:, :, None, None]).max(dim=1, keepdim=True)[0] < c.erase_thresh
        full = (normalised(up(F.relu(cam), size))*y[:, :, None, None]).max(dim=1, keepdim=True)[0].detach()
        cam_er, _, _ = self.forward(x*(full < c.erase_thresh))
        cam_st, _, seg_st = self.forward(torch.cat([x[:n], x2[:n]], dim=2))
        cls = F.binary_cross_entropy_with_logits(logits, y)
        local = (F.relu(cam_er*keep_low-cam*keep_low-c.margin)*y[:, :, None, None]).mean()
        both = [F.adaptive_avg_pool2d(F.relu(v), 1)[:, :, 0, 0]*y for v in (cam, cam_er)]
        union = ((y[:n]+y2[:n]) > 0).float()
        stack = torch.cat([cam[:n], cam2[:n]], dim=2)
        transfer = (F.relu(stack-cam_st-c.margin)*union[:, :, None, None]).mean()
        s, single, several = up(F.relu(seg), size), y.sum(dim=1) == 1, y.sum(dim=1) > 1
        own = cross_entropy(s, label, label == 0)
        objects = (label != 0) & (label != IGNORE)
        if single.any() and objects[single].any():
            own = own+c.fg_weight*cross_entropy(s[single], label[single], objects[single])
        if several.any():
            v, mask = s[several][:, 1:], full[several][:, 0] > c.gap_thresh
            top = v.max(dim=1)[0]
            second = torch.where(v == top[:, None], torch.zeros_like(v), v).max(dim=1)[0]
            own = own+c.gap_weight*((second-top.detach())*mask).sum()/(mask.sum()+1e-5)
        s, label_st = up(F.relu(seg_st), (2*size[0], size[1])), torch.cat([label[:n], label2[:n]], dim=1)
        pair = cross_entropy(s, label_st, label_st == 0)
        objects = (label_st != 0) & (label_st != IGNORE)
        if objects.any(): pair = pair+c.fg_weight*cross_entropy(s, label_st, objects)
        return {"cls": (1., cls), "local_align": (c.w_local, local),
                "global_align": (c.w_global, (both[0]-both[1]).abs().mean()), "transfer": (c.w_transfer, transfer),
                "seg": (c.w_seg, own), "seg_pair": (c.w_seg_pair, pair)}
