"""Boxes for tests, and the definition of Soft-NMS written down once more in plain Python."""

import math

import torch


def scene(count, seed=0, *, clusters=5, dtype=torch.float32):
    """Boxes of a few objects with many guesses each, and distinct scores."""
    generator = torch.Generator().manual_seed(seed)
    centres, sides = (
        300 * torch.rand(clusters, 2, generator=generator),
        40 + 60 * torch.rand(clusters, 2, generator=generator),
    )
    which = torch.arange(count) % clusters
    shift = 0.15 * torch.randn(count, 4, generator=generator)
    middle, half = centres[which] + shift[:, :2] * sides[which], sides[which] * shift[:, 2:].exp() / 2
    scores = (torch.randperm(count, generator=generator) + 0.5) / max(count, 1)
    return torch.cat((middle - half, middle + half), 1).to(dtype), scores.to(dtype)


def overlap(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0.0) * max(height, 0.0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common
    return common / union if union > 0 else 0.0


def decay(o, method, sigma, threshold):
    if method == "gaussian":
        return math.exp(-o * o / sigma)
    return 1.0 if o <= threshold else 1.0 - o if method == "linear" else 0.0


def definition(boxes, scores, method="gaussian", sigma=0.5, iou_threshold=0.3, score_threshold=1e-3):
    """Kept indices and scores, box by box in float64."""
    b, s = boxes.double().tolist(), scores.double().tolist()
    alive = [i for i in range(len(s)) if score_threshold <= 0 or s[i] >= score_threshold]
    keep, final = [], []
    while alive:
        pick = max(alive, key=lambda i: (s[i], -i))
        alive.remove(pick)
        keep.append(pick)
        final.append(s[pick])
        for i in list(alive):
            s[i] *= decay(overlap(b[pick], b[i]), method, sigma, iou_threshold)
            if score_threshold > 0 and s[i] < score_threshold:
                alive.remove(i)
    return torch.tensor(keep, dtype=torch.int64), torch.tensor(final, dtype=torch.float64)
