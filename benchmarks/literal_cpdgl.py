"""A training step of CPDGL the plain way, as in literal.py: its recipe line by line. Numbers in brackets are its
sections.

The forward pass of the input and the pass over both whole views for the contrast are two; crops are cut image by
image, once from the input and once, by the same draw, from the strongly augmented view; the copy of the encoder, the
prototypes and the queue move at every step, and both contrasts are computed at every step.
"""
import torch
import torch.nn.functional as F
from literal import IGNORE, Literal, cam_to_label


def assign_tags(images, regions, num_crops, size, threshold):
    "[4.8]: crops, a list of (B,3,s,s), and tags (B,2+n)"
    crops, m = [[] for _ in range(num_crops)], size//2
    flags = torch.ones(len(images), 2+num_crops)
    for i in range(len(images)):
        r0 = regions[i].clone()
        r0[r0 == IGNORE] = 0
        rp = r0.clone()
        rp[r0 == -1] = 0
        ru = rp+(r0 == -1)
        inner = r0[m:-m, m:-m]
        candidates = (inner == -1).nonzero()
        if len(candidates) < num_crops: candidates = (inner > -2).nonzero()
        classes = [c for c in rp.unique().tolist() if c != 0]
        if len(classes) > 1: flags[i, :2] = -1
        if len(classes) == 1:
            flags[i, :2] = classes[0]
            rp = rp+classes[0]*(r0 == -1)
        picked = candidates[torch.randperm(len(candidates),
                                           generator=torch.Generator().manual_seed(0))[:num_crops]].tolist()
        for k, (r, q) in enumerate(picked):
            crops[k].append(images[i, :, r:r+size, q:q+size])
            held = [c for c in rp[r:r+size, q:q+size].unique().tolist() if c != 0]
            if ru[r:r+size, q:q+size].sum()/size**2 <= threshold: flags[i, 2+k] = 0
            else: flags[i, 2+k] = held[0] if len(held) == 1 else -1
    return [torch.stack(v) for v in crops], flags


def local_contrast(q, flags, q_all, q_flags, temperature):
    "[5.1], form mean: (loss, revised flags)"
    keys, key_flags = q_all[len(q):], q_flags[len(q):]
    z = q @ keys.T/temperature
    z = z-z.max(dim=1, keepdim=True)[0].detach()
    mask = (flags == key_flags.T).float()
    mask[flags[:, 0] == -1] = 0
    z = z*(flags != -1)
    positive = z*mask
    low = (positive < positive.mean(dim=1, keepdim=True)).sum(dim=1)
    high = (positive >= positive.mean(dim=1, keepdim=True)).sum(dim=1)
    bad = low/(high+1e-6) > 10
    flags = flags.clone()
    flags[bad] = 0
    positive = positive*(~bad)[:, None]
    z = z*(key_flags.T != -1)
    e = torch.exp(z)
    total = (e*(e != 1)).sum(dim=1)
    rows = (positive-torch.log(total+1e-12)[:, None]).sum(dim=1)
    pairs = (positive != 0).sum()
    if pairs == 0: return 0*rows.sum(), flags
    return -(rows*((total > 0) & (rows < 0))).sum()/len(q)/pairs, flags


def prototype_contrast(q, flags, prototypes, temperature):
    "[5.2], form restricted"
    logits = q @ prototypes.T/temperature
    mask = flags.long() == torch.arange(1, len(prototypes)+1)[None]
    positive = logits*mask
    occurs = mask.any(dim=0)
    e = torch.exp(logits*occurs)
    total = (e*(e != 1)).sum(dim=1, keepdim=True)
    entries = (positive-torch.log(total+1e-12))*(positive != 0)*(total > 0)
    return -entries.sum()/(mask.sum() if mask.any() else len(q))


