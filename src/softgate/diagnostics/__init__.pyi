from .collapse import CollapseMonitor as CollapseMonitor
from .collapse import CollapseWarning as CollapseWarning
from .collapse import nlm_alignment as nlm_alignment
from .collapse import softmax_collapse as softmax_collapse
from .sink import AttentionRecord as AttentionRecord
from .sink import SinkReport as SinkReport
from .sink import attention_sink as attention_sink
from .sink import record_attention as record_attention
