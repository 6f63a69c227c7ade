"""Matrix-free linear algebra that knows nothing of networks."""
