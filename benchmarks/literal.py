"""A training step the plain way: the recipes in docs/recipes line by line, in PyTorch as one writes it first. The peer
of train_step.py.

Every term is computed at every step and multiplied by its weight, also by 0; CAMs are made at every listed size, for
all classes and both layers, by passes of their own; whole views are encoded a second time for the teacher; labels are
refined image by image and threshold by threshold, with the neighbours of all pixels in one tensor; the energy filters
one class after the other (peer_filter.cpp). Only the network's own parts come from the package (encoder, heads,
decoder): the same modules with the same weights on both sides. T.. are sections of the recipe of ToCo, S.. of TSD-CAM.
"""
import copy

import torch
import torch.nn.functional as F

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
IGNORE = 255


def statistics_of(images):
    return (torch.tensor(v).view(1, 3, 1, 1).to(images) for v in (MEAN, STD))


# %% CAMs and labels
@torch.no_grad()
def multi_scale_cam(cam_only, images, scales):
    "T4.1: [cam, cam_aux], each (B,K,H,W), of a `cam_only` that gives cam_aux, cam; of one that gives cam alone [cam]"
    h, w = images.shape[-2:]
    sums = {}
    for s in [1.] + [s for s in scales if s != 1.]:
        x = (images if s == 1. else F.interpolate(images, size=(int(s*h), int(s*w)), mode="bilinear",
                                                  align_corners=False))
        for i, cam in enumerate(cam_only(torch.cat([x, x.flip(-1)], dim=0))):
            cam = F.interpolate(cam, size=(h, w), mode="bilinear", align_corners=False)
            a, b = cam.chunk(2, dim=0)
            sums[i] = sums.get(i, 0)+F.relu(torch.max(a, b.flip(-1)))
    cams = []
    for cam in sums.values():
        cam = cam-cam.amin(dim=(-2, -1), keepdim=True)
        cams.append(cam/(cam.amax(dim=(-2, -1), keepdim=True)+1e-5))
    return cams[::-1]


def cam_to_label(cam, y, box, high, low, middle=IGNORE):
    "T4.2 with box and ignore_mid: (valid cam, label)"
    valid = y[:, :, None, None]*cam
    value, label = valid.max(dim=1)
    label = label+1
    label[value <= high] = middle
    label[value <= low] = 0
    inside = torch.full_like(label, IGNORE)
    for i, (y0, y1, x0, x1) in enumerate(box.tolist()): inside[i, y0:y1, x0:x1] = label[i, y0:y1, x0:x1]
    return valid, inside


def affinity_mask(label):
    "T4.5"
    b, h, w = label.shape
    flat = label.reshape(b, 1, h*w).repeat(1, h*w, 1)
    mask = (flat == flat.permute(0, 2, 1)).long()
    mask[flat == IGNORE] = IGNORE
    mask[flat.permute(0, 2, 1) == IGNORE] = IGNORE
    mask[:, range(h*w), range(h*w)] = IGNORE
    return mask


# %% Refinement
DILATIONS = (1, 2, 4, 8, 12, 24)


def neighbours(x):
    "T4.6: (B,C,48,H,W)"
    h, w = x.shape[-2:]
    found = []
    for d in DILATIONS:
        padded = F.pad(x, [d]*4, mode="replicate")
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                if (dy, dx) != (0, 0): found.append(padded[:, :, d+dy*d:d+dy*d+h, d+dx*d:d+dx*d+w])
    return torch.stack(found, dim=2)


def par_weights(images):
    "T4.6"
    n = neighbours(images)
    sigma = n.std(dim=2, keepdim=True)
    a = -(((n-images[:, :, None]).abs()/(sigma+1e-8)/.3)**2).mean(dim=1, keepdim=True)
    distance = torch.tensor([d*(2**.5 if dy and dx else 1.) for d in DILATIONS for dy in (-1, 0, 1) for dx in (-1, 0, 1)
                             if (dy, dx) != (0, 0)]).to(images)
    b = (-(distance/(distance.std()+1e-8)/.3)**2).view(1, 1, -1, 1, 1)
    return a.softmax(dim=2)+.01*b.softmax(dim=2)


