"""A training step of BECO the plain way: docs/recipes/beco.md, sections 4 and 5, line by line, as one writes it first.
The peer of beco_step.py.

Both networks label every image of the batch, each at full size; samples are mixed one after the other, their outlines
found by OpenCV; the loss is the four cross entropies of the recipe. Only the networks' own modules come from the
package: the same with the same weights on both sides. Chance is that of the batch."""
import cv2
import numpy as np
import torch
from torch.nn import functional as F

MEAN, STD = (.485, .456, .406), (.229, .224, .225)
IGNORE = 255


def full(logits, images): return F.interpolate(logits, size=images.shape[-2:], mode="bilinear", align_corners=False)


def online(net, images, threshold):
    "Section 4.1"
    net.eval()
    with torch.no_grad():
        mean = (full(net.network1(images), images)+full(net.network2(images), images))/2
        confidence, label = mean.softmax(dim=1).max(dim=1)
    net.train()
    return label, (confidence > threshold).long()


def band(alpha, size):
    "Section 4.3"
    square = np.ones((2*size+1, 2*size+1), np.uint8)
    a = alpha.cpu().numpy().astype(np.uint8)
    return torch.from_numpy((cv2.dilate(a, square)-cv2.erode(a, square)).astype(np.int64)).to(alpha.device)


def chosen(label, keys):
    "Half of the classes of a label map, rounded up"
    found = [k for k in torch.unique(label).tolist() if k not in (0, IGNORE)]
    return sorted(found, key=lambda k: keys[k].item())[:(len(found)+1)//2]


def mix(images, label, mask, batch, p, size, labelled=None):
    "Section 4.2"
    half, out = len(images)//2, []
    for i in range(half):
        for own, partner in ((i, i+half), (i+half, i)):
            nothing = torch.zeros_like(label[own])
            if batch["mix"][own].item() >= p:
                out.append((images[own], label[own], mask[own], nothing))
                continue
            source, trust = labelled if labelled else (label, mask)
            selection = source[partner].clone()
            if labelled: selection[trust[partner] == 0] = IGNORE
            alpha = torch.zeros_like(selection)
            for k in chosen(selection, batch["keys"][own]): alpha[selection == k] = 1
            a = alpha.float()
            out.append((images[own]*(1-a)+images[partner]*a,
                        source[own]*(1-alpha)+source[partner]*alpha,
                        trust[own]*(1-alpha)+trust[partner]*alpha,
                        band(alpha, size) if labelled else nothing))
    return [torch.stack(column) for column in zip(*out)]


def order_of(n): return [i for pair in zip(range(n//2), range(n//2, n)) for i in pair]


def coloured(image, d):
    "Section 4.5; red and blue are exchanged meanwhile"
    mean, std = (torch.tensor([255*v for v in values], device=image.device)[:, None, None] for values in (MEAN, STD))
    x = (image*std+mean).clamp(0, 255).to(torch.uint8).permute(1, 2, 0).cpu().numpy()[..., ::-1].copy()
    if d[0] < .8:
        alpha, beta = 1+(2*d[1]-1)*.2, (2*d[2]-1)*.2
        x = np.clip(alpha*x.astype(np.float64)+255*beta, 0, 255).astype(np.uint8)
        h, s, v = cv2.split(cv2.cvtColor(x, cv2.COLOR_RGB2HSV).astype(np.float64))
        h = (h+(2*d[3]-1)*20) % 180
        s, v = np.clip(s+(2*d[4]-1)*30, 0, 255), np.clip(v+(2*d[5]-1)*20, 0, 255)
        x = cv2.cvtColor(np.stack([h, s, v], axis=-1).astype(np.uint8), cv2.COLOR_HSV2RGB)
    if d[6] < .2: x = cv2.cvtColor(cv2.cvtColor(x, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    if d[7] < .5: x = cv2.GaussianBlur(x, (3, 3) if d[8] < 1/3 else (5, 5), sigmaX=0)
    x = torch.from_numpy(x[..., ::-1].copy()).to(image.device).permute(2, 0, 1).float()/255
    mean, std = (torch.tensor(values, device=image.device)[:, None, None] for values in (MEAN, STD))
    return (x-mean)/std


def losses(net, batch, step):
    "Sections 4 and 5: {name: (weight, value)}"
    c, images, label, mask = net.config, batch["input"], batch["label"].long(), batch["trust"].long()
    labelled = online(net, images, c.threshold) if batch["epoch"] >= c.warmup else None
    order = order_of(len(images))
    images, label, mask, boundary = mix(images, label, mask, batch, c.mix_prob, c.edge_size, labelled)
    images = torch.stack([coloured(x, batch["colour"][k].tolist()) for x, k in zip(images, order)])
    z1, z2 = full(net.network1(images), images), full(net.network2(images), images)
    m, b = mask.float(), boundary.float()
    def entropy(z, y): return F.cross_entropy(z, y, ignore_index=IGNORE, reduction="none")
    first, second = ((entropy(z, label)*m*(1+c.w_edge*b)).mean() for z in (z1, z2))
    third = (entropy(z1, z2.argmax(dim=1))*(1-m)*(1+c.w_cot_edge*b)).mean()
    fourth = (entropy(z2, z1.argmax(dim=1))*(1-m)*(1+c.w_cot_edge*b)).mean()
    return {"seg": (1., first+second), "cot": (1., third+fourth)}
