"""Fine-tuning of a trained model: it learns to follow an image that it is given, and is measured."""
