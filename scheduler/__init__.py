"""Continuous batching in plain Python: requests, sequences, blocks, prefix cache, plan and commit."""
