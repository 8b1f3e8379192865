"""Commands as computations: declared, run or found, and put back as if they had just run."""
