"""The sigmoe client: SDK and command line. Imports neither torch nor ray."""
