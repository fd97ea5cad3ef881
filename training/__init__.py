"""Train the small BailingMoeV2 that ships in `models/sigmoe-demo`: text, tokenizer, network, optimisers, export."""
