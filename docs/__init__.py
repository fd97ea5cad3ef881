"""Pages about sigmoe, and the programs that write the reference pages."""
