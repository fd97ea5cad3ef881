"""BailingMoeV2: configuration, checkpoint loading, the forward pass, paged KV cache, sampling."""
