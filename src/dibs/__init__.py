"""dibs: the first worker to call dibs on a key computes it; everybody else gets the result."""
