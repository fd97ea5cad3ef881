"""Generated gRPC stubs of sigmoe.v1; made by `make proto`, never edited."""
