"""Files to samples to batches: decoding, sampling, transforms, text, shards, streams. Knows no network."""
