"""A trained model for others: exported, merged, with its card, and sent to the hub."""
