"""One rank without Ray or gRPC: inbox, plan, batch, runner, commit, outbox."""
