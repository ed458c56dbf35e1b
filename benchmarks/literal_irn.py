"""A training step of IRN the plain way, as in literal.py: its recipe line by line. Numbers in brackets are its
sections.

Paths are tables of flat indices, every pixel of every path is gathered, all pairs of all displacements stand in
memory, the backbone records what a gradient would need although its outputs are detached, and tensors lie channel by
channel, as PyTorch has them unless one asks. Only the network's own layers come from the package.
"""
import copy

import torch
import torch.nn.functional as F

from wsss_nb.refine.paths import path_ends, path_index

CLASSES = 21


class LiteralIRN:
    "One iteration of [7]"
    def __init__(self, net, size, radius):
        self.net = copy.deepcopy(net).to(memory_format=torch.contiguous_format)
        self.net.encoder.requires_grad_(True)
        self.size, self.radius = size, radius
        self.source, self.ends, self.paths = path_index(size, radius)
        self.target = torch.from_numpy(path_ends(radius)).float().t()[None, :, :, None]
    def forward(self, images):
        "[3]: boundary logits, displacement"
        n, found = self.net, self.net.encoder(images)
        x1, x2, x3, x4, x5 = (found[name].detach() for name in n.features)
        def up(x, k): return F.interpolate(x, scale_factor=k, mode="bilinear", align_corners=False)
        e1, e2 = F.relu(n.fc_edge1(x1)), F.relu(n.fc_edge2(x2))
        h, w = e2.shape[-2:]
        e3 = F.relu(up(n.fc_edge3(x3), 2))[..., :h, :w]
        e4 = F.relu(up(n.fc_edge4(x4), 4))[..., :h, :w]
        e5 = F.relu(up(n.fc_edge5(x5), 4))[..., :h, :w]
        edge = n.fc_edge6(torch.cat([e1, e2, e3, e4, e5], dim=1))
        d1, d2, d3 = F.relu(n.fc_dp1(x1)), F.relu(n.fc_dp2(x2)), F.relu(n.fc_dp3(x3))
        d4 = F.relu(up(n.fc_dp4(x4), 2))[..., :d3.shape[2], :d3.shape[3]]
        d5 = F.relu(up(n.fc_dp5(x5), 2))[..., :d3.shape[2], :d3.shape[3]]
        d6 = F.relu(up(n.fc_dp6(torch.cat([d3, d4, d5], dim=1)), 2))[..., :h, :w]
        return edge, n.fc_dp7(torch.cat([d1, d2, d6], dim=1))
    def pair_labels(self, label):
        "[7.1]"
        label = label[:, 2::4, 2::4].flatten(1)
        a, b = label[:, self.source][:, None], label[:, self.ends]
        valid = (a < CLASSES) & (b < CLASSES)
        equal = (a == b) & valid
        return (equal & (a == 0)).float(), (equal & (a > 0)).float(), (~(a == b) & valid).float()
    def affinity(self, edge):
        "[5]"
        flat = edge.flatten(1)
        found = []
        for p in self.paths:
            on_path = torch.index_select(flat, 1, p.flatten()).view(len(flat), *p.shape)
            found.append(F.max_pool2d(on_path, (p.shape[1], 1)).squeeze(2))
        return 1-torch.cat(found, dim=1)
    def losses(self, batch):
        "[7.2]: name -> (weight, value)"
        edge, field = self.forward(batch["input"])
        bg, fg, neg = self.pair_labels(batch["label"])
        a = self.affinity(edge.sigmoid().flatten(1))
        pos_loss, neg_loss = -torch.log(a+1e-5), -torch.log(1.+1e-5-a)
        flat = field.flatten(2)
        ends = flat[:, :, self.ends.flatten()].view(*flat.shape[:2], *self.ends.shape)
        pair = flat[:, :, self.source][:, :, None]-ends
        fg_loss, bg_loss = torch.abs(pair-self.target), torch.abs(pair)
        pos_bg, pos_fg = (torch.sum(x*pos_loss)/(torch.sum(x)+1e-5) for x in (bg, fg))
        return {"pos": (.5, pos_bg/2+pos_fg/2),
                "neg": (.5, torch.sum(neg*neg_loss)/(torch.sum(neg)+1e-5)),
                "dp_fg": (.5, torch.sum(fg_loss*fg[:, None])/(2*torch.sum(fg)+1e-5)),
                "dp_bg": (.5, torch.sum(bg_loss*bg[:, None])/(2*torch.sum(bg)+1e-5))}
