"""Put a method into an existing model, reversibly, and keep it across saving and loading.

The public functions are at the top: ``softgate.swap``, ``softgate.unswap``, ``softgate.save_pretrained``,
``softgate.from_pretrained``. One file per library (``torch_nn``, ``transformers_models``, ``timm_models``), one per
place in the network (``activations``, ``losses``, ``routers``), and ``selftest``, which no swap of attention passes by.
"""
