from .batches import batched_soft_nms as batched_soft_nms
from .coco import coco_results as coco_results
from .layer import SoftNMS as SoftNMS
from .padding import PaddedSoftNMSResult as PaddedSoftNMSResult
from .padding import soft_nms_padded as soft_nms_padded
from .suppression import SoftNMSResult as SoftNMSResult
from .suppression import nms as nms
from .suppression import soft_nms as soft_nms
