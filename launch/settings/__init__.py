"""Recipes, settings and the arguments that commands share."""
