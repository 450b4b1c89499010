from .ortho_grad import OrthoGrad as OrthoGrad
from .ortho_grad import project_orthogonal_ as project_orthogonal_
