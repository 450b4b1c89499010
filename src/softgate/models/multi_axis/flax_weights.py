"""Weights of the authors' Flax models, from the plain arrays of an ``.npz`` file."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from os import PathLike
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from softgate.errors import ArgumentValueError, StateError, bad_type
from softgate.models.multi_axis.cross_gating import CrossGatingBlock, SpatialGate
from softgate.models.multi_axis.gated_mlp import AxisGatedMLP, MultiAxisGatedMLP
from softgate.models.multi_axis.layers import RCAB, RDCAB, ChannelAttention, SupervisedAttention
from softgate.models.multi_axis.model import MAXIM
from softgate.models.multi_axis.stage import MAXIMStage
from softgate.models.multi_axis.unet import Bottleneck, Decoder, Encoder, Groups, ResizedProjection

__all__ = ["load_flax_checkpoint"]

_PREFIX = "opt/target/"
#: Names of children in the authors' modules.
_NAMES: dict[type[nn.Module], dict[str, str]] = {
    MultiAxisGatedMLP: {"norm": "LayerNorm_in", "w_in": "in_project", "grid": "GridGmlpLayer",
                        "block": "BlockGmlpLayer", "w_out": "out_project"},
    ChannelAttention: {"squeeze": "Conv_0", "excite": "Conv_1"},
    RCAB: {"norm": "LayerNorm", "conv1": "conv1", "conv2": "conv2", "attention": "channel_attention"},
    RDCAB: {"norm": "LayerNorm", "w_in": "channel_mixing/Dense_0", "w_out": "channel_mixing/Dense_1",
            "attention": "channel_attention"},
    SpatialGate: {"norm": "LayerNorm_in", "w_in": "in_project", "grid": "Dense_0", "block": "Dense_1",
                  "w_out": "out_project"},
    CrossGatingBlock: {"up": "ConvTranspose_0", "project_x": "Conv_0", "project_y": "Conv_1",
                       "norm_x": "LayerNorm_x", "norm_y": "LayerNorm_y",
                       "w_in_x": "in_project_x", "w_in_y": "in_project_y",
                       "gate_x": "SplitHeadMultiAxisGating_x", "gate_y": "SplitHeadMultiAxisGating_y",
                       "w_out_x": "out_project_x", "w_out_y": "out_project_y"},
    SupervisedAttention: {"features": "Conv_0", "image": "Conv_1", "gate": "Conv_2"},
    ResizedProjection: {"project": "Conv_0"},
}  # fmt: skip


def load_flax_checkpoint(model: nn.Module, checkpoint: str | PathLike[str] | Mapping[str, Any]) -> None:
    """Fill ``model`` with weights of the authors' code.

    Nothing but plain arrays is read: no object of Python is unpickled. Save the result with safetensors.

    Args:
        model: a :class:`softgate.models.MAXIM`, or one of its blocks.
        checkpoint: an ``.npz`` file as the authors publish them, whose parameters have names ``opt/target/<path>``
            (what else it holds, such as the state of the optimizer, is left alone), or a mapping of paths, such as
            ``stage_0_input_conv_0/kernel``, to arrays.

    Raises:
        ArgumentTypeError: the model has no counterpart in the authors' code.
        ArgumentValueError: parameters are missing, left over, or of other shapes.
        StateError: the file is absent or no such file.

    Example:
        >>> model = ChannelAttention(4, reduction=2)
        >>> arrays = {"Conv_0/kernel": np.ones((1, 1, 4, 2)), "Conv_0/bias": np.zeros(2)}
        >>> arrays |= {"Conv_1/kernel": np.ones((1, 1, 2, 4)), "Conv_1/bias": np.zeros(4)}
        >>> load_flax_checkpoint(model, arrays)
        >>> float(model.squeeze.weight.detach().sum())
        8.0

    Source: google-research/maxim; the same names as its ``run_eval.py`` reads.
    """
    arrays = dict(checkpoint) if isinstance(checkpoint, Mapping) else _read(checkpoint)
    wanted = dict(_leaves(model, ""))
    missing, extra = sorted(wanted.keys() - arrays.keys()), sorted(arrays.keys() - wanted.keys())
    if missing or extra:
        raise ArgumentValueError(
            f"checkpoint must hold the {len(wanted)} parameters of the model; {_listed('missing', missing)}, "
            f"{_listed('not in the model', extra)}"
        )
    values = {}
    for name, (layer, parameter) in wanted.items():
        value = _from_flax(layer, name, np.asarray(arrays[name]))
        if value.shape != parameter.shape:
            raise ArgumentValueError(
                f"checkpoint must hold {name} for a parameter of shape {tuple(parameter.shape)}, got an array of "
                f"shape {np.shape(arrays[name])}"
            )
        values[name] = value
    with torch.no_grad():  # only once all are known to fit
        for name, (_, parameter) in wanted.items():
            parameter.copy_(values[name])


def _read(path: str | PathLike[str]) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as stored:
            found = {k.removeprefix(_PREFIX): stored[k] for k in stored.files if k.startswith(_PREFIX)}
    except (OSError, ValueError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise StateError(f"{path} cannot be read as an .npz file of plain arrays: {error}") from None
    if not found:
        raise StateError(f"{path} holds no array whose name begins with {_PREFIX}")
    return found


def _listed(what: str, names: list[str]) -> str:
    return f"{len(names)} {what}" + (f" ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})" if names else "")


def _leaves(module: nn.Module, path: str) -> Iterator[tuple[str, tuple[nn.Module, Tensor]]]:
    """Path, layer and value of every parameter."""
    if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d | nn.LayerNorm):
        yield f"{path}/{'scale' if isinstance(module, nn.LayerNorm) else 'kernel'}", (module, module.weight)
        assert module.bias is not None
        yield f"{path}/bias", (module, module.bias)
        return
    for name, child in _children(module):
        yield from _leaves(child, f"{path}/{name}" if path else name)


def _children(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Children with the names they have in the authors' code."""
    if isinstance(module, MAXIM):
        yield from _of_network(module)
    elif isinstance(module, AxisGatedMLP):
        unit = f"{module.axis.capitalize()}GatingUnit"
        yield from (("LayerNorm", module.norm), ("in_project", module.w_in), ("out_project", module.w_out))
        yield from ((f"{unit}/intermediate_layernorm", module.gate_norm), (f"{unit}/Dense_0", module.mix))
    elif isinstance(module, Decoder):
        yield "ConvTranspose_0", module.up
        yield from ((f"UNetEncoderBlock_0/{name}", child) for name, child in _of_groups(module, "Conv_0", ""))
    elif isinstance(module, Encoder):
        yield from _of_groups(module, "Conv_0", "")
        yield "Conv_1", module.down
        if module.cross is not None:
            yield "cross_gating_block", module.cross
    elif isinstance(module, Bottleneck):
        yield from _of_groups(module, "input_proj", "_")
    elif type(module) in _NAMES:
        names = _NAMES[type(module)]
        yield from ((names[name], child) for name, child in module.named_children())
    else:
        bad_type("model", module, "a MAXIM or one of its blocks")


