"""The expert shard of one rank: weights, their layout in memory, and the grouped computation."""
