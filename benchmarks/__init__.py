"""What it costs, measured against a plain forward pass and against the peers, in one run."""
