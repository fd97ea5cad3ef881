"""Train an EAGLE3 head for a model: answers by the model itself, its inner states, training-time test, export."""
