"""What works here, and what dead runs have left."""
