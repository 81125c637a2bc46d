"""Open, check and describe prepared datasets."""