class LiteralCPDGL(Literal):
    "One iteration of [3] and [7]"
    def crops(self, images, regions):
        return assign_tags(images, regions, self.c.num_crops, self.c.local_size, self.c.tag_share)
    @torch.no_grad()
    def move_prototypes(self, tokens, y):
        "[4.10]"
        p = self.net.prototypes
        for i in range(len(y)):
            if y[i].sum() != 1: continue
            k = int(y[i].argmax())
            p[k] = self.c.proto_momentum*p[k]+(1-self.c.proto_momentum)*tokens[i]
        p.copy_(F.normalize(p, dim=1))
    def follow(self, copy, student):
        for t, s in zip(copy.parameters(), student.parameters()):
            t.data = self.c.momentum*t.data+(1-self.c.momentum)*s.data
    def reservoir(self, whole, student_crops, key_crops, flags):
        "[4.9]: rows, all rows and keys and queue, their flags"
        net, b, n = self.net, len(whole[0]), len(student_crops)
        views = self.encode(torch.cat(whole))[0].view(2, b, -1).transpose(0, 1)
        def rows(views, tokens): return torch.cat([views, tokens.view(n, b, -1).transpose(0, 1)], dim=1).flatten(0, 1)
        q = net.proj_head(rows(views, self.encode(torch.cat(student_crops))[0]))
        with torch.no_grad():
            self.follow(net.encoder_k, net.encoder)
            tokens = net.encoder_k(torch.cat(key_crops))["cls_token"]
            self.follow(net.proj_head_t, net.proj_head)
            keys = net.proj_head_t(rows(views.detach(), tokens))
            at = int(net.queue_ptr)
            net.queue[at:at+len(keys)] = keys
            net.queue_label_flag[at:at+len(keys)] = flags
            net.queue_ptr[0] = (at+len(keys)) % len(net.queue)
        return q, torch.cat([q.detach(), keys, net.queue]), torch.cat([flags, flags, net.queue_label_flag])
    def losses(self, batch, step):
        "Every term at every step: name -> (weight, value)"
        c, x, y = self.c, batch["input"], batch["image_labels"]
        cam, cam_aux = self.cams(x)
        label = self.pseudo_label(batch, cam)
        regions = cam_to_label(cam if step >= c.final_from else cam_aux, y, batch["box"], c.high_thresh,
                               c.low_thresh, middle=-1)[1]
        student_crops, flags = self.crops(x, regions)
        key_crops, _ = self.crops(batch["local"], regions)
        tokens, fmap, aux = self.encode(x)
        cls, cls_aux = (head(F.adaptive_max_pool2d(f, 1)).flatten(1)
                        for head, f in ((self.net.classifier, fmap), (self.net.aux_classifier, aux)))
        segs = F.interpolate(self.net.decoder(fmap), size=x.shape[-2:], mode="bilinear", align_corners=False)
        if step >= c.proto_from: self.move_prototypes(tokens, y)
        q, q_all, q_flags = self.reservoir([x, batch["view2"]], student_crops, key_crops, flags.reshape(-1, 1))
        lcl, revised = local_contrast(q, flags.reshape(-1, 1), q_all, q_flags, c.lcl_temperature)
        pcl = prototype_contrast(q, revised, self.net.prototypes.clone(), c.pcl_temperature)
        alpha = min(1, step/c.ramp_iters) if step > c.seg_start else 1
        contrast, late = alpha*(step > c.contrast_start), alpha*(step > c.seg_start)
        return {"cls": (1., F.multilabel_soft_margin_loss(cls, y)),
                "aux": (1., F.multilabel_soft_margin_loss(cls_aux, y)),
                "ptc": (c.w_ptc, self.patch_term(batch, cam_aux, fmap)), "pcl": (c.w_pcl*contrast, pcl),
                "lcl": (c.w_lcl*contrast, lcl), "seg": (c.w_seg*late, seg_loss(segs, label)),
                "reg": (c.w_reg*late, self.energy_term(batch, segs, label))}


def seg_loss(logits, label):
    "[6.2]"
    loss = F.cross_entropy(logits, label, ignore_index=IGNORE, reduction="none")
    background, foreground = label == 0, (label != 0) & (label != IGNORE)
    return .5*((loss*background).sum()/(background.sum()+1e-6)+(loss*foreground).sum()/(foreground.sum()+1e-6))
