"""What the rooms offer: lazily re-exported, stated in a stub, importable as written."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import softgate
from softgate._lazy import public_names, stub
from softgate.registry import SITES, methods

SOURCE = Path(softgate.__file__).parent
ROOMS = sorted(p.parent for p in SOURCE.glob("*/__init__.py") if "attach(__name__)" in p.read_text(encoding="utf-8"))

#: The contract of the papers that are there.
NAMES = {
    "normalizers": [
        "softmax", "log_softmax", "logsumexp", "logsumexp_pair", "merge_pairs", "Softmax",
        "stablemax", "log_stablemax", "StableMax", "clipped_softmax", "ClippedSoftmax",
    ],
    "losses": [
        "stablemax_cross_entropy", "StableMaxCrossEntropyLoss", "collapse_free_cross_entropy",
        "z_loss", "ZLoss", "z_loss_from_stats", "taylor_softmax_loss", "spherical_softmax_loss",
        "FactoredSphericalLinear", "SphericalLinear", "HierarchicalSoftmax",
        "comp_sum_loss", "CompSumLoss", "comp_sum_probabilities", "generalized_cross_entropy", "mae_loss",
        "sum_exponential_loss", "AdvCompSumLoss", "pgd_attack", "h_consistency_bound", "minimizability_gap",
        "l2_svm_loss", "L2SVMLoss", "crammer_singer_loss", "CrammerSingerLoss", "SVMHead",
        "utility_to_probability", "fit_utility_transform", "mbr_decode",
        "FourierHead", "FourierDensity", "fourier_pmf", "pmf_smoothness",
        "DeepKernelClassifier", "HilbertClassifier", "nngp_kernel", "ntk_kernel",
        "fused_linear_loss", "linear_cross_entropy", "FusedLinearLoss", "selective_log_softmax_fused",
        "relative_local_counting_loss", "local_count",
    ],
    "routing": [
        "MoE", "moe_ffn", "TopKSoftmax", "DenseToSparse", "ActivationGate", "SigmoidBias", "load_balancing_loss",
        "router_z_loss", "importance_loss", "aux_losses", "parallelize", "topk_softmax", "dense_to_sparse_gate",
        "PromptMixture", "PromptBank", "mix_text_features", "mixture_logits", "hard_prompt_gate_target",
        "PixelwiseGate", "pixelwise_mixture", "HierarchicalMixture",
        "GaussianMoE", "voronoi_cells", "voronoi_loss", "hellinger", "convergence_rate", "gate_identifiability",
    ],
    "dynamic": [
        "EarlyExit", "ExitOutput", "exit_probabilities", "exit_level", "UncertaintyGate", "uncertainty_features",
        "JEILoss", "JEITrainer", "cache_features", "measure_costs", "ThresholdPolicy", "ConformalExit",
        "expected_calibration_error",
        "filter_scores", "topk_mass_mask", "uniform_mask", "MaskPredictor", "DynamicConv2d", "FilterMasks",
        "prune_dynamic", "DynamicNetwork", "DynamicStats", "FilterCosts", "estimate_flops", "choose_r",
        "mask_prediction_loss", "FTWTLoss", "DynamicTrainer",
    ],
    "policy": [
        "sapo_loss", "sapo_gate", "grpo_loss", "gspo_loss", "cispo_loss", "adpo_loss", "dpo_loss", "soft_grpo_loss",
        "SAPOLoss", "GRPOLoss", "GSPOLoss", "CISPOLoss", "ADPOLoss", "Anchor", "anchored_cross_entropy",
        "preference_target", "plackett_luce_loss", "ipo_loss", "robust_dpo_loss", "group_advantages", "PolicyStats",
        "SoftToken",
    ],
    "detection": [
        "soft_nms", "batched_soft_nms", "soft_nms_padded", "SoftNMS", "nms", "coco_results", "SoftNMSResult",
        "PaddedSoftNMSResult",
    ],
    "activations": [
        "RationalActivation", "rational",
        "HermiteActivation", "SineActivation", "dual_activation", "design_activation", "classify_activation",
        "crrelu", "CRReLU", "replace_activations", "eafo_correction", "worst_activation",
        "GroupSort", "MaxMin", "Householder", "group_sort", "householder",
        "hyrelu", "ClippedReLU", "calibrate_bounds", "protect", "strip", "proact_fit", "separate_relus",
        "lif", "LIF",
    ],
    "optim": [
        "OrthoGrad", "project_orthogonal_",
        "OptimisticOMD", "OptimisticHedge", "SwordPP", "OptimisticMirrorDescent", "optimistic_softmax",
        "minimize_gns", "GradNormSmooth", "scipy_gns", "GNSLogisticRegression", "gns_step", "OptimizeResult",
        "LogSumExp", "LogisticRegression", "SoftmaxRegression", "PowerResidual", "Rosenbrock", "ChebyshevChain",
        "SelfTuner", "HyperParam", "HyperSpace", "BestResponseLinear", "BestResponseConv2d", "BestResponseLSTM",
        "BestResponseEmbedding", "convert_best_response", "per_example_dropout", "hyper", "best_response_linear",
    ],
    "optim.curvature": [
        "DenseCurvature", "LowRankCurvature", "RankOneCurvature", "BlockDiagCurvature", "BandedCurvature",
        "MatVecCurvature",
    ],
    "attention": [
        "gated_attention", "GatedAttention", "fuse_qkvg", "unfuse_qkvg", "MultiHeadAttention",
        "sigmoid_attention", "sigmoid_attention_varlen", "SigmoidAttention", "LayerScale", "alibi_slopes",
        "softplus_attention", "SoftplusAttention", "lssa_weights",
        "clipped_softmax_attention", "HeadGate", "HeadGatedAttention",
        "softmax_free_attention", "SoftmaxFreeAttention", "newton_schulz_pinv", "gaussian_kernel",
        "norm_aware_linear_attention", "norm_aware_features", "NormAwareLinearAttention",
        "LinearAttention", "NormalizedAttention", "SelectiveSSM", "SSD", "QLSTM", "RGLRU",
    ],
    "diagnostics": [
        "attention_sink", "softmax_collapse", "nlm_alignment", "outliers", "ptq_evaluate",
        "report", "Report", "TrainingMonitor", "activation_entropy",
        "relative_log_amplitude", "high_frequency_ratio", "lif_transfer", "energy_report",
        "BitFlipInjector", "ber_curve",
        "lipschitz_bound", "LipschitzCertificate", "ImplicitModel",
        "mutual_information", "InformationPlane", "information_sensitivity", "adaptive_edges", "kde_entropy",
        "System", "from_softmax", "from_linear_attention", "from_normalized_attention", "from_s6", "from_ssd",
        "from_qlstm", "from_rglru", "compare_systems",
        "LinearRegressionPrompts", "AttentionICL", "icl_attention", "circuit_report",
        "SoftmaxRegression", "softmax_regression_loss", "target_shift", "shift_bound",
    ],
    "diagnostics.dsf": ["System", "compare"],
    "diagnostics.icl": [
        "LinearRegressionPrompts", "AttentionICL", "risk", "optimal_single_head", "optimal_multi_head",
        "bayes_risk_mc", "circuit_report", "predictors",
    ],
    "diagnostics.icl.predictors": ["gd", "debiased_gd", "preconditioned_gd", "ridge", "kernel_smoother"],
    "diagnostics.softmax_regression": [
        "loss", "grad", "hessian", "grad_A", "SoftmaxRegression", "target_shift", "shift_bound",
    ],
    "attention.analysis": ["solve_query"],
    "models": [
        "GPT", "ViT", "SOFTViT", "soft_tiny", "NaLaFormer", "NALAFORMER_CONFIGS",
        "GRUSVM", "CNNSVM", "GRUCellResetBefore", "ResNet",
        "MAXIM", "MAXIM_CONFIGS", "MAXIMConfig", "MAXIMStage", "MultiAxisGatedMLP", "AxisGatedMLP", "CrossGatingBlock",
        "SpatialGate", "RCAB", "RDCAB", "SupervisedAttention", "axis_mix", "restore", "load_flax_checkpoint",
        "HMoDE", "IAPTConfig", "IAPTModel", "get_iapt_model", "PromptGenerator", "SelfAttentionPool",
        "MaxFormer", "MaxResNet", "SpikingSelfAttention", "TokenQKAttention", "SpikingMLP", "DepthwiseMixer",
        "PoolMixer", "EmbedOrig", "EmbedMax", "EmbedMaxPlus", "Embed1Max", "max_former_cifar", "max_former_10_384",
        "max_resnet18",
    ],
    "numpy": ["softmax", "log_softmax", "logsumexp"],
    "testing": ["check_op"],
    "native": ["info"],
    "swapping.attention_interface": ["register_all"],
    "integrations.torchvision_cpu": ["repair"],
    "integrations.diagnosis": ["diagnose"],
}  # fmt: skip


@pytest.mark.parametrize(("room", "name"), [(room, name) for room, names in NAMES.items() for name in names])
def test_promised_names_are_importable(room, name):
    assert hasattr(importlib.import_module(f"softgate.{room}"), name)


@pytest.mark.parametrize("name", [name for name in softgate.__all__ if name != "__version__"])
def test_what_stands_at_the_top_is_a_documented_function(name):
    assert callable(getattr(softgate, name)) and getattr(softgate, name).__doc__


@pytest.mark.parametrize("room", ROOMS, ids=lambda p: p.name)
def test_every_listed_name_exists_and_is_documented(room):
    module = importlib.import_module(f"softgate.{room.name}")
    for name in public_names(room):
        assert getattr(module, name).__doc__, f"{room.name}.{name} has no docstring"


@pytest.mark.parametrize("room", ROOMS, ids=lambda p: p.name)
def test_stub_states_what_the_room_offers(room):
    assert (room / "__init__.pyi").read_text(encoding="utf-8") == stub(room), "run: make stubs"


def test_rooms_are_known_sites():
    assert {room.name for room in ROOMS} <= set(SITES)


def test_unknown_names_raise_attribute_errors_that_help():
    with pytest.raises(AttributeError, match="gated_attention"):
        _ = softgate.attention.nonsense
    with pytest.raises(AttributeError, match="nonsense"):
        _ = softgate.nonsense


def test_a_module_may_not_hide_a_function(tmp_path):
    (tmp_path / "twin.py").write_text('__all__ = ["twin"]\n')
    with pytest.raises(ImportError, match="twin"):
        public_names(tmp_path)


def test_two_modules_may_not_offer_one_name(tmp_path):
    for module in ("a", "b"):
        (tmp_path / f"{module}.py").write_text('__all__ = ["same"]\n')
    with pytest.raises(ImportError, match="same"):
        public_names(tmp_path)


def test_every_method_is_public_where_its_record_says():
    for record in methods():
        assert getattr(importlib.import_module(f"softgate.{record.site}"), record.name) is record.function


def test_importing_softgate_and_its_numpy_entry_point_imports_no_torch():
    code = "import sys, softgate, softgate.numpy as s\nassert s.softmax([0.0, 0.0]).tolist() == [0.5, 0.5]\n"
    code += "assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
