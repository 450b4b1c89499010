from .dense_to_sparse import dense_to_sparse_gate as dense_to_sparse_gate
from .dense_to_sparse import topk_activation as topk_activation
from .dense_to_sparse import topk_dense_to_sparse as topk_dense_to_sparse
from .routers import TOP_K_ROUTERS as TOP_K_ROUTERS
from .top_k import topk_sigmoid as topk_sigmoid
from .top_k import topk_softmax as topk_softmax
