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
        slug="backdoor-contrastive",
        title="Backdoor Contrastive Learning via Bi-level Trigger Optimization",
        arxiv="2404.07863",
        date="2024-04",
        venue="ICLR 2024",
        sites=("diagnostics",),
        summary="Triggers that are optimised against a simulated training run survive augmentation and stay close to "
        "the target class in a contrastive encoder. Planned here as an audit of robustness on small public data sets.",
    ),
)
