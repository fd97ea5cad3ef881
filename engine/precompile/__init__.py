"""Compiling a rank's kernels before it launches them: in processes of their own, while weights load."""
