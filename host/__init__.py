"""The driver: transports to a device, its memory and command ring, and the PyTorch integration."""
