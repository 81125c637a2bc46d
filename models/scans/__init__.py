"""The recurrences of Mamba and Mamba-2, each with several equivalent backends."""
