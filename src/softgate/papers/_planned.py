"""The papers that softgate is made for but does not implement yet; an entry goes when its paper file comes."""

from softgate.lab.paper import PlannedPaper

PLANNED = (
    PlannedPaper(
        slug="layout-fusion",
        title="LLM-Guided Probabilistic Fusion for Label-Efficient Document Layout Analysis",
        arxiv="2511.08903",
        date="2025-11",
        sites=("detection",),
        summary="With few labelled pages, regions that a language model proposes from the words of a page and the "
        "teacher's boxes are fused by inverse variance and a learned gate into better pseudo-labels.",
    ),
    PlannedPaper(
        slug="root-offline-optimization",
        title="ROOT: Rethinking Offline Optimization as Distributional Translation via Probabilistic Bridge",
        arxiv="2509.16300",
        date="2025-09",
        venue="NeurIPS 2025",
        sites=("optim",),
        summary="Maximising an unknown function from a fixed set of samples becomes a translation: a Brownian bridge, "
        "trained on functions drawn from Gaussian processes, carries poor designs to good ones.",
    ),
    PlannedPaper(
        slug="max-former",
        title="Spiking Neural Networks Need High Frequency Information (Max-Former, Max-ResNet)",
        arxiv="2505.18608",
        date="2025-05",
        venue="NeurIPS 2025",
        sites=("models", "activations", "diagnostics"),
        summary="Networks of spiking neurons act as low-pass filters, and lose accuracy to that rather than to binary "
        "signals. Max-pooling in the patch embedding and convolutions in place of early attention bring them back.",
        slug="gradient-normalized-smoothness",
        title="Gradient-Normalized Smoothness for Optimization with Approximate Hessians",
        arxiv="2506.13710",
        date="2025-06",
        venue="ICLR 2026",
        sites=("optim",),
        summary="One scalar measures how far the gradient stays close to its linear model. A Newton step regularised "
        "with it, found by a short adaptive search, has the best known rates for many classes of functions and for "
        "approximate Hessians, among them log-sum-exp problems.",
    ),
    PlannedPaper(
        slug="backdoor-contrastive",
        title="Backdoor Contrastive Learning via Bi-level Trigger Optimization",
        arxiv="2404.07863",
        date="2024-04",
        venue="ICLR 2024",
        sites=("diagnostics",),
        summary="Triggers that are optimised against a simulated training run survive augmentation and stay close to "
        "the target class in a contrastive encoder. Planned here as an audit of robustness on small public data sets.",
    ),
    PlannedPaper(
        slug="maxim",
        title="MAXIM: Multi-Axis MLP for Image Processing",
        arxiv="2201.02973",
        date="2022-01",
        venue="CVPR 2022",
        sites=("models",),
        summary="Gated MLPs mix the pixels of an image within windows and across a dilated grid, and gate skip "
        "connections by each other: global, linear in the size of the image, and state of the art in restoration.",
        slug="lipsdp-quadratic-constraints",
        title="Novel Quadratic Constraints for Extending LipSDP beyond Slope-Restricted Activations",
        arxiv="2401.14033",
        date="2024-01",
        venue="ICLR 2024",
        sites=("activations", "diagnostics"),
        summary="GroupSort, MaxMin and Householder activations get semidefinite bounds on the Lipschitz constant of a "
        "network that are far tighter than the product of the layers' norms.",
    ),
    PlannedPaper(
        slug="fire-together-wire-together",
        title="Fire Together Wire Together: A Dynamic Pruning Approach with Self-Supervised Mask Prediction",
        arxiv="2110.08232",
        date="2021-10",
        venue="CVPR 2022",
        sites=("dynamic",),
        summary="A small predictor chooses per sample which filters of a convolution run, trained on which filters "
        "fired most, so that the saving can be set by one number before training.",
    ),
)
