"""From hidden states to experts and back: gate, placement, dispatch and combine, load statistics."""
