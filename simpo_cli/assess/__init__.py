"""`simpo eval`: models held against their start and against one another, on the same pairs."""
