"""Training on the kept images, and drawing from what was trained. Needs the extra ``[train]``."""
