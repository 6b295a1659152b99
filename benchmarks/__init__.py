"""What cqrs_sync costs, beside its peers and beside the least that the same work can cost: ``python -m benchmarks``."""