def aprm_weights(images):
    "S4"
    n = neighbours(images)
    sigma = n.std(dim=2, keepdim=True)
    a = -((4*(n-images[:, :, None]).abs()/(sigma+1e-8))**2).mean(dim=1, keepdim=True)
    down, right = torch.zeros_like(n), torch.zeros_like(n)
    down[..., :-1, :] = n[..., :-1, :]-n[..., 1:, :]
    right[..., :-1] = n[..., :-1]-n[..., 1:]
    g = (down**2+right**2).mean(dim=1, keepdim=True)
    return a.softmax(dim=2)-.01*g.softmax(dim=2)


def refine_masks(images, masks, weights):
    masks = F.interpolate(masks, size=images.shape[-2:], mode="bilinear", align_corners=True)
    w = weights(images)
    for _ in range(10): masks = (neighbours(masks)*w).sum(dim=2)
    return masks


@torch.no_grad()
def refine(images, valid, y, box, high, low, weights):
    "T4.7: pseudo mask (B,H,W) of normalised images"
    mean, std = statistics_of(images)
    images = (images*std+mean).to(torch.uint8).float()/255
    (b, _, h, w), labels = images.shape, {}
    half = (h//2, w//2)
    images = F.interpolate(images, size=half, mode="bilinear", align_corners=False)
    for t in (high, low):
        cams = torch.cat([torch.full((b, 1, h, w), t).to(valid), valid], dim=1)
        cams = F.interpolate(cams, size=half, mode="bilinear", align_corners=False)
        out = torch.full((b, h, w), float(IGNORE)).to(valid)
        for i in range(b):
            keys = torch.cat([y.new_zeros(1).long(), y[i].nonzero()[:, 0]+1])
            scores = refine_masks(images[i:i+1], cams[i:i+1, keys].softmax(dim=1), weights)
            label = keys[F.interpolate(scores, size=(h, w), mode="bilinear",
                                       align_corners=False).argmax(dim=1)[0]].float()
            y0, y1, x0, x1 = box[i].tolist()
            out[i, y0:y1, x0:x1] = label[y0:y1, x0:x1]
        labels[t] = out
    refined = labels[high].clone()
    refined[labels[high] == 0] = IGNORE
    refined[labels[high]+labels[low] == 0] = 0
    return refined.long()


# %% Losses
def patch_contrast(fmap, mask):
    "T5.2"
    f = F.normalize(fmap.flatten(2), dim=1, eps=1e-8)
    s = torch.matmul(f.permute(0, 2, 1), f).abs()
    positive, negative = mask == 1, mask == 0
    return .5*(1-(positive*s).sum()/(positive.sum()+1))+.5*(negative*s).sum()/(negative.sum()+1)


def seg_loss(logits, label):
    "T5.4"
    background, foreground = label.clone(), label.clone()
    background[label != 0] = IGNORE
    foreground[label == 0] = IGNORE
    return .5*F.cross_entropy(logits, background,
                              ignore_index=IGNORE)+.5*F.cross_entropy(logits, foreground, ignore_index=IGNORE)


class Energy(torch.autograd.Function):
    "T5.5 between the halved inputs and the value; `bilateral(images, values)` filters NumPy arrays"
    @staticmethod
    def forward(ctx, images, probs, rois, label, weight, bilateral):
        rois = rois[:, None].to(probs)
        gate = rois-probs.max(dim=1, keepdim=True)[0]
        gate[label[:, None] == IGNORE] = 1
        gate[gate < 0] = 0
        q = probs*rois
        filtered = torch.from_numpy(bilateral(images.contiguous().numpy(), q.contiguous().numpy()))*gate
        ctx.save_for_backward(filtered, rois)
        ctx.weight, ctx.images = weight, len(images)
        return -weight*(q*filtered).sum()/len(images)
    @staticmethod
    def backward(ctx, grad):
        filtered, rois = ctx.saved_tensors
        return None, grad*-2*ctx.weight*filtered*rois/ctx.images, None, None, None, None


def energy(images, logits, label, box, weight, scale, bilateral):
    "T5.5"
    mean, std = statistics_of(images)
    rois = torch.zeros_like(label)
    for i, (y0, y1, x0, x1) in enumerate(box.tolist()): rois[i, y0:y1, x0:x1] = 1
    options = dict(scale_factor=scale, recompute_scale_factor=True)
    small = F.interpolate(images*std+mean, mode="nearest", **options)
    probs = F.interpolate(logits.softmax(dim=1), mode="bilinear", align_corners=False, **options)
    rois, label = (F.interpolate(v[:, None].float(), mode="nearest", **options)[:, 0] for v in (rois, label))
    return Energy.apply(small, probs, rois, label, weight, bilateral)


# %% Networks and steps
class Literal:
    "The parts of a method's network, copied, and the settings of its preset"
    def __init__(self, net, bilateral):
        self.net, self.c, self.bilateral = copy.deepcopy(net), net.config, bilateral
    def encode(self, x):
        "T3.1: class token (B,D), patch map and auxiliary map (B,D,h,w)"
        out = self.net.encoder(x)
        return out["cls_token"], out["last"], out["aux"]
    def cam_only(self, x):
        _, fmap, aux = self.encode(x)
        return (F.conv2d(aux, self.net.aux_classifier.weight).detach(),
                F.conv2d(fmap, self.net.classifier.weight).detach())
    def forward(self, x):
        "T3.4 without crops: cls, seg, fmap, cls_aux"
        _, fmap, aux = self.encode(x)
        cls = self.net.classifier(F.adaptive_max_pool2d(fmap, 1)).flatten(1)
        return cls, self.net.decoder(fmap), fmap, self.net.aux_classifier(F.adaptive_max_pool2d(aux, 1)).flatten(1)
    def cams(self, x): return multi_scale_cam(self.cam_only, x, self.c.cam_scales)
    def pseudo_label(self, batch, cam):
        return refine(batch["input"], batch["image_labels"][:, :, None, None]*cam, batch["image_labels"], batch["box"],
                      self.c.high_thresh, self.c.low_thresh,
                      par_weights if self.c.refine == "par" else aprm_weights)
    def energy_term(self, batch, logits, label):
        return energy(batch["input"], logits, label, batch["box"], self.c.energy_weight, self.c.energy_scale,
                      self.bilateral)
    def patch_term(self, batch, cam_aux, fmap):
        small = F.interpolate(cam_aux, size=fmap.shape[-2:], mode="bilinear", align_corners=False)
        return patch_contrast(fmap,
                              affinity_mask(cam_to_label(small, batch["image_labels"], batch["box"], self.c.high_thresh,
                                                         self.c.low_thresh)[1]))


class LiteralToCo(Literal):
    "One iteration of T2"
    def crops(self, local, cam_aux, y):
        "T4.3, T4.4"
        c, size = self.c, self.c.local_size
        value = (y[:, :, None, None]*cam_aux).max(dim=1)[0]
        roi = torch.ones_like(value, dtype=torch.int16)
        roi[value <= c.low_thresh] = 0
        roi[value >= c.high_thresh] = 2
        crops, flags, m = [[] for _ in range(c.num_crops)], torch.ones(len(local), 2+c.num_crops), size//2
        seeds = torch.randint(2**63-1, (len(local),)).tolist()
        for i in range(len(local)):
            inner = roi[i, m:-m, m:-m]
            candidates = (inner <= 1).nonzero()
            if len(candidates) < c.num_crops: candidates = (inner >= 0).nonzero()
            order = torch.randperm(len(candidates), generator=torch.Generator().manual_seed(seeds[i]))
            for k, (r, q) in enumerate(candidates[order[:c.num_crops]].tolist()):
                crops[k].append(local[i, :, r:r+size, q:q+size])
                if roi[i, r:r+size, q:q+size].sum()/size**2 <= .2: flags[i, 2+k] = 0
        return [torch.stack(v) for v in crops], flags
    def class_term(self, whole, crops, flags):
        "T3.3, T3.4, T5.3: the teacher's pass over the whole views is one of its own"
        net = self.net
        for t, s in zip(net.proj_head_t.parameters(), net.proj_head.parameters()):
            t.data = self.c.momentum*t.data+(1-self.c.momentum)*s.data
        whole = torch.cat(whole)
        with torch.no_grad(): teacher = net.proj_head_t(self.encode(whole)[0])
        student = net.proj_head(torch.cat([self.encode(whole)[0], self.encode(torch.cat(crops))[0]]))
        n, b = 2+len(crops), len(flags)
        student, teacher, total = student.view(n, b, -1), teacher.view(2, b, -1), 0.
        for i in range(b):
            loss = 0.
            for v in range(2):
                e = torch.exp(student[:, i] @ teacher[v, i]/self.c.temperature)
                negative = e[flags[i] == 0].sum()
                for j in (flags[i] == 1).nonzero()[:, 0]: loss = loss-torch.log(e[j]/(e[j]+negative+1e-4))
                loss = loss-torch.log(1/(1+negative+1e-4))
            total = total+loss/2/(flags[i].sum()+1e-4)
        return total/b
    def losses(self, batch, step):
        "Every term at every step: name -> (weight, value)"
        c, x, y = self.c, batch["input"], batch["image_labels"]
        cam, cam_aux = self.cams(x)
        crops, flags = self.crops(batch["local"], cam_aux, y)
        cls, seg, fmap, cls_aux = self.forward(x)
        label = self.pseudo_label(batch, cam)
        segs = F.interpolate(seg, size=label.shape[-2:], mode="bilinear", align_corners=False)
        late = float(step > c.seg_start)
        return {"cls": (1., F.multilabel_soft_margin_loss(cls, y)),
                "aux": (1., F.multilabel_soft_margin_loss(cls_aux, y)),
                "ptc": (c.w_ptc, self.patch_term(batch, cam_aux, fmap)),
                "ctc": (c.w_ctc, self.class_term([x, batch["view2"]], crops, flags)),
                "seg": (c.w_seg*late, seg_loss(segs, label)),
                "reg": (c.w_reg*late, self.energy_term(batch, segs, label))}


class LiteralTSD(Literal):
    "One iteration of S2"
    def correlation(self, cams1, cams2, segs1, segs2):
        "S6.1"
        n, b = self.c.corr_samples, len(cams1)
        at1, at2 = torch.rand(b, n, n, 2)*2-1, torch.rand(b, n, n, 2)*2-1
        def sample(maps, at):
            return F.normalize(F.grid_sample(maps, at.permute(0, 2, 1, 3), padding_mode="border", align_corners=True),
                               dim=1, eps=1e-10)
        with torch.no_grad():
            fd = torch.einsum("bchw,bcij->bhwij", sample(cams1, at1), sample(cams2, at2))
            overall = fd.mean()
            fd = fd-fd.mean(dim=[3, 4], keepdim=True)
            fd = fd-fd.mean()+overall
        cd = torch.einsum("bchw,bcij->bhwij", sample(segs1, at1), sample(segs2, at2))
        return (-cd.clamp(min=0)*fd).mean()
    def losses(self, batch, step):
        "Every term at every step: name -> (weight, value)"
        c, x, y = self.c, batch["input"], batch["image_labels"]
        def shrink(v):
            return F.interpolate(v, scale_factor=c.view_scale, mode="bilinear", align_corners=True,
                                 recompute_scale_factor=True)
        cam, cam_aux = self.cams(x)
        cls, seg, fmap, cls_aux = self.forward(x)
        label = self.pseudo_label(batch, cam)
        segs = F.interpolate(seg, size=cam.shape[-2:], mode="bilinear", align_corners=False)
        x2, cam1 = shrink(x), shrink(cam)
        seg2, (cam2, _) = self.forward(x2)[1], self.cams(x2)
        segs2 = F.interpolate(seg2, size=cam1.shape[-2:], mode="bilinear", align_corners=False)
        late, distil = float(step > c.seg_start), float(step > c.corr_start)
        return {"cls": (1., F.multilabel_soft_margin_loss(cls, y)),
                "aux": (1., F.multilabel_soft_margin_loss(cls_aux, y)),
                "ptc": (c.w_ptc, self.patch_term(batch, cam_aux, fmap)), "seg": (c.w_seg*late, seg_loss(segs, label)),
                "reg": (c.w_reg*late, self.energy_term(batch, segs, label)),
                "corr": (c.w_corr*distil, self.correlation(cam, cam2, segs, segs2)),
                "er": (c.w_er*distil, (cam1[:, 1:]-cam2[:, 1:]).abs().mean())}