def _of_groups(module: Groups, project: str, separator: str) -> Iterator[tuple[str, nn.Module]]:
    yield project, module.project
    yield from ((f"SplitHeadMultiAxisGmlpLayer_{i}", mixer) for i, mixer in enumerate(module.mixers))
    yield from ((f"channel_attention_block_1{separator}{i}", block) for i, block in enumerate(module.attentions))


def _of_network(model: MAXIM) -> Iterator[tuple[str, nn.Module]]:
    """Layers without a name of their own are numbered over all stages, in the order in which they are called."""
    resized, plain = 0, 0
    for index, stage in enumerate(model.stages):
        assert isinstance(stage, MAXIMStage)
        yield from ((f"stage_{index}_{name}", child) for name, child in _of_stage(stage))
        for projections in (*stage.bridges, *stage.skips):
            for child in projections.children():
                yield f"UpSampleRatio_{resized}", child
                resized += 1
        if not model.config.cross_gating:
            for gate in stage.gates:
                for child in gate.children():
                    yield f"Conv_{plain}", child
                    plain += 1


def _of_stage(stage: MAXIMStage) -> Iterator[tuple[str, nn.Module]]:
    depth, scales = stage.config.depth, stage.config.num_supervision_scales
    fusion = "input_fuse_sam" if stage.config.cross_gating else "input_catconv"
    head = "output_conv" if stage.is_last else "supervised_attention_module"
    fine_first = (("input_conv", stage.image_convs), (fusion, stage.fusions), ("encoder_block", stage.encoders),
                  ("global_block", stage.bottlenecks))  # fmt: skip
    for name, blocks in fine_first:
        yield from ((f"{name}_{level}", block) for level, block in enumerate(blocks))
    yield from ((f"decoder_block_{depth - 1 - place}", block) for place, block in enumerate(stage.decoders))
    yield from ((f"{head}_{scales - 1 - place}", block) for place, block in enumerate(stage.outputs))
    if stage.config.cross_gating:
        yield from ((f"cross_gating_block_{depth - 1 - place}", block) for place, block in enumerate(stage.gates))


def _from_flax(layer: nn.Module, name: str, value: NDArray[Any]) -> Tensor:
    """The array in torch's layout of axes; it may have the wrong shape."""
    if value.dtype.kind != "f":
        raise ArgumentValueError(f"checkpoint must hold {name} in floating point, got {value.dtype}")
    array = torch.from_numpy(np.array(value))
    if not name.endswith("/kernel"):
        return array
    if isinstance(layer, nn.Linear):  # a dense layer (in, out), or a 1×1 convolution (1, 1, in, out)
        array = array[0, 0] if array.ndim == 4 and array.shape[:2] == (1, 1) else array
        return array.mT if array.ndim == 2 else array
    if array.ndim != 4:
        return array
    if isinstance(layer, nn.ConvTranspose2d):  # Flax does not turn the kernel of a transposed convolution around
        return array.permute(2, 3, 0, 1).flip(2, 3)
    return array.permute(3, 2, 0, 1)
