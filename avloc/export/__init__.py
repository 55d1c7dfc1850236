"""A run as a folder that others load: tensors, settings, a card that says what it reaches and on what terms."""
