from .collapse_free import collapse_free_cross_entropy as collapse_free_cross_entropy
from .crammer_singer import CrammerSingerLoss as CrammerSingerLoss
from .crammer_singer import crammer_singer_loss as crammer_singer_loss
from .stable_max import StableMaxCrossEntropyLoss as StableMaxCrossEntropyLoss
from .stable_max import stablemax_cross_entropy as stablemax_cross_entropy
from .svm import L2SVMLoss as L2SVMLoss
from .svm import l2_svm_loss as l2_svm_loss
from .svm_head import SVMHead as SVMHead
