"""What a training step and a reconstruction cost, measured against other packages' methods: `python -m benchmarks`."""
