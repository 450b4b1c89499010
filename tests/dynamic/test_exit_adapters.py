"""Exits in networks of other libraries: the last exit is the network, the others are on its blocks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from softgate.dynamic import EarlyExit
from softgate.errors import ArgumentTypeError, ArgumentValueError

IMAGES = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def _agree(model: EarlyExit, x, expected, exits: int) -> None:
    model.eval()
    with torch.no_grad():
        out = model(x)
        torch.testing.assert_close(out.logits[-1], expected, rtol=1e-4, atol=1e-5)
        assert len(out.logits) == exits and out.costs.tolist() == sorted(set(out.costs.tolist()))
        for gate in model.gates:
            nn.init.normal_(gate.linear.weight, std=4.0)
        for mode in ("compact", "sequential"):
            logits, level = model.infer(x, mode)
            assert torch.equal(level, model(x).level)
            torch.testing.assert_close(logits, model(x).y_logits, rtol=1e-4, atol=1e-5)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    assert names and all(name.startswith(("heads.", "gates.")) for name in names)


@pytest.mark.parametrize("options", [{}, {"global_pool": "avg"}, {"reg_tokens": 2, "no_embed_class": True}], ids=str)
def test_timm_vit(options) -> None:
    vit = pytest.importorskip("timm.models.vision_transformer")
    made = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2, "num_classes": 5}
    model = vit.VisionTransformer(**made, **options).eval()
    tokens = model.norm(model.forward_intermediates(IMAGES, intermediates_only=True, return_prefix_tokens=True,
                                                    output_fmt="NLC")[1][1][:, :1])[:, 0]  # fmt: skip
    exits = EarlyExit.from_timm_vit(model)
    _agree(exits, IMAGES, model(IMAGES), 4)
    if not options:  # the class token behind the final norm
        torch.testing.assert_close(exits.features(IMAGES).pooled[1], tokens)
    _agree(EarlyExit.from_timm_vit(model, every=2), IMAGES, model(IMAGES), 2)
    with pytest.raises(ArgumentValueError, match="every"):
        EarlyExit.from_timm_vit(model, every=4)


def test_torchvision_resnet() -> None:
    models = pytest.importorskip("torchvision.models")
    model = models.resnet18(num_classes=7).eval()
    _agree(EarlyExit.from_torchvision_resnet(model), IMAGES, model(IMAGES), 4)
    _agree(EarlyExit.from_torchvision_resnet(model, every=3), IMAGES, model(IMAGES), 3)


@pytest.mark.parametrize("family", ["Bert", "Roberta", "Electra", "DistilBert", "ViT"])
def test_transformers_encoder(family) -> None:
    library = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    if family == "DistilBert":
        sizes = {"dim": 32, "n_layers": 3, "n_heads": 2, "hidden_dim": 32}
    own = {"image_size": 32, "patch_size": 8} if family == "ViT" else {"vocab_size": 40, "max_position_embeddings": 20}
    task = "ImageClassification" if family == "ViT" else "SequenceClassification"
    config = getattr(library, f"{family}Config")(**sizes, **own, num_labels=3)
    model = getattr(library, f"{family}For{task}")(config).eval()
    if family == "ViT":
        _agree(EarlyExit.from_transformers_encoder(model), IMAGES, model(IMAGES).logits, 3)
        return
    ids = torch.randint(3, 40, (6, 9))
    _agree(EarlyExit.from_transformers_encoder(model), ids, model(ids).logits, 3)
    masked = {
        "input_ids": ids,
        "attention_mask": (torch.arange(9) < torch.tensor([[3], [9], [5], [1], [7], [9]])).long(),
    }
    _agree(EarlyExit.from_transformers_encoder(model, every=2), masked, model(**masked).logits, 2)


@pytest.mark.parametrize("name", ["from_timm_vit", "from_torchvision_resnet", "from_transformers_encoder"])
def test_another_network_is_refused(name) -> None:
    with pytest.raises(ArgumentTypeError, match="model must be"):
        getattr(EarlyExit, name)(nn.Linear(3, 3))
