"""What proposes tokens ahead of the model: draft models that run in chains, and the look-up in a sequence itself."""
