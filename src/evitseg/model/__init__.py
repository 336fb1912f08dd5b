"""The network in PyTorch: layers, attention, whole networks, and weights from elsewhere."""
