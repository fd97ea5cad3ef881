"""Each operation in fours: a torch reference, a fast implementation, a test and a benchmark."""
