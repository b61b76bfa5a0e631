"""`hermes-bench`: measures, side by side and on equal terms. Only `worker` and `make_model` import torch."""
