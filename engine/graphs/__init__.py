"""Decodes and verifies in fixed shapes: what a device can record once and repeat, without a word from the host."""
