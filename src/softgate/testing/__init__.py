'''The conformance suite: what every softgate op keeps, checked on any op, including one of your own.

Describe the op with :func:`softgate.registry.method` and hand it to :func:`check_op`:

    import torch
    from softgate.registry import method
    from softgate.testing import check_op

    def reference(x, dim=-1):
        return torch.relu(x) / torch.relu(x).sum(dim, keepdim=True)

    @method(
        site="normalizers",             # where it stands in a network, one of softgate.registry.SITES
        family="row_map",               # what its arguments look like, see below
        source="this docstring",
        reference=reference,            # plain torch, works in float64; left out: the function itself
        laws=("sums_to_one",),          # what it claims, beside the policies of its family
        output_range=(0.0, 1.0),
        register=False,                 # a record of its own, not one of the library's methods
    )
    def relu_normalised(x, dim=-1):
        """Positive parts, divided by their sum."""
        return my_kernel(x, dim)

    print(check_op(relu_normalised, quick=True))

``check_op`` returns a :class:`Report` if everything holds and raises one :class:`ConformanceError` that lists every
failed check with inputs that reproduce it. ``only="law[*"`` or ``only=["gradcheck", "jvp"]`` picks checks by name,
group or ``variant/name``; ``examples=20_000`` tries that many draws per law. In pytest, one test per check:

    @pytest.mark.parametrize("check", generate_checks(relu_normalised), ids=lambda check: check.title)
    def test_conformance(check):
        check.run()

What is checked, for every entry of the record's ``variants``:

``reference[dtype-inputs]``
    equals the reference in four dtypes on every family of inputs of its signature.
``gradient[dtype-inputs]``
    so do the gradients, in float32 (where kernels run) and bfloat16.
``device[cuda-dtype-inputs]``
    the same on a GPU, where there is one.
``gradcheck``, ``gradgradcheck``
    finite differences in float64, with forward mode and batched gradients.
``jvp``, ``jacrev_equals_jacfwd``, ``hessian``, ``double_backward``, ``vmap``, ``vmap_of_grad``
    transforms agree with each other and with the reference, in float32 too.
``compile[…]``, ``export``, ``meta_shape``, ``fake_tensor``
    no graph break with static and dynamic shapes and in the backward; right shapes without data.
``inputs_untouched``, ``no_alias``, ``deterministic``, ``no_uninitialised_memory``, …
    nothing overwritten or changed, the same bits every time, nothing read from memory that was never written.
``law[name]``
    policies of the family and the laws the record claims (:mod:`softgate.testing.laws`).
``exempt[name]``
    a policy that the record says (and why) cannot hold for this op indeed does not.
``bad_input[argument]``
    generated invalid calls and the record's ``bad_inputs``: each raises a ``SoftgateError`` that is a ``ValueError``
    or ``TypeError`` and names the argument.

Tolerances are derived, never given: see :mod:`softgate.testing.budgets`. Policies are on the page docs/numerics.md.

Signature families:

- ``row_map`` ``(x, dim)`` to the same shape; ``row_reduction`` ``(x, dim)`` to the shape without ``dim``;
  ``scalar_map`` ``(x)``, entry by entry. Further arguments have defaults. A record with ``samples`` brings all inputs
  itself.
- ``loss`` as :func:`torch.nn.functional.cross_entropy`: ``(input, target, weight, ignore_index, reduction,
  label_smoothing)``. Inputs and laws about an argument that the op does not have are left out.
- ``attention`` as :func:`torch.nn.functional.scaled_dot_product_attention`. Positional arguments after ``value`` come
  from ``samples(dtype, generator)``: a tensor that has the query's leading dimensions is drawn anew for other shapes.
- ``custom``: everything comes from ``samples``; gradients are taken of the positional tensors that require grad, or
  else of all floating-point ones. Where the reference is not differentiable, no transform is checked.

``SOFTGATE_TEST_EXAMPLES`` sets the draws per law (if unset 100 for the first variant of an op and 25 for the others; a
nightly run uses 20000). Draws are the same in every run. Laws need the package ``hypothesis`` (extra ``dev``); nothing
else needs more than torch and numpy.
'''

from softgate.testing.checks import check_op as check_op
from softgate.testing.checks import generate_checks as generate_checks
from softgate.testing.report import Check as Check
from softgate.testing.report import ConformanceError as ConformanceError
from softgate.testing.report import Failure as Failure
from softgate.testing.report import Report as Report

__all__ = ["Check", "ConformanceError", "Failure", "Report", "check_op", "generate_checks"]
