"""Statistics: numbers in, numbers out, each with an interval. No torch."""
