"""Laws: named statements about an op that are tried on generated inputs.

A law is a function ``(op, draw)`` that raises if the law does not hold for that draw; the first line of its docstring
states it. Laws marked ``always`` are policies of the library and run for every op of their families; the others run
for ops whose record names them in ``laws``.
"""

from softgate.testing.laws._law import LAWS as LAWS
from softgate.testing.laws._law import Law as Law
from softgate.testing.laws._law import law as law
from softgate.testing.laws._law import law_checks as law_checks
from softgate.testing.laws.attention import all_masked_rows_zero as all_masked_rows_zero
from softgate.testing.laws.attention import batch_entries_are_independent as batch_entries_are_independent
from softgate.testing.laws.attention import batch_invariant as batch_invariant
from softgate.testing.laws.attention import bool_mask_equals_float_mask as bool_mask_equals_float_mask
from softgate.testing.laws.attention import causal_equals_mask as causal_equals_mask
from softgate.testing.laws.attention import causal_no_future_leak as causal_no_future_leak
from softgate.testing.laws.attention import decode_equals_prefill as decode_equals_prefill
from softgate.testing.laws.attention import gqa_equals_repeat as gqa_equals_repeat
from softgate.testing.laws.attention import key_permutation_invariant as key_permutation_invariant
from softgate.testing.laws.attention import masked_keys_do_not_matter as masked_keys_do_not_matter
from softgate.testing.laws.attention import masked_keys_equal_absent_keys as masked_keys_equal_absent_keys
from softgate.testing.laws.attention import scale_argument as scale_argument
from softgate.testing.laws.attention import value_linear as value_linear
from softgate.testing.laws.losses import (
    class_indices_equal_one_hot_probabilities as class_indices_equal_one_hot_probabilities,
)
from softgate.testing.laws.losses import class_permutation_invariant as class_permutation_invariant
from softgate.testing.laws.losses import ignore_index_removes as ignore_index_removes
from softgate.testing.laws.losses import label_smoothing_mixes as label_smoothing_mixes
from softgate.testing.laws.losses import mean_is_average as mean_is_average
from softgate.testing.laws.losses import nonnegative_loss as nonnegative_loss
from softgate.testing.laws.losses import positions_are_samples as positions_are_samples
from softgate.testing.laws.losses import shift_invariant_loss as shift_invariant_loss
from softgate.testing.laws.losses import weight_scales_samples as weight_scales_samples
from softgate.testing.laws.policies import fully_masked_rows as fully_masked_rows
from softgate.testing.laws.policies import masked_gradient_is_zero as masked_gradient_is_zero
from softgate.testing.laws.policies import nan_is_not_dropped as nan_is_not_dropped
from softgate.testing.laws.policies import nan_stays_in_its_batch_entry as nan_stays_in_its_batch_entry
from softgate.testing.laws.policies import nan_stays_in_its_sample as nan_stays_in_its_sample
from softgate.testing.laws.policies import one_entry_alone as one_entry_alone
from softgate.testing.laws.policies import row_independent as row_independent
from softgate.testing.laws.rows import even as even
from softgate.testing.laws.rows import exponentials_sum_to_one as exponentials_sum_to_one
from softgate.testing.laws.rows import gradient_sums_to_zero as gradient_sums_to_zero
from softgate.testing.laws.rows import in_range as in_range
from softgate.testing.laws.rows import masked_equals_removed as masked_equals_removed
from softgate.testing.laws.rows import maximum_bounds as maximum_bounds
from softgate.testing.laws.rows import nonnegative as nonnegative
from softgate.testing.laws.rows import odd as odd
from softgate.testing.laws.rows import order_preserving as order_preserving
from softgate.testing.laws.rows import permutation_equivariant as permutation_equivariant
from softgate.testing.laws.rows import permutation_invariant as permutation_invariant
from softgate.testing.laws.rows import shift_equivariant as shift_equivariant
from softgate.testing.laws.rows import shift_invariant as shift_invariant
from softgate.testing.laws.rows import sums_to_one as sums_to_one
