"""Open, verify and describe prepared datasets."""
