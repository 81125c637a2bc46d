"""Find out what makes results on a dataset untrustworthy."""
