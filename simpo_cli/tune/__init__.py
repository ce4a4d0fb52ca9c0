"""Studies over the numbers of a recipe, on evidence that holds."""
