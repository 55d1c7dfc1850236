"""The embedded world's towers: how each was trained, one file a tower."""
