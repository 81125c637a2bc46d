"""The recurrences of Mamba and Mamba-2, each in several equivalent forms."""
